"""The cost meter: what all this would have cost at AWS's list prices.

Prices are those of us-east-1 as four public tables agree on, not confirmed at AWS; what has none is listed unpriced.
"""

from app.emulator.automl import instance
from app.emulator.protocol import Body
from app.emulator.state import Account

USD_PER_HOUR = {
    "ml.m5.large": 0.115,
    "ml.m5.xlarge": 0.23,
    "ml.m5.2xlarge": 0.461,
    "ml.m5.4xlarge": 0.922,
    "ml.m5.12xlarge": 2.765,
    "ml.m5.24xlarge": 5.53,
    "ml.c5.xlarge": 0.204,
    "ml.c5.2xlarge": 0.408,
    "ml.c5.4xlarge": 0.816,
    "ml.c5.9xlarge": 1.836,
    "ml.c5.18xlarge": 3.672,
}


def meter(account: Account) -> Body:
    """Billed so far; of what is under way, up to now."""
    with account.lock:
        now = account.clock.now()
        lines = [
            _line("training", one.name, job.name, instance(job), 1, min(now, one.end) - one.start)
            for job, one in account.trainings()
            if one.start < now
        ]
        lines += [
            _line(
                "transform",
                job.name,
                None,
                job.request["TransformResources"]["InstanceType"],
                job.request["TransformResources"]["InstanceCount"],
                min(now, job.billed_until) - job.start,
            )
            for job in account.transforms.values()
            if job.start < min(now, job.billed_until)
        ]
    return {
        "emulated": True,
        "currency": "USD",
        "prices": "list prices, us-east-1, not confirmed at AWS",
        "lines": lines,
        "total_microdollars": sum(line["microdollars"] or 0 for line in lines),
        "total_usd": sum(line["microdollars"] or 0 for line in lines) / 1_000_000,
        "unpriced": sorted({line["instance_type"] for line in lines if line["microdollars"] is None}),
    }


def _line(kind: str, name: str, automl_job: str | None, instance: str, count: int, seconds: float) -> Body:
    billed = round(seconds)
    price = USD_PER_HOUR.get(instance)
    return {
        "kind": kind,
        "name": name,
        "automl_job": automl_job,
        "instance_type": instance,
        "instance_count": count,
        "billed_seconds": billed,
        "microdollars": None if price is None else round(billed * count * price * 1_000_000 / 3600),
    }
