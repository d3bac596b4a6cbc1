"""The control endpoint under /_emulator: what a test steers, and what it reads.

GET  /_emulator                  what this is
GET  /_emulator/clock            POST {"stop": true} | {"start": true} | {"advance": seconds} | {"speed": times}
GET  /_emulator/faults           POST {"operation", "fault", "times": 1} · DELETE
GET  /_emulator/journal          ?service= &operation= · DELETE
GET  /_emulator/costs
POST /_emulator/reset            forgets jobs, faults and journal, and starts the clock; S3 stays
"""

import json
from typing import Any

from app.emulator import costs
from app.emulator.constraints import OPERATIONS
from app.emulator.faults import CALL, JOB, OUTPUT
from app.emulator.protocol import Answer, AwsError, Body
from app.emulator.state import Account

PATH = "/_emulator"
WAIT = 120.0
"""Real seconds that a step waits for what is due to be carried out."""


def serve(account: Account, method: str, path: str, query: dict[str, str], content: bytes) -> Answer:
    try:
        sent = json.loads(content) if content else {}
        status, body = 200, _do(account, method, path.removeprefix(PATH).strip("/"), query, sent)
    except AwsError as problem:
        status, body = problem.status, {"error": problem.message}
    except ValueError:
        status, body = 400, {"error": "The body is not JSON."}
    written = json.dumps(body).encode()
    return Answer(status, written, (("Content-Type", "application/json"), ("Content-Length", str(len(written)))))


def _do(account: Account, method: str, what: str, query: dict[str, str], sent: Any) -> Body:
    match method, what:
        case "GET", "":
            return {
                "emulated": True,
                "about": "Headroom's stand-in for SageMaker, S3, STS and IAM. Nothing here is AWS or costs money.",
                "operations": sorted(OPERATIONS),
                "faults": CALL | JOB | OUTPUT,
            }
        case "GET", "clock":
            return _clock(account)
        case "POST", "clock":
            return _set_clock(account, sent)
        case "GET", "faults":
            return {"faults": account.faults.waiting()}
        case "POST", "faults":
            account.faults.arm(sent, OPERATIONS)
            return {"faults": account.faults.waiting()}
        case "DELETE", "faults":
            account.faults.clear()
            return {"faults": []}
        case "GET", "journal":
            return {"calls": account.journal.read(query.get("service"), query.get("operation"))}
        case "DELETE", "journal":
            account.journal.clear()
            return {"calls": []}
        case "GET", "costs":
            return costs.meter(account)
        case "POST", "reset":
            account.clear()
            account.faults.clear()
            account.journal.clear()
            account.clock.start()
            return {}
    raise AwsError("NotFound", f"There is no {method} {PATH}/{what}.", 404)


def _clock(account: Account) -> Body:
    clock = account.clock
    return {"now": clock.now(), "speed": clock.speed, "running": clock.running}


def _set_clock(account: Account, sent: Any) -> Body:
    clock = account.clock
    match sent:
        case {"stop": True}:
            clock.stop()
        case {"start": True}:
            clock.start()
        case {"speed": int() | float() as speed} if speed > 0 and not isinstance(speed, bool):
            clock.set_speed(speed)
        case {"advance": int() | float() as seconds} if seconds >= 0 and not isinstance(seconds, bool):
            clock.advance(seconds)
            _carry_out_what_is_due(account)
        case _:
            raise AwsError("BadClock", 'Say {"stop": true}, {"start": true}, {"advance": seconds} or {"speed": times}.')
    return _clock(account)


def _carry_out_what_is_due(account: Account) -> None:
    """After a step the account stands as it would have stood had time passed."""
    with account.lock:
        now = account.clock.now()
        due = [job for job in account.jobs() if job.end <= now]
        learning = [job for job in account.automl.values() if job.plan.candidate_at <= now]
    for one in learning:
        one.learnt.wait(WAIT)
    for job in due:
        job.carried_out.wait(WAIT)
        if job.worker is not None and job.at_rest <= now:
            job.worker.join(WAIT)
