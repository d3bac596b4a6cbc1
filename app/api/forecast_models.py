"""What forecasts look like in JSON, in and out."""

from dataclasses import asdict
from datetime import datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import BaseModel, ConfigDict, Field, StrictBool, StrictFloat, StrictInt, field_validator

from app.api.strict import Body, Text
from app.domain.forecast import MAX_HORIZON, Forecast, ForecastRequest, Model
from app.domain.quantiles import BASE
from app.domain.run import Run
from app.domain.tally import Pooled
from app.services.accuracy import Accuracy, ModelAccuracy
from app.services.answers import NOMINAL_COVERAGE
from app.services.comparisons import Group
from app.services.forecasts import Estimate

EXAMPLE: dict[str, Any] = {
    "dataset_id": "0b8f7a52-54c5-4d7b-9c0c-8a2f4f6b1d11",
    "metric": "cpu_p95",
    "horizon": 30,
    "quantiles": [0.1, 0.5, 0.9],
    "models": ["seasonal_naive"],
    "backtest_windows": 1,
    "name": "monthly review",
}


class ForecastBody(Body):
    """A forecast to make: one run per model. Only `dataset_id` and `metric` are required."""

    model_config = ConfigDict(json_schema_extra={"examples": [EXAMPLE]})

    dataset_id: UUID = Field(description="The dataset whose history is learnt from.", examples=[EXAMPLE["dataset_id"]])
    metric: Text = Field(description="One of the dataset's metrics.", min_length=1, examples=["cpu_p95"])
    horizon: StrictInt = Field(90, ge=1, le=MAX_HORIZON, description="Steps to forecast, days or hours.", examples=[90])
    quantiles: list[Annotated[StrictFloat, Field(gt=0, lt=1)]] = Field(
        list(BASE),
        min_length=1,
        max_length=99,
        description="Levels between 0 and 1; 0.1, 0.5 and 0.9 are always added.",
        examples=[[0.1, 0.5, 0.9]],
    )
    models: list[Model] = Field(
        ["auto"], min_length=1, description="One run each; `auto` is the ensemble.", examples=[["auto", "prophet"]]
    )
    server_ids: list[Text] | None = Field(
        None, min_length=1, description="Only these servers; null for all.", examples=[None]
    )
    backtest_windows: StrictInt = Field(
        1, ge=1, le=12, description="Last blocks of `horizon` steps that are scored.", examples=[1]
    )
    max_cost_usd: Annotated[StrictFloat | StrictInt, Field(ge=0)] | None = Field(
        None, description="Cost cap of the paid runs; null for the service's own.", examples=[0.2]
    )
    fallback: StrictBool = Field(
        True, description="Whether local models answer when `canvas` can't; false refuses instead.", examples=[True]
    )
    reuse_models_of: UUID | None = Field(
        None,
        description="An earlier forecast, whose trained model `canvas` uses again: no training is paid, and it is"
        " scored on windows that it has not seen. Local models learn anew; `warnings` say why, for each.",
        examples=[None],
    )
    name: Text | None = Field(None, max_length=200, description="For people.", examples=["monthly review"])

    @field_validator("quantiles", "models", "server_ids")
    @classmethod
    def nothing_twice(cls, values: list[Any] | None) -> list[Any] | None:
        if values and len(set(values)) != len(values):
            raise ValueError("must not repeat a value")
        return values

    def request(self, default_cost: float) -> ForecastRequest:
        return ForecastRequest(
            dataset_id=self.dataset_id,
            metric=self.metric,
            horizon=self.horizon,
            quantiles=tuple(sorted(self.quantiles)),
            models=tuple(self.models),
            server_ids=tuple(self.server_ids) if self.server_ids is not None else None,
            backtest_windows=self.backtest_windows,
            max_cost_usd=default_cost if self.max_cost_usd is None else float(self.max_cost_usd),
            fallback=self.fallback,
            reuse_models_of=self.reuse_models_of,
            name=self.name,
        )


