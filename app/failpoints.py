"""Named places where a test can make a process die, freeze or fail, to prove what must hold.

    HEADROOM_FAILPOINTS="after_claim=kill,fit.prophet.SRV-0003=raise"

Nothing happens where the variable is not set; it is read once, at import.
"""

import os
import signal

_SET = dict(point.split("=", 1) for point in os.environ.get("HEADROOM_FAILPOINTS", "").split(",") if "=" in point)


class Injected(Exception):
    """Raised where a test asked for it."""


def reach(name: str) -> None:
    """Kill (SIGKILL) or freeze (SIGSTOP) this process, or raise, if a test has set this failpoint to do so."""
    match _SET.get(name):
        case "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        case "stop":
            os.kill(os.getpid(), signal.SIGSTOP)
        case "raise":
            raise Injected(f"failpoint {name}")
