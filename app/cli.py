"""The `headroom` command. Each command is a few lines; what it does is elsewhere."""

import asyncio
import json
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from datetime import date
from pathlib import Path
from typing import Annotated, NoReturn

import uvicorn
from cyclopts import App, Parameter
from pydantic import ValidationError
from pydantic_settings import SettingsError
from rich.console import Console

from app import client, foreground, logs, replaying
from app.errors import HeadroomError
from app.main import check, create_app
from app.services import reference_fleet
from app.services.aws_check import Finding, State
from app.settings import Settings
from app.storage.embedded import EmbeddedPostgres
from app.storage.migrate import upgrade
from app.wiring import assemble, aws_check
from app.worker import work

app = App(name="headroom", help="How much room each server has left, and when it runs out.")
keys = App(name="keys", help="API keys: make, list, revoke.")
dataset = App(name="dataset", help="Datasets on a running service.")
aws = App(name="aws", help="The AWS account that canvas runs in.")
app.command(keys)
app.command(aws)
app.command(dataset)

Json = Annotated[bool, Parameter(name="--json", negative="", help="Machine-readable output.")]
Service = Annotated[client.Address | None, Parameter(name="*")]


@contextmanager
def _settled() -> Iterator[Settings]:
    """The settings with a database that is up and has the newest schema."""
    settings = Settings()
    if settings.database_url is not None:
        upgrade(settings.database_url)
        yield settings
        return
    database = EmbeddedPostgres(settings.data_dir)
    with database:
        upgrade(database.url)
        yield settings.model_copy(update={"database_url": database.url})


@app.command
def run() -> int:
    """API, worker and database as one foreground tree. Ctrl-C stops all of it."""
    logs.configure()
    return foreground.run(Settings())


@app.command
def demo(*, exit: Annotated[bool, Parameter(negative="")] = False) -> int:
    """The main job from fleet to risk, on a service of its own; stays up until Ctrl-C, or ends with --exit."""
    return foreground.demo(Settings(), stay=not exit)


@app.command
def serve() -> None:
    """The API alone."""
    logs.configure()
    with _settled() as settings:
        asyncio.run(check(settings))
        uvicorn.run(
            create_app(settings),
            host=settings.host,
            port=settings.port,
            log_config=None,
            access_log=False,
            server_header=False,
            timeout_graceful_shutdown=3,
        )


@app.command
def worker() -> None:
    """A worker alone; several may share one database."""
    logs.configure()
    with _settled() as settings:
        asyncio.run(work(settings))


@app.command
def emulator(*, port: int = 0) -> None:
    """SageMaker, S3 and STS as Canvas needs them, made up, on this machine; prints its endpoint."""
    from app.emulator import server

    server.run(port)


@app.command
def migrate() -> None:
    """Bring the database to the newest schema."""
    with _settled():
        print("The database has the newest schema.")


@app.command
def fleet(
    *,
    servers: int = 120,
    start: date = date(2022, 1, 1),
    end: date = date(2025, 12, 31),
    seed: int = 42,
    out: Path = Path("fleet.csv"),
) -> None:
    """Write the reference fleet: daily cpu, mem, disk and net p95 of made-up servers (.csv, .csv.gz or .parquet)."""
    reference_fleet.write(reference_fleet.generate(servers, start, end, seed), out)
    print(f"{servers} servers from {start} to {end}: {out}")


@dataset.command
def add(
    file: Path, *, name: str | None = None, schema: str | None = None, service: Service = None, as_json: Json = False
) -> None:
    """Upload FILE (CSV, gzipped CSV or Parquet)."""
    with client.connect(service) as headroom:
        client.show(headroom.add_dataset(file, name=name, schema=schema), as_json)


@app.command
def forecast(
    file: Path,
    *,
    metric: str,
    horizon: int = 90,
    models: Annotated[list[str] | None, Parameter(consume_multiple=True)] = None,
    wait: Annotated[bool, Parameter(negative="")] = False,
    service: Service = None,
    as_json: Json = False,
) -> int:
    """Upload FILE, submit a forecast of one metric, and with --wait follow it to its comparison."""
    with client.connect(service) as headroom:
        return client.forecast(headroom, file, metric, horizon, models or ["auto"], wait=wait, as_json=as_json)


@app.command
def risk(
    *,
    threshold: float | None = None,
    metric: str | None = None,
    limit: int = 20,
    service: Service = None,
    as_json: Json = False,
) -> None:
    """The servers at risk, of the newest forecast."""
    with client.connect(service) as headroom:
        client.risk(headroom, threshold, metric, limit, as_json=as_json)


