"""How fast a list of servers at risk is read out of 100,000 by a running service, against the bare SQL of the page.

    python -m benchmarks.listed [--servers 100000] [--pages 4] [--rounds 4]

A generated fleet is stored as the end of a run stores it; `headroom serve` answers over HTTP. Each sort with each
filter is asked page after page, 100 servers each. The seconds of an answer are those in the service's own log (from the
first byte of the request to the last of the answer). In turns with it, a warm connection is asked for what the page
shows in one statement: the servers by the index, their quantiles, scores, history and attributes; its rows are fetched,
and nothing is made of them. Then another threshold is asked of a fleet of 10,000, which is read and judged anew.
"""

import argparse
import asyncio
import json
import tempfile
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, get_args
from uuid import UUID, uuid4

import httpx
import numpy as np
import psycopg
import sqlalchemy as sa
from sqlalchemy.dialects import postgresql
from sqlalchemy.dialects.postgresql.psycopg import dialect as psycopg_dialect

from app.domain.dataset import Contents, Quality, Unit
from app.domain.forecast import ForecastRequest
from app.domain.panel import Frequency
from app.domain.risk import Sort
from app.storage import datasets, forecasts, risk_rows
from app.storage import tables as t
from app.storage.database import Database
from benchmarks.processes import service
from benchmarks.stored import DAYS, ENDS, HORIZON, METRIC, STARTS, Made, keep, made

LIMIT = 100
ANEW_SERVERS = 10_000
FILTERS: tuple[dict[str, str], ...] = (
    {},
    {"level": "very_high"},
    {"level": "underutilized"},
    {"region": "region-3"},
    {"level": "high", "region": "region-5"},
    {"business_unit": "unit-7", "criticality": "gold"},
)
SORTS: tuple[Sort, ...] = get_args(Sort)


@dataclass(frozen=True)
class Asked:
    """One page: milliseconds of the service, of the client that waited for it, and of the bare SQL."""

    served: float
    waited: float
    bare: float


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--servers", type=int, default=100_000)
    arguments.add_argument("--pages", type=int, default=4, help="of each list")
    arguments.add_argument("--rounds", type=int, default=4)
    asked = arguments.parse_args()
    with tempfile.TemporaryDirectory(prefix="headroom-bench-") as name:
        folder = Path(name)
        folder.chmod(0o711)
        with service(folder, "serve") as tree, psycopg.connect(tree.database, autocommit=True) as connection:
            whole, began = made(asked.servers), time.perf_counter()
            forecast, run = asyncio.run(_stored(tree.database, whole))
            print(f"{asked.servers:,} servers × {HORIZON} days stored in {time.perf_counter() - began:.1f} s")
            connection.execute("VACUUM ANALYZE")  # autovacuum does it within a minute
            _explained(connection, run)
            with httpx.Client(base_url=tree.address, timeout=60) as client:
                pages = list(_lists(client, connection, folder / "serve.log", forecast, run, asked.pages, asked.rounds))
                _reported(pages)
                small, _ = asyncio.run(_stored(tree.database, made(ANEW_SERVERS)))
                _anew(client, small)


def _lists(
    client: httpx.Client, connection: psycopg.Connection, log: Path, forecast: UUID, run: UUID, pages: int, rounds: int
) -> Iterator[Asked]:
    """Once unmeasured, then `rounds` times."""
    for again, sort, wanted in product(range(rounds + 1), SORTS, FILTERS):
        after: str | None = None
        cursor: dict[str, str] = {}
        for _ in range(pages):
            name = uuid4().hex
            asked = {"forecast_id": str(forecast), "sort": sort, "limit": str(LIMIT), **wanted, **cursor}
            began = time.perf_counter()
            answer = client.get("/risk/servers", params=asked, headers={"X-Request-ID": name})
            waited = time.perf_counter() - began
            body = answer.json()
            statement = _bare(run, wanted, sort, after)
            began = time.perf_counter()
            rows = connection.execute(*statement).fetchall()
            bare = time.perf_counter() - began
            assert [row[0] for row in rows[:LIMIT]] == [item["server_id"] for item in body["items"]], answer.text
            if again:
                yield Asked(_logged(log, name) * 1e3, waited * 1e3, bare * 1e3)
            if body["next_cursor"] is None:
                break
            after, cursor = body["items"][-1]["server_id"], {"cursor": body["next_cursor"]}