class Cost(BaseModel):
    """US dollars; local runs cost nothing."""

    estimated_usd: float = Field(description="Before the run; an estimate.", examples=[0.0])
    actual_usd: float = Field(description="Settled from what was billed.", examples=[0.0])


class RunProblem(BaseModel):
    """Why a run failed or was skipped."""

    code: str = Field(description="For programs.", examples=["model-failed"])
    detail: str = Field(description="For people.", examples=["prophet failed on 60 of 69 servers"])


class RunState(BaseModel):
    """One model of the forecast."""

    model: Model = Field(examples=["prophet"], description="Which model.")
    status: Literal["queued", "running", "succeeded", "failed", "cancelled", "skipped"] = Field(
        description="`skipped`: it never started, `error` says why."
    )
    stage: str | None = Field(description="What a running one is at.", examples=["fitting"])
    progress: float = Field(description="0 to 1.", examples=[0.4])
    servers: int = Field(description="Servers with enough history.", examples=[69])
    fallback_servers: int = Field(description="Of them, those that another model answered for.", examples=[0])
    cost: Cost = Field(description="What it costs.")
    error: RunProblem | None = Field(description="Why it failed or was skipped.")
    report: dict[str, Any] | None = Field(
        description="What was changed and learnt: values filled into gaps, outliers capped, quantiles uncrossed,"
        " servers whose level shifted lately, weights of an ensemble's members.",
        examples=[{"windows": 4, "filled_values": 12, "capped_outliers": 3, "crossed_quantiles": 0, "level_shifts": 1}],
    )
    started_at: datetime | None = Field(description="First claimed by a worker.")
    finished_at: datetime | None = Field(description="When it ended.")

    @classmethod
    def of(cls, run: Run) -> "RunState":
        return cls(
            model=run.model,
            status=run.status.value,
            stage=run.stage,
            progress=round(run.progress, 4),
            servers=run.servers,
            fallback_servers=run.fallback_servers,
            cost=Cost(estimated_usd=run.estimated_microusd / 1e6, actual_usd=run.actual_microusd / 1e6),
            error=RunProblem(code=run.error.code, detail=run.error.detail) if run.error else None,
            report=run.report,
            started_at=run.started_at,
            finished_at=run.finished_at,
        )


class ForecastState(BaseModel):
    """A forecast and its runs."""

    id: UUID = Field(description="Its id.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    status: Literal["queued", "running", "succeeded", "failed", "cancelled"] = Field(
        description="`succeeded` when one run has; `warnings` says what did not."
    )
    progress: float = Field(description="0 to 1, over all runs.", examples=[0.42])
    warnings: list[str] = Field(description="What a reader of the results should know.", examples=[[]])
    best_model: Model | None = Field(description="Rank 1 of the succeeded runs, set once, at the end.")
    runs: list[RunState] = Field(description="One per model, in the order asked for.")
    cost: Cost = Field(description="Sum of the runs.")
    request: dict[str, Any] = Field(description="The body, after defaults.", examples=[EXAMPLE])
    created_at: datetime = Field(description="When it was accepted.")
    finished_at: datetime | None = Field(description="When its last run ended.")

    @classmethod
    def of(cls, forecast: Forecast) -> "ForecastState":
        runs = [RunState.of(run) for run in forecast.runs]
        return cls(
            id=forecast.id,
            status=forecast.status,
            progress=round(forecast.progress, 4),
            warnings=list(forecast.warnings),
            best_model=forecast.best_model,
            runs=runs,
            cost=Cost(
                estimated_usd=sum(run.cost.estimated_usd for run in runs),
                actual_usd=sum(run.cost.actual_usd for run in runs),
            ),
            request=forecast.request.to_json(),
            created_at=forecast.created_at,
            finished_at=forecast.finished_at,
        )


