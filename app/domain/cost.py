"""Money: prices, what a Canvas run is expected to cost, and the kinds of line in the ledger. No storage, no AWS.

Amounts are whole micro-dollars, never floats; every price is rounded up. What AWS does not say is an assumption with a
name (`Assumptions`); docs/costs.md writes the sums out and says what is known.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from decimal import Decimal, InvalidOperation
from enum import StrEnum
from math import ceil, inf
from types import MappingProxyType

Microdollars = int
"""Millionths of a US dollar."""


def microdollars(usd: float | str) -> Microdollars:
    """An amount that a person wrote, in dollars; more than six decimals are cut off. Raises ValueError."""
    try:
        amount = Decimal(str(usd))
    except InvalidOperation:
        raise ValueError(f"{usd!r} is not an amount of dollars") from None
    if not amount.is_finite() or amount < 0:
        raise ValueError(f"{usd!r} is not an amount of dollars")
    return int(amount * 1_000_000)


def dollars(amount: Microdollars) -> float:
    """For answers: exact to the micro-dollar."""
    return amount / 1_000_000


def shown(amount: Microdollars) -> str:
    """For sentences: `$0.20`, or as many decimals as it takes."""
    text = f"{Decimal(amount) / 1_000_000:.6f}"
    whole, cents = text.split(".")
    return f"${whole}.{cents[:2]}{cents[2:].rstrip('0')}"


class Kind(StrEnum):
    """What a line of the ledger says. Over a closed attempt of a run: reserved + overrun = settled + released."""

    RESERVED = "reserved"
    """set aside before the first paid call: what the attempt may cost"""
    SETTLED = "settled"
    """spent, for one purpose: billed seconds × configured prices"""
    RELEASED = "released"
    """what was set aside and not spent"""
    OVERRUN = "overrun"
    """spent beyond what was set aside; against the budget all the same"""


RUN = "run"
"""The purpose of a line that is about the whole attempt: its reservation, and what is released of it."""

TRAINING = "automl"
"""The purpose of the AutoML job; `automl-again` is that of its retraining, where there is one."""


@dataclass(frozen=True)
class Balance:
    """The sums of some lines, by kind."""

    reserved: Microdollars = 0
    settled: Microdollars = 0
    released: Microdollars = 0
    overrun: Microdollars = 0

    @property
    def committed(self) -> Microdollars:
        """What counts against a budget: spent, or still set aside."""
        return self.reserved + self.overrun - self.released

    @property
    def held(self) -> Microdollars:
        """Set aside, and neither spent nor given back yet. 0 for what is closed."""
        return self.committed - self.settled


@dataclass(frozen=True)
class Usage:
    """What one job of AWS used. `seconds` are those that AWS bills, of each of `count` instances."""

    job: str
    instance: str
    seconds: float
    count: int = 1


@dataclass(frozen=True)
class Settled:
    """What one purpose of an attempt has cost; `detail` says how that came about."""

    purpose: str
    amount: Microdollars
    detail: Mapping[str, object] = field(default_factory=dict)


@dataclass(frozen=True)
class PriceTable:
    """Price of an instance, in micro-dollars an hour; as seen in `region` on the day `as_of`."""

    per_hour: Mapping[str, Microdollars]
    as_of: str
    region: str = "us-east-1"

    @classmethod
    def of(cls, given: Mapping[str, str | float]) -> "PriceTable":
        """The table that a person wrote: `{"ml.m5.large": 0.115, …, "as_of": "2025-11-01", "region": "eu-west-1"}`.

        Raises ValueError when the date, or an instance that transforms run on, is not in it.
        """
        prices = {name: microdollars(price) for name, price in given.items() if name not in ("as_of", "region")}
        if not str(given.get("as_of", "")).strip():
            raise ValueError("prices need `as_of`, the day on which they were looked up")
        missing = [instance for _, instance, _ in TRANSFORM_INSTANCES if not prices.get(instance)]
        if missing:
            raise ValueError(f"prices need {', '.join(missing)}, in dollars an hour")
        return cls(MappingProxyType(prices), str(given["as_of"]), str(given.get("region", "the configured region")))

    def knows(self, instance: str) -> bool:
        return instance in self.per_hour

    def hourly(self, instance: str) -> Microdollars:
        """An instance that is not in the table costs as much as the dearest that is."""
        return self.per_hour.get(instance, max(self.per_hour.values()))

    def price(self, instance: str, seconds: float, count: int = 1) -> Microdollars:
        """Of `count` instances for so many seconds, each begun second paid in full, rounded up."""
        return -(-self.hourly(instance) * max(ceil(seconds), 0) * count // 3_600)

    def total(self, used: Iterable[Usage]) -> Microdollars:
        return sum(self.price(one.instance, one.seconds, one.count) for one in used)

    def settled(self, purpose: str, used: Sequence[Usage]) -> Settled:
        """The ledger line of one purpose, with each job and price that it comes from."""
        jobs = [{**asdict(one), "usd_per_hour": dollars(self.hourly(one.instance))} for one in used]
        unknown = sorted({one.instance for one in used if not self.knows(one.instance)})
        detail = {"jobs": jobs, "prices_as_of": self.as_of, "region": self.region}
        return Settled(purpose, self.total(used), detail | ({"priced_as_dearest": unknown} if unknown else {}))


LIST_PRICES = PriceTable(
    MappingProxyType(
        {
            "ml.m5.large": 115_000,
            "ml.m5.xlarge": 230_000,
            "ml.m5.2xlarge": 461_000,
            "ml.m5.4xlarge": 922_000,
            "ml.m5.12xlarge": 2_765_000,
            "ml.m5.24xlarge": 5_530_000,
            "ml.c5.xlarge": 204_000,
            "ml.c5.2xlarge": 408_000,
            "ml.c5.4xlarge": 816_000,
            "ml.c5.9xlarge": 1_836_000,
            "ml.c5.18xlarge": 3_672_000,
        }
    ),
    as_of="2026-11-23",
)
"""On demand. Written down on that day from public tables that agree, not confirmed at AWS; `HEADROOM_PRICES` replaces
them. The largest c5 stood in one of the tables only."""

TRANSFORM_INSTANCES = ((10, "ml.m5.large", 2), (100, "ml.m5.xlarge", 4), (1_000, "ml.m5.4xlarge", 16))
"""(megabytes of input up to which, instance, its vCPUs); the last one also takes what is larger."""


@dataclass(frozen=True)
class Assumptions:
    """What AWS says nowhere, or only after the fact. `HEADROOM_COST_ASSUMPTIONS` replaces any of them."""

    training_instance: str = "ml.m5.xlarge"
    """what the jobs that an AutoML job starts run on; AWS picks it, and has no field to ask for another"""
    training_instances: float = 2.0
    """how many of them are busy on average, over the whole time limit of the AutoML job"""
    row_bytes: float = 40.0
    """one row of the input: server, day, value, three known-ahead columns"""
    transform_start_seconds: float = 240.0
    """billed before a transform reads its first row"""
    transform_vcpu_seconds_per_mb: float = 40.0
    """one core's work on a megabyte of input"""

    @classmethod
    def of(cls, given: Mapping[str, str | float]) -> "Assumptions":
        """The defaults, less those given. Raises ValueError for a name that there is not, or no number."""
        names = [one.name for one in fields(cls)]
        if unknown := sorted(set(given) - set(names)):
            raise ValueError(f"there is no assumption {', '.join(unknown)}; there are {', '.join(names)}")
        numbers = {name: value for name, value in given.items() if name != "training_instance"}
        for name, value in numbers.items():
            if not isinstance(value, int | float) or not 0 <= value < inf:
                raise ValueError(f"{name} must be a number from 0 on, not {value!r}")
        return replace(cls(), **given)  # type: ignore[arg-type]


