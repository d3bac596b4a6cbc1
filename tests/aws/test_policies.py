"""The policies to paste, held to the calls that Headroom makes: each is allowed, and nothing that none of them needs.

The calls are those that the emulator noted: of a whole managed run, of `headroom aws check`, and of the client's other
methods. IAM is evaluated here by the rules that the policies use; nobody has yet pasted them into an account.
"""

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from time import monotonic, sleep
from typing import Any

import httpx
import numpy as np
import pytest

from app.aws.account import Account
from app.aws.s3 import S3, S3Store
from app.aws.sagemaker import RealSageMaker
from app.domain.cost import microdollars
from app.emulator.server import started
from app.main import create_app
from app.services.aws_check import NEEDED, AwsCheck, Setup, State
from app.services.costs import Terms
from app.settings import Settings

POLICIES = Path(__file__).parents[2] / "docs" / "aws"
FILES = sorted(path.name for path in POLICIES.glob("*.json"))
BUCKET, REGION, ACCOUNT = "headroom-emulated", "us-east-1", "123456789012"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/headroom-emulated"
HOME = f"arn:aws:sagemaker:{REGION}:{ACCOUNT}:"

UNSEEN = {
    ("KeepObjects", "s3:AbortMultipartUpload"): "an upload of more than 8 MB that fails half-way is taken back",
    ("PriceWhatAutoMLStarts", "sagemaker:DescribeProcessingJob"): "the emulator's AutoML starts none; AWS's may",
    ("PriceWhatAutoMLStarts", f"{HOME}processing-job/*"): "as above",
    ("CheckTheRole", f"arn:aws:iam::{ACCOUNT}:role/moto"): "the emulator's principal is a user; a role needs its path",
    ("CheckThePolicy", f"arn:aws:iam::{ACCOUNT}:role/moto"): "as above: a principal is a user or a role",
    ("CheckTheQuotas", "servicequotas:ListServiceQuotas"): "the emulator knows no quotas, so the check asks no further",
}
"""What the service policy allows though no call here needs it, and why."""