class ExpectedRun(BaseModel):
    """What one model would do."""

    model: Model = Field(description="Which model.", examples=["auto"])
    eligible: bool = Field(description="Whether it would run.", examples=[True])
    reason: str | None = Field(description="Why not.", examples=[None])
    seconds: float | None = Field(description="Rough seconds of work on one core.", examples=[4.2])
    estimated_usd: float = Field(description="Estimated cost.", examples=[0.0])


class Excluded(BaseModel):
    """A server that would be in no run."""

    server_id: str = Field(description="Which server.", examples=["SRV-0042"])
    reason: str = Field(description="Why.", examples=["9 values of cpu_p95; 14 are needed"])


class ExpectedServers(BaseModel):
    """Who takes part."""

    eligible: int = Field(description="Servers with enough history.", examples=[69])
    excluded: list[Excluded] = Field(description="The others.")


class ExpectedCost(BaseModel):
    """US dollars."""

    estimated_usd: float = Field(description="Sum of the runs.", examples=[0.0])


class EstimateState(BaseModel):
    """What a forecast would do and cost. Nothing was started."""

    runs: list[ExpectedRun] = Field(description="Those that would be made, fallback included.")
    servers: ExpectedServers = Field(description="Who takes part.")
    cost: ExpectedCost = Field(description="What it would cost.")

    @classmethod
    def of(cls, estimate: Estimate) -> "EstimateState":
        return cls(
            runs=[
                ExpectedRun(
                    model=run.model,
                    eligible=run.refusal is None,
                    reason=run.refusal.detail if run.refusal else None,
                    seconds=run.seconds,
                    estimated_usd=run.estimated_usd,
                )
                for run in estimate.runs
            ],
            servers=ExpectedServers(
                eligible=len(estimate.eligible),
                excluded=[Excluded(server_id=server, reason=reason) for server, reason in estimate.excluded],
            ),
            cost=ExpectedCost(estimated_usd=estimate.estimated_usd),
        )


class QuantilePage(BaseModel):
    """Rows by server, model and time; one column per quantile."""

    forecast_id: UUID = Field(description="The forecast.", examples=["7f3f2c9e-6c0f-4f57-9d53-0c1f6a3b9a10"])
    metric: str = Field(description="What is forecast.", examples=["cpu_p95"])
    quantiles: list[float] = Field(description="The levels of the columns.", examples=[[0.1, 0.5, 0.9]])
    items: list[dict[str, Any]] = Field(
        description="`server_id`, `model`, `timestamp` and `p…` per level.",
        examples=[
            [
                {
                    "server_id": "SRV-0001",
                    "model": "auto",
                    "timestamp": "2023-01-01",
                    "p10": 41.2,
                    "p50": 47.9,
                    "p90": 55.0,
                }
            ]
        ],
    )
    next_cursor: str | None = Field(description="For the next page, with the same filters; null on the last.")


class ModelScores(BaseModel):
    """One model over the scored windows. Null: it could not be scored."""

    model: Model = Field(description="Which model.", examples=["auto"])
    rank: int | None = Field(description="By WQL, then sMAPE; null when unscored.", examples=[1])
    smape: float | None = Field(description="Of p50, percent on the 0 to 200 scale.", examples=[7.0])
    mase: float | None = Field(description="Of p50, against seasonal naive in the history.", examples=[0.7])
    mae: float | None = Field(description="Of p50, in the metric's unit.", examples=[3.1])
    rmse: float | None = Field(description="Of p50, in the metric's unit.", examples=[4.4])
    wql: float | None = Field(description="Weighted quantile loss over 0.1, 0.5, 0.9.", examples=[0.045])
    coverage: float | None = Field(description="Share of values within p10 to p90.", examples=[0.8])
    nominal_coverage: float = Field(description="What the coverage should be.", examples=[0.8])
    servers: int = Field(description="Servers in the run.", examples=[69])
    seconds: float | None = Field(description="Seconds of work, all processes together.", examples=[4.2])
    cost_usd: float = Field(description="What it cost.", examples=[0.0])


