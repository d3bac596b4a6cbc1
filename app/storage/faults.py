"""What a passing failure means to whoever asked: try again, or make room. It leaves out our own mistakes.

SQLAlchemy's and psycopg's errors carry an SQLSTATE; the classes are those of the PostgreSQL manual, appendix A.
"""

import errno

import psycopg
import psycopg_pool
from sqlalchemy import exc

from app.errors import HeadroomError, InsufficientStorage, Unavailable

_AWAY = "The database cannot be reached just now. Nothing that was acknowledged is lost; try again shortly."
_FULL = "The store has no room left. Nothing was kept of this request; make room, then send it again."

_DISK_FULL = "53100"
_TRANSIENT = (
    "08",  # connection exception
    "25006",  # read-only: a failover is under way
    "40",  # rollback: serialisation failure, deadlock
    "53",  # insufficient resources: too many connections, out of memory
    "55P03",  # lock not available: a migration holds the table
    "57",  # operator intervention: shutdown, restart, cancelled statement
    "58",  # system error: an I/O error below PostgreSQL
)


def classify(error: BaseException) -> HeadroomError | None:
    """What to answer when `error` came from a database, a disk or another part that is away; None where the fault is
    in our own code."""
    if isinstance(error, Unavailable | InsufficientStorage):
        return error
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return InsufficientStorage(_FULL)
    if isinstance(error, exc.TimeoutError | psycopg_pool.PoolTimeout):
        return Unavailable(_AWAY)
    original = error.orig if isinstance(error, exc.DBAPIError) else error
    if not isinstance(original, psycopg.Error):
        return None
    state = original.sqlstate or ""
    if state == _DISK_FULL:
        return InsufficientStorage(_FULL)
    lost = not state and isinstance(original, psycopg.OperationalError | psycopg.InterfaceError)
    if lost or state.startswith(_TRANSIENT):
        return Unavailable(_AWAY)
    return None
