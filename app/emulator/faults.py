"""Faults by request: what is to go wrong with the next calls of an operation.

A fault of a call strikes the call itself; a fault of a job is sealed into the job when it is created and shows
later. It leaves out how each is done: service.py for calls, automl.py and transform.py for jobs.
"""

import threading
from dataclasses import dataclass
from typing import Any

from app.emulator.protocol import ACCOUNT, MARK, AwsError, Body

UNKNOWN = "Pondering"
"""A status that AWS does not have."""

CALL = {
    "throttle": "refused with ThrottlingException; S3 answers SlowDown",
    "server_error": "HTTP 500, and nothing is done",
    "server_error_after_success": "HTTP 500, but it is done",
    "lost_reply": "it is done, and the connection is cut without an answer",
    "access_denied": "refused with AccessDeniedException",
    "expired_token": "refused with ExpiredTokenException: the credentials have run out",
    "resource_limit": "refused with ResourceLimitExceeded",
    "unknown_status": "the answer says a status that nobody has heard of (on a create: every description of the job)",
    "no_domain": "ListDomains finds none",
}
JOB = {
    "fail_job": "the job ends Failed, with a reason",
    "no_candidate": "the AutoML job ends Completed, without a BestCandidate",
    "cpu_containers": "the candidate has InferenceContainerDefinitions['CPU'] in place of InferenceContainers",
    "slow": "the job takes ten times as long",
    "dear": "the AutoML job's children run on ml.m5.24xlarge",
}
OUTPUT = {
    "malformed_out": "the `.out` files are not CSV",
    "missing_out": "the transform ends Completed and writes no `.out`",
    "late_out": "the `.out` files come ten simulated minutes after Completed",
    "nan_out": "some values are nan and inf",
    "short_out": "the last steps of each series are missing",
    "long_out": "each series goes on for a step more than was asked for",
    "missing_item_out": "one item is missing",
    "extra_item_out": "there is an item that nobody asked for",
    "duplicate_out": "some rows are there twice",
    "crossed_out": "the quantiles are in the wrong order",
    "plain_dates_out": "daily timestamps are written without the time of day",
    "no_mean_out": "there is no column `mean`",
}
CREATES = {"CreateAutoMLJobV2": frozenset(JOB), "CreateTransformJob": frozenset({"fail_job", "slow"} | set(OUTPUT))}
LIST_BUCKETS = "ListBuckets"
ON_BUCKET = {
    "GET": "ListObjects",
    "PUT": "CreateBucket",
    "HEAD": "HeadBucket",
    "DELETE": "DeleteBucket",
    "POST": "DeleteObjects",
}
ON_OBJECT = {
    "GET": "GetObject",
    "PUT": "PutObject",
    "HEAD": "HeadObject",
    "DELETE": "DeleteObject",
    "POST": "MultipartUpload",
}
"""The operations of S3, as faults and the journal name them, by HTTP method."""

S3 = frozenset({"throttle", "server_error", "server_error_after_success", "lost_reply", "access_denied"})


@dataclass
class _Armed:
    operation: str
    fault: str
    times: int


class Faults:
    """The faults in wait, oldest first. Safe to use from several threads."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._armed: list[_Armed] = []

    def arm(self, request: Any, operations: frozenset[str]) -> None:
        """{"operation", "fault", "times"}. Raises AwsError when there is no such fault of the operation."""
        if not isinstance(request, dict) or not {"operation", "fault"} <= set(request) <= {
            "operation",
            "fault",
            "times",
        }:
            raise AwsError("BadFault", 'Say {"operation": …, "fault": …, "times": 1}.')
        of_s3 = [f"s3:{name}" for name in (LIST_BUCKETS, *ON_BUCKET.values(), *ON_OBJECT.values())]
        operation, fault, times = request["operation"], request["fault"], request.get("times", 1)
        if not isinstance(times, int) or isinstance(times, bool) or times < 1:
            raise AwsError("BadFault", "times is a number of calls, from 1.")
        if operation in of_s3:
            possible = S3
        elif operation == "*" or operation in operations:
            possible = frozenset(CALL) | CREATES.get(operation, frozenset())
        else:
            raise AwsError("BadFault", f"{operation!r} is none of {', '.join(['*', *sorted(operations), *of_s3])}.")
        if fault not in possible:
            raise AwsError("BadFault", f"{fault!r} is no fault of {operation}: one of {sorted(possible)}.")
        with self._lock:
            self._armed.append(_Armed(operation, fault, times))

    def take(self, operation: str, kinds: frozenset[str]) -> str | None:
        """The oldest fault of these kinds that waits for the operation, used up by one."""
        with self._lock:
            for armed in self._armed:
                if armed.operation in (operation, "*") and armed.fault in kinds:
                    armed.times -= 1
                    self._armed = [one for one in self._armed if one.times > 0]
                    return armed.fault
        return None

    def waiting(self) -> list[Body]:
        with self._lock:
            return [{"operation": one.operation, "fault": one.fault, "times": one.times} for one in self._armed]

    def clear(self) -> None:
        with self._lock:
            self._armed.clear()


def refusal(fault: str, operation: str) -> AwsError | None:
    """What a call is refused with, before anything is done."""
    match fault:
        case "throttle":
            return AwsError("ThrottlingException", f"Rate exceeded {MARK}")
        case "server_error":
            return internal()
        case "access_denied":
            return AwsError(
                "AccessDeniedException",
                f"User: arn:aws:iam::{ACCOUNT}:user/emulated is not authorized to perform: sagemaker:{operation} "
                f"because no identity-based policy allows the action {MARK}",
            )
        case "expired_token":
            return AwsError("ExpiredTokenException", f"The security token included in the request is expired {MARK}")
        case "resource_limit":
            return AwsError(
                "ResourceLimitExceeded",
                f"The account-level service limit for {operation} is 0, with current utilization of 0 and a request "
                f"delta of 1. Please use AWS Service Quotas to request an increase for this quota. {MARK}",
            )
    return None


def internal() -> AwsError:
    return AwsError("InternalFailure", f"The request processing has failed because of an unknown error. {MARK}", 500)
