"""Datasets over HTTP: upload, continue, list, look, delete, and the file for the Canvas screens."""

from datetime import date, datetime
from typing import Annotated, Any, Literal
from uuid import UUID

from fastapi import APIRouter, Path, Query, Request, Response
from fastapi.responses import StreamingResponse
from pydantic import BaseModel, Field

from app.api.auth import scope
from app.api.pages import Page, PagingParameters
from app.api.problems import problems
from app.api.uploads import received
from app.api.wired import Services
from app.domain.dataset import Dataset, Unit
from app.domain.forecast import MAX_HORIZON
from app.domain.panel import Frequency
from app.errors import (
    BadRequest,
    Conflict,
    Forbidden,
    IncompleteBody,
    InsufficientStorage,
    NotFound,
    TooLarge,
    UnsupportedMediaType,
)

MAX_BEFORE = 12 * MAX_HORIZON
"""Steps that canvas.csv may leave out: as many as a forecast can be scored on."""

router = APIRouter(prefix="/datasets", tags=["datasets"])


class QualityState(BaseModel):
    """What is odd about the panel, though it was taken."""

    missing: int = Field(description="Empty cells of metrics, in rows that are there.", examples=[12])
    gaps: int = Field(description="Rows that are not there between a server's first and last.", examples=[3])
    constant_servers: int = Field(description="Servers with a metric that never changes.", examples=[0])
    short_servers: int = Field(description="Servers with under 14 values of a metric: no forecast.", examples=[0])
    warnings: list[str] = Field(description="What a person should know, with counts and names.", examples=[[]])


class DatasetState(BaseModel):
    """An immutable, checked panel of servers."""

    id: UUID = Field(description="Its id.", examples=["0b8f6c0e-6a0f-4a86-9f0e-2f6b8f3c9a11"])
    name: str = Field(description="What it is called: metadata only.", examples=["fleet.csv"])
    servers: int = Field(description="How many servers it has.", examples=[69])
    rows: int = Field(description="How many rows it has.", examples=[75624])
    metrics: list[str] = Field(description="Numeric columns that can be forecast.", examples=[["cpu_p95"]])
    units: dict[str, Unit] = Field(description="Unit of each metric.", examples=[{"cpu_p95": "percent"}])
    attributes: list[str] = Field(description="Columns that describe a server.", examples=[["region"]])
    known_ahead: list[str] = Field(description="Regressors known before their time comes.", examples=[[]])
    start: date | datetime = Field(description="First time: a date for daily data.", examples=["2020-01-01"])
    end: date | datetime = Field(description="Last time of any server's history.", examples=["2022-12-31"])
    frequency: Literal["D", "H"] = Field(description="Daily or hourly.", examples=["D"])
    sha256: str = Field(
        description="Of the bytes that were uploaded.",
        examples=["9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"],
    )
    parent_id: UUID | None = Field(description="The dataset that this one continues.", examples=[None])
    created_at: datetime = Field(description="When it was uploaded.", examples=["2023-01-02T08:00:00Z"])
    quality: QualityState = Field(description="What is odd about it.")

    @classmethod
    def of(cls, dataset: Dataset) -> "DatasetState":
        contents = dataset.contents
        daily = contents.frequency is Frequency.DAILY
        quality = contents.quality
        return cls(
            id=dataset.id,
            name=dataset.name,
            servers=contents.servers,
            rows=contents.rows,
            metrics=list(contents.metrics),
            units=contents.units,
            attributes=list(contents.attributes),
            known_ahead=list(contents.known_ahead),
            start=contents.start.date() if daily else contents.start,
            end=contents.end.date() if daily else contents.end,
            frequency=contents.frequency.value,
            sha256=dataset.sha256,
            parent_id=dataset.parent_id,
            created_at=dataset.created_at,
            quality=QualityState(
                missing=quality.missing,
                gaps=quality.gaps,
                constant_servers=quality.constant_servers,
                short_servers=quality.short_servers,
                warnings=list(quality.warnings),
            ),
        )


DatasetId = Annotated[UUID, Path(description="Id of the dataset.")]
Name = Annotated[
    str | None,
    Query(
        max_length=255, description="What the dataset is called; by default the name of the file.", examples=["fleet"]
    ),
]
SchemaText = Annotated[
    str | None,
    Query(
        alias="schema",
        description="JSON: units, attributes and known-ahead columns, where names and contents do not tell.",
        examples=['{"units": {"cpu_p95": "percent"}}'],
    ),
]


_SCHEMA = {
    "type": "object",
    "description": "What the columns are, where their names and contents do not tell.",
    "additionalProperties": False,
    "properties": {
        "units": {"type": "object", "additionalProperties": {"enum": list(Unit)}},
        "attributes": {"type": "array", "items": {"type": "string"}},
        "known_ahead": {"type": "array", "items": {"type": "string"}},
    },
}
_PLACE = {
    "type": "object",
    "required": ["bucket", "key"],
    "additionalProperties": False,
    "properties": {"bucket": {"type": "string"}, "key": {"type": "string"}},
}


