"""The services of this process, for handlers to ask for by type."""

from typing import Annotated

from fastapi import Depends, Request

from app import wiring


def _services(request: Request) -> wiring.Services:
    services: wiring.Services = request.app.state.services
    return services


Services = Annotated[wiring.Services, Depends(_services)]
