"""What this process counts about itself, for Prometheus. Each app has its own registry; nothing is global."""

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

from app.services.health import Queue

MEDIA_TYPE = "text/plain; version=0.0.4; charset=utf-8"


class Measures:
    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self._requests = Counter(
            "headroom_requests", "Answers given", ["method", "route", "status"], registry=self._registry
        )
        self._seconds = Histogram(
            "headroom_request_seconds", "Time to the end of the answer", ["method", "route"], registry=self._registry
        )
        self._runs = Gauge("headroom_runs", "Runs that are not finished", ["status"], registry=self._registry)
        self._overdue = Gauge(
            "headroom_runs_overdue_seconds", "How long the run that waits longest is overdue", registry=self._registry
        )

    def answered(self, method: str, route: str, status: int, seconds: float) -> None:
        """Count one answer, under the template of its route: a path would make a series per id."""
        self._requests.labels(method, route, status).inc()
        self._seconds.labels(method, route).observe(seconds)

    def text(self, queue: Queue) -> bytes:
        """Everything, in Prometheus's text format."""
        for status, runs in queue.runs.items():
            self._runs.labels(status).set(runs)
        self._overdue.set(queue.overdue_seconds)
        return generate_latest(self._registry)
