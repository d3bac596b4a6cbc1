"""The HTTP service: its routers, its edge, its start and stop."""

import gc
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

from fastapi import Depends, FastAPI
from fastapi.staticfiles import StaticFiles
from starlette.middleware.cors import CORSMiddleware

from app.api import (
    alerts,
    auth,
    by_hand,
    costs,
    datasets,
    explanations,
    forecasts,
    health,
    history,
    problems,
    recommendations,
    reference,
    risk,
    risk_diff,
    risk_rollups,
    risk_scenarios,
)
from app.api.edge import Edge
from app.api.measures import Measures
from app.api.strict import declared_queries, strictly
from app.services.keys import is_loopback
from app.settings import Settings
from app.web import alert_rules, pages, savings
from app.wiring import assemble

STATIC = Path(__file__).parent / "web" / "static"

ROUTERS = (
    datasets.router,
    forecasts.router,
    explanations.router,
    by_hand.router,
    risk.router,
    risk_rollups.router,
    risk_scenarios.router,
    risk_diff.router,
    recommendations.router,
    alerts.router,
    costs.router,
    auth.router,
    health.router,
    history.router,
    reference.router,
    pages.router,
    savings.router,
    alert_rules.router,
)


async def check(settings: Settings) -> None:
    """Raise CannotStart where the service must not listen, before it does; the application asks once more."""
    async with assemble(settings) as services:
        await services.keys.check_exposure(settings.host)


def create_app(settings: Settings) -> FastAPI:
    """The application; its services live from the start of its lifespan to the end."""

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> AsyncIterator[None]:
        async with assemble(settings) as services:
            await services.keys.check_exposure(settings.host)
            app.state.services = services
            gc.collect()
            gc.set_threshold(50_000)  # an answer makes thousands of objects, and hardly a cycle
            gc.freeze()  # what is there now stays: to look through it once in a while held a request up for 0.1 s
            yield

    app = reference.Headroom(
        title="Headroom",
        version="1",
        summary="How much room each server has left, and when it runs out.",
        lifespan=lifespan,
        openapi_url=None,
        docs_url=None,
        redoc_url=None,
        redirect_slashes=False,
        dependencies=[Depends(strictly)],
    )
    for router in ROUTERS:
        app.include_router(router)
    app.mount("/static/reference", StaticFiles(directory=reference.ASSETS))
    app.mount("/static/plotly", StaticFiles(directory=pages.PLOTLY))
    app.mount("/static", StaticFiles(directory=STATIC))
    problems.install(app)
    app.state.measures = Measures()
    app.state.queries = declared_queries(app.openapi())
    origins = _listed(settings.cors_origins)
    if origins:
        app.add_middleware(
            CORSMiddleware,
            allow_origins=sorted(origins),
            allow_methods=["*"],
            allow_headers=["Authorization", "Content-Type", "Idempotency-Key", "Last-Event-ID"],
            expose_headers=["Location", "Retry-After", "X-Request-ID", "Idempotency-Replayed"],
        )
    app.add_middleware(
        Edge, hosts=_listed(settings.allowed_hosts) | _name(settings.host), origins=origins, measures=app.state.measures
    )
    return app


def _listed(names: str) -> frozenset[str]:
    return frozenset(name.strip().lower() for name in names.split(",") if name.strip())


def _name(host: str) -> frozenset[str]:
    """The name that we listen on. An address need not be listed: the edge knows the one that a caller came in on."""
    return frozenset() if is_loopback(host) or host.replace(".", "").isdecimal() or ":" in host else frozenset({host})
