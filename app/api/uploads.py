"""Receiving an upload: the body goes to a file as it comes in, counted and hashed, and is never whole in memory.

A dataset comes in three forms: multipart/form-data with a field `file`, the file as raw body, or JSON that names an
object in S3. An export of the Canvas screens comes in the first two, a second one beside it in the first. The size
limit holds while streaming, before anything is parsed or spooled. What the file holds is judged later.
"""

import asyncio
import hashlib
import json
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

from fastapi import Request
from fastapi.exceptions import RequestValidationError
from pydantic import BaseModel, Field, TypeAdapter, ValidationError
from python_multipart.exceptions import MultipartParseError
from python_multipart.multipart import MultipartParser, parse_options_header
from starlette.requests import ClientDisconnect

from app.api.strict import Body, Text
from app.domain.dataset import Schema, Unit
from app.errors import BadRequest, Complaint, IncompleteBody, Invalid, TooLarge, UnknownField, UnsupportedMediaType
from app.services.by_hand import Exported
from app.services.datasets import S3Object, Sent

if TYPE_CHECKING:
    from python_multipart.multipart import MultipartCallbacks

RAW = ("text/csv", "application/gzip", "application/x-gzip", "application/vnd.apache.parquet")
EXPORT = "text/csv"
FORM = "multipart/form-data"

_IDLE_SECONDS = 60.0
_DRAIN_SECONDS = 2.0
_DRAIN_BYTES = 64 << 20
_MAX_FIELD = 1 << 20
_OVERHEAD = 4 << 20
_MAX_NAME = 255

M = TypeVar("M", bound=BaseModel)


class S3Place(Body):
    """An object in S3, in a bucket that this service may read."""

    bucket: Text
    key: Text


class S3Body(Body):
    """A dataset that lies in S3."""

    s3: S3Place
    name: Annotated[Text, Field(min_length=1, max_length=_MAX_NAME)] | None = None
    schema_: "SchemaBody | None" = Field(None, alias="schema")


class SchemaBody(Body):
    """What the columns are, where their names and contents do not tell."""

    units: dict[Text, Unit] = Field(default_factory=dict)
    attributes: list[Text] = Field(default_factory=list)
    known_ahead: list[Text] = Field(default_factory=list)

    def schema_of(self) -> Schema:
        return Schema(dict(self.units), tuple(self.attributes), tuple(self.known_ahead))


class Spool:
    """A file on its way in. Raises TooLarge as soon as it is."""

    def __init__(self, path: Path, limit: int) -> None:
        self.path = path
        self._limit = limit
        self._size = 0
        self._hash = hashlib.sha256()
        self._file = path.open("wb", buffering=_MAX_FIELD)

    def write(self, data: bytes | memoryview) -> None:
        self._size += len(data)
        if self._size > self._limit:
            raise TooLarge(f"The file is larger than the limit of {self._limit / 2**20:,.0f} MB.")
        self._hash.update(data)
        self._file.write(data)

    def close(self) -> str:
        """Its SHA-256."""
        self._file.close()
        return self._hash.hexdigest()


async def received(request: Request, folder: Path, limit: int, name: str | None, schema: str | None) -> Sent:
    """The upload, its file in `folder`; `name` and `schema` are those of the query.

    Raises UnsupportedMediaType, TooLarge, IncompleteBody, BadRequest, UnknownField, Invalid.
    """
    async with _body(request, limit) as (media_type, boundary, body):
        match media_type:
            case "multipart/form-data":
                form = await _multipart(body, boundary, folder, limit, files=("file",), texts=("name", "schema"))
                described = form.text("schema")
                return Sent(
                    form.files["file"].path,
                    _name(name if (named := form.text("name")) is None else named, form.files["file"].name),
                    form.files["file"].sha256,
                    _schema(schema, "?schema") if described is None else _schema(described, "/schema"),
                )
            case "application/json":
                return _from_json(await _whole(body), name, schema)
            case raw if raw in RAW:
                path, sha256 = await _raw(body, folder, limit)
                return Sent(path, _name(name, None), sha256, _schema(schema, "?schema"))
            case other:
                raise UnsupportedMediaType(
                    f"The body is {other or 'of no declared type'}; send {FORM} with a field `file`, "
                    f"or the file as {', '.join(RAW)}, or application/json that names an object in S3."
                )


async def exported(request: Request, folder: Path, limit: int) -> Exported:
    """What a person exported from the Canvas screens, its files in `folder`; the limit is for both together.

    Raises UnsupportedMediaType, TooLarge, IncompleteBody, BadRequest, UnknownField, Invalid.
    """
    async with _body(request, limit) as (media_type, boundary, body):
        match media_type:
            case "multipart/form-data":
                form = await _multipart(body, boundary, folder, limit, files=("file", "backtest"))
                backtest = form.files.get("backtest")
                return Exported(form.files["file"].path, backtest.path if backtest else None)
            case raw if raw == EXPORT:
                path, _ = await _raw(body, folder, limit)
                return Exported(path)
            case other:
                raise UnsupportedMediaType(
                    f"The body is {other or 'of no declared type'}; send the exported CSV as {EXPORT}, or {FORM} with "
                    "a field `file`, and a field `backtest` for the export that it is scored by."
                )