@dataclass(frozen=True)
class Item:
    """One part of an estimate; the purpose is that of its ledger line."""

    purpose: str
    instance: str
    instances: float
    seconds: float
    amount: Microdollars


@dataclass(frozen=True)
class Estimate:
    """What a run is expected to cost, and to take: all trainings side by side, then all transforms."""

    items: tuple[Item, ...]

    @property
    def total(self) -> Microdollars:
        return sum(item.amount for item in self.items)

    @property
    def seconds(self) -> float:
        training = max((item.seconds for item in self.items if item.purpose == TRAINING), default=0.0)
        return training + max((item.seconds for item in self.items if item.purpose != TRAINING), default=0.0)


def transform_instance(megabytes: float) -> tuple[str, int]:
    """The instance that a transform of so much input takes, and its vCPUs: small fleets a small one."""
    for limit, instance, vcpus in TRANSFORM_INSTANCES:
        if megabytes <= limit:
            return instance, vcpus
    return TRANSFORM_INSTANCES[-1][1:]


def estimate(
    *,
    servers: int,
    steps: int,
    horizon: int,
    windows: int,
    training_seconds: float,
    trainings: int = 1,
    prices: PriceTable = LIST_PRICES,
    assumed: Assumptions = Assumptions(),
) -> Estimate:
    """Of one Canvas run over `servers` series of `steps` rows.

    `training_seconds` is the time limit of one AutoML job. `trainings` is 0 for a model that is used again, 2 where the
    back-test and the forecast have one each. Each of `windows` back-test windows has a transform of its own, over the
    history before it; every file goes on to the end of its horizon.
    """
    training = Item(
        TRAINING,
        assumed.training_instance,
        assumed.training_instances * trainings,
        training_seconds,
        trainings * prices.price(assumed.training_instance, ceil(training_seconds * assumed.training_instances)),
    )
    transforms = [_transform("transform-forecast", servers * (steps + horizon), prices, assumed)] + [
        _transform(f"transform-window-{window}", servers * (steps - (window - 1) * horizon), prices, assumed)
        for window in range(1, windows + 1)
    ]
    return Estimate(((training,) if trainings else ()) + tuple(transforms))


def _transform(purpose: str, rows: int, prices: PriceTable, assumed: Assumptions) -> Item:
    megabytes = max(rows, 0) * assumed.row_bytes / 1e6
    instance, vcpus = transform_instance(megabytes)
    seconds = assumed.transform_start_seconds + megabytes * assumed.transform_vcpu_seconds_per_mb / vcpus
    return Item(purpose, instance, 1.0, seconds, prices.price(instance, seconds))
