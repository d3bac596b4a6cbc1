"""From an uploaded file to a dataset's files: read, check, normalise, write.

`ingest` runs in a child process of limited memory and time: what a stranger sends may crash or outgrow it.
What comes back is small. It leaves out the database and the store, which are the caller's.

    file → csv_file | parquet_file → columns → checks → Frame → (versions) → quality, artifact
"""

from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from app.domain.dataset import NUMERIC_ATTRIBUTES, Contents, Limits, Schema, Unit, judged_unit
from app.domain.panel import Array, Index
from app.errors import Complaint
from app.services.ingest import artifact, csv_file, parquet_file
from app.services.ingest.checks import Frame, check
from app.services.ingest.columns import Words, refusal
from app.services.ingest.quality import Segments, assess, segments_of
from app.services.ingest.versions import join
from app.storage.panels import Layout

_PARQUET, _ENCRYPTED_PARQUET, _GZIP = b"PAR1", b"PARE", b"\x1f\x8b"


def ingest(
    source: Path, history: Path, facts: Path, schema: Schema, limits: Limits, parent: Path | None = None
) -> Contents:
    """Check the file at `source` and write its history and the facts of its servers. `parent`: it holds newer rows.

    Raises Invalid with every complaint, TooLarge.
    """
    earlier = artifact.read_history(parent) if parent else None
    if earlier:
        schema = _inherited(schema, earlier[1])
    frame = _read(source, schema, limits, earlier[0] if earlier else None)
    repeated = 0
    if earlier:
        frame, repeated = join(earlier[0], frame, earlier[1].metrics)
    layout = _layout(frame, schema)
    segments = segments_of(frame)
    last_row = _last_rows(frame, layout, segments)
    quality, metrics = assess(frame, layout.units, layout.known_ahead, last_row, declared=schema.units)
    attributes, said = _attributes(frame, layout, segments)
    if repeated:
        rows = "1 row was" if repeated == 1 else f"{repeated:,} rows were"
        said.append(f"{rows} in the dataset already, with the same values, and not counted again.")
    artifact.write_history(frame, layout, history)
    artifact.write_facts(frame, metrics, attributes, last_row, facts)
    return Contents(
        rows=len(frame),
        servers=len(frame.servers),
        metrics=layout.metrics,
        units=layout.units,
        attributes=layout.attributes,
        known_ahead=layout.known_ahead,
        frequency=frame.frequency,
        start=_moment(frame.times(segments.starts).min()),
        end=_moment(frame.times(last_row).max()),
        quality=replace(quality, warnings=(*quality.warnings, *said)),
    )


def _read(source: Path, schema: Schema, limits: Limits, like: Frame | None) -> Frame:
    """The first bytes decide what the file is, never its name or what the caller calls it."""
    with source.open("rb") as file:
        head = file.read(4)
    if head == _ENCRYPTED_PARQUET:
        parquet_file.refuse_encrypted()
    if head == _PARQUET:
        return check(*parquet_file.read(source, schema=schema, limits=limits), schema, like)
    gzipped = head.startswith(_GZIP)
    return check(*csv_file.read(source, gzipped=gzipped, schema=schema, limits=limits), schema, like)


def _inherited(schema: Schema, layout: Layout) -> Schema:
    """Newer rows mean what the parent's did; the caller may say so, or give a metric another unit."""
    roles_differ = set(schema.units) - set(layout.units) or set(schema.known_ahead) - set(layout.known_ahead)
    if roles_differ or set(schema.attributes) & {*layout.metrics, *layout.known_ahead}:
        detail = "The schema gives a column another role than it has in the dataset that this continues."
        raise refusal([Complaint("/schema", "schema", detail)])
    return Schema(
        units={**layout.units, **schema.units},
        attributes=tuple(dict.fromkeys((*layout.attributes, *schema.attributes))),
        known_ahead=layout.known_ahead,
        optional=frozenset((*layout.metrics, *layout.attributes, *layout.known_ahead)) - schema.named,
    )


def _layout(frame: Frame, schema: Schema) -> Layout:
    """What each column is: declared, else a metric when it holds numbers and no attribute of the well-known ones."""
    ahead = tuple(name for name in frame.numbers if name in schema.known_ahead)
    described = [name for name in frame.numbers if name in NUMERIC_ATTRIBUTES and name not in schema.units]
    units: dict[str, Unit] = {}
    for name, values in frame.numbers.items():
        if name not in ahead and name not in described:
            units[name] = schema.units.get(name) or judged_unit(name, np.nanmin(values), np.nanmax(values))
    return Layout(frame.frequency, units, ahead, (*described, *frame.texts))


def _last_rows(frame: Frame, layout: Layout, segments: Segments) -> Index:
    """The row that ends each server's history: its last, or with known-ahead columns the last with any metric."""
    if not layout.known_ahead:
        return segments.ends - 1
    valued: NDArray[np.bool_] = np.logical_or.reduce([np.isfinite(frame.numbers[name]) for name in layout.metrics])
    last = segments.last(valued)
    return np.where(last < 0, segments.ends - 1, last)


def _attributes(
    frame: Frame, layout: Layout, segments: Segments
) -> tuple[dict[str, list[str | float | None]], list[str]]:
    """Each server's last attribute of each kind, and what to say of those that changed."""
    found: dict[str, list[str | float | None]] = {}
    warnings = []
    for name in layout.attributes:
        if name in frame.numbers:
            numbers = frame.numbers[name]
            row = segments.last(~np.isnan(numbers))
            found[name] = [None if place < 0 else cell for place, cell in zip(row, numbers[row].tolist(), strict=True)]
            changed = segments.min(numbers) < segments.max(numbers)
        else:
            row, found[name], changed = _last_words(frame.texts[name], segments)
        if changed.any():
            warnings.append(
                f"{name}: {int(changed.sum()):,} of {len(frame.servers):,} servers have more than one; the last counts."
            )
    return found, warnings


def _last_words(words: Words, segments: Segments) -> tuple[Index, list[str | float | None], NDArray[np.bool_]]:
    row = segments.last(words.codes >= 0)
    texts = [*words.words.to_pylist(), None]
    codes: Array = np.where(words.codes < 0, np.nan, words.codes)
    return (
        row,
        [None if place < 0 else texts[words.codes[place]] for place in row],
        segments.min(codes) < segments.max(codes),
    )


def _moment(time: np.datetime64) -> datetime:
    return datetime.fromtimestamp(int(time.astype("datetime64[s]").astype(np.int64)), UTC)
