"""The services of this process, for handlers to ask for by type.

It is a coroutine, as every dependency here: FastAPI calls a plain function in a thread, at a tenth of a millisecond.
"""

from typing import Annotated

from fastapi import Depends, Request

from app import wiring


async def _services(request: Request) -> wiring.Services:
    services: wiring.Services = request.app.state.services
    return services


Services = Annotated[wiring.Services, Depends(_services)]
