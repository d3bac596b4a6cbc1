"""Is the process up, can it work, what does it count."""

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel, Field

from app.api import measures
from app.api.auth import OPEN, scope
from app.api.problems import problems
from app.api.wired import Services
from app.domain.keys import Scope
from app.errors import Complaint, Unavailable

router = APIRouter(tags=["health"])


class Alive(BaseModel):
    """The process answers."""

    status: str = Field(description="Always `ok`.", examples=["ok"])


class Ready(BaseModel):
    """Every part that the service needs works."""

    status: str = Field(description="Always `ready`; a part that is missing makes it a 503.", examples=["ready"])
    parts: dict[str, bool] = Field(
        description="Each part, and whether it works.", examples=[{"database": True, "store": True, "queue": True}]
    )


@router.get("/healthz", dependencies=[OPEN], summary="Is the process up")
async def healthz() -> Alive:
    """Answers as long as the process does; looks at nothing else."""
    return Alive(status="ok")


@router.get("/readyz", dependencies=[OPEN], summary="Can the service work", responses=problems(Unavailable))
async def readyz(services: Services) -> Ready:
    """Looks at the database, the store and the queue; a 503 names what is missing."""
    parts = await services.health.parts()
    missing = [part for part, works in parts.items() if not works]
    if missing:
        raise Unavailable(
            f"Not ready: {', '.join(missing)} cannot be reached.",
            errors=[Complaint(part, "unavailable", f"The {part} does not work.") for part in missing],
        )
    return Ready(status="ready", parts=parts)


@router.get(
    "/metrics",
    dependencies=[scope(Scope.READ)],
    summary="Figures for Prometheus",
    response_class=Response,
    responses={
        200: {"description": "Prometheus's text format.", "content": {"text/plain": {"schema": {"type": "string"}}}}
    },
)
async def metrics(request: Request, services: Services) -> Response:
    """Answers and their times by route, unfinished runs by status, and how long the oldest run is overdue."""
    counted: measures.Measures = request.app.state.measures
    return Response(counted.text(await services.health.queue()), media_type=measures.MEDIA_TYPE)
