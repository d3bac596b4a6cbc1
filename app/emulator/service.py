"""SageMaker: one call from its bytes to its answer, through constraints, faults and journal."""

from collections.abc import Callable
from typing import Any

from app.emulator import automl, constraints, faults, models, protocol, studio, transform
from app.emulator.faults import CALL, CREATES
from app.emulator.protocol import Answer, AwsError, Body, Call
from app.emulator.state import Account

Operation = Callable[[Account, Call], Body | None]

_OPERATIONS: dict[str, Operation] = {
    "AddTags": studio.add_tags,
    "CreateAutoMLJobV2": automl.create,
    "CreateModel": models.create,
    "CreateTransformJob": transform.create,
    "DeleteModel": models.delete,
    "DescribeAutoMLJobV2": automl.describe,
    "DescribeDomain": studio.describe_domain,
    "DescribeModel": models.describe,
    "DescribeTrainingJob": automl.describe_training,
    "DescribeTransformJob": transform.describe,
    "ListAutoMLJobs": automl.list_jobs,
    "ListCandidatesForAutoMLJob": automl.list_candidates,
    "ListDomains": studio.list_domains,
    "ListModels": models.list_models,
    "ListProcessingJobs": automl.list_processings,
    "ListTags": studio.list_tags,
    "ListTrainingJobs": automl.list_trainings,
    "ListTransformJobs": transform.list_jobs,
    "StopAutoMLJob": automl.stop,
    "StopTransformJob": transform.stop,
}
_STATUSES = ("AutoMLJobStatus", "AutoMLJobSecondaryStatus", "TransformJobStatus", "TrainingJobStatus")


def serve(account: Account, target: str, authorization: str, content: bytes) -> Answer | None:
    """The answer; None when the connection is to be cut instead."""
    operation, struck = target.removeprefix("SageMaker."), None
    body: Any = None
    code: str | None = None
    try:
        call = protocol.read(target, authorization, content)
        body = call.body
        constraints.operation(operation)
        sealed = frozenset({"unknown_status"}) if operation in CREATES else frozenset()
        struck = account.faults.take(operation, frozenset(CALL) - {"no_domain"} - sealed)
        if struck and (refusal := faults.refusal(struck, operation)):
            raise refusal
        constraints.check(operation, body)
        done = _OPERATIONS[operation](account, call)
        if struck == "server_error_after_success":
            raise faults.internal()
        if struck == "unknown_status" and done is not None:
            done = {name: faults.UNKNOWN if name in _STATUSES else value for name, value in done.items()}
        answer = protocol.answer(done)
    except AwsError as problem:
        code = problem.code
        answer = protocol.error(problem)
    account.journal.add(
        "sagemaker",
        operation,
        request=body,
        status=answer.status,
        error=code,
        fault=struck,
        simulated=account.clock.now(),
    )
    return None if struck == "lost_reply" else answer