def _bare(run: UUID, wanted: dict[str, str], sort: Sort, after: str | None) -> tuple[bytes, dict[str, Any]]:
    """All that the page shows, in one statement, which the driver prepares; arrays as bytes, read fastest so."""
    its = {name: [value] for name, value in wanted.items()}
    page = risk_rows.page_query(run, its, sort, after, LIMIT + 1).subquery("page")
    arrays = [sa.func.array_send(t.results.c[name]) for name in ("p10", "p50", "p90")]
    shown = [t.results.c[name] for name in ("as_of", "step", "fallback", "coverage", "shifted_at")]
    known = [t.dataset_servers.c[name] for name in ("first_at", "last_at", "rows", "counts", "maxima", "attributes")]
    query = (
        sa.select(*page.c, *shown, *arrays, *known)
        .join(t.results, sa.and_(t.results.c.run_id == run, t.results.c.server_id == page.c.server_id))
        .join(t.runs, t.runs.c.id == t.results.c.run_id)
        .join(t.forecasts, t.forecasts.c.id == t.runs.c.forecast_id)
        .join(
            t.dataset_servers,
            sa.and_(
                t.dataset_servers.c.dataset_id == t.forecasts.c.dataset_id,
                t.dataset_servers.c.server_id == page.c.server_id,
            ),
        )
        .order_by(page.c.place)
    )
    compiled = query.compile(dialect=psycopg_dialect())
    return str(compiled).encode(), dict(compiled.params)


def _text(query: sa.Select[Any]) -> str:
    return str(query.compile(dialect=postgresql.dialect(), compile_kwargs={"literal_binds": True}))


def _logged(log: Path, request: str) -> float:
    """Seconds of an answer, as the service logged them; the line follows the answer at once."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        with log.open("rb") as lines:
            lines.seek(max(0, log.stat().st_size - 4_096))
            for line in lines.read().splitlines()[::-1]:
                if request.encode() in line and b'"seconds"' in line:
                    return float(json.loads(line)["seconds"])
        time.sleep(0.001)
    raise SystemExit(f"the service logged nothing of request {request}")


def _explained(connection: psycopg.Connection, run: UUID) -> None:
    after = connection.execute(
        "SELECT server_id FROM risks WHERE run_id = %s AND by_runway = %s", (run, 3 * LIMIT)
    ).fetchone()
    assert after is not None
    query = _text(risk_rows.page_query(run, {"region": ["region-3"]}, "runway", after[0], LIMIT))
    plan = connection.execute(f"EXPLAIN (ANALYZE, COSTS OFF, BUFFERS) {query}").fetchall()
    print("a later page of region-3 by runway:", *(f"    {line}" for (line,) in plan), sep="\n")


def _reported(pages: list[Asked]) -> None:
    print(f"{len(pages)} pages of {LIMIT}, every sort and filter; milliseconds:  p50    p99   most")
    for name in ("served", "waited", "bare"):
        p50, p99, most = np.percentile([getattr(page, name) for page in pages], (50, 99, 100))
        print(f"    {name:12}{p50:50.1f}{p99:7.1f}{most:7.1f}")
    ratio = np.percentile([page.served for page in pages], (50, 99)) / np.percentile(
        [page.bare for page in pages], (50, 99)
    )
    print(f"    served / bare {ratio[0]:47.1f}{ratio[1]:7.1f}")


def _anew(client: httpx.Client, forecast: UUID) -> None:
    seconds = []
    for threshold in (85, 80, 75, 70, 65):
        began = time.perf_counter()
        asked: dict[str, str | int] = {"forecast_id": str(forecast), "threshold": threshold, "limit": LIMIT}
        answer = client.get("/risk/servers", params=asked)
        seconds.append(time.perf_counter() - began)
        assert answer.status_code == 200, answer.text
    print(
        f"another threshold, {ANEW_SERVERS:,} servers: {seconds[0]:.2f} s the first time, "
        f"then {min(seconds[1:]):.2f} to {max(seconds[1:]):.2f} s"
    )


async def _stored(url: str, fleet: Made) -> tuple[UUID, UUID]:
    """A forecast that succeeded, and its run."""
    database = Database(url)
    dataset, forecast, run = uuid4(), uuid4(), uuid4()
    contents = Contents(
        rows=DAYS * len(fleet.servers),
        servers=len(fleet.servers),
        metrics=(METRIC,),
        units={METRIC: Unit.PERCENT},
        attributes=tuple(fleet.servers[0].attributes),
        known_ahead=(),
        frequency=Frequency.DAILY,
        start=STARTS,
        end=ENDS,
        quality=Quality(0, 0, 0, 0),
    )
    async with database.begin() as connection:
        await datasets.insert(
            connection, dataset_id=dataset, parent_id=None, name="fleet", location="-", sha256="-", contents=contents
        )
        await datasets.copy_servers(connection, dataset, fleet.servers)
        await forecasts.insert(connection, forecast, ForecastRequest(dataset, METRIC, HORIZON), "succeeded", [])
        ended = sa.update(t.forecasts).where(t.forecasts.c.id == forecast)
        await connection.execute(ended.values(best_model="auto", finished_at=sa.func.now()))
        made = sa.insert(t.runs).values(id=run, forecast_id=forecast, position=0, model="auto", status="succeeded")
        await connection.execute(made)
        await keep(connection, run, fleet)
    await database.close()
    return forecast, run


if __name__ == "__main__":
    main()
