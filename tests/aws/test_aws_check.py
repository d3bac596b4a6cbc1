"""What `headroom aws check` finds, where all is well and where one thing is wrong; on the emulator, and on an IAM that
answers what the emulator's does not."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Thread
from typing import Any
from urllib.parse import parse_qs

import boto3
import httpx
import pytest

from app.aws.account import Account
from app.aws.sagemaker import RealSageMaker
from app.domain.cost import microdollars
from app.emulator.server import started
from app.services.aws_check import AwsCheck, Finding, Setup, State
from app.services.costs import Terms

REGION, ACCOUNT = "us-east-1", "123456789012"
ROLE_ARN = f"arn:aws:iam::{ACCOUNT}:role/headroom-emulated"
KEYS = {"aws_access_key_id": "testing", "aws_secret_access_key": "canary-secret", "region_name": REGION}
Change = Callable[[Setup], Setup]


class Keys:
    def __init__(self, *, enforced: bool = True) -> None:
        self._enforced = enforced

    async def enforced(self) -> bool:
        return self._enforced


@pytest.fixture(scope="module")
def running() -> Iterator[str]:
    with started() as url:
        yield url


@pytest.fixture
def endpoint(running: str, monkeypatch: pytest.MonkeyPatch) -> str:
    httpx.post(f"{running}/_emulator/reset", json={}).raise_for_status()
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "canary-secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", REGION)
    return running


def setup(endpoint: str | None, place: str = "emulated") -> Setup:
    return Setup(
        place=place,
        endpoint=endpoint,
        bucket="headroom-emulated",
        role_arn=ROLE_ARN,
        prefixes=("headroom/",),
        terms=Terms(paid_runs=True, monthly_budget=microdollars(5)),
        cap=microdollars(0.2),
    )


async def found(setup: Setup, keys: Keys | None = None) -> dict[str, Finding]:
    check = AwsCheck(
        Account(endpoint_url=setup.endpoint), RealSageMaker(endpoint_url=setup.endpoint), keys or Keys(), setup
    )
    return {finding.name: finding async for finding in check.findings()}


def arm(endpoint: str, operation: str, fault: str, times: int = 1) -> None:
    body = {"operation": operation, "fault": fault, "times": times}
    httpx.post(f"{endpoint}/_emulator/faults", json=body).raise_for_status()


async def test_all_is_well(endpoint: str) -> None:
    findings = await found(setup(endpoint))
    assert {name: finding.state for name, finding in findings.items()} == {
        "HEADROOM_AWS": State.GOOD,
        "region": State.GOOD,
        "credentials": State.GOOD,
        "SageMaker": State.GOOD,
        "bucket": State.GOOD,
        "objects": State.GOOD,
        "role": State.GOOD,
        "PassRole": State.REMARK,
        "policy": State.REMARK,
        "quota": State.REMARK,
        "Studio domain": State.GOOD,
        "budget": State.GOOD,
        "API keys": State.GOOD,
    }
    assert "emulated" in findings["HEADROOM_AWS"].detail
    s3 = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    assert "Contents" not in s3.list_objects_v2(Bucket="headroom-emulated", Prefix="headroom/check/")


async def test_nothing_secret_is_told(endpoint: str) -> None:
    told = str(list((await found(setup(endpoint))).values()))
    assert "canary-secret" not in told
    assert ACCOUNT not in told


WRONG: dict[str, tuple[str, str, Change]] = {
    "off": ("HEADROOM_AWS", "HEADROOM_BUCKET, HEADROOM_ROLE_ARN", lambda s: replace(s, place="off")),
    "nowhere": ("HEADROOM_AWS", "headroom emulator", lambda s: replace(s, endpoint=None)),
    "no bucket named": ("bucket", "HEADROOM_BUCKET", lambda s: replace(s, bucket="")),
    "no such bucket": ("bucket", "no bucket headroom-none", lambda s: replace(s, bucket="headroom-none")),
    "no role named": ("role", "HEADROOM_ROLE_ARN", lambda s: replace(s, role_arn="")),
    "a user": ("role", "not the ARN of a role", lambda s: replace(s, role_arn=ROLE_ARN.replace("role/", "user/"))),
    "no such role": ("role", "There is no role headroom-emulated-2", lambda s: replace(s, role_arn=f"{ROLE_ARN}-2")),
    "a stranger's role": ("role", "another account", lambda s: replace(s, role_arn=ROLE_ARN.replace("1234", "4321"))),
    "a path": ("role", "written otherwise", lambda s: replace(s, role_arn=ROLE_ARN.replace("role/", "role/a/"))),
    "no budget": (
        "budget",
        "HEADROOM_MONTHLY_BUDGET_USD",
        lambda s: replace(s, terms=replace(s.terms, monthly_budget=0)),
    ),
    "the kill switch": ("budget", "HEADROOM_PAID_RUNS", lambda s: replace(s, terms=replace(s.terms, paid_runs=False))),
    "a cap above the month": ("budget", "the month's", lambda s: replace(s, cap=microdollars(6))),
}  # fmt: skip


@pytest.mark.parametrize("case", WRONG)
async def test_what_is_wrong_is_named_with_what_to_do(endpoint: str, case: str) -> None:
    name, words, change = WRONG[case]
    findings = await found(change(setup(endpoint)))
    wrong = {finding.name: finding for finding in findings.values() if finding.state is State.WRONG}
    assert set(wrong) == {name}
    assert words in f"{wrong[name].detail} {wrong[name].advice}"
    assert wrong[name].advice


@pytest.mark.parametrize(
    ("operation", "name", "words"),
    [
        ("s3:PutObject", "objects", "s3:PutObject"),
        ("s3:GetObject", "objects", "s3:GetObject"),
        ("s3:ListObjects", "objects", "s3:ListBucket"),
        ("s3:DeleteObject", "objects", "s3:DeleteObject"),
        ("s3:HeadBucket", "bucket", "s3:ListBucket"),
        ("ListAutoMLJobs", "SageMaker", "sagemaker:ListAutoMLJobs"),
    ],
)
async def test_what_is_denied_is_named(endpoint: str, operation: str, name: str, words: str) -> None:
    # More than once: botocore asks a bucket that refuses it again, for its region.
    arm(endpoint, operation, "access_denied", times=5)
    findings = await found(setup(endpoint))
    assert findings[name].state is State.WRONG
    assert words in findings[name].advice
    assert findings["budget"].state is State.GOOD, "and the rest is looked at all the same"


async def test_a_domain_is_optional(endpoint: str) -> None:
    arm(endpoint, "ListDomains", "no_domain")
    assert (await found(setup(endpoint)))["Studio domain"].state is State.REMARK
    arm(endpoint, "ListDomains", "access_denied")
    domain = (await found(setup(endpoint)))["Studio domain"]
    assert domain.state is State.REMARK
    assert "could not be told" in domain.detail


async def test_a_bucket_elsewhere(endpoint: str) -> None:
    s3 = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    s3.create_bucket(Bucket="headroom-far", CreateBucketConfiguration={"LocationConstraint": "eu-west-1"})
    bucket = (await found(replace(setup(endpoint), bucket="headroom-far")))["bucket"]
    assert bucket.state is State.WRONG
    assert "is in eu-west-1, and Headroom works in us-east-1" in bucket.detail


async def test_a_role_that_sagemaker_may_not_assume(endpoint: str) -> None:
    trust = {
        "Statement": {"Effect": "Allow", "Action": "sts:AssumeRole", "Principal": {"Service": "ec2.amazonaws.com"}}
    }
    iam = boto3.client("iam", endpoint_url=endpoint, **KEYS)
    made = iam.create_role(RoleName="for-machines", AssumeRolePolicyDocument=json.dumps(trust))
    role = (await found(replace(setup(endpoint), role_arn=made["Role"]["Arn"])))["role"]
    assert role.state is State.WRONG
    assert "execution-role-trust.json" in role.advice


async def test_no_credentials_and_no_region(
    endpoint: str, monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory
) -> None:
    none = str(tmp_path_factory.mktemp("none") / "none")
    for name in ("AWS_CONFIG_FILE", "AWS_SHARED_CREDENTIALS_FILE"):
        monkeypatch.setenv(name, none)
    monkeypatch.setenv("AWS_EC2_METADATA_DISABLED", "true")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    findings = await found(setup(endpoint))
    assert findings["credentials"].state is State.WRONG
    assert list(findings)[-1] == "credentials", "without them there is nothing to ask"
    monkeypatch.delenv("AWS_DEFAULT_REGION")
    findings = await found(setup(endpoint))
    assert "AWS_DEFAULT_REGION" in findings["region"].advice
    assert list(findings)[-1] == "region"


async def test_at_aws_a_paid_run_needs_a_key_and_a_bucket_deserves_a_look(endpoint: str) -> None:
    """The emulator's answers taken for those of AWS: what it does not know must not end the check."""
    findings = await found(setup(endpoint, "aws"), Keys(enforced=False))
    assert findings["API keys"].state is State.WRONG
    assert "headroom keys create" in findings["API keys"].advice
    for name in ("PassRole", "policy", "quota"):
        assert findings[name].state is State.REMARK
        assert findings[name].detail.startswith("could not be told")
        assert findings[name].advice
    assert findings["public access"].state is State.REMARK
    assert findings["encryption"].state is State.REMARK
    s3 = boto3.client("s3", endpoint_url=endpoint, **KEYS)
    shut = dict.fromkeys(("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets"), True)
    rule = {"ApplyServerSideEncryptionByDefault": {"SSEAlgorithm": "AES256"}}
    s3.put_public_access_block(Bucket="headroom-emulated", PublicAccessBlockConfiguration=shut)
    s3.put_bucket_encryption(Bucket="headroom-emulated", ServerSideEncryptionConfiguration={"Rules": [rule]})
    findings = await found(setup(endpoint, "aws"))
    s3.delete_public_access_block(Bucket="headroom-emulated")
    s3.delete_bucket_encryption(Bucket="headroom-emulated")
    assert findings["public access"].state is State.GOOD
    assert findings["encryption"].state is State.GOOD
    assert findings["API keys"].state is State.GOOD


