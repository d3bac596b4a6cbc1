"""Simulated time: what is written into answers, and what jobs take.

While a job is under way it runs `speed` times as fast as real time, so that half an hour of training passes in
seconds; with nothing to do it runs at the pace of real time, so that its dates stay near those of the client. It
can be stopped, and stepped.
"""

import threading
import time
from collections.abc import Callable

SPEED = 240.0


class Clock:
    """All times are seconds since the epoch, of simulated time."""

    def __init__(self, speed: float = SPEED) -> None:
        self._changed = threading.Condition()
        self._speed = speed
        self._running = True
        self._sim = time.time()
        self._real = time.monotonic()
        self._busy_until = self._sim

    def now(self) -> float:
        with self._changed:
            return self._at(time.monotonic())

    @property
    def speed(self) -> float:
        return self._speed

    @property
    def running(self) -> bool:
        return self._running

    def hurry_until(self, deadline: float) -> None:
        """There is work until then: pass the time quickly."""
        with self._changed:
            self._settle()
            self._busy_until = max(self._busy_until, deadline)
            self._changed.notify_all()

    def stop(self) -> None:
        self._set(running=False)

    def start(self) -> None:
        self._set(running=True)

    def set_speed(self, speed: float) -> None:
        self._set(speed=speed)

    def advance(self, seconds: float) -> None:
        with self._changed:
            self._settle()
            self._sim += seconds
            self._changed.notify_all()

    def wake(self) -> None:
        """Let those who wait look again whether they still have to."""
        with self._changed:
            self._changed.notify_all()

    def wait_until(self, moment: float, given_up: Callable[[], bool]) -> bool:
        """Sleep to that moment of simulated time; False as soon as there is no more need to."""
        with self._changed:
            while not given_up():
                now = self._at(time.monotonic())
                if now >= moment:
                    return True
                self._changed.wait(self._real_seconds(now, moment))
        return False

    def _set(self, running: bool | None = None, speed: float | None = None) -> None:
        with self._changed:
            self._settle()
            self._running = self._running if running is None else running
            self._speed = self._speed if speed is None else speed
            self._changed.notify_all()

    def _settle(self) -> None:
        real = time.monotonic()
        self._sim, self._real = self._at(real), real

    def _at(self, real: float) -> float:
        if not self._running:
            return self._sim
        passed = real - self._real
        quick = max(self._busy_until - self._sim, 0.0) / self._speed
        return self._sim + (passed * self._speed if passed <= quick else quick * self._speed + passed - quick)

    def _real_seconds(self, now: float, moment: float) -> float | None:
        if not self._running:
            return None
        quick = max(min(moment, self._busy_until) - now, 0.0)
        return quick / self._speed + (moment - now - quick) + 0.001
