"""One contract for every store: in a folder, in S3 on moto's server, and with HEADROOM_TEST_AWS=1 in S3 itself."""

import os
import tempfile
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from app.aws.s3 import S3, Bucket, S3Store
from app.domain.dataset import Limits
from app.errors import Forbidden, InsufficientStorage, Invalid, NotFound, TooLarge
from app.services.datasets import Datasets, S3Object, S3Sources, Sent
from app.storage.artifacts import FolderStore, Store

BUCKET = "headroom-history"
KEY = "0b8f6c0e.parquet"


@pytest.fixture
async def s3(endpoint: str, monkeypatch: pytest.MonkeyPatch) -> AsyncIterator[S3]:
    """S3 with one empty bucket of ours."""
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "testing")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "testing")
    s3 = S3("us-east-1", endpoint)
    async with s3.client() as client:
        await client.create_bucket(Bucket=BUCKET)
        yield s3
        listed = await client.list_objects_v2(Bucket=BUCKET)
        for one in listed.get("Contents", ()):
            await client.delete_object(Bucket=BUCKET, Key=one["Key"])
        await client.delete_bucket(Bucket=BUCKET)


@pytest.fixture
async def aws_store(tmp_path: Path) -> AsyncIterator[S3Store]:
    """In the bucket of a real account."""
    prefix, bucket = f"datasets/tests-{uuid4()}/", os.environ["HEADROOM_BUCKET"]
    yield S3Store(S3(), bucket, prefix, tmp_path / "cache")
    await Bucket(S3(), bucket).delete_prefix(prefix)


@pytest.fixture(params=["folder", "s3", *(["aws"] if os.environ.get("HEADROOM_TEST_AWS") == "1" else [])])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Store:
    match request.param:
        case "folder":
            return FolderStore(tmp_path / "store")
        case "s3":
            return S3Store(request.getfixturevalue("s3"), BUCKET, "datasets/", tmp_path / "cache")
    found: Store = request.getfixturevalue("aws_store")
    return found


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


async def test_what_is_put_is_there(store: Store, tmp_path: Path) -> None:
    content = os.urandom(3 << 20)
    await store.put(KEY, written(tmp_path / "a", content))
    assert await store.exists(KEY)
    for _ in range(2):
        assert (await store.local(KEY)).read_bytes() == content


async def test_keys_may_have_folders(store: Store, tmp_path: Path) -> None:
    await store.put("2024/a.parquet", written(tmp_path / "a", b"a"))
    await store.put("2024/b.parquet", written(tmp_path / "b", b""))
    assert (await store.local("2024/a.parquet")).read_bytes() == b"a"
    assert (await store.local("2024/b.parquet")).read_bytes() == b""


async def test_what_was_never_put_is_not_there(store: Store) -> None:
    assert not await store.exists(KEY)
    with pytest.raises(NotFound):
        await store.local(KEY)
    await store.delete(KEY)


async def test_what_is_deleted_is_gone(store: Store, tmp_path: Path) -> None:
    await store.put(KEY, written(tmp_path / "a", b"a"))
    await store.local(KEY)
    await store.delete(KEY)
    assert not await store.exists(KEY)
    with pytest.raises(NotFound):
        await store.local(KEY)


async def test_keys_are_told_by_their_age(store: Store, tmp_path: Path) -> None:
    began = datetime.now(UTC) - timedelta(minutes=1)
    assert await store.keys(began) == []
    for key in ("b.parquet", "2024/a.parquet"):
        await store.put(key, written(tmp_path / "file", b"a"))
    assert await store.keys(began) == []
    assert await store.keys(began + timedelta(minutes=2)) == ["2024/a.parquet", "b.parquet"]
    await store.delete("b.parquet")
    assert await store.keys(began + timedelta(minutes=2)) == ["2024/a.parquet"]


async def test_a_key_cannot_leave_the_store(store: Store) -> None:
    for key in ("../a", "a/../../b", "/etc/passwd"):
        with pytest.raises(ValueError, match="no key"):
            await store.local(key)


