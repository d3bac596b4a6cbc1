"""Models: entries of a registry that name containers and where their data lies."""

from app.emulator import listing
from app.emulator.protocol import Body, Call, invalid
from app.emulator.state import Account, Model, in_use, key, not_found


def create(account: Account, call: Call) -> Body:
    """As AWS, looks whether the model's data is there."""
    name = call.body["ModelName"]
    model = Model(name, call.arn("model", name), call.body, account.clock.now())
    for container in model.containers:
        if account.s3.read(container["ModelDataUrl"]) is None:
            raise invalid(f"Could not find model data at {container['ModelDataUrl']}.")
    with account.lock:
        if key(name) in account.models:
            raise in_use(call.operation, "model", model.arn)
        account.models[key(name)] = model
        account.keep_tags(model.arn, call.body)
    return {"ModelArn": model.arn}


def describe(account: Account, call: Call) -> Body:
    with account.lock:
        model = _model(account, call)
    kept = ("PrimaryContainer", "Containers", "InferenceExecutionConfig", "ExecutionRoleArn", "VpcConfig")
    return {
        "ModelName": model.name,
        "ModelArn": model.arn,
        "CreationTime": model.created,
        "EnableNetworkIsolation": model.request.get("EnableNetworkIsolation", False),
        **{name: model.request[name] for name in kept if name in model.request},
    }


def delete(account: Account, call: Call) -> None:
    """The entry only: the data stays in S3."""
    with account.lock:
        model = _model(account, call)
        del account.models[key(model.name)]
        del account.tags[model.arn]


def list_models(account: Account, call: Call) -> Body:
    with account.lock:
        rows = [
            {"ModelName": model.name, "ModelArn": model.arn, "CreationTime": model.created}
            for model in account.models.values()
        ]
    return listing.page(rows, call.body, "Models", "ModelName", None, last=True)


def _model(account: Account, call: Call) -> Model:
    name = call.body["ModelName"]
    if key(name) not in account.models:
        raise not_found(call.operation, "model", call.arn("model", name))
    return account.models[key(name)]