@pytest.fixture
def endpoint(monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.setenv(name, "emulated")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    with started(speed=6_000) as url:
        yield url


def journal(endpoint: str) -> list[dict[str, Any]]:
    calls: list[dict[str, Any]] = httpx.get(f"{endpoint}/_emulator/journal", timeout=60).json()["calls"]
    return calls


async def test_each_call_is_allowed_and_nothing_that_none_needs(
    endpoint: str, database_url: str, tmp_path: Path, iam: Any
) -> None:
    await a_managed_run(endpoint, database_url, tmp_path)
    for state in [finding.state for finding in await findings(endpoint)]:
        assert state is not State.WRONG
    await the_rest(endpoint, tmp_path)
    calls = journal(endpoint)
    policy = iam.service_policy(BUCKET)
    assert policy.refused(calls) == []

    made = [ask for call in calls for ask in iam.asks(call)]
    needless = {
        (statement.sid, what)
        for statement in policy.statements
        if statement.effect == "Allow"
        for part in ("actions", "resources")
        for what in getattr(statement, part)
        if not any(replace(statement, **{part: (what,)}).holds(ask) for ask in made)
    }
    assert needless == set(UNSEEN)
    denied = {action for statement in policy.statements if statement.effect == "Deny" for action in statement.actions}
    assert {ask.action for ask in made} & denied == set()
    for statement in policy.statements:
        if statement.effect == "Allow":
            without = replace(policy, statements=tuple(one for one in policy.statements if one != statement))
            assert without.refused(calls), f"{statement.sid} could go, and no call would be refused"


async def a_managed_run(endpoint: str, database_url: str, folder: Path) -> None:
    """A forecast with `canvas`, from its submit until nothing is left to clean."""
    settings = Settings(
        data_dir=folder,
        database_url=database_url,
        compute_processes=1,
        aws="emulated",
        aws_endpoint_url=endpoint,
        monthly_budget_usd=5.0,
    )
    environment = os.environ | {
        "DATABASE_URL": database_url,
        "HEADROOM_DATA_DIR": str(folder),
        "HEADROOM_COMPUTE_PROCESSES": "1",
        "HEADROOM_LEASE_SECONDS": "2",
        "HEADROOM_AWS": "emulated",
        "AWS_ENDPOINT_URL": endpoint,
        "HEADROOM_MONTHLY_BUDGET_USD": "5",
        "HEADROOM_CANVAS_POLL_SECONDS": "0.2",
    }
    start = np.datetime64("2023-01-01")
    rows = [f"srv-{server},{start + day},{40 + 8 * np.sin(day)}" for server in range(3) for day in range(60)]
    app = create_app(settings)
    async with (
        app.router.lifespan_context(app),
        httpx.AsyncClient(transport=httpx.ASGITransport(app), base_url="http://127.0.0.1:8000") as client,
    ):
        content = "\n".join(["server_id,timestamp,cpu_p95", *rows])
        made = await client.post("/datasets", content=content, headers={"Content-Type": "text/csv"})
        body = {"dataset_id": made.json()["id"], "metric": "cpu_p95", "horizon": 5, "models": ["canvas"]}
        asked = await client.post("/forecasts", json=body, headers={"Idempotency-Key": "policies"})
        assert asked.status_code == 202, asked.text
        with worker(environment, folder / "worker.log") as told:
            # The objects go last, after the model.
            await asyncio.to_thread(until_called, endpoint, "DeleteObjects", told)
        ended = (await client.get(f"/forecasts/{asked.json()['id']}")).json()
        assert ended["status"] == "succeeded"


@contextmanager
def worker(environment: dict[str, str], log: Path) -> Iterator[Path]:
    with log.open("ab") as told:
        process = subprocess.Popen([sys.executable, "-m", "app", "worker"], env=environment, stderr=told)
    try:
        yield log
    finally:
        process.terminate()
        process.wait()


def until_called(endpoint: str, operation: str, told: Path) -> None:
    deadline = monotonic() + 120
    while operation not in {call["operation"] for call in journal(endpoint)}:
        assert monotonic() < deadline, told.read_text()[-2_000:]
        sleep(0.2)


class AlwaysEnforced:
    async def enforced(self) -> bool:
        return True


async def findings(endpoint: str) -> list[Any]:
    """As if this were AWS, so that everything is asked, also what the emulator cannot answer."""
    setup = Setup(
        place="aws",
        endpoint=endpoint,
        bucket=BUCKET,
        role_arn=ROLE_ARN,
        prefixes=("headroom/", "forecasts/", "datasets/"),
        terms=Terms(paid_runs=True, monthly_budget=microdollars(5)),
        cap=microdollars(0.2),
    )
    check = AwsCheck(Account(endpoint_url=endpoint), RealSageMaker(endpoint_url=endpoint), AlwaysEnforced(), setup)
    return [finding async for finding in check.findings()]


async def the_rest(endpoint: str, folder: Path) -> None:
    """What the client can do, and neither the run nor the check has done."""
    client = RealSageMaker(endpoint_url=endpoint)
    name = "hr-ab12-none"
    await client.candidates(name)
    await client.list_models("hr-ab12-")
    for kind in ("automl-job", "model", "transform-job"):
        await client.tags(f"{HOME}{kind}/{name}")
    await client.stop_automl(name)
    await client.stop_transform(name)
    await client.children(f"{HOME}automl-job/{name}", datetime(2023, 1, 1, tzinfo=UTC))
    store = S3Store(S3(endpoint_url=endpoint), BUCKET, "datasets/ab12/", folder / "cache")
    (folder / "file").write_bytes(b"a")
    await store.put("key", folder / "file")
    assert await store.exists("key")
    await store.local("key")
    assert await store.keys(datetime(2023, 1, 1, tzinfo=UTC)) == []
    await store.delete("key")
    await store.check()


@pytest.mark.parametrize(
    ("action", "resource", "context"),
    [
        ("sagemaker:CreateAutoMLJobV2", f"{HOME}automl-job/another", {}),
        ("sagemaker:DeleteModel", f"{HOME}model/another", {}),
        ("sagemaker:StopTransformJob", f"{HOME}transform-job/another", {}),
        ("sagemaker:CreateEndpoint", f"{HOME}endpoint/hr-ab12", {}),
        ("sagemaker:InvokeEndpoint", f"{HOME}endpoint/another", {}),
        ("sagemaker:CreateTrainingJob", f"{HOME}training-job/hr-ab12", {}),
        ("iam:PassRole", ROLE_ARN, {"iam:PassedToService": "ec2.amazonaws.com"}),
        ("iam:PassRole", ROLE_ARN, {}),
        ("iam:PassRole", f"{ROLE_ARN}-2", {"iam:PassedToService": "sagemaker.amazonaws.com"}),
        ("s3:GetObject", f"arn:aws:s3:::{BUCKET}/secrets/a", {}),
        ("s3:PutObject", "arn:aws:s3:::another/headroom/a", {}),
        ("s3:DeleteBucket", f"arn:aws:s3:::{BUCKET}", {}),
        ("s3:ListBucket", f"arn:aws:s3:::{BUCKET}", {"s3:prefix": "secrets/"}),
        ("iam:CreateRole", ROLE_ARN, {}),
    ],
)
def test_what_the_service_may_not(action: str, resource: str, context: dict[str, str], iam: Any) -> None:
    assert not iam.service_policy(BUCKET).allows(iam.Ask(action, resource, context))


def test_the_check_asks_for_what_the_policy_allows(iam: Any) -> None:
    policy = iam.service_policy(BUCKET)
    asked = [
        iam.Ask(action, kind if kind == "*" else f"{HOME}{kind}check")
        for kind, actions in NEEDED.items()
        for action in actions
    ]
    assert [ask for ask in asked if not policy.allows(ask)] == []
    of_sagemaker = {
        action
        for statement in policy.statements
        if statement.effect == "Allow"
        for action in statement.actions
        if action.startswith("sagemaker:")
    }
    assert {ask.action for ask in asked} == of_sagemaker


def test_the_execution_role_is_for_sagemaker_of_this_account_and_for_its_own_folder(iam: Any) -> None:
    [trust] = json.loads((POLICIES / "execution-role-trust.json").read_text())["Statement"]
    assert trust["Principal"] == {"Service": "sagemaker.amazonaws.com"}
    assert trust["Condition"] == {"StringEquals": {"aws:SourceAccount": "ACCOUNT_ID"}}
    names = {"BUCKET": BUCKET, "REGION": REGION, "ACCOUNT_ID": ACCOUNT, "ROLE_NAME": "headroom-emulated"}
    policy = iam.read("execution-role-policy.json", **names)
    for action in ("s3:GetObject", "s3:PutObject"):
        assert policy.allows(iam.Ask(action, f"arn:aws:s3:::{BUCKET}/headroom/runs/r/1/input/forecast/0.csv"))
        assert not policy.allows(iam.Ask(action, f"arn:aws:s3:::{BUCKET}/datasets/ab12/key"))
    assert not policy.allows(iam.Ask("s3:DeleteObject", f"arn:aws:s3:::{BUCKET}/headroom/runs/r/1/input/a"))
    assert not policy.allows(iam.Ask("sagemaker:CreateEndpoint", f"{HOME}endpoint/a"))


@pytest.mark.parametrize("file", FILES)
def test_no_policy_is_longer_than_iam_takes(file: str) -> None:
    """6,144 characters for a managed policy, white space apart; real names are longer than their placeholders."""
    assert len("".join((POLICIES / file).read_text().split())) < 5_000


@pytest.mark.parametrize("file", FILES)
def test_nothing_is_allowed_by_a_star_alone(file: str) -> None:
    for statement in json.loads((POLICIES / file).read_text())["Statement"]:
        actions = statement["Action"] if isinstance(statement["Action"], list) else [statement["Action"]]
        assert not [action for action in actions if "*" in action]
        if statement["Effect"] == "Allow" and statement.get("Resource") == "*":
            assert not [
                action for action in actions if action.startswith(("s3:", "iam:", "kms:")) or ":Create" in action
            ]
