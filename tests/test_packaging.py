"""The container files, run without a container engine: the Dockerfile's own commands in a bare environment.

What cannot be shown here: the base image, its system packages and its user.
"""

import json
import os
import re
import shlex
import shutil
import socket
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).parents[1]
HOME = "/srv/headroom"
DATA = "/var/lib/headroom"
# How this machine reaches its packages is its own affair; all else of its environment stays outside.
NETWORK = re.compile(
    r"(UV|PIP)_(CACHE|INDEX|DEFAULT|EXTRA|FIND|CERT|SYSTEM_CERTS|NATIVE)|SSL_|HTTPS?_PROXY|NO_PROXY", re.I
)

UV = next(
    (
        str(found)
        for found in (ROOT / ".tools" / "uv", shutil.which("uv"))
        if found is not None and Path(found).exists()
    ),
    None,
)


@dataclass(frozen=True)
class Stage:
    """One `FROM …` of the Dockerfile: its instructions in order, as (name, argument)."""

    instructions: tuple[tuple[str, str], ...]

    def all(self, name: str) -> list[str]:
        return [argument for found, argument in self.instructions if found == name]

    def environment(self) -> dict[str, str]:
        return dict(pair.split("=", 1) for argument in self.all("ENV") for pair in shlex.split(argument))


def stages() -> list[Stage]:
    text = re.sub(r"\\\n", " ", (ROOT / "Dockerfile").read_text())
    lines = [line.split(maxsplit=1) for line in text.splitlines() if line.strip() and not line.startswith("#")]
    starts = [number for number, (name, _) in enumerate(lines) if name == "FROM"]
    bounds = zip(starts, [*starts[1:], len(lines)], strict=True)
    return [Stage(tuple((name, argument) for name, argument in lines[start:end])) for start, end in bounds]


@dataclass(frozen=True)
class Image:
    """The image's folders, moved into a temporary one."""

    home: Path
    data: Path
    environment: dict[str, str]

    def here(self, text: str) -> str:
        return text.replace(HOME, str(self.home)).replace(DATA, str(self.data))

    def run(self, *command: str, **environment: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            command,
            cwd=self.home,
            env=self.environment | environment,
            capture_output=True,
            text=True,
        )


@pytest.fixture(scope="module")
def image(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Image]:
    """What the Dockerfile's COPY, ENV and RUN make of an empty folder and a bare environment."""
    if UV is None:
        pytest.skip("uv is neither in .tools nor on the PATH; make setup brings it")
    build, final = stages()
    base = tmp_path_factory.mktemp("image")
    tools = base / "bin"
    tools.mkdir()
    (tools / "uv").symlink_to(UV)
    (base / "data").mkdir(mode=0o700)
    bare = {"PATH": f"{tools}:/usr/bin:/bin", "HOME": str(base), "UV_PYTHON": sys.executable}
    bare |= {name: value for name, value in os.environ.items() if NETWORK.match(name)}
    bare["UV_CACHE_DIR"] = subprocess.check_output([UV, "cache", "dir"], text=True).strip()
    # The same files, sooner: linked from uv's cache, and compiled by whoever imports them.
    sooner = {"UV_LINK_MODE": "hardlink", "UV_COMPILE_BYTECODE": "0"}
    building = Image(base / "home", base / "data", bare | build.environment() | sooner)
    # Only what git knows, as a clone would have it.
    known = subprocess.check_output(["git", "ls-files", "-z"], cwd=ROOT, text=True).split("\0")
    for name, argument in build.instructions:
        if name == "COPY":
            *sources, target = argument.split()
            for source in sources:
                for file in (file for file in known if file == source or file.startswith(f"{source}/")):
                    moved = building.home / target / Path(file).relative_to(source if source == target else ".")
                    moved.parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(ROOT / file, moved)
        elif name == "RUN" and not argument.startswith("pip install"):
            done = building.run("/bin/sh", "-c", building.here(argument))
            assert done.returncode == 0, done.stderr
    environment = {name: building.here(value) for name, value in final.environment().items()}
    environment["PATH"] = environment["PATH"].replace("$PATH", "/usr/bin:/bin")
    yield Image(building.home, building.data, {"HOME": str(base)} | environment)
    shutil.rmtree(base)