@pytest.mark.parametrize("key", ["..", ".", "a/..", "a/../b", "..a", "a//b", ""])
async def test_dots_lead_nowhere(tmp_path: Path, key: str) -> None:
    with pytest.raises(ValueError, match="no key"):
        await FolderStore(tmp_path).delete(key)


async def test_a_store_that_works_says_so(store: Store) -> None:
    await store.check()
    await store.require(1)


async def test_a_bucket_that_is_gone(s3: S3, tmp_path: Path) -> None:
    with pytest.raises(NotFound):
        await S3Store(s3, "another", "", tmp_path).check()


async def test_a_folder_that_is_none(tmp_path: Path) -> None:
    store = FolderStore(written(tmp_path / "store", b""))
    with pytest.raises(OSError, match="store"):
        await store.check()
    source = written(tmp_path / "a", b"a")
    with pytest.raises(OSError, match="store"):
        await store.put(KEY, source)


async def test_more_than_the_disk_has(tmp_path: Path) -> None:
    with pytest.raises(InsufficientStorage):
        await FolderStore(tmp_path).require(1 << 60)


@pytest.mark.skipif(not Path("/dev/shm").is_dir(), reason="a second file system is needed")
async def test_a_file_from_another_disk_is_copied_whole(tmp_path: Path) -> None:
    with tempfile.TemporaryDirectory(dir="/dev/shm") as elsewhere:
        store = FolderStore(tmp_path / "store")
        await store.put(KEY, written(Path(elsewhere) / "a", b"a" * 100_000))
        found = await store.local(KEY)
        assert found.read_bytes() == b"a" * 100_000
        assert [path.name for path in found.parent.iterdir()] == [KEY]


class Fetched:
    """Counts how often S3 is asked."""

    def __init__(self, s3: S3) -> None:
        self._s3 = s3
        self.calls = 0

    async def __call__(self, bucket: str, key: str, target: Path, limit: int) -> None:
        self.calls += 1
        await self._s3.fetch(bucket, key, target, limit)


class Nowhere:
    """Stands in for what an upload that is refused early never reaches."""

    def __getattr__(self, name: str) -> None:
        raise AssertionError(f"{name} was reached")


@pytest.mark.parametrize(
    ("place", "error", "slug", "calls"),
    [
        (S3Object("other", "fleet/a.csv"), Forbidden, "s3-not-allowed", 0),
        (S3Object(BUCKET, "secret/a.csv"), Forbidden, "s3-not-allowed", 0),
        (S3Object(BUCKET, "fleet"), Forbidden, "s3-not-allowed", 0),
        (S3Object("169.254.169.254", "fleet/a.csv"), Invalid, "s3-uri", 0),
        (S3Object("http://169.254.169.254/", "fleet/a.csv"), Invalid, "s3-uri", 0),
        (S3Object(BUCKET, "s3://other/a.csv"), Invalid, "s3-uri", 0),
        (S3Object(BUCKET, ""), Invalid, "s3-uri", 0),
        (S3Object(BUCKET, "fleet/missing.csv"), Invalid, "source-not-found", 1),
        (S3Object(BUCKET, "fleet/large.csv"), TooLarge, "too-large", 1),
    ],
)
async def test_which_objects_may_be_named(
    s3: S3, tmp_path: Path, place: S3Object, error: type[Exception], slug: str, calls: int
) -> None:
    async with s3.client() as client:
        await client.put_object(Bucket=BUCKET, Key="fleet/large.csv", Body=b"x" * 2_000)
    fetch = Fetched(s3)
    datasets = Datasets(
        Nowhere(),  # type: ignore[arg-type]
        Nowhere(),  # type: ignore[arg-type]
        Nowhere(),  # type: ignore[arg-type]
        Limits(bytes=1_000, columns=10, cells=100),
        tmp_path,
        S3Sources((f"{BUCKET}/fleet/",), fetch),
    )
    with pytest.raises(error) as refused:
        await datasets.add(Sent(place, "x"), tmp_path)
    assert refused.value.slug == slug  # type: ignore[attr-defined]
    assert fetch.calls == calls
