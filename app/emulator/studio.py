"""Tags, and the Studio domain that Canvas lives in: one, in service."""

from app.emulator.protocol import ACCOUNT, Body, Call, invalid
from app.emulator.state import Account, not_found

DOMAIN = "d-emulated00000"
ROLE = f"arn:aws:iam::{ACCOUNT}:role/headroom-emulated"
BUCKET = "headroom-emulated"
MAX_TAGS = 50


def add_tags(account: Account, call: Call) -> Body:
    arn = call.body["ResourceArn"]
    with account.lock:
        tags = _tags(account, call) | {tag["Key"]: tag["Value"] for tag in call.body["Tags"]}
        if len(tags) > MAX_TAGS:
            raise invalid(f"{arn} would have {len(tags)} tags; at most {MAX_TAGS} are allowed.")
        account.tags[arn] = tags
    return {"Tags": _listed(tags)}


def list_tags(account: Account, call: Call) -> Body:
    with account.lock:
        return {"Tags": _listed(_tags(account, call))}


def list_domains(account: Account, call: Call) -> Body:
    if account.faults.take(call.operation, frozenset({"no_domain"})):
        return {"Domains": []}
    domain = describe(account, call.region)
    kept = ("DomainArn", "DomainId", "DomainName", "Status", "CreationTime", "LastModifiedTime", "Url")
    return {"Domains": [{name: domain[name] for name in kept}]}


def describe_domain(account: Account, call: Call) -> Body:
    if call.body["DomainId"] != DOMAIN:
        raise not_found(call.operation, "domain", call.body["DomainId"])
    return describe(account, call.region)


def describe(account: Account, region: str) -> Body:
    return {
        "DomainArn": f"arn:aws:sagemaker:{region}:{ACCOUNT}:domain/{DOMAIN}",
        "DomainId": DOMAIN,
        "DomainName": "emulated",
        "Status": "InService",
        "CreationTime": 1_700_000_000.0,
        "LastModifiedTime": 1_700_000_000.0,
        "AuthMode": "IAM",
        "Url": f"https://{DOMAIN}.studio.{region}.emulated.invalid",
        "DefaultUserSettings": {
            "ExecutionRole": ROLE,
            "CanvasAppSettings": {
                "TimeSeriesForecastingSettings": {"Status": "ENABLED"},
                "ModelRegisterSettings": {"Status": "DISABLED"},
                "DirectDeploySettings": {"Status": "DISABLED"},
            },
        },
    }


def _tags(account: Account, call: Call) -> dict[str, str]:
    arn = call.body["ResourceArn"]
    if arn not in account.tags:
        raise not_found(call.operation, "resource", arn)
    return account.tags[arn]


def _listed(tags: dict[str, str]) -> list[Body]:
    return [{"Key": name, "Value": value} for name, value in tags.items()]