@asynccontextmanager
async def _body(request: Request, limit: int) -> AsyncIterator[tuple[str, bytes, AsyncIterator[bytes]]]:
    """The media type, the boundary of a form, and the body as it comes; the rest of one that is refused is drained."""
    media_type, options = parse_options_header(request.headers.get("content-type"))
    body = _chunks(request)
    try:
        _refuse_announced(request, limit)
        yield media_type.decode("latin-1").lower(), options.get(b"boundary", b""), body
    except (TooLarge, UnsupportedMediaType):
        await _drain(body)
        raise


async def _raw(body: AsyncIterator[bytes], folder: Path, limit: int) -> tuple[Path, str]:
    """The file that the whole body is, and its SHA-256."""
    spool = Spool(folder / "file", limit)
    try:
        async for chunk in body:
            spool.write(chunk)
    finally:
        sha256 = spool.close()
    return spool.path, sha256


async def _chunks(request: Request) -> AsyncIterator[bytes]:
    """The body as it comes. Raises IncompleteBody when it breaks off, or nothing comes for a minute."""
    stream = request.stream()
    announced, count = request.headers.get("content-length", ""), 0
    while True:
        try:
            async with asyncio.timeout(_IDLE_SECONDS):
                chunk = await anext(stream, None)
        except ClientDisconnect:
            raise IncompleteBody("The connection ended before the body did. Send it again.") from None
        except TimeoutError:
            raise IncompleteBody(f"Nothing of the body came for {_IDLE_SECONDS:.0f} s. Send it again.") from None
        if chunk is None:
            break
        count += len(chunk)
        yield chunk
    if announced.isdecimal() and count < int(announced):
        raise IncompleteBody(f"The body has {count:,} bytes, of {int(announced):,} announced. Send it again.")


async def _drain(body: AsyncIterator[bytes]) -> None:
    """Read on for a moment, so that a client in the middle of sending gets to see the answer."""
    rest = _DRAIN_BYTES
    with suppress(TimeoutError, IncompleteBody):
        async with asyncio.timeout(_DRAIN_SECONDS):
            async for chunk in body:
                rest -= len(chunk)
                if rest < 0:
                    return


def _refuse_announced(request: Request, limit: int) -> None:
    announced = request.headers.get("content-length", "")
    if announced.isdecimal() and int(announced) > limit + _OVERHEAD:
        raise TooLarge(f"The body has {int(announced) >> 20:,} MB; the limit is {limit >> 20:,} MB.")


@dataclass(frozen=True)
class _File:
    path: Path
    sha256: str
    name: str | None


@dataclass(frozen=True)
class _Form:
    """The fields that came."""

    files: dict[str, _File]
    texts: dict[str, bytes]

    def text(self, field: str) -> str | None:
        try:
            return self.texts[field].decode() if field in self.texts else None
        except UnicodeDecodeError:
            detail = f"The form field {field!r} is not UTF-8."
            raise Invalid(detail, errors=[Complaint(f"/{field}", "encoding", detail)], slug="encoding") from None


class _Parts:
    """The callbacks of the multipart parser: a file goes to its spool in `folder`, a text is kept."""

    def __init__(self, folder: Path, limit: int, files: Sequence[str], texts: Sequence[str]) -> None:
        self.spools: dict[str, Spool] = {}
        self.texts: dict[str, bytearray] = {}
        self.filenames: dict[str, str] = {}
        self.complete = False
        self._folder, self._limit = folder, limit
        self._files, self._allowed = files, (*files, *texts)
        self._header, self._value = bytearray(), bytearray()
        self._disposition = b""
        self._field = ""

    def callbacks(self) -> "MultipartCallbacks":
        return {
            "on_part_begin": self._on_part_begin,
            "on_part_data": self._on_part_data,
            "on_header_field": self._on_header_field,
            "on_header_value": self._on_header_value,
            "on_header_end": self._on_header_end,
            "on_headers_finished": self._on_headers_finished,
            "on_end": self._on_end,
        }

    def _on_part_begin(self) -> None:
        self._disposition = b""

    def _on_header_field(self, data: bytes, start: int, end: int) -> None:
        self._header += data[start:end]

    def _on_header_value(self, data: bytes, start: int, end: int) -> None:
        self._value += data[start:end]

    def _on_header_end(self) -> None:
        if self._header.lower() == b"content-disposition":
            self._disposition = bytes(self._value)
        self._header.clear()
        self._value.clear()

    def _on_headers_finished(self) -> None:
        _, options = parse_options_header(self._disposition)
        self._field = options.get(b"name", b"").decode("utf-8", "replace")
        if self._field not in self._allowed:
            detail = f"Unknown form field {self._field[:100]!r}; the form takes {', '.join(self._allowed)}."
            raise UnknownField(detail, errors=[Complaint(f"/{self._field[:100]}", "unknown-field", "Unknown field")])
        if self._field in self.spools or self._field in self.texts:
            detail = f"The form has two fields {self._field!r}; send one."
            raise Invalid(detail, errors=[Complaint(f"/{self._field}", "repeated", detail)])
        if self._field in self._files:
            self.spools[self._field] = Spool(self._folder / self._field, self._limit)
            if b"filename" in options:
                self.filenames[self._field] = options[b"filename"].decode("utf-8", "replace")
        else:
            self.texts[self._field] = bytearray()

    def _on_part_data(self, data: bytes, start: int, end: int) -> None:
        if self._field in self.spools:
            self.spools[self._field].write(memoryview(data)[start:end])
            return
        self.texts[self._field] += data[start:end]
        if len(self.texts[self._field]) > _MAX_FIELD:
            raise TooLarge(f"The form field {self._field!r} is larger than {_MAX_FIELD >> 20} MB.")

    def _on_end(self) -> None:
        self.complete = True


