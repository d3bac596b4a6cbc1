"""One server's own history over HTTP, as it was uploaded: what a forecast is looked at beside."""

from datetime import UTC, datetime
from typing import Annotated
from uuid import UUID

import numpy as np
from fastapi import APIRouter, Path, Query
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.strict import Text
from app.api.wired import Services
from app.domain.dataset import Unit
from app.errors import BadCursor, NotFound

router = APIRouter(prefix="/datasets", tags=["datasets"])


class HistoryValue(BaseModel):
    """One step."""

    timestamp: str = Field(description="A date for daily data, else UTC.", examples=["2022-12-31"])
    value: float | None = Field(description="Null where the value, or the row, is missing.", examples=[47.9])


class HistoryPage(Page[HistoryValue]):
    """A server's values in order of time, every step from its first row to its last."""

    dataset_id: UUID = Field(description="The dataset.", examples=["0b8f6c0e-6a0f-4a86-9f0e-2f6b8f3c9a11"])
    server_id: str = Field(description="The server.", examples=["SRV-0001"])
    metric: str = Field(description="The metric.", examples=["cpu_p95"])
    unit: Unit = Field(description="Its unit.", examples=["percent"])


@router.get(
    "/{dataset_id}/history",
    dependencies=[scope("read")],
    summary="Read one server's history",
    responses=problems(BadCursor, NotFound),
)
async def history(
    dataset_id: Annotated[UUID, Path(description="The dataset.")],
    services: Services,
    paging: PagingParameters,
    metric: Annotated[Text, Query(description="One of the dataset's metrics.", examples=["cpu_p95"])],
    server_id: Annotated[Text, Query(description="One of its servers.", examples=["SRV-0001"])],
) -> HistoryPage:
    """The values of one metric, uncleaned: gaps are null, outliers are what they are."""
    dataset = await services.datasets.get(dataset_id)
    panel = await services.datasets.history(dataset_id, metric, server_id)
    after = paging.after(tuple[datetime])
    behind = -1 if after is None else int((_naive(after[0]) - panel.start) // panel.frequency.step)
    first = max(int(panel.first[0]), behind + 1)
    columns = range(first, int(panel.last[0]) + 1)[: paging.limit + 1]
    times = panel.times
    page = paging.page(
        [
            HistoryValue(timestamp=panel.frequency.show(times[column]), value=_known(panel.values[0, column]))
            for column in columns
        ],
        [(f"{times[column]}Z",) for column in columns],
    )
    return HistoryPage(
        items=page.items,
        next_cursor=page.next_cursor,
        dataset_id=dataset_id,
        server_id=server_id,
        metric=metric,
        unit=dataset.contents.units[metric],
    )


def _naive(time: datetime) -> np.datetime64:
    return np.datetime64(time.astimezone(UTC).replace(tzinfo=None), "s")


def _known(value: np.float64) -> float | None:
    return None if np.isnan(value) else float(value)
