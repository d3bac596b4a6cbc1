"""Large files on their way to S3: whole there, or nothing, not even parts that cost."""

import os
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from botocore.exceptions import ClientError

from app.aws.faults import Unreachable
from app.aws.s3 import _PART, S3, Bucket

BUCKET = "headroom-uploads"


@pytest.fixture
async def client(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[Any]:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    async with S3("us-east-1", endpoint).raw() as client:
        await client.create_bucket(Bucket=BUCKET)
        yield client


class Failing(S3):
    """Refuses the second part."""

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[Any]:
        async with super().raw() as client:
            client.meta.events.register("before-call.s3.UploadPart", _refuse_the_second)
            yield client


def _refuse_the_second(params: dict[str, Any], **_: Any) -> None:
    if params["query_string"]["partNumber"] == 2:
        raise ClientError({"Error": {"Code": "ServiceUnavailable", "Message": "no"}}, "UploadPart")


@pytest.mark.parametrize(("size", "parts"), [(0, 0), (_PART - 1, 0), (_PART, 1), (2 * _PART + 5, 3)])
async def test_a_file_arrives_as_it_was(client: Any, endpoint: str, tmp_path: Path, size: int, parts: int) -> None:
    content = os.urandom(size)
    (tmp_path / "sent").write_bytes(content)
    bucket = Bucket(S3("us-east-1", endpoint), BUCKET)
    await bucket.put_file("runs/a.csv", tmp_path / "sent")
    await bucket.get_file("runs/a.csv", tmp_path / "came")
    assert (tmp_path / "came").read_bytes() == content
    tag = (await client.head_object(Bucket=BUCKET, Key="runs/a.csv"))["ETag"].strip('"')
    assert tag.partition("-")[2] == (str(parts) if parts else "")


async def test_an_upload_that_fails_midway_leaves_nothing(client: Any, endpoint: str, tmp_path: Path) -> None:
    (tmp_path / "sent").write_bytes(bytes(2 * _PART))
    with pytest.raises(Unreachable):
        await Bucket(Failing("us-east-1", endpoint), BUCKET).put_file("runs/b.csv", tmp_path / "sent")
    assert not (await client.list_multipart_uploads(Bucket=BUCKET)).get("Uploads")
    assert not (await client.list_objects_v2(Bucket=BUCKET, Prefix="runs/b.csv")).get("Contents")
