"""What the command line says when it cannot go on: one line that names what to mend, and no traceback."""

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from app.emulator.server import started
from app.errors import CannotStart
from app.storage.datadir import DataDirLock

HEADROOM = Path(sys.executable).with_name("headroom")


def said(*arguments: str, **environment: str) -> str:
    ended = subprocess.run([HEADROOM, *arguments], env=os.environ | environment, capture_output=True, text=True)
    assert (ended.returncode, ended.stdout) == (1, "")
    return ended.stderr


@pytest.mark.parametrize(
    ("variable", "value"), [("HEADROOM_PORT", "abc"), ("HEADROOM_AWS", "moon"), ("HEADROOM_PRICES", "{")]
)
def test_a_setting_that_cannot_be_is_named(variable: str, value: str) -> None:
    line = said("migrate", **{variable: value})
    assert variable.removeprefix("HEADROOM_").lower() in line.lower()
    assert line.startswith("headroom: ")
    assert line.count("\n") == 1


def test_a_file_that_is_not_there_is_named() -> None:
    assert said("forecast", "nofile.csv", "--metric", "cpu") == (
        "headroom: nofile.csv cannot be read: No such file or directory.\n"
    )


def checked(*arguments: str, **environment: str) -> tuple[int, str]:
    """Exit code and standard output of `headroom aws check`."""
    ended = subprocess.run(
        [HEADROOM, "aws", "check", *arguments], env=os.environ | environment, capture_output=True, text=True
    )
    assert ended.stderr == ""
    return ended.returncode, ended.stdout


def test_aws_that_is_off_is_told_with_what_to_set(database_url: str) -> None:
    code, told = checked(DATABASE_URL=database_url, HEADROOM_AWS="off")
    assert code == 1
    assert told.startswith("✗ HEADROOM_AWS: AWS is off")
    assert "HEADROOM_ROLE_ARN" in told
    assert told.count("\n") == 1


def test_aws_that_is_emulated_is_checked_and_called_so(database_url: str) -> None:
    with started() as url:
        environment = {
            "DATABASE_URL": database_url,
            "HEADROOM_AWS": "emulated",
            "AWS_ENDPOINT_URL": url,
            "AWS_ACCESS_KEY_ID": "emulated",
            "AWS_SECRET_ACCESS_KEY": "canary-secret",
            "AWS_DEFAULT_REGION": "us-east-1",
            "HEADROOM_MONTHLY_BUDGET_USD": "5",
        }
        code, told = checked(**environment)
        assert code == 0, told
        assert {line[0] for line in told.splitlines()} == {"✓", "–"}
        assert "emulated" in told.splitlines()[0]
        code, said = checked("--json", **environment | {"HEADROOM_MONTHLY_BUDGET_USD": "0"})
    report = json.loads(said)
    assert (code, report["ok"], report["emulated"]) == (1, False, True)
    assert [one["name"] for one in report["findings"] if one["state"] == "wrong"] == ["budget"]
    assert "canary-secret" not in told + said


@pytest.fixture
def closed(tmp_path: Path) -> Iterator[Path]:
    """A folder that nobody may enter, asked for by somebody whom permissions bind, as they do not bind root."""
    folder = tmp_path / "closed"
    folder.mkdir(mode=0)
    for parent in (tmp_path, *tmp_path.parents[:2]):
        parent.chmod(0o711)
    root = os.geteuid() == 0
    if root:
        os.seteuid(65534)
    yield folder
    if root:
        os.seteuid(0)


@pytest.mark.parametrize("further", ["", "data", "further/data"])
def test_a_data_folder_out_of_reach_is_told(closed: Path, further: str) -> None:
    with pytest.raises(CannotStart, match="HEADROOM_DATA_DIR"):
        DataDirLock(closed / further).acquire()


def test_the_benchmark_is_a_command() -> None:
    ended = subprocess.run([HEADROOM, "bench", "--help"], capture_output=True, text=True)
    assert ended.returncode == 0
    assert "--quick" in ended.stdout
