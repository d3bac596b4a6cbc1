"""Whether managed runs can work here: one finding per thing that they need, with what to do where it is wrong.

Nothing is started and nothing is paid. One small object is written to the bucket and removed again; all else is read.
What a policy would deny is worked out by IAM itself, where it may be asked; a finding is no promise, since AWS may
still refuse in the middle of a run.
"""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import dataclass
from enum import StrEnum
from typing import Protocol
from uuid import uuid4

from app.aws.account import Account
from app.aws.sagemaker import Identity, SageMaker
from app.domain.cost import TRANSFORM_INSTANCES, Microdollars, shown
from app.errors import HeadroomError
from app.services.costs import Terms

SAGEMAKER = "sagemaker.amazonaws.com"

NEEDED: dict[str, tuple[str, ...]] = {
    "*": (
        "sagemaker:ListAutoMLJobs",
        "sagemaker:ListCandidatesForAutoMLJob",
        "sagemaker:ListDomains",
        "sagemaker:ListModels",
        "sagemaker:ListProcessingJobs",
        "sagemaker:ListTrainingJobs",
        "sagemaker:ListTransformJobs",
    ),
    "automl-job/hr-": (
        "sagemaker:AddTags",
        "sagemaker:CreateAutoMLJobV2",
        "sagemaker:DescribeAutoMLJobV2",
        "sagemaker:ListTags",
        "sagemaker:StopAutoMLJob",
    ),
    "model/hr-": (
        "sagemaker:AddTags",
        "sagemaker:CreateModel",
        "sagemaker:DeleteModel",
        "sagemaker:DescribeModel",
        "sagemaker:ListTags",
    ),
    "transform-job/hr-": (
        "sagemaker:AddTags",
        "sagemaker:CreateTransformJob",
        "sagemaker:ListTags",
        "sagemaker:StopTransformJob",
    ),
    "transform-job/": ("sagemaker:DescribeTransformJob",),
    "training-job/": ("sagemaker:DescribeTrainingJob",),
    "processing-job/": ("sagemaker:DescribeProcessingJob",),
    "domain/": ("sagemaker:DescribeDomain",),
}
"""What docs/aws/service-policy.json allows, by how the resources are named that it is needed for."""


_NOT_EMULATED = ("PassRole", "policy", "quota")


class State(StrEnum):
    GOOD = "good"
    WRONG = "wrong"
    """paid runs do not work, or not all of them, before it is mended"""
    REMARK = "remark"
    """it could not be told, or it works and deserves a look"""


@dataclass(frozen=True)
class Finding:
    """`detail` says what is, `advice` what to do about it: empty where there is nothing to do."""

    name: str
    state: State
    detail: str
    advice: str = ""


@dataclass(frozen=True)
class Setup:
    """What the settings say. `place` is off, emulated or aws; `prefixes` are where Headroom keeps objects, each ending
    in a slash; `cap` is what a forecast may cost where its request does not say."""

    place: str
    endpoint: str | None
    bucket: str
    role_arn: str
    prefixes: tuple[str, ...]
    terms: Terms
    cap: Microdollars
    kms_key: str | None = None

    @property
    def emulated(self) -> bool:
        return self.place == "emulated"


class ApiKeys(Protocol):
    async def enforced(self) -> bool: ...