def _form(example: str) -> dict[str, Any]:
    """The request body of an upload, for the document; `example` is a CSV that it takes."""
    binary = {"type": "string", "format": "binary"}
    place = {"s3": {"bucket": "metrics-archive", "key": "fleet/2022.parquet"}, "name": "fleet 2022"}
    return {
        "requestBody": {
            "required": True,
            "description": "CSV, gzipped CSV or Parquet, told apart by the first bytes. Columns: `server_id` (also "
            "`item_id`, `unique_id`), `timestamp` (also `ds`, `date`), one of each; numeric columns are metrics, but "
            "for `capacity`, `threshold` and `lead_time_days`, which describe a server; text columns are attributes. A "
            "price (`usd_per_month`, `cost`), or any other number that describes a server, must be named in "
            "`attributes` of the `schema`: undeclared it is a metric, and told in `quality.warnings` where it never "
            "changes.",
            "content": {
                "text/csv": {"schema": {"type": "string"}, "example": example},
                "application/gzip": {"schema": binary},
                "application/vnd.apache.parquet": {"schema": binary},
                "multipart/form-data": {
                    "schema": {
                        "type": "object",
                        "required": ["file"],
                        "properties": {
                            "file": binary | {"description": "CSV, gzipped CSV or Parquet."},
                            "name": {"type": "string", "description": "What the dataset is called."},
                            "schema": {
                                "type": "string",
                                "description": "JSON: `units`, `attributes`, `known_ahead`.",
                                "contentMediaType": "application/json",
                                "contentSchema": _SCHEMA,
                            },
                        },
                    },
                    "examples": {"form": {"summary": "A form", "value": {"file": example, "name": "fleet"}}},
                },
                "application/json": {
                    "schema": {
                        "type": "object",
                        "required": ["s3"],
                        "additionalProperties": False,
                        "properties": {"s3": _PLACE, "name": {"type": "string"}, "schema": _SCHEMA},
                    },
                    "examples": {
                        "s3": {"summary": "An object in a bucket that may not be read", "value": place, "x-status": 403}
                    },
                },
            },
        }
    }


_HEADER = "server_id,timestamp,cpu_p95,region\n"
_EXAMPLE = _HEADER + "".join(f"web-1,2022-12-{day},{40 + day % 7},north\n" for day in range(10, 32))
_NEWER = _HEADER + "".join(f"web-1,2023-01-0{day},{41 + day % 7},north\n" for day in range(1, 6))
_REFUSALS = problems(BadRequest, IncompleteBody, Forbidden, TooLarge, UnsupportedMediaType, InsufficientStorage)


@router.post(
    "",
    status_code=201,
    dependencies=[scope("write")],
    summary="Upload a dataset",
    responses=_REFUSALS,
    openapi_extra=_form(_EXAMPLE),
)
async def upload(
    request: Request, response: Response, services: Services, name: Name = None, schema: SchemaText = None
) -> DatasetState:
    """Check a whole panel and keep it. What is wrong with it is told all at once, with the first rows of each fault."""
    return await _added(request, response, services, name, schema, None)


@router.post(
    "/{dataset_id}/versions",
    status_code=201,
    dependencies=[scope("write")],
    summary="Continue a dataset",
    responses=_REFUSALS | problems(NotFound),
    openapi_extra=_form(_NEWER),
)
async def continued(
    dataset_id: DatasetId,
    request: Request,
    response: Response,
    services: Services,
    name: Name = None,
    schema: SchemaText = None,
) -> DatasetState:
    """A new dataset of this one's rows and newer ones. Rows that are there already count once when they are equal."""
    await services.datasets.get(dataset_id)
    return await _added(request, response, services, name, schema, dataset_id)


async def _added(
    request: Request, response: Response, services: Services, name: str | None, schema: str | None, parent: UUID | None
) -> DatasetState:
    async with services.datasets.workspace() as folder:
        sent = await received(request, folder, services.datasets.limits.bytes, name, schema)
        made = await services.datasets.add(sent, folder, parent)
    response.headers["Location"] = f"/datasets/{made.id}"
    return DatasetState.of(made)


@router.get("", dependencies=[scope("read")], summary="List datasets")
async def listed(services: Services, paging: PagingParameters) -> Page[DatasetState]:
    """Newest first."""
    found = await services.datasets.newest(paging.after(tuple[datetime, UUID]), paging.limit + 1)
    return paging.page([DatasetState.of(one) for one in found], [(one.created_at, one.id) for one in found])


@router.get("/{dataset_id}", dependencies=[scope("read")], summary="Show a dataset", responses=problems(NotFound))
async def show(dataset_id: DatasetId, services: Services) -> DatasetState:
    """What it holds, and what is odd about it."""
    return DatasetState.of(await services.datasets.get(dataset_id))


@router.delete(
    "/{dataset_id}",
    status_code=204,
    dependencies=[scope("write")],
    summary="Delete a dataset",
    responses=problems(NotFound, Conflict),
)
async def delete(dataset_id: DatasetId, services: Services) -> None:
    """Gone with its history, unless a forecast uses it. Versions made from it stay."""
    await services.datasets.delete(dataset_id)


@router.get(
    "/{dataset_id}/canvas.csv",
    dependencies=[scope("read")],
    summary="The file for the Canvas screens",
    response_class=StreamingResponse,
    responses=problems(NotFound)
    | {
        200: {
            "description": "`item_id,timestamp,target_value`, then the calendar regressors; streamed.",
            "content": {"text/csv": {"schema": {"type": "string"}}},
        }
    },
)
async def canvas_file(
    dataset_id: DatasetId,
    services: Services,
    metric: Annotated[str, Query(description="The metric to forecast.", examples=["cpu_p95"])],
    before: Annotated[
        int,
        Query(
            ge=0,
            le=MAX_BEFORE,
            description="Leave the targets of each server's last so many steps empty, to train for the back-test.",
            examples=[14],
        ),
    ] = 0,
) -> StreamingResponse:
    """One metric of every server, for a manual import in the Canvas screens."""
    pieces = await services.datasets.canvas_file(dataset_id, metric, services.settings.country, before)
    name = f"canvas-{dataset_id}-before-{before}.csv" if before else f"canvas-{dataset_id}.csv"
    return StreamingResponse(
        pieces,
        media_type="text/csv; charset=utf-8",
        headers={"Content-Disposition": f'attachment; filename="{name}"'},
    )
