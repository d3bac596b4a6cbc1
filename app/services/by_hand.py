"""The results that a person exported from the Canvas screens, as the `canvas` run of a forecast.

    file (and backtest) ─ read in a child ─▶ judged as it came ─▶ one transaction: run, results, forecast

It is scored on the newest window, if there is an export of a model that was trained before it. Nothing of this needs
AWS. Receiving the files is the API's; what they may look like is canvas.outcome's.
"""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from uuid import UUID

from app.compute import ChildDied, Compute, TooSlow
from app.domain.forecast import Forecast, ForecastStatus
from app.domain.risk import Levels
from app.domain.run import Run, RunError, RunStatus
from app.errors import Complaint, Conflict, Invalid, NotFound, TooLarge
from app.services import judging
from app.services.canvas import CANVAS
from app.services.fitting import Judged, Part, judge_run
from app.services.judging import Plan
from app.services.managed_files import collect_by_hand
from app.storage import forecasts as stored_forecasts
from app.storage import results as stored_results
from app.storage import runs as stored_runs
from app.storage.artifacts import Store
from app.storage.database import Connection, Database

BY_HAND = "by_hand"
"""What the report of such a run has: that, and what it was scored on."""

_NOT_ASKED = RunError("not-asked", "Canvas was not asked for.")


@dataclass(frozen=True)
class Exported:
    """What a person brings: the forecast, and that of a model trained before the newest window, to score it by."""

    file: Path
    backtest: Path | None = None


class ByHand:
    def __init__(
        self, database: Database, store: Store, compute: Compute, country: str, levels: Levels, seconds: float
    ) -> None:
        self._database, self._store, self._compute = database, store, compute
        self._country, self._levels, self._seconds = country, levels, seconds

    async def check(self, forecast_id: UUID) -> None:
        """Raises NotFound, or Conflict where results may not be brought, before anybody sends a large file."""
        async with self._database.connect() as connection:
            _open(await stored_forecasts.get(connection, forecast_id), forecast_id)

    async def bring(self, forecast_id: UUID, exported: Exported, folder: Path) -> Forecast:
        """The forecast, with these as the results of its `canvas` run. `folder` is for files of the time being.

        Raises NotFound, Conflict, Invalid (`bad-model-output`) for a file that cannot be used, TooLarge.
        """
        await self.check(forecast_id)
        plan = await judging.planned(self._database, self._store, forecast_id, self._country)
        if plan is None:
            raise _unknown(forecast_id)
        possible = plan.windows
        plan = replace(plan, windows=0 if exported.backtest is None else 1)
        if plan.windows > possible:
            raise _bad("backtest", "The history is too short to score anything on its end. Leave `backtest` out.")
        try:
            parts = [await self._part(plan, exported.file, "file", 0, folder)]
            if exported.backtest is not None:
                parts.append(await self._part(plan, exported.backtest, "backtest", 1, folder))
            case = judging.case(plan, CANVAS, parts, self._levels)
            judged = await self._compute.run(judge_run, case, seconds=self._seconds)
        except (ChildDied, TooSlow) as died:
            raise TooLarge(f"The files could not be read within the limits: {died}.") from died
        return await self._stored(plan, judged)

    async def _part(self, plan: Plan, file: Path, field: str, window: int, folder: Path) -> Part:
        """One file as the judge reads it."""
        request, out = plan.forecast.request, folder / f"{field}.npy"
        cut = window * request.horizon
        task = (collect_by_hand, file, plan.source, plan.servers, cut, request.horizon, request.levels, out)
        try:
            await self._compute.run(*task, seconds=self._seconds)
        except Invalid as refused:
            raise _bad(field, refused.detail) from refused
        return Part(CANVAS, window, 0, len(plan.servers), str(out))

    async def _stored(self, plan: Plan, judged: Judged) -> Forecast:
        """All in one transaction, under the forecast's lock: meanwhile it may have been cancelled or deleted."""
        forecast_id = plan.forecast.id
        async with self._database.begin() as connection:
            forecast = _open(await stored_forecasts.hold(connection, forecast_id), forecast_id)
            run = _canvas_of(forecast) or await _added(connection, forecast, len(plan.servers))
            await stored_runs.bring(
                connection,
                run.id,
                run.status,
                "brought by hand",
                estimated_microusd=run.actual_microusd,
                **judging.columns(plan, judged, 0.0, {BY_HAND: True}),
            )
            await stored_results.clear(connection, run.id)
            await judging.keep(connection, run.id, plan, judged)
            await stored_forecasts.settle_again(connection, forecast, CANVAS, [_warning(plan, judged)])
            made = await stored_forecasts.get(connection, forecast_id)
        assert made is not None
        return made


def refusal(forecast: Forecast) -> str | None:
    """Why results may not be brought to a forecast as it stands."""
    run = _canvas_of(forecast)
    if forecast.status == ForecastStatus.CANCELLED or (run and run.status is RunStatus.CANCELLED):
        return "The forecast was cancelled. Submit it again, and bring the results to the new one."
    if run is not None and not run.status.is_terminal:
        return f"The canvas run is {run.status}; wait for its end, or cancel the forecast."
    if run is not None and run.status is RunStatus.SUCCEEDED and not is_by_hand(run):
        return "The canvas run has succeeded on AWS; its results stay. Bring yours to a forecast of its own."
    return None


def is_by_hand(run: Run) -> bool:
    return bool(run.report and run.report.get(BY_HAND))


def _open(forecast: Forecast | None, forecast_id: UUID) -> Forecast:
    if forecast is None:
        raise _unknown(forecast_id)
    if (why := refusal(forecast)) is not None:
        raise Conflict(why)
    return forecast


def _canvas_of(forecast: Forecast) -> Run | None:
    return next((run for run in forecast.runs if run.model == CANVAS), None)


async def _added(connection: Connection, forecast: Forecast, servers: int) -> Run:
    """A run that nobody asked for begins as one that never started."""
    position = 1 + max(run.position for run in forecast.runs)
    run = Run.queued(forecast.id, CANVAS, position, servers).skipped(_NOT_ASKED, datetime.now(UTC))
    await stored_runs.insert(connection, [run])
    return run


def _warning(plan: Plan, judged: Judged) -> str:
    request = plan.forecast.request
    if plan.windows == 0:
        return (
            "canvas: brought by hand, without a `backtest`, so it is unscored. To have it scored, train another model "
            f"on canvas.csv?metric={request.metric}&before={request.horizon}, and send its export as `backtest`, "
            "beside this one."
        )
    if judged.scores is None:
        return "canvas: brought by hand; the newest window has no values to score it by."
    if request.backtest_windows > 1:
        return "canvas: brought by hand, and scored on the newest window alone, not on all that the others have."
    return "canvas: brought by hand."


def _bad(field: str, detail: str) -> Invalid:
    return Invalid(
        f"The file `{field}` cannot be used. {detail}",
        errors=[Complaint(f"/{field}", "bad-model-output", detail)],
        slug="bad-model-output",
    )


def _unknown(forecast_id: UUID) -> NotFound:
    return NotFound(f"There is no forecast {forecast_id}.")