async def _multipart(
    body: AsyncIterator[bytes],
    boundary: bytes,
    folder: Path,
    limit: int,
    *,
    files: Sequence[str],
    texts: Sequence[str] = (),
) -> _Form:
    """The form; the first of its `files` must be there."""
    if not boundary:
        raise BadRequest(f"The Content-Type {FORM} lacks its boundary.")
    parts = _Parts(folder, limit, files, texts)
    sent = 0
    try:
        parser = MultipartParser(boundary, parts.callbacks())
        async for chunk in body:
            sent += len(chunk)
            if sent > limit + _OVERHEAD:
                raise TooLarge(f"The body is larger than the limit of {limit >> 20:,} MB.")
            parser.write(chunk)
    except MultipartParseError:
        raise BadRequest(f"The body is no well-formed {FORM}.") from None
    finally:
        hashes = {field: spool.close() for field, spool in parts.spools.items()}
    if not parts.complete:
        raise IncompleteBody("The form ends before its closing boundary. Send it again.")
    if files[0] not in parts.spools:
        detail = f"The form has no field `{files[0]}`."
        raise Invalid(detail, errors=[Complaint(f"/{files[0]}", "missing", detail)])
    return _Form(
        {field: _File(spool.path, hashes[field], parts.filenames.get(field)) for field, spool in parts.spools.items()},
        {field: bytes(text) for field, text in parts.texts.items()},
    )


async def _whole(body: AsyncIterator[bytes]) -> bytes:
    gathered = bytearray()
    async for chunk in body:
        gathered += chunk
        if len(gathered) > _MAX_FIELD:
            raise TooLarge(f"The JSON is larger than {_MAX_FIELD >> 20} MB.")
    return bytes(gathered)


def _from_json(body: bytes, name: str | None, schema: str | None) -> Sent:
    content = _parsed(body, "body")
    if isinstance(content, dict) and isinstance(content.get("s3"), str):
        detail = "Name an S3 object by its bucket and key alone: no address, no scheme, no host."
        raise Invalid(detail, errors=[Complaint("/s3", "s3-uri", detail)], slug="s3-uri")
    asked = _validated(S3Body, content, ("body",))
    place = S3Object(asked.s3.bucket, asked.s3.key)
    described = asked.schema_.schema_of() if asked.schema_ else _schema(schema, "?schema")
    return Sent(place, _name(asked.name or name, place.key.rsplit("/", 1)[-1]), schema=described)


def _schema(text: str | None, pointer: str) -> Schema:
    if text is None or not text.strip():
        return Schema()
    place = ("query", "schema") if pointer.startswith("?") else ("body", "schema")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        detail = "The schema is not JSON."
        raise Invalid(detail, errors=[Complaint(pointer, "json_invalid", detail)]) from None
    return _validated(SchemaBody, content, place).schema_of()


def _parsed(body: bytes, what: str) -> Any:
    try:
        return json.loads(body)
    except (ValueError, RecursionError):
        raise BadRequest(f"The {what} is not JSON, or nested too deeply.") from None


def _validated(model: type[M], content: Any, place: tuple[str, ...]) -> M:
    try:
        return TypeAdapter(model).validate_python(content)
    except ValidationError as error:
        failures = [{**failure, "loc": (*place, *failure["loc"])} for failure in error.errors(include_url=False)]
        raise RequestValidationError(failures) from None


def _name(given: str | None, filename: str | None) -> str:
    """What the dataset is called: given, or the file's name. It is only shown, so a path in it does no harm."""
    if given is not None:
        if not 0 < len(given) <= _MAX_NAME or not given.isprintable():
            detail = f"A name has 1 to {_MAX_NAME} printable characters."
            raise Invalid(detail, errors=[Complaint("/name", "name", detail)])
        return given
    kept = "".join(mark for mark in filename or "" if mark.isprintable())[:_MAX_NAME]
    return kept or "dataset"
