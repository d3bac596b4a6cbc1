"""The emulator's own way to S3: over HTTP to its own endpoint, as any other client of the bucket.

Its calls carry a mark in the user agent, so that they are neither journalled nor struck by faults.
"""

import re
from dataclasses import dataclass
from typing import Any

import boto3
from botocore.config import Config
from botocore.exceptions import ClientError

INNER = "headroom-emulator-inner"

_URI = re.compile(r"s3://([^/]+)/?(.*)", re.DOTALL)


@dataclass(frozen=True)
class Stored:
    bucket: str
    key: str
    size: int

    @property
    def uri(self) -> str:
        return f"s3://{self.bucket}/{self.key}"


def split(uri: str) -> tuple[str, str]:
    """`s3://bucket/a/b` → (`bucket`, `a/b`). Raises ValueError for anything else."""
    found = _URI.fullmatch(uri)
    if found is None:
        raise ValueError(f"{uri!r} is not of the form s3://bucket/key")
    return found[1], found[2]


class S3:
    def __init__(self, endpoint: str) -> None:
        self._client: Any = boto3.client(
            "s3",
            endpoint_url=endpoint,
            region_name="us-east-1",
            aws_access_key_id="emulator",
            aws_secret_access_key="emulator",
            config=Config(user_agent_extra=INNER, s3={"addressing_style": "path"}, proxies={}),
        )

    def bucket_exists(self, uri: str) -> bool:
        try:
            self._client.head_bucket(Bucket=split(uri)[0])
        except ClientError:
            return False
        return True

    def objects(self, uri: str) -> list[Stored]:
        """What has a size under the prefix, in the order of the keys; nothing when there is no such bucket."""
        bucket, prefix = split(uri)
        pages = self._client.get_paginator("list_objects_v2").paginate(Bucket=bucket, Prefix=prefix)
        try:
            return [
                Stored(bucket, one["Key"], one["Size"])
                for page in pages
                for one in page.get("Contents", ())
                if one["Size"] > 0
            ]
        except ClientError:
            return []

    def read(self, uri: str) -> bytes | None:
        """The object, or None when there is none."""
        bucket, key = split(uri)
        try:
            content: bytes = self._client.get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError:
            return None
        return content

    def write(self, uri: str, content: bytes) -> None:
        bucket, key = split(uri)
        self._client.put_object(Bucket=bucket, Key=key, Body=content)
