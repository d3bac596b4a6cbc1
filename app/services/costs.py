"""What paid runs cost, out of the ledger, and whether another one may start. Estimates are called estimates."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime

from app.domain.cost import LIST_PRICES, Assumptions, Balance, Microdollars, PriceTable, shown
from app.storage import ledger
from app.storage.database import Database
from app.storage.ledger import By, Total


@dataclass(frozen=True)
class Terms:
    """On what terms money may be spent. `paid_runs` is the kill switch."""

    paid_runs: bool
    monthly_budget: Microdollars
    prices: PriceTable = LIST_PRICES
    assumed: Assumptions = field(default_factory=Assumptions)

    def refusal(self, expected: Microdollars, cap: Microdollars) -> str | None:
        """Why no run that is expected to cost this much may start under that cap; None when it may.

        Whether the month still has room is not known here: the reservation tells.
        """
        if not self.paid_runs:
            return "Paid runs are switched off in this installation (HEADROOM_PAID_RUNS)."
        if self.monthly_budget <= 0:
            return "This installation has no budget for paid runs (HEADROOM_MONTHLY_BUDGET_USD)."
        if expected > cap:
            return f"It is estimated to cost {shown(expected)}; `max_cost_usd` allows {shown(cap)}."
        if cap > self.monthly_budget:
            return f"`max_cost_usd` {shown(cap)} is more than the monthly budget of {shown(self.monthly_budget)}."
        return None


@dataclass(frozen=True)
class Report:
    """Sums per group and over all groups, and how the present month stands, whatever was asked for."""

    groups: Sequence[Total]
    total: Balance
    month_start: datetime
    month_committed: Microdollars
    monthly_budget: Microdollars
    basis: str


class Costs:
    def __init__(self, database: Database, terms: Terms) -> None:
        self._database = database
        self.terms = terms

    async def report(
        self, start: datetime | None, end: datetime | None, by: By, *, before: int | None, limit: int
    ) -> Report:
        """Of the lines booked from `start` to `end`, inclusive; `before` is the position of the last group seen."""
        async with self._database.connect() as connection:
            return Report(
                groups=await ledger.totals(connection, start, end, by, before=before, limit=limit),
                total=await ledger.total(connection, start, end),
                month_start=await ledger.month_start(connection),
                month_committed=await ledger.month_committed(connection),
                monthly_budget=self.terms.monthly_budget,
                basis=ledger.ESTIMATED,
            )