@contextmanager
def an_iam(
    arn: str, denied: frozenset[str] = frozenset(), quota: float = 1
) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """STS, IAM and Service Quotas that answer, a page at a time; all else is 404. With what was asked of IAM."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            content = self.rfile.read(int(self.headers["Content-Length"])).decode()
            form = {name: values[0] for name, values in parse_qs(content).items()}
            match form.get("Action") or self.headers.get("X-Amz-Target", "").split(".")[-1]:
                case "GetCallerIdentity":
                    said = f"<Account>{ACCOUNT}</Account><Arn>{arn}</Arn><UserId>a</UserId>"
                    self.say(200, _xml("GetCallerIdentity", said))
                case "GetRole" if form["RoleName"] == "service":
                    role = f"arn:aws:iam::{ACCOUNT}:role/teams/service"
                    said = f"<Role><Arn>{role}</Arn><AssumeRolePolicyDocument>%7B%7D</AssumeRolePolicyDocument></Role>"
                    self.say(200, _xml("GetRole", said))
                case "SimulatePrincipalPolicy":
                    asked.append(form)
                    actions = [value for name, value in sorted(form.items()) if name.startswith("ActionNames.")]
                    half = actions[len(actions) // 2 :] if "Marker" in form else actions[: len(actions) // 2]
                    more = "<IsTruncated>true</IsTruncated><Marker>m</Marker>" if "Marker" not in form else ""
                    results = "".join(
                        f"<member><EvalActionName>{action}</EvalActionName><EvalDecision>"
                        f"{'implicitDeny' if action in denied else 'allowed'}</EvalDecision></member>"
                        for action in half
                    )
                    said = f"<EvaluationResults>{results}</EvaluationResults>{more}"
                    self.say(200, _xml("SimulatePrincipalPolicy", said))
                case "ListServiceQuotas":
                    self.say(200, _quotas({"ml.m5.large": quota}))
                case "ListAWSDefaultServiceQuotas":
                    self.say(200, _quotas({"ml.m5.large": 0, "ml.m5.xlarge": 2, "ml.m5.4xlarge": 1}))
                case _:
                    self.say(404, "{}")

        def say(self, status: int, content: str) -> None:
            self.send_response(status)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content.encode())

        def log_message(self, *_: Any) -> None:
            """Quietly."""

    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        Thread(target=server.serve_forever, args=(0.05,), daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}", asked
        server.shutdown()


def _xml(action: str, said: str) -> str:
    return f"<{action}Response><{action}Result>{said}</{action}Result></{action}Response>"


def _quotas(values: dict[str, float]) -> str:
    return json.dumps(
        {"Quotas": [{"QuotaName": f"{name} for transform job usage", "Value": value} for name, value in values.items()]}
    )


SESSION = f"arn:aws:sts::{ACCOUNT}:assumed-role/service/i-0123"


@pytest.mark.usefixtures("endpoint")
async def test_what_iam_and_the_quotas_say() -> None:
    with an_iam(SESSION) as (url, asked):
        findings = await found(setup(url, "aws"))
    assert {findings[name].state for name in ("credentials", "PassRole", "policy", "quota")} == {State.GOOD}
    assert "ml.m5.large 1" in findings["quota"].detail
    assert {one["PolicySourceArn"] for one in asked} == {f"arn:aws:iam::{ACCOUNT}:role/teams/service"}
    passed = next(one for one in asked if one["ActionNames.member.1"] == "iam:PassRole")
    assert passed["ResourceArns.member.1"] == ROLE_ARN
    assert passed["ContextEntries.member.1.ContextKeyValues.member.1"] == "sagemaker.amazonaws.com"


@pytest.mark.usefixtures("endpoint")
async def test_what_the_policy_lacks_is_named() -> None:
    lacking = frozenset({"iam:PassRole", "sagemaker:CreateModel", "sagemaker:DescribeDomain"})
    with an_iam(f"arn:aws:iam::{ACCOUNT}:user/teams/headroom", lacking, quota=0) as (url, asked):
        findings = await found(setup(url, "aws"))
    assert findings["PassRole"].state is State.WRONG
    assert findings["policy"].detail == "It lacks sagemaker:CreateModel, sagemaker:DescribeDomain."
    assert (findings["quota"].state, findings["quota"].detail) == (
        State.WRONG,
        "The account may run no transform on ml.m5.large.",
    )
    assert {one["PolicySourceArn"] for one in asked} == {f"arn:aws:iam::{ACCOUNT}:user/teams/headroom"}


@pytest.mark.usefixtures("endpoint")
async def test_root_is_told_to_make_a_user() -> None:
    with an_iam(f"arn:aws:iam::{ACCOUNT}:root") as (url, asked):
        findings = await found(setup(url, "aws"))
    assert findings["credentials"].state is State.REMARK
    assert findings["policy"].state is State.REMARK
    assert asked == []
