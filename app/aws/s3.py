"""S3: reading an object that a caller names, keeping history files under the contract of storage/artifacts, and the
files of managed runs in one bucket.

Which buckets a caller may name is settled before anything here is called. Transfers are retried by botocore with
jittered back-off; an object is taken whole, as it stood when its reading began, or not at all.
"""

import asyncio
import os
import random
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from functools import cached_property
from pathlib import Path
from typing import Any
from uuid import uuid4

import aioboto3
from aiobotocore.config import AioConfig
from botocore.exceptions import (
    BotoCoreError,
    ClientError,
    IncompleteReadError,
    ReadTimeoutError,
    ResponseStreamingError,
)

from app.aws.endpoint import certificates
from app.aws.faults import translated
from app.errors import AwsUnavailable, Forbidden, Invalid, NotFound, TooLarge

_CHUNK = 1 << 20
_PART = 16 << 20
"""What an upload holds in memory, however large the file. S3 takes parts of 5 MB or more, and 10,000 of them."""
_CONFIG = AioConfig(connect_timeout=3, read_timeout=20, retries={"mode": "standard", "total_max_attempts": 4})
_ABSENT = ("404", "NoSuchKey", "NoSuchBucket", "NotFound")
_DENIED = ("403", "AccessDenied")
_BROKEN = (IncompleteReadError, ReadTimeoutError, ResponseStreamingError)


@dataclass(frozen=True)
class S3:
    """How to reach S3. Credentials are found in the usual places."""

    region: str | None = None
    endpoint_url: str | None = None

    @cached_property
    def _session(self) -> Any:
        """Kept, since it holds what every client must else read anew."""
        return aioboto3.Session(region_name=self.region)

    @asynccontextmanager
    async def raw(self) -> AsyncIterator[Any]:
        """A client whose failures are botocore's."""
        verify = certificates(self.endpoint_url)
        async with self._session.client("s3", endpoint_url=self.endpoint_url, config=_CONFIG, verify=verify) as client:
            yield client

    @asynccontextmanager
    async def client(self) -> AsyncIterator[Any]:
        """A client whose failures are ours. Raises AwsUnavailable, and ClientError for what the caller knows."""
        try:
            async with self.raw() as client:
                yield client
        except BotoCoreError as error:
            raise AwsUnavailable(f"S3 cannot be reached just now ({type(error).__name__}).") from error

    async def fetch(self, bucket: str, key: str, target: Path, limit: int) -> None:
        """Write an object to a local file.

        Raises Invalid (`source-not-found`), Forbidden (`s3-not-allowed`), TooLarge, AwsUnavailable.
        """
        try:
            async with self.client() as client:
                await _download(client, bucket, key, target, limit)
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _ABSENT:
                raise Invalid(f"There is no object {key!r} in bucket {bucket!r}.", slug="source-not-found") from error
            if code in _DENIED:
                detail = f"AWS does not let Headroom read {key!r} in bucket {bucket!r}."
                raise Forbidden(detail, slug="s3-not-allowed") from error
            raise AwsUnavailable(f"S3 refused the request ({code}).") from error


class S3Store:
    """Objects under a prefix of one bucket. What is read is kept in `cache`, since a key never changes."""

    def __init__(self, s3: S3, bucket: str, prefix: str, cache: Path) -> None:
        self._s3, self._bucket, self._prefix, self._cache = s3, bucket, prefix, cache

    async def put(self, key: str, file: Path) -> None:
        async with self._client() as client:
            await _upload(client, self._bucket, self._prefix + key, file, {})

    async def local(self, key: str) -> Path:
        path = self._cached(key)
        if await asyncio.to_thread(path.is_file):
            return path
        await asyncio.to_thread(path.parent.mkdir, parents=True, exist_ok=True)
        arriving = path.with_name(f".{path.name}.{uuid4().hex}")
        try:
            async with self._client() as client:
                await _download(client, self._bucket, self._prefix + key, arriving, limit=1 << 62)
            await asyncio.to_thread(os.replace, arriving, path)
        finally:
            await asyncio.to_thread(arriving.unlink, missing_ok=True)
        return path

    async def delete(self, key: str) -> None:
        async with self._client() as client:
            await client.delete_object(Bucket=self._bucket, Key=self._prefix + key)
        await asyncio.to_thread(self._cached(key).unlink, missing_ok=True)

    async def exists(self, key: str) -> bool:
        with suppress(NotFound):
            async with self._client() as client:
                await client.head_object(Bucket=self._bucket, Key=self._prefix + key)
                return True
        return False

    async def keys(self, before: datetime) -> list[str]:
        found: list[str] = []
        async with self._client() as client:
            pages = client.get_paginator("list_objects_v2").paginate(Bucket=self._bucket, Prefix=self._prefix)
            async for page in pages:
                found += [one["Key"] for one in page.get("Contents", ()) if one["LastModified"] < before]
        # The prefix itself may be an object: consoles make folders so.
        return sorted(key.removeprefix(self._prefix) for key in found if key != self._prefix)

    async def require(self, size: int) -> None:
        """S3 has room for everything."""

    async def check(self) -> None:
        async with self._client() as client:
            await client.head_bucket(Bucket=self._bucket)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        try:
            async with self._s3.client() as client:
                yield client
        except ClientError as error:
            code = error.response["Error"]["Code"]
            if code in _ABSENT:
                raise NotFound("The store has no such file.") from error
            raise AwsUnavailable(f"The store in S3 refused the request ({code}).") from error

    def _cached(self, key: str) -> Path:
        path = self._cache / key
        if not path.resolve().is_relative_to(self._cache.resolve()):
            raise ValueError(f"{key!r} is no key of a store")
        return path


