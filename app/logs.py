"""Structured logs: one JSON object a line on standard error, through the standard `logging`.

A value can never start a new line or a new field, whatever it holds, for it is JSON. What must stay secret is not
logged in the first place: no headers, no query strings, no bodies.
"""

import json
import logging
import sys
from contextvars import ContextVar
from datetime import UTC, datetime
from typing import Any

from app.errors import HeadroomError

request_id: ContextVar[str] = ContextVar("request_id", default="")
"""Id of the request that is being answered; it is on every line that the answer causes."""

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "color_message", "taskName"}


class JsonLines(logging.Formatter):
    """`{"at", "level", "logger", "message", …}` and whatever was passed as `extra`."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "logger": record.name,
            "message": record.getMessage(),
        }
        if request_id.get():
            line["request_id"] = request_id.get()
        line |= {name: value for name, value in vars(record).items() if name not in _STANDARD}
        if record.exc_info and record.exc_info[1] is not None:
            error = record.exc_info[1]
            # Our own errors are written for people and say all; a traceback is for what nobody foresaw.
            line["error"] = error.detail if isinstance(error, HeadroomError) else self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: int = logging.INFO) -> None:
    """Send everything that is logged in this process, libraries included, to standard error as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    for noisy in ("procrastinate", "cmdstanpy", "prophet", "httpx", "botocore"):
        logging.getLogger(noisy).setLevel(logging.WARNING)
    for name in ("uvicorn", "uvicorn.error", "uvicorn.access"):
        logging.getLogger(name).handlers.clear()
        logging.getLogger(name).propagate = True
    # The edge logs each answer itself, with its request id and without the query.
    logging.getLogger("uvicorn.access").setLevel(logging.WARNING)
