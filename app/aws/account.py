"""What the AWS account around SageMaker is like: its bucket, its roles, what they may do, and its quotas.

For questions that a person asks before anything is paid for. It reads, but for one object that is written and removed
again. Every method raises the errors of app/aws/faults; what does not exist is None.
"""

from collections.abc import AsyncIterator, Callable, Iterable, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import ClientError

from app.aws.faults import is_absent, translated

_CONFIG = AioConfig(connect_timeout=3, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 2})
_ACTIONS_AT_ONCE = 50
_PUBLIC = ("BlockPublicAcls", "IgnorePublicAcls", "BlockPublicPolicy", "RestrictPublicBuckets")


@dataclass(frozen=True)
class BucketFacts:
    """`region` is None where S3 does not tell."""

    name: str
    region: str | None


@dataclass(frozen=True)
class Role:
    """`trusts` are the AWS services that may assume it."""

    arn: str
    trusts: frozenset[str]


class Account:
    """As RealSageMaker: AWS, or what speaks its protocol at `endpoint_url`."""

    def __init__(self, region: str | None = None, endpoint_url: str | None = None) -> None:
        self._session = aioboto3.Session(region_name=region)
        self._endpoint_url = endpoint_url

    @property
    def region(self) -> str | None:
        """The region that every call goes to, of the usual settings."""
        region: str | None = self._session.region_name
        return region

    async def bucket(self, name: str) -> BucketFacts | None:
        async with self._client("s3") as s3:
            found = await _or_none(s3.head_bucket(Bucket=name))
        return found and BucketFacts(name, found.get("BucketRegion"))

    async def is_encrypted(self, bucket: str) -> bool:
        """Whether what is put there without a word about it is encrypted."""
        async with self._client("s3") as s3:
            return await _or_none(s3.get_bucket_encryption(Bucket=bucket)) is not None

    async def is_closed(self, bucket: str) -> bool:
        """Whether the bucket itself forbids every way of making it public."""
        async with self._client("s3") as s3:
            said = await _or_none(s3.get_public_access_block(Bucket=bucket))
        return said is not None and all(said["PublicAccessBlockConfiguration"].get(one) for one in _PUBLIC)

    async def put(self, bucket: str, key: str, content: bytes, kms_key: str | None = None) -> None:
        sealed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}
        async with self._client("s3") as s3:
            await s3.put_object(Bucket=bucket, Key=key, Body=content, **sealed)

    async def get(self, bucket: str, key: str) -> bytes:
        async with self._client("s3") as s3:
            answer = await s3.get_object(Bucket=bucket, Key=key)
            content: bytes = await answer["Body"].read()
        return content

    async def keys(self, bucket: str, prefix: str) -> list[str]:
        """At most a thousand."""
        async with self._client("s3") as s3:
            said = await s3.list_objects_v2(Bucket=bucket, Prefix=prefix)
        return [entry["Key"] for entry in said.get("Contents", ())]

    async def delete(self, bucket: str, key: str) -> None:
        async with self._client("s3") as s3:
            await s3.delete_object(Bucket=bucket, Key=key)

    async def role(self, name: str) -> Role | None:
        async with self._client("iam") as iam:
            said = await _or_none(iam.get_role(RoleName=name))
        return said and Role(said["Role"]["Arn"], _trusted(said["Role"]["AssumeRolePolicyDocument"]))

    async def denied(
        self, principal: str, actions: Sequence[str], resource: str, context: Mapping[str, str] | None = None
    ) -> list[str]:
        """Which of the actions the policies of a principal do not let it do with a resource, as IAM works it out.

        `principal` is the ARN of a user or a role, never of a session; `context` what a call would carry along.
        """
        entries = [
            {"ContextKeyName": name, "ContextKeyType": "string", "ContextKeyValues": [value]}
            for name, value in (context or {}).items()
        ]
        found: list[str] = []
        async with self._client("iam") as iam:
            for start in range(0, len(actions), _ACTIONS_AT_ONCE):
                pages = iam.get_paginator("simulate_principal_policy").paginate(
                    PolicySourceArn=principal,
                    ActionNames=list(actions[start : start + _ACTIONS_AT_ONCE]),
                    ResourceArns=[resource],
                    ContextEntries=entries,
                )
                async for page in pages:
                    found += [
                        one["EvalActionName"] for one in page["EvaluationResults"] if one["EvalDecision"] != "allowed"
                    ]
        return found

    async def quotas(self, wanted: Callable[[str], bool]) -> dict[str, float]:
        """The account's quotas of SageMaker by their names, those that are wanted; AWS's defaults where it tells no
        value of the account's own."""
        found: dict[str, float] = {}
        async with self._client("service-quotas") as quotas:
            for listed in ("list_aws_default_service_quotas", "list_service_quotas"):
                async for page in quotas.get_paginator(listed).paginate(ServiceCode="sagemaker"):
                    found |= {one["QuotaName"]: one["Value"] for one in page["Quotas"] if wanted(one["QuotaName"])}
        return found

    @asynccontextmanager
    async def _client(self, service: str) -> AsyncIterator[Any]:
        async with (
            translated(),
            self._session.client(service, endpoint_url=self._endpoint_url, config=_CONFIG) as client,
        ):
            yield client


async def _or_none(call: Any) -> Any:
    """The answer; None where AWS says that there is no such thing, in whichever words of its many."""
    try:
        return await call
    except ClientError as error:
        code = str(error.response.get("Error", {}).get("Code", ""))
        if is_absent(error) or code.startswith("NoSuch") or code.endswith("NotFoundError"):
            return None
        raise


def _trusted(document: Mapping[str, Any]) -> frozenset[str]:
    """Services that a trust policy lets assume the role; its conditions are not looked at."""
    found: set[str] = set()
    for statement in _several(document.get("Statement")):
        principal = statement.get("Principal")
        if statement.get("Effect") != "Allow" or not {"sts:AssumeRole", "sts:*", "*"} & set(
            _several(statement.get("Action"))
        ):
            continue
        if isinstance(principal, Mapping):
            found |= set(_several(principal.get("Service")))
    return frozenset(found)


def _several(one_or_more: Any) -> Iterable[Any]:
    """IAM lets a list of one be written without its brackets."""
    if one_or_more is None:
        return ()
    return one_or_more if isinstance(one_or_more, list) else (one_or_more,)