class AwsCheck:
    def __init__(self, account: Account, sagemaker: SageMaker, keys: ApiKeys, setup: Setup) -> None:
        self._account, self._sagemaker, self._keys, self.setup = account, sagemaker, keys, setup

    async def findings(self) -> AsyncIterator[Finding]:
        """One after the other, as they are found; the first that makes the rest pointless is the last."""
        place = self._place()
        yield place
        if place.state is State.WRONG:
            return
        region = self._region()
        yield region
        if region.state is State.WRONG:
            return
        try:
            identity = await self._sagemaker.identity()
        except HeadroomError as error:
            yield self._no_credentials(error)
            return
        yield _credentials(identity)
        checks: list[tuple[str, Callable[[], Awaitable[list[Finding]]], str]] = [
            ("SageMaker", self._reached, "Allow sagemaker:ListAutoMLJobs, and see that SageMaker is in this region."),
            ("bucket", self._bucket, "Allow s3:ListBucket on it; docs/aws/setup.md has the policy."),
            ("role", lambda: self._role(identity), "Look at the role in the IAM console, or allow iam:GetRole on it."),
            (
                "PassRole",
                lambda: self._pass_role(identity),
                "See that the policy has iam:PassRole on the role, as docs/aws/service-policy.json does.",
            ),
            (
                "policy",
                lambda: self._policy(identity),
                "Compare the policy with docs/aws/service-policy.json, or allow iam:SimulatePrincipalPolicy.",
            ),
            (
                "quota",
                self._quota,
                "Look for “for transform job usage” under Service Quotas → Amazon SageMaker in the AWS console.",
            ),
            ("Studio domain", self._domain, "It is optional: only the Canvas screens need one."),
        ]
        for name, check, advice in checks:
            if self.setup.emulated and name in _NOT_EMULATED:
                yield Finding(name, State.REMARK, "could not be told: the emulator knows none.")
                continue
            try:
                found = await check()
            except HeadroomError as error:
                known = name in ("SageMaker", "bucket")
                detail = error.detail if known else f"could not be told: {error.detail}"
                found = [Finding(name, State.WRONG if known else State.REMARK, detail, advice)]
            for finding in found:
                yield finding
        yield self._budget()
        yield await self._api_keys()

    def _place(self) -> Finding:
        name = "HEADROOM_AWS"
        if self.setup.place == "off":
            return Finding(
                name,
                State.WRONG,
                "AWS is off: canvas runs are skipped and local models answer.",
                "Set HEADROOM_AWS=aws, HEADROOM_BUCKET, HEADROOM_ROLE_ARN, HEADROOM_MONTHLY_BUDGET_USD and the usual "
                "AWS_* (docs/aws/setup.md), or HEADROOM_AWS=emulated to try it without an account.",
            )
        if self.setup.emulated and self.setup.endpoint is None:
            return Finding(
                name,
                State.WRONG,
                "AWS is to be emulated, and AWS_ENDPOINT_URL does not say where.",
                "Start `headroom emulator --port 4570`, and set AWS_ENDPOINT_URL=http://127.0.0.1:4570 "
                "(`headroom run` does both).",
            )
        if self.setup.emulated:
            return Finding(name, State.GOOD, f"emulated at {self.setup.endpoint}: what follows is no AWS account")
        where = f" at AWS_ENDPOINT_URL={self.setup.endpoint}" if self.setup.endpoint else ""
        return Finding(name, State.GOOD, f"aws{where}")

    def _region(self) -> Finding:
        region = self._account.region
        if region is None:
            return Finding("region", State.WRONG, "No region is set.", "Set AWS_DEFAULT_REGION, e.g. to eu-west-1.")
        return Finding("region", State.GOOD, region)

    def _no_credentials(self, error: HeadroomError) -> Finding:
        advice = "Set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or AWS_PROFILE, or run where a role is given."
        if self.setup.emulated:
            advice = "The emulator takes any: AWS_ACCESS_KEY_ID=emulated AWS_SECRET_ACCESS_KEY=emulated."
        return Finding("credentials", State.WRONG, error.detail, advice)

    async def _reached(self) -> list[Finding]:
        jobs = await self._sagemaker.list_automl("hr-")
        return [Finding("SageMaker", State.GOOD, f"answers; {len(jobs)} AutoML jobs of Headroom's are known to it")]

    async def _bucket(self) -> list[Finding]:
        name = self.setup.bucket
        if not name:
            advice = "Make a bucket of its own and name it."
            return [Finding("bucket", State.WRONG, "HEADROOM_BUCKET is not set.", advice)]
        facts = await self._account.bucket(name)
        region = self._account.region
        if facts is None:
            advice = f"Make it in {region}, or set HEADROOM_BUCKET to one that is there."
            return [Finding("bucket", State.WRONG, f"There is no bucket {name}.", advice)]
        if facts.region not in (None, region):
            detail = f"{name} is in {facts.region}, and Headroom works in {region}."
            return [Finding("bucket", State.WRONG, detail, "SageMaker needs both in one region: change either.")]
        found = [Finding("bucket", State.GOOD, f"{name} in {facts.region or region}")]
        found += [await self._objects(prefix) for prefix in self.setup.prefixes]
        if not self.setup.emulated:
            found.append(await self._openness())
            found.append(await self._encryption())
        return found

    async def _objects(self, prefix: str) -> Finding:
        """Put, get, list and delete, really done; what was put is removed whatever else went wrong."""
        account, bucket, key = self._account, self.setup.bucket, f"{prefix}check/{uuid4()}"
        steps: list[tuple[str, str, Callable[[], Awaitable[object]]]] = [
            ("written", "s3:PutObject", lambda: account.put(bucket, key, b"headroom", self.setup.kms_key)),
            ("read", "s3:GetObject", lambda: account.get(bucket, key)),
            ("listed", "s3:ListBucket", lambda: account.keys(bucket, key)),
            ("deleted", "s3:DeleteObject", lambda: account.delete(bucket, key)),
        ]
        failed: list[tuple[str, str, str]] = []
        for what, action, step in steps:
            try:
                await step()
            except HeadroomError as error:
                failed.append((what, action, error.detail))
                if what == "written":
                    break
        where = f"s3://{bucket}/{prefix}"
        if not failed:
            return Finding("objects", State.GOOD, f"written, read, listed and deleted under {where}")
        detail = f"Under {where} nothing can be {' or '.join(what for what, *_ in failed)}: {failed[0][2]}"
        actions = ", ".join(action for _, action, _ in failed)
        advice = f"Allow {actions}, as docs/aws/service-policy.json does"
        return Finding("objects", State.WRONG, detail, f"{advice}; with a KMS key, its use too.")

    async def _openness(self) -> Finding:
        name = "public access"
        try:
            if await self._account.is_closed(self.setup.bucket):
                return Finding(name, State.GOOD, "the bucket blocks all of it")
        except HeadroomError as error:
            advice = "See that the bucket blocks all public access."
            return Finding(name, State.REMARK, f"could not be told: {error.detail}", advice)
        detail = "the bucket itself does not block all public access (the account may)."
        return Finding(name, State.REMARK, detail, "Switch on “Block all public access” on the bucket.")

    async def _encryption(self) -> Finding:
        name = "encryption"
        try:
            if await self._account.is_encrypted(self.setup.bucket):
                return Finding(name, State.GOOD, "the bucket encrypts what it is given")
        except HeadroomError as error:
            advice = "S3 encrypts everything since 2023; look at the bucket's default encryption."
            return Finding(name, State.REMARK, f"could not be told: {error.detail}", advice)
        return Finding(name, State.REMARK, "the bucket has no default encryption.", "Switch on SSE-S3 or SSE-KMS.")

    async def _role(self, identity: Identity) -> list[Finding]:
        arn = self.setup.role_arn
        parts = arn.split(":")
        if not arn:
            advice = "Make the execution role of docs/aws/setup.md and set its ARN."
            return [Finding("role", State.WRONG, "HEADROOM_ROLE_ARN is not set.", advice)]
        if len(parts) != 6 or parts[2] != "iam" or not parts[5].startswith("role/"):
            advice = "Take the ARN from the role's page in the IAM console."
            return [Finding("role", State.WRONG, "HEADROOM_ROLE_ARN is not the ARN of a role.", advice)]
        if parts[4] != identity.account:
            advice = "The execution role must be of the account that Headroom's credentials belong to."
            return [Finding("role", State.WRONG, "The role is of another account than the credentials.", advice)]
        name = parts[5].rsplit("/", 1)[1]
        role = await self._account.role(name)
        if role is None:
            advice = "Make it, as docs/aws/setup.md says, or set HEADROOM_ROLE_ARN to one that is there."
            return [Finding("role", State.WRONG, f"There is no role {name}.", advice)]
        if role.arn != arn:
            return [
                Finding(
                    "role", State.WRONG, f"The ARN of {name} is written otherwise.", "Take it from the IAM console."
                )
            ]
        if SAGEMAKER not in role.trusts:
            detail = f"{name} does not let {SAGEMAKER} assume it."
            return [Finding("role", State.WRONG, detail, "Give it docs/aws/execution-role-trust.json.")]
        return [Finding("role", State.GOOD, f"{name}, which {SAGEMAKER} may assume")]

    async def _pass_role(self, identity: Identity) -> list[Finding]:
        principal = await self._principal(identity)
        if principal is None or not self.setup.role_arn:
            return []
        context = {"iam:PassedToService": SAGEMAKER}
        if await self._account.denied(principal, ["iam:PassRole"], self.setup.role_arn, context):
            detail = "The credentials may not hand the role to SageMaker."
            advice = "Allow iam:PassRole on it, as docs/aws/service-policy.json does."
            return [Finding("PassRole", State.WRONG, detail, advice)]
        return [Finding("PassRole", State.GOOD, "the role may be handed to SageMaker")]

    async def _policy(self, identity: Identity) -> list[Finding]:
        principal = await self._principal(identity)
        if principal is None:
            detail = "could not be told: IAM works out policies of users and roles only."
            return [Finding("policy", State.REMARK, detail, "Use a user or a role of Headroom's own.")]
        partition = identity.arn.split(":")[1]
        denied: set[str] = set()
        for kind, actions in NEEDED.items():
            home = f"arn:{partition}:sagemaker:{self._account.region}:{identity.account}:"
            resource = kind if kind == "*" else f"{home}{kind}check"
            denied |= set(await self._account.denied(principal, actions, resource))
        if denied:
            detail = f"It lacks {', '.join(sorted(denied))}."
            return [Finding("policy", State.WRONG, detail, "Allow them, as docs/aws/service-policy.json does.")]
        return [Finding("policy", State.GOOD, "has every SageMaker action that Headroom uses")]

    async def _principal(self, identity: Identity) -> str | None:
        """The user or role whose policies bind these credentials; None where there is none, as for root."""
        _, partition, service, _, account, name = identity.arn.split(":", 5)
        if service == "sts" and name.startswith("assumed-role/"):
            # A session does not know the path of its role.
            name = name.split("/")[1]
            try:
                role = await self._account.role(name)
            except HeadroomError:
                role = None
            return role.arn if role else f"arn:{partition}:iam::{account}:role/{name}"
        if name.startswith("user/"):
            return f"arn:{partition}:iam::{account}:{name}"
        return None

    async def _quota(self) -> list[Finding]:
        wanted = {f"{instance} for transform job usage": instance for _, instance, _ in TRANSFORM_INSTANCES}
        found = await self._account.quotas(wanted.__contains__)
        none = [wanted[name] for name, value in found.items() if value < 1]
        missing = [instance for name, instance in wanted.items() if name not in found]
        if none:
            detail = f"The account may run no transform on {', '.join(none)}."
            advice = "Ask for 1 under Service Quotas → Amazon SageMaker → “… for transform job usage”."
            return [Finding("quota", State.WRONG, detail, advice)]
        if missing:
            detail = f"could not be told for {', '.join(missing)}."
            return [Finding("quota", State.REMARK, detail, "Look under Service Quotas → Amazon SageMaker.")]
        told = ", ".join(f"{wanted[name]} {value:g}" for name, value in sorted(found.items()))
        return [Finding("quota", State.GOOD, f"transforms at a time: {told}; what AutoML trains on, AWS picks")]

    async def _domain(self) -> list[Finding]:
        domains = await self._sagemaker.domains()
        ready = [domain.name or domain.id for domain in domains if domain.is_in_service]
        if ready:
            return [
                Finding("Studio domain", State.GOOD, f"{', '.join(ready)} (optional: for the Canvas screens alone)")
            ]
        detail = "none is in service in this region; Headroom needs none."
        return [
            Finding("Studio domain", State.REMARK, detail, "Make one only if people are to use the Canvas screens.")
        ]

    def _budget(self) -> Finding:
        terms = self.setup.terms
        if not terms.paid_runs:
            detail = "Paid runs are switched off."
            return Finding("budget", State.WRONG, detail, "Set HEADROOM_PAID_RUNS=true, or leave it out.")
        if terms.monthly_budget <= 0:
            detail = "There is no budget, so no paid run starts."
            return Finding("budget", State.WRONG, detail, "Set HEADROOM_MONTHLY_BUDGET_USD, e.g. to 10.")
        if self.setup.cap > terms.monthly_budget:
            detail = (
                f"A forecast's cap, {shown(self.setup.cap)}, is more than the month's {shown(terms.monthly_budget)}."
            )
            return Finding("budget", State.WRONG, detail, "Raise HEADROOM_MONTHLY_BUDGET_USD or lower the cap.")
        detail = f"{shown(terms.monthly_budget)} a month, {shown(self.setup.cap)} a forecast unless it says otherwise"
        return Finding("budget", State.GOOD, detail)

    async def _api_keys(self) -> Finding:
        if await self._keys.enforced():
            return Finding("API keys", State.GOOD, "enforced; a paid run needs one with the scope paid")
        detail = "There is none, so a paid run would have no owner and does not start."
        if self.setup.emulated:
            return Finding("API keys", State.REMARK, "there is none; the emulator needs none, AWS does.")
        advice = "Make one: headroom keys create NAME --scopes read write paid."
        return Finding("API keys", State.WRONG, detail, advice)


def _credentials(identity: Identity) -> Finding:
    """Without the account's number: what a person pastes into a ticket should not tell it."""
    who = identity.arn.split(":", 5)[5]
    detail = f"{who} of the account that ends in {identity.account[-4:]}"
    if who == "root":
        return Finding("credentials", State.REMARK, detail, "Give Headroom a user or role with its own policy instead.")
    return Finding("credentials", State.GOOD, detail)