class Comparison(BaseModel):
    """The models, best first."""

    windows: int = Field(description="Scored windows.", examples=[1])
    horizon: int = Field(description="Steps of a window.", examples=[90])
    models: list[ModelScores] = Field(description="The succeeded runs.")
    best_model: Model | None = Field(description="Rank 1.", examples=["auto"])


class ServerModelScores(BaseModel):
    """One model on one server."""

    model: Model = Field(description="Which model.", examples=["auto"])
    smape: float | None = Field(description="As in the comparison.", examples=[7.0])
    mase: float | None = Field(description="As in the comparison.", examples=[0.7])
    mae: float | None = Field(description="As in the comparison.", examples=[3.1])
    rmse: float | None = Field(description="As in the comparison.", examples=[4.4])
    wql: float | None = Field(description="As in the comparison.", examples=[0.045])
    coverage: float | None = Field(description="As in the comparison.", examples=[0.8])
    weights: dict[str, float] | None = Field(
        description="What each member of an ensemble counts here; they add up to 1. Null of a single model.",
        examples=[{"structural": 0.62, "gradient_boosting": 0.37, "seasonal_naive": 0.01}],
    )
    fallback: str | None = Field(description="The model that stands in, where this one could not be fitted.")
    why: str | None = Field(
        description="On whose word the forecast stands; null where the model alone answers.",
        examples=[
            "structural has 0.62 of the weight, by the losses in 4 earlier windows, the fleet's and, as far back as its"
            " history reaches, the server's own."
        ],
    )


class ServerComparison(BaseModel):
    """The models on one server."""

    server_id: str = Field(description="Which server.", examples=["SRV-0001"])
    models: list[ServerModelScores] = Field(description="In the order of the forecast's ranking.")


class ComparisonByServer(BaseModel):
    """The same figures, per server."""

    windows: int = Field(description="Scored windows.", examples=[1])
    horizon: int = Field(description="Steps of a window.", examples=[90])
    best_model: Model | None = Field(description="Rank 1 over all servers.", examples=["auto"])
    items: list[ServerComparison] = Field(description="By server.")
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class GroupModelScores(BaseModel):
    """One model within a group. Null: it could not be scored."""

    model: Model = Field(description="Which model.", examples=["auto"])
    servers: int = Field(description="Servers of the group that were scored.", examples=[23])
    smape: float | None = Field(description="As in the comparison.", examples=[7.0])
    wql: float | None = Field(description="As in the comparison, pooled over the group.", examples=[0.045])
    coverage: float | None = Field(description="As in the comparison.", examples=[0.8])
    nominal_coverage: float = Field(description="What the coverage should be.", examples=[0.8])


class GroupComparison(BaseModel):
    """The models within one group."""

    group: str | None = Field(
        description="The month of the horizon, from 1; or the value of the attribute, null for servers without one.",
        examples=["1"],
    )
    first_step: int | None = Field(description="Of a month: its first step, from 1.", examples=[1])
    last_step: int | None = Field(description="Of a month: its last step.", examples=[30])
    models: list[GroupModelScores] = Field(description="In the order of the forecast's ranking.")

    @classmethod
    def of(cls, group: Group) -> "GroupComparison":
        none = Pooled(0, None, None, None)
        return cls(
            group=group.name,
            first_step=group.first,
            last_step=group.last,
            models=[
                GroupModelScores(model=model, nominal_coverage=NOMINAL_COVERAGE, **asdict(its or none))
                for model, its in group.models.items()
            ],
        )


class ComparisonByGroup(BaseModel):
    """The figures by month of the horizon, or by group of servers."""

    windows: int = Field(description="Scored windows.", examples=[1])
    horizon: int = Field(description="Steps of a window.", examples=[90])
    best_model: Model | None = Field(description="Rank 1 over all servers.", examples=["auto"])
    items: list[GroupComparison] = Field(description="Months in order; groups by name, those without a name last.")
    next_cursor: str | None = Field(description="For the next page; null on the last.")


