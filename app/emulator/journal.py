"""A journal of every call that came from outside, in memory, the newest hundred thousand."""

import threading
import time
from collections import deque

from app.emulator.protocol import Body

KEPT = 100_000


class Journal:
    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._entries: deque[Body] = deque(maxlen=KEPT)
        self._number = 0

    def add(self, service: str, operation: str, **entry: object) -> None:
        with self._lock:
            self._number += 1
            self._entries.append(
                {"number": self._number, "at": time.time(), "service": service, "operation": operation, **entry}
            )

    def read(self, service: str | None = None, operation: str | None = None) -> list[Body]:
        with self._lock:
            return [
                one
                for one in self._entries
                if service in (None, one["service"]) and operation in (None, one["operation"])
            ]

    def clear(self) -> None:
        with self._lock:
            self._entries.clear()
