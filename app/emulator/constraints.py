"""What SageMaker refuses before it looks at anything: botocore's own service model, and the rules written beside it.

botocore checks only types, minima and what is required, on the client's side; the service checks all of the model.
The rules that are words in the documentation, and the choices of ours, are in rules.py.
"""

import re
from collections.abc import Iterator
from functools import cache, lru_cache
from typing import Any

import botocore.session
from botocore.model import OperationModel, ServiceModel

from app.emulator import rules
from app.emulator.protocol import AwsError, Body, invalid

OPERATIONS = frozenset(
    {
        "AddTags",
        "CreateAutoMLJobV2",
        "CreateModel",
        "CreateTransformJob",
        "DeleteModel",
        "DescribeAutoMLJobV2",
        "DescribeDomain",
        "DescribeModel",
        "DescribeTrainingJob",
        "DescribeTransformJob",
        "ListAutoMLJobs",
        "ListCandidatesForAutoMLJob",
        "ListDomains",
        "ListModels",
        "ListProcessingJobs",
        "ListTags",
        "ListTrainingJobs",
        "ListTransformJobs",
        "StopAutoMLJob",
        "StopTransformJob",
    }
)

_TYPES: dict[str, tuple[type, ...]] = {
    "structure": (dict,),
    "map": (dict,),
    "list": (list,),
    "string": (str,),
    "boolean": (bool,),
    "integer": (int,),
    "long": (int,),
    "float": (int, float),
    "double": (int, float),
    "timestamp": (int, float),
}

# Java's Unicode classes, as they stand inside a set of characters.
_CLASSES = {r"\p{L}": r"\w", r"\p{N}": r"\w", r"\p{Z}": r" \u00a0\u1680\u2000-\u200a\u2028\u2029\u202f\u205f\u3000"}


@lru_cache(maxsize=1)
def model() -> ServiceModel:
    return botocore.session.get_session().get_service_model("sagemaker")


def operation(name: str) -> OperationModel:
    """Raises AwsError when there is no such operation, or none here."""
    if name in OPERATIONS:
        return model().operation_model(name)
    known = "exists at AWS, but the emulator does not have it" if name in model().operation_names else "does not exist"
    raise AwsError("UnknownOperationException", f"The operation {name} {known}.")


def errors(name: str) -> frozenset[str]:
    """The errors that the model names for an operation."""
    return frozenset(shape.name for shape in operation(name).error_shapes)


def check(name: str, body: Body) -> None:
    """Raises AwsError (ValidationException, SerializationException) with all that is wrong with the body."""
    found = list(complaints(operation(name).input_shape, body))
    if found:
        plural = "s" if len(found) > 1 else ""
        raise invalid(f"{len(found)} validation error{plural} detected: {'; '.join(found)}")
    for complaint in rules.complaints(name, body):
        raise invalid(complaint)


def complaints(shape: Any, value: Any, path: str = "") -> Iterator[str]:
    """Each constraint of the shape that the value breaks, in the service's own words."""
    kind = shape.type_name
    if not _is_of(kind, value):
        raise AwsError("SerializationException", f"{path or 'The body'} is to be of type {kind}, not {value!r:.60}.")
    yield from (
        f"Value '{_shown(value)}' at '{path}' failed to satisfy constraint: Member must {must}"
        for must in _broken(shape, value)
    )
    match str(kind):
        case "structure":
            yield from _structure(shape, value, path)
        case "list":
            for number, member in enumerate(value, 1):
                yield from complaints(shape.member, member, f"{path}.{number}.member")
        case "map":
            for key, member in value.items():
                yield from complaints(shape.key, key, f"{path}.{key}.key")
                yield from complaints(shape.value, member, f"{path}.{key}.member")


def _is_of(kind: str, value: object) -> bool:
    return isinstance(value, _TYPES[kind]) and isinstance(value, bool) == (kind == "boolean")


def _structure(shape: Any, value: Body, path: str) -> Iterator[str]:
    for name in shape.required_members:
        if value.get(name) is None:
            yield f"Value null at '{_below(path, name)}' failed to satisfy constraint: Member must not be null"
    given = {name: member for name, member in value.items() if member is not None}
    if getattr(shape, "is_tagged_union", False) and len(given) != 1:
        yield f"Value at '{path}' failed to satisfy constraint: Member must have exactly one of {sorted(shape.members)}"
    for name, member in given.items():
        if name in shape.members:
            yield from complaints(shape.members[name], member, _below(path, name))
        else:
            yield f"Value at '{_below(path, name)}' failed to satisfy constraint: {shape.name} has no such member"


def _broken(shape: Any, value: Any) -> Iterator[str]:
    rule = shape.metadata
    if shape.type_name in ("string", "list", "map"):
        if len(value) < rule.get("min", 0):
            yield f"have length greater than or equal to {rule['min']}"
        if len(value) > rule.get("max", len(value)):
            yield f"have length less than or equal to {rule['max']}"
    elif shape.type_name in ("integer", "long", "float", "double"):
        if value < rule.get("min", value):
            yield f"have value greater than or equal to {rule['min']}"
        if value > rule.get("max", value):
            yield f"have value less than or equal to {rule['max']}"
    if shape.type_name == "string":
        if "pattern" in rule and not pattern(rule["pattern"]).fullmatch(value):
            yield f"satisfy regular expression pattern: {rule['pattern']}"
        if "enum" in rule and value not in rule["enum"]:
            yield f"satisfy enum value set: [{', '.join(rule['enum'])}]"


@cache
def pattern(java: str) -> re.Pattern[str]:
    """A pattern of the model, which is written for Java, for the whole of a value."""
    for written, ours in _CLASSES.items():
        java = java.replace(written, ours)
    return re.compile(java)


def _below(path: str, name: str) -> str:
    member = name[0].lower() + name[1:]
    return f"{path}.{member}" if path else member


def _shown(value: Any) -> str:
    text = value if isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