class ServerDrifts(BaseModel):
    """A server whose forecast no longer holds."""

    server_id: str = Field(description="Which server.", examples=["SRV-0042"])
    loss_ratio: float = Field(
        description="Its live loss, as a multiple of what the back-test promised.", examples=[3.1]
    )
    coverage: float = Field(description="Its live coverage.", examples=[0.2])


class DriftState(BaseModel):
    """Whether what came is significantly worse than the back-test promised; docs/models.md has the rule."""

    flagged: bool = Field(description="It is.", examples=[False])
    reasons: list[str] = Field(description="Why, for people.", examples=[[]])
    compared_servers: int = Field(description="Servers of which a season of values has come.", examples=[69])
    loss_ratio: float | None = Field(
        description="Live quantile loss over what the back-test promised for the same steps.", examples=[1.04]
    )
    promised_coverage: float | None = Field(description="Coverage of the back-test on the same steps.", examples=[0.8])
    drifted_servers: int = Field(description="Servers that drift by themselves.", examples=[0])
    servers: list[ServerDrifts] = Field(description="Of them, those that are worst: twenty at most.")

    @classmethod
    def of(cls, one: ModelAccuracy) -> "DriftState":
        return cls(
            flagged=one.drift.flagged,
            reasons=list(one.drift.reasons),
            compared_servers=one.drift.compared,
            loss_ratio=one.drift.loss_ratio,
            promised_coverage=one.drift.promised_coverage,
            drifted_servers=one.drift.drifted,
            servers=[
                ServerDrifts(server_id=server_id, loss_ratio=its.loss_ratio, coverage=its.coverage)
                for server_id, its in zip(one.worst, one.drift.worst, strict=True)
            ],
        )


class LiveScores(BaseModel):
    """One model against what came. Null: nothing to compare with yet."""

    model: Model = Field(description="Which model.", examples=["auto"])
    values: int = Field(description="Values that have come, of servers × horizon.", examples=[2070])
    smape: float | None = Field(description="As in the comparison.", examples=[7.4])
    mase: float | None = Field(description="As in the comparison.", examples=[0.8])
    mae: float | None = Field(description="As in the comparison.", examples=[3.3])
    rmse: float | None = Field(description="As in the comparison.", examples=[4.9])
    wql: float | None = Field(description="As in the comparison.", examples=[0.047])
    coverage: float | None = Field(description="Live coverage: share within p10 to p90.", examples=[0.79])
    nominal_coverage: float = Field(description="What the coverage should be.", examples=[0.8])
    drift: DriftState = Field(description="Against what the back-test promised.")


class AccuracyState(BaseModel):
    """How the forecast did."""

    dataset_id: UUID | None = Field(description="The version with the later rows; null while there is none.")
    newer_dataset_id: UUID | None = Field(
        description="The newest version of the forecast's dataset: what to forecast again on. Null while there is none."
    )
    horizon: int = Field(description="Steps of the forecast.", examples=[90])
    drifted: bool = Field(description="Whether the best model drifts: time to forecast again.", examples=[False])
    models: list[LiveScores] = Field(description="The succeeded runs, best of the back-test first.")

    @classmethod
    def of(cls, accuracy: Accuracy) -> "AccuracyState":
        none = dict.fromkeys(("smape", "mase", "mae", "rmse", "wql", "coverage"))
        return cls(
            dataset_id=accuracy.dataset_id,
            newer_dataset_id=accuracy.dataset_id,
            drifted=any(one.drift.flagged for one in accuracy.models if one.model == accuracy.forecast.best_model),
            horizon=accuracy.forecast.request.horizon,
            models=[
                LiveScores(
                    model=one.model,
                    values=one.values,
                    nominal_coverage=NOMINAL_COVERAGE,
                    drift=DriftState.of(one),
                    **(asdict(one.scores) if one.scores else none),
                )
                for one in accuracy.models
            ],
        )