@app.command(help_flags=[])
def bench(*arguments: Annotated[str, Parameter(allow_leading_hyphen=True)]) -> int:
    """Accuracy and cost beside what could be installed instead, as `make bench`; needs Headroom's checkout."""
    checkout = Path(__file__).parents[1]
    if not (checkout / "benchmarks").is_dir():
        _complain("The benchmarks come with Headroom's checkout, and this installation is none.")
    return subprocess.run([sys.executable, "-m", "benchmarks", *arguments], cwd=checkout).returncode


@app.command
def replay(
    file: Path,
    *,
    metric: str,
    thresholds: Annotated[list[float] | None, Parameter(consume_multiple=True)] = None,
    origins: Annotated[list[date] | None, Parameter(consume_multiple=True)] = None,
    last: int = 10,
    horizon: int = 90,
    model: str = "auto",
    untrue: str | None = None,
    out: Path | None = None,
    as_json: Json = False,
) -> None:
    """Forecast the past of FILE again from ORIGINS (else the LAST ends of a month) and score every risk answer on what
    came. UNTRUE (column=value) marks rows that are no truth. Needs no service; OUT is a folder for the cases."""
    asked = replaying.Asked(metric, thresholds or [90.0], origins or [], last, horizon, model, untrue)
    replaying.run(Settings(), file, asked, out, as_json=as_json)


@keys.command
def create(name: str, *, scopes: Annotated[list[str], Parameter(consume_multiple=True)], as_json: Json = False) -> None:
    """Make a key and show it, once. SCOPES: read, write, paid, admin."""

    async def made(settings: Settings) -> None:
        async with assemble(settings) as services:
            key, secret = await services.keys.create(name, scopes)
        said = {"id": str(key.id), "name": key.name, "scopes": sorted(key.scopes), "key": secret}
        print(json.dumps(said) if as_json else f"{secret}\nThis is the only time that it is shown.")

    with _settled() as settings:
        asyncio.run(made(settings))


@keys.command(name="list")
def list_keys(*, as_json: Json = False) -> None:
    """All keys, without the keys themselves."""

    async def listed(settings: Settings) -> None:
        async with assemble(settings) as services:
            found = await services.keys.list()
        rows = [
            {
                "id": str(key.id),
                "name": key.name,
                "prefix": key.prefix,
                "scopes": sorted(key.scopes),
                "created_at": key.created_at.isoformat(),
                "revoked_at": key.revoked_at.isoformat() if key.revoked_at else None,
            }
            for key in found
        ]
        client.show(rows, as_json)

    with _settled() as settings:
        asyncio.run(listed(settings))


@keys.command
def revoke(key_id: str) -> None:
    """End a key, by its id."""

    async def revoked(settings: Settings) -> None:
        async with assemble(settings) as services:
            await services.keys.revoke(key_id)
        print("Revoked.")

    with _settled() as settings:
        asyncio.run(revoked(settings))


@aws.command(name="check")
def check_aws(*, as_json: Json = False) -> int:
    """What managed runs need of AWS, each with ✓ or what to do; nothing is started or paid. Ends with 1 at a ✗."""

    async def checked(settings: Settings) -> list[Finding]:
        found: list[Finding] = []
        async with aws_check(settings) as checks:
            async for finding in checks.findings():
                found.append(finding)
                if not as_json:
                    print(_line(finding))
        return found

    with _settled() as settings:
        found = asyncio.run(checked(settings))
    good = all(finding.state is not State.WRONG for finding in found)
    if as_json:
        told = {"ok": good, "emulated": settings.aws == "emulated", "findings": [asdict(finding) for finding in found]}
        print(json.dumps(told))
    return 0 if good else 1


_MARKS = {State.GOOD: "✓", State.WRONG: "✗", State.REMARK: "–"}


def _line(finding: Finding) -> str:
    return f"{_MARKS[finding.state]} {finding.name}: {finding.detail} {finding.advice}".rstrip()


def _complain(detail: str) -> NoReturn:
    # A line is as long as it is: whoever reads it may be a program.
    Console(stderr=True, soft_wrap=True).print(f"headroom: {detail}", style="red", highlight=False, markup=False)
    sys.exit(1)


def _variable(location: tuple[str | int, ...]) -> str:
    """The environment variable of a setting, by where pydantic found fault: some have a name of their own."""
    name = str(location[0])
    return f"HEADROOM_{name.upper()}" if name in Settings.model_fields else name


def main() -> None:
    """Exit codes: 0 done, 1 refused or failed, 130 interrupted."""
    try:
        sys.exit(app())
    except HeadroomError as error:
        _complain(error.detail)
    except ValidationError as error:
        if error.title != Settings.__name__:
            raise
        _complain("; ".join(f"{_variable(one['loc'])}={one['input']!r}: {one['msg']}" for one in error.errors()))
    except SettingsError as error:
        _complain(f"{error}. It must be JSON.")
    except KeyboardInterrupt:
        sys.exit(130)
