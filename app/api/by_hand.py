"""Results from the Canvas screens over HTTP: the CSV that a person exported becomes the `canvas` run."""

from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Path, Request, Response

from app.api.auth import scope
from app.api.forecast_models import ForecastState
from app.api.problems import problems
from app.api.uploads import exported
from app.api.wired import Services
from app.errors import (
    BadRequest,
    Conflict,
    IncompleteBody,
    InsufficientStorage,
    Invalid,
    NotFound,
    TooLarge,
    UnsupportedMediaType,
)

router = APIRouter(prefix="/forecasts", tags=["forecasts"])


def _example(first_days: tuple[str, ...]) -> str:
    rows = [f"web-1,{day},{41 + n},{44 + n},{48 + n}" for n, day in enumerate(first_days)]
    return "\n".join(["item_id,timestamp,p10,p50,p90", *rows]) + "\n"


_FILE = _example(("2023-01-01", "2023-01-02", "2023-01-03", "2023-01-04", "2023-01-05"))
_BACKTEST = _example(("2022-12-27", "2022-12-28", "2022-12-29", "2022-12-30", "2022-12-31"))
_CSV: dict[str, Any] = {"type": "string", "contentMediaType": "text/csv"}
_FORM = {
    "requestBody": {
        "required": True,
        "description": "The exported CSV: an item id, a timestamp, and a column per quantile of the forecast, under "
        "any of their usual names. Rows of other servers and other days are left aside.",
        "content": {
            "text/csv": {"schema": {"type": "string"}, "example": _FILE},
            "multipart/form-data": {
                "schema": {
                    "type": "object",
                    "required": ["file"],
                    "properties": {
                        "file": _CSV | {"description": "The forecast."},
                        "backtest": _CSV
                        | {
                            "description": "The forecast of the newest window, by a model that was trained before it "
                            "(canvas.csv?before=…): with it the run is scored."
                        },
                    },
                },
                "examples": {
                    "scored": {"summary": "Both files", "value": {"file": _FILE, "backtest": _BACKTEST}},
                },
            },
        },
    }
}


@router.post(
    "/{forecast_id}/runs/canvas/results",
    status_code=201,
    dependencies=[scope("write")],
    summary="Bring Canvas's results by hand",
    responses=problems(
        BadRequest, IncompleteBody, NotFound, Conflict, TooLarge, UnsupportedMediaType, Invalid, InsufficientStorage
    ),
    openapi_extra=_FORM,
)
async def bring(
    forecast_id: Annotated[UUID, Path(description="The forecast.")],
    request: Request,
    response: Response,
    services: Services,
) -> ForecastState:
    """The file that a person exported from the Canvas screens becomes the `canvas` run, all of it or nothing.

    It is compared and ranked like any other, scored if a `backtest` comes with it, and may be brought again, better.
    """
    await services.by_hand.check(forecast_id)
    async with services.datasets.workspace() as folder:
        sent = await exported(request, folder, services.datasets.limits.bytes)
        forecast = await services.by_hand.bring(forecast_id, sent, folder)
    response.headers["Location"] = f"/forecasts/{forecast_id}"
    return ForecastState.of(forecast)