def compose() -> dict[str, Any]:
    read: dict[str, Any] = yaml.safe_load((ROOT / "docker-compose.yml").read_text())
    return read


def test_the_image_has_the_uv_of_the_makefile() -> None:
    pinned = re.search(r"UV_VERSION := (\S+)", (ROOT / "Makefile").read_text())
    assert pinned is not None
    assert f"uv=={pinned[1]}" in stages()[0].all("RUN")[0]


def test_nothing_of_the_build_context_is_left_out() -> None:
    ignored = (ROOT / ".dockerignore").read_text().splitlines()
    kept = {line.removeprefix("!") for line in ignored if line.startswith("!")}
    copied = {source for argument in stages()[0].all("COPY") for source in argument.split()[:-1]}
    assert copied == kept


def test_the_image_runs_as_an_unprivileged_user() -> None:
    assert stages()[-1].all("USER") == ["headroom"]


def test_the_image_leaves_out_what_only_developers_need(image: Image) -> None:
    found = image.run("python", "-c", "import hypothesis")
    assert found.returncode == 1
    assert "No module named 'hypothesis'" in found.stderr


def test_every_command_of_the_containers_is_there(image: Image) -> None:
    entry = json.loads(stages()[-1].all("ENTRYPOINT")[0])
    services = compose()["services"].values()
    commands = [json.loads(stages()[-1].all("CMD")[0]), *(s["command"] for s in services if "command" in s)]
    assert len(commands) == 4
    helped = image.run(*entry, "--help")
    assert helped.returncode == 0, helped.stderr
    offered = set(helped.stdout.split())
    assert {command[0] for command in commands} <= offered


def test_the_image_migrates_serves_and_says_that_it_is_healthy(image: Image, postgres_url: str, empty_url: str) -> None:
    entry = json.loads(stages()[-1].all("ENTRYPOINT")[0])
    check = json.loads(stages()[-1].all("HEALTHCHECK")[0].split("CMD", 1)[1])
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    # Without a key the API stays on loopback, so the image's own HEADROOM_HOST must give way here.
    settings = {"DATABASE_URL": empty_url, "HEADROOM_PORT": port, "HEADROOM_HOST": "127.0.0.1"}
    assert image.run(*check, HEADROOM_PORT=port).returncode == 1
    migrated = image.run(*entry, "migrate", **settings)
    assert migrated.returncode == 0, migrated.stderr
    log = image.data / "serve.log"
    with (
        log.open("w") as output,
        subprocess.Popen(
            [image.home / ".venv" / "bin" / entry[0], *json.loads(stages()[-1].all("CMD")[0])],
            cwd=image.home,
            env=image.environment | settings,
            stdout=output,
            stderr=subprocess.STDOUT,
        ) as api,
    ):
        try:
            while image.run(*check, HEADROOM_PORT=port).returncode != 0:
                assert api.poll() is None, log.read_text()
        finally:
            api.terminate()
        assert api.wait(30) in (0, 128 + 15, -15), log.read_text()


def test_no_password_works_that_nobody_chose() -> None:
    services = compose()["services"]
    required = "${POSTGRES_PASSWORD:?"
    assert services["postgres"]["environment"]["POSTGRES_PASSWORD"].startswith(required)
    for name in ("api", "worker", "migrate"):
        environment = services[name]["environment"]
        assert environment["PGPASSWORD"].startswith(required)
        assert ":" not in environment["DATABASE_URL"].removeprefix("postgresql://").split("@")[0]


def test_only_the_api_is_published_and_only_on_loopback() -> None:
    published = {name: service["ports"] for name, service in compose()["services"].items() if "ports" in service}
    assert published == {"api": ["127.0.0.1:8000:8000"]}


def test_every_python_gets_the_same_numpy() -> None:
    """Two would mean two sets of deprecations and of types, and only one of them is looked at each day."""
    locked = tomllib.loads((ROOT / "uv.lock").read_text())["package"]
    assert len([package for package in locked if package["name"] == "numpy"]) == 1