async def _upload(client: Any, bucket: str, key: str, file: Path, sealed: Mapping[str, str]) -> None:
    """A file to an object, whole or not at all, a part at a time: boto's own way reads a hundred parts ahead."""
    source = await asyncio.to_thread(file.open, "rb")
    try:
        part = await asyncio.to_thread(source.read, _PART)
        if len(part) < _PART:
            await client.put_object(Bucket=bucket, Key=key, Body=part, **sealed)
            return
        begun = await client.create_multipart_upload(Bucket=bucket, Key=key, **sealed)
        upload = {"Bucket": bucket, "Key": key, "UploadId": begun["UploadId"]}
        parts: list[dict[str, Any]] = []
        try:
            while part:
                sent = await client.upload_part(**upload, PartNumber=len(parts) + 1, Body=part)
                parts.append({"PartNumber": len(parts) + 1, "ETag": sent["ETag"]})
                part = await asyncio.to_thread(source.read, _PART)
            await client.complete_multipart_upload(**upload, MultipartUpload={"Parts": parts})
        except BaseException:
            # What was sent would lie there, unseen and paid for.
            with suppress(BotoCoreError, ClientError):
                await asyncio.shield(client.abort_multipart_upload(**upload))
            raise
    finally:
        await asyncio.to_thread(source.close)


async def _download(client: Any, bucket: str, key: str, target: Path, limit: int) -> None:
    """An object to a file, in its full length. One answer is of one version; one that breaks off is asked for again."""
    for wait in (0.5, 1.0, 2.0):
        try:
            return await _download_once(client, bucket, key, target, limit)
        except _BROKEN:
            await asyncio.sleep(wait * random.uniform(0.5, 1.5))
    await _download_once(client, bucket, key, target, limit)


async def _download_once(client: Any, bucket: str, key: str, target: Path, limit: int) -> None:
    answer = await client.get_object(Bucket=bucket, Key=key)
    size = int(answer["ContentLength"])
    if size > limit:
        answer["Body"].close()
        raise TooLarge(f"The object has {size:,} bytes; the limit is {limit:,}.")
    received = 0
    file = await asyncio.to_thread(target.open, "wb")
    try:
        while chunk := await answer["Body"].read(_CHUNK):
            received += len(chunk)
            await asyncio.to_thread(file.write, chunk)
    finally:
        answer["Body"].close()
        await asyncio.to_thread(file.close)
    if received != size:
        raise IncompleteReadError(actual_bytes=received, expected_bytes=size)


class Bucket:
    """One bucket, for the files of managed runs. Raises the errors of app/aws/faults."""

    def __init__(self, s3: S3, name: str, kms_key: str | None = None) -> None:
        self._s3, self._name = s3, name
        self._sealed = {"ServerSideEncryption": "aws:kms", "SSEKMSKeyId": kms_key} if kms_key else {}

    async def put_file(self, key: str, file: Path) -> None:
        """Whole, and over what stood there: the same key is always given the same bytes."""
        async with self._client() as client:
            await _upload(client, self._name, key, file, self._sealed)

    async def list(self, prefix: str) -> list[str]:
        """Every key under a prefix, in order."""
        keys: list[str] = []
        async with self._client() as client:
            async for page in client.get_paginator("list_objects_v2").paginate(Bucket=self._name, Prefix=prefix):
                keys += [entry["Key"] for entry in page.get("Contents", ())]
        return sorted(keys)

    async def get_file(self, key: str, target: Path) -> None:
        async with self._client() as client:
            await _download(client, self._name, key, target, limit=1 << 50)

    async def delete_prefix(self, prefix: str) -> None:
        """Every object under a prefix; a prefix without any is none the worse."""
        if not prefix.endswith("/"):
            raise ValueError(f"{prefix!r} would take its namesakes along: a prefix to delete ends in a slash")
        keys = await self.list(prefix)
        async with self._client() as client:
            for start in range(0, len(keys), 1_000):
                objects = [{"Key": key} for key in keys[start : start + 1_000]]
                said = await client.delete_objects(Bucket=self._name, Delete={"Objects": objects, "Quiet": True})
                for kept in said.get("Errors", ()):
                    raise ClientError({"Error": kept}, "DeleteObjects")

    async def check(self) -> None:
        """Raises when the bucket is not there, or not for us."""
        async with self._client() as client:
            await client.head_bucket(Bucket=self._name)

    @asynccontextmanager
    async def _client(self) -> AsyncIterator[Any]:
        async with translated(), self._s3.raw() as client:
            yield client
