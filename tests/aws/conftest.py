"""The policies of docs/aws, as IAM reads them, and what a call that the emulator has noted asks of them."""

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, unquote

import pytest
from moto.server import ThreadedMotoServer

ACCOUNT, REGION, ROLE = "123456789012", "us-east-1", "headroom-emulated"
POLICIES = Path(__file__).parents[2] / "docs" / "aws"
NEEDS_NOTHING = {"GetCallerIdentity"}
"""What every principal may do."""

_OF_S3 = {
    "HeadBucket": "s3:ListBucket",
    "ListObjects": "s3:ListBucket",
    "GetObject": "s3:GetObject",
    "HeadObject": "s3:GetObject",
    "PutObject": "s3:PutObject",
    "MultipartUpload": "s3:PutObject",
    "DeleteObject": "s3:DeleteObject",
}
_OF_BUCKET = {"encryption": "s3:GetEncryptionConfiguration", "publicAccessBlock": "s3:GetBucketPublicAccessBlock"}
_NAMED = {
    "AutoMLJobName": "automl-job",
    "ModelName": "model",
    "TransformJobName": "transform-job",
    "TrainingJobName": "training-job",
    "ProcessingJobName": "processing-job",
    "DomainId": "domain",
}
_MADE = {"CreateAutoMLJobV2": "AutoMLJobName", "CreateModel": "ModelName", "CreateTransformJob": "TransformJobName"}


@dataclass(frozen=True)
class Ask:
    """One thing that a principal must be allowed, for a call to be."""

    action: str
    resource: str
    context: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Statement:
    sid: str
    effect: str
    actions: tuple[str, ...]
    resources: tuple[str, ...]
    condition: Mapping[str, Mapping[str, Any]]

    def holds(self, ask: Ask) -> bool:
        return (
            any(_like(action.lower(), ask.action.lower()) for action in self.actions)
            and any(_like(resource, ask.resource) for resource in self.resources)
            and all(self._met(operator, keys, ask.context) for operator, keys in self.condition.items())
        )

    def _met(self, operator: str, keys: Mapping[str, Any], context: Mapping[str, str]) -> bool:
        """The operators that the policies use; any other is a mistake of the test."""
        compare = {"StringEquals": str.__eq__, "StringLike": _like, "StringLikeIfExists": _like}[operator]
        for key, wanted in keys.items():
            if key not in context:
                if operator.endswith("IfExists"):
                    continue
                return False
            if not any(compare(one, context[key]) for one in several(wanted)):
                return False
        return True


@dataclass(frozen=True)
class Policy:
    statements: tuple[Statement, ...]

    def allows(self, ask: Ask) -> bool:
        holding = [statement.effect for statement in self.statements if statement.holds(ask)]
        return "Allow" in holding and "Deny" not in holding

    def refused(self, calls: list[dict[str, Any]], region: str = REGION) -> list[Ask]:
        """What the calls of a journal need and are not allowed."""
        return [ask for call in calls for ask in asks(call, region) if not self.allows(ask)]


def read(name: str, **names: str) -> Policy:
    """A file of docs/aws with its placeholders filled in."""
    text = (POLICIES / name).read_text()
    for placeholder, value in names.items():
        text = re.sub(rf"\b{placeholder}\b", value, text)
    return Policy(
        tuple(
            Statement(
                one.get("Sid", ""),
                one["Effect"],
                tuple(several(one["Action"])),
                tuple(several(one.get("Resource", "*"))),
                one.get("Condition", {}),
            )
            for one in json.loads(text)["Statement"]
        )
    )


def service_policy(bucket: str, region: str = REGION, role: str = ROLE) -> Policy:
    names = {"BUCKET": bucket, "REGION": region, "ROLE_NAME": role, "ACCOUNT_ID": ACCOUNT, "PRINCIPAL_NAME": "moto"}
    return read("service-policy.json", **names)


def asks(call: Mapping[str, Any], region: str = REGION) -> Iterator[Ask]:
    """What IAM is asked when this call, an entry of the emulator's journal, is made."""
    operation, sent = call["operation"], call.get("request") or {}
    match call["service"]:
        case "sagemaker":
            yield from _of_sagemaker(operation, sent, f"arn:aws:sagemaker:{region}:{ACCOUNT}:")
        case "s3":
            yield from _of_s3(operation, unquote(call["path"]).strip("/"), parse_qs(call["query"], True), sent)
        case "iam" if operation == "GetRole":
            yield Ask("iam:GetRole", f"arn:aws:iam::{ACCOUNT}:role/{sent['RoleName']}")
        case "iam" if operation == "SimulatePrincipalPolicy":
            yield Ask("iam:SimulatePrincipalPolicy", sent["PolicySourceArn"])
        case "servicequotas":
            yield Ask(f"servicequotas:{operation.split('.')[1]}", "*")
        case "sts" if operation in NEEDS_NOTHING:
            return
        case other:
            raise AssertionError(f"what {other} {operation} needs is not written down")


def _of_sagemaker(operation: str, sent: Mapping[str, Any], home: str) -> Iterator[Ask]:
    named = [f"{home}{kind}/{sent[name].lower()}" for name, kind in _NAMED.items() if name in sent]
    if operation in _MADE:
        named = [f"{home}{_NAMED[_MADE[operation]]}/{sent[_MADE[operation]].lower()}"]
    if operation.startswith("List") and operation != "ListTags":
        named = ["*"]
    resource = sent["ResourceArn"] if "ResourceArn" in sent else named[0]
    yield Ask(f"sagemaker:{operation}", resource)
    if operation in _MADE and sent.get("Tags"):
        yield Ask("sagemaker:AddTags", resource)
    for role in {sent[name] for name in ("RoleArn", "ExecutionRoleArn") if name in sent}:
        yield Ask("iam:PassRole", role, {"iam:PassedToService": "sagemaker.amazonaws.com"})


def _of_s3(operation: str, path: str, query: Mapping[str, list[str]], sent: Mapping[str, Any]) -> Iterator[Ask]:
    bucket, _, key = path.partition("/")
    home = f"arn:aws:s3:::{bucket}"
    if key:
        aborts = operation == "DeleteObject" and "uploadId" in query
        yield Ask("s3:AbortMultipartUpload" if aborts else _OF_S3[operation], f"{home}/{key}")
        return
    if operation == "DeleteObjects":
        for one in sent["Keys"]:
            yield Ask("s3:DeleteObject", f"{home}/{one}")
        return
    action = next((action for name, action in _OF_BUCKET.items() if name in query), None) or _OF_S3[operation]
    yield Ask(action, home, {"s3:prefix": query["prefix"][0]} if "prefix" in query else {})


def _like(pattern: str, value: str) -> bool:
    """IAM's * and ?, and no other wildcard."""
    return fnmatchcase(value, pattern.replace("[", "[[]"))


def several(one_or_more: Any) -> list[Any]:
    return one_or_more if isinstance(one_or_more, list) else [one_or_more]


@dataclass(frozen=True)
class Iam:
    """What tests need of this file."""

    read = staticmethod(read)
    service_policy = staticmethod(service_policy)
    asks = staticmethod(asks)
    Ask = Ask


@pytest.fixture(scope="session")
def iam() -> Iam:
    return Iam()


@pytest.fixture(scope="module")
def endpoint() -> Iterator[str]:
    """S3 as moto serves it, and nothing else."""
    server = ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()
