"""Reading an upload, as the child process does it: what is refused and how, what is accepted, what is counted."""

import gzip
import io
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, date, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain.dataset import Contents, Limits, Schema, Server, Unit
from app.domain.panel import Frequency, Panel
from app.errors import HeadroomError, NotFound, TooLarge
from app.services.ingest import ingest
from app.services.ingest.artifact import read_facts
from app.storage.panels import load_panel

REAL = Path(__file__).parents[3] / "shared" / "data"
LIMITS = Limits(bytes=4 << 20, columns=100, cells=200_000)
HEADER = "server_id,timestamp,cpu_p95\n"


class Uploads:
    """Ingests bytes and keeps what came of it."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._count = 0
        self.history = folder / "history-0"

    def __call__(
        self, content: str | bytes, schema: Schema | None = None, *, limits: Limits = LIMITS, parent: Path | None = None
    ) -> Contents:
        self._count += 1
        source = self._folder / f"source-{self._count}"
        source.write_bytes(content.encode() if isinstance(content, str) else content)
        self.history = self._folder / f"history-{self._count}"
        self._facts = self._folder / f"facts-{self._count}"
        return ingest(source, self.history, self._facts, schema or Schema(), limits, parent)

    def panel(self, metric: str = "cpu_p95", servers: list[str] | None = None) -> Panel:
        return load_panel(self.history, metric, servers)

    def facts(self) -> dict[str, Server]:
        return {server.server_id: server for server in read_facts(self._facts)}


@pytest.fixture
def upload(tmp_path: Path) -> Uploads:
    return Uploads(tmp_path)


def daily(values: int = 20, server: str = "a", start: str = "2024-01-01", *, value: float = 50.0) -> str:
    days = np.datetime64(start) + np.arange(values)
    return "".join(f"{server},{day},{value + number % 7}\n" for number, day in enumerate(days))


def parquet(**columns: object) -> bytes:
    sink = io.BytesIO()
    pq.write_table(pa.table(columns), sink)
    return sink.getvalue()


ID = "server_id"
DAYS = [f"2024-01-{day:02}" for day in range(1, 21)]
NUMBERS = [float(number) for number in range(20)]
PARQUET = parquet(server_id=["a"] * 20, timestamp=DAYS, cpu_p95=NUMBERS)
PARQUET_OF_BYTES = parquet(
    server_id=pa.array(["a"]).take(pa.array([0] * 20)),
    timestamp=DAYS,
    cpu_p95=NUMBERS,
    region=pa.Array.from_buffers(pa.string(), 1, pa.array([b"\xff\xfe"]).buffers()).take(pa.array([0] * 20)),
)
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR\0\0\0\x01\0\0\0\x01\x08\x06\0\0\0\x1f\x15\xc4\x89"

REFUSED: dict[str, tuple[str | bytes, str, dict[str, tuple[int, ...]]]] = {
    # what: (upload, slug, rows of each complaint by code)
    "empty": ("", "empty-file", {"empty-file": ()}),
    "blank": ("\n \n", "empty-file", {"empty-file": ()}),
    "header only": (HEADER, "no-rows", {"no-rows": ()}),
    "empty gzip": (gzip.compress(b""), "empty-file", {"empty-file": ()}),
    "parquet without rows": (
        parquet(server_id=pa.array([], pa.string()), timestamp=pa.array([], pa.string()), x=pa.array([], pa.float64())),
        "no-rows",
        {"no-rows": ()},
    ),
    "png": (PNG, "unparseable", {"unparseable": ()}),
    "zip": (b"PK\x03\x04\x14\0\x06\0\x08\0\0\0!\0b\xee\x9d", "unparseable", {"unparseable": ()}),
    "truncated gzip": (gzip.compress((HEADER + daily()).encode())[:-12], "unparseable", {"unparseable": ()}),
    "gzip of a png": (gzip.compress(PNG), "unparseable", {"unparseable": ()}),
    "truncated parquet": (PARQUET[: len(PARQUET) // 2], "unparseable", {"unparseable": ()}),
    "parquet with a broken page": (PARQUET[:60] + b"\xff" * 40 + PARQUET[100:], "unparseable", {"unparseable": ()}),
    "parquet of text that is none": (PARQUET_OF_BYTES, "unparseable", {"unparseable": ()}),
    "duplicate header": ("server_id,timestamp,cpu,cpu\na,2024-01-01,1,2\n", "validation", {"duplicate-column": ()}),
    "unnamed column": ("server_id,timestamp,cpu,\na,2024-01-01,1,2\n", "validation", {"column-name": ()}),
    "no timestamp": ("server_id,when,cpu\na,2024-01-01,1\n", "validation", {"missing-column": ()}),
    "no server": ("host,timestamp,cpu\na,2024-01-01,1\n", "validation", {"missing-column": ()}),
    "no metric": ("server_id,timestamp,region\na,2024-01-01,north\n", "validation", {"no-metric": ()}),
    "only attributes": ("server_id,timestamp,capacity\na,2024-01-01,3\n", "validation", {"no-metric": ()}),
    "two ids": ("server_id,item_id,ds,cpu\na,b,2024-01-01,1\n", "validation", {"ambiguous-column": ()}),
    "two times": ("date,server_id,timestamp,cpu\n2024-01-01,a,2024-01-01,1\n", "validation", {"ambiguous-column": ()}),
    "semicolons": ("server_id;timestamp;cpu\na;2024-01-01;1\n", "validation", {"delimiter": ()}),
    "utf-16": ((HEADER + daily()).encode("utf-16"), "encoding", {"encoding": ()}),
    "utf-16 without a mark": ((HEADER + daily()).encode("utf-16-be"), "encoding", {"encoding": ()}),
    "latin-1 header": ("server_id,timestamp,größe\na,2024-01-01,1\n".encode("latin-1"), "encoding", {"encoding": ()}),
    "latin-1 id": ((HEADER + daily() + "bär,2024-01-01,1\n").encode("latin-1"), "encoding", {"encoding": (21,)}),
    "latin-1 number": (HEADER.encode() + b"a,2024-01-01,\xb5\n", "encoding", {"encoding": (1,)}),
    "nul in an id": (HEADER + "a\0b,2024-01-01,1\n", "validation", {"nul": (1,)}),
    "nul in a number": (HEADER + daily(2) + "b,2024-01-01,1\0\n", "validation", {"nul": (3,)}),
    "inf": (HEADER + daily(3) + "a,2024-01-04,inf\n", "non-finite", {"non-finite": (4,)}),
    "-Infinity": (HEADER + daily(3) + "a,2024-01-04,-Infinity\n", "non-finite", {"non-finite": (4,)}),
    "1e400": (HEADER + daily(3) + "a,2024-01-04,1e400\n", "non-finite", {"non-finite": (4,)}),
    "beyond single precision": (HEADER + daily(3) + "a,2024-01-04,-1e31\n", "validation", {"out-of-range": (4,)}),
    "every large number at once": (
        "server_id,timestamp,cpu,capacity\na,2024-01-01,inf,1e38\na,2024-01-02,1e300,4\n",
        "validation",
        {"non-finite": (1,), "out-of-range": (1,)},
    ),
    "infinite parquet": (
        parquet(server_id=["a"] * 2, timestamp=DAYS[:2], cpu_p95=[1.0, np.inf]),
        "non-finite",
        {"non-finite": (2,)},
    ),
    "a metric all empty": (
        "server_id,timestamp,cpu,mem\na,2024-01-01,1,\na,2024-01-02,2,\n",
        "no-values",
        {"no-values": ()},
    ),
    "a parquet metric all empty": (
        parquet(server_id=["a"], timestamp=DAYS[:1], cpu_p95=pa.array([None], pa.float64())),
        "no-values",
        {"no-values": ()},
    ),
    "text in a metric": (HEADER + daily(5) + "a,2024-01-06,abc\n", "validation", {"text-in-number": (6,)}),
    "text in capacity": (
        "server_id,timestamp,cpu,capacity\na,2024-01-01,1,8\na,2024-01-02,1,lots\n",
        "validation",
        {"text-in-number": (2,)},
    ),
    "text in a parquet metric": (
        parquet(server_id=["a"] * 3, timestamp=DAYS[:3], cpu_p95=["1", "2", "x"]),
        "validation",
        {"text-in-number": (3,)},
    ),
    "duplicates": (
        HEADER + daily(5) + "a,2024-01-03,1\n" + daily(2, "b") + "a,2024-01-03,2\n",
        "duplicate-timestamp",
        {"duplicate-timestamp": (6, 9)},
    ),
    "two rows of one day": (
        HEADER + daily(20, "b") + "a,2024-01-01T00:00:00,1\na,2024-01-01,2\n",
        "duplicate-timestamp",
        {"duplicate-timestamp": (22,)},
    ),
    "naive and aware": (
        HEADER + daily(5) + "a,2024-01-06T00:00:00Z,1\n",
        "timezone",
        {"timezone": (6,)},
    ),
    "year 1": (HEADER + daily(5) + "b,0001-01-01,1\n", "timestamp-range", {"timestamp-range": (6,)}),
    "year 9999": (HEADER + daily(5) + "b,9999-12-31,1\n", "timestamp-range", {"timestamp-range": (6,)}),
    "year 9999 in parquet": (
        parquet(server_id=["a"], timestamp=pa.array([datetime(9999, 12, 31)], pa.timestamp("us")), cpu_p95=[1.0]),
        "timestamp-range",
        {"timestamp-range": (1,)},
    ),
    "no such day": (HEADER + daily(5) + "a,2024-02-30,1\n", "validation", {"timestamp": (6,)}),
    "an empty timestamp": (HEADER + daily(5) + "a,,1\n", "validation", {"timestamp": (6,)}),
    "a number as time": (HEADER + "a,1704067200,1\n", "validation", {"timestamp": (1,)}),
    "off the day": (HEADER + daily(5) + "a,2024-01-06T07:13:00,1\n", "frequency", {"frequency": (6,)}),
    "off the hour": (
        HEADER + "".join(f"a,2024-01-01T{hour:02}:00:00,1\n" for hour in range(9)) + "a,2024-01-01T09:01:00,1\n",
        "frequency",
        {"frequency": (10,)},
    ),
    "off the day, and a true duplicate": (
        HEADER + daily(5) + "a,2024-01-05T07:13:00,1\na,2024-01-02,1\n",
        "validation",
        {"frequency": (6,), "duplicate-timestamp": (7,)},
    ),
    "weekly": (
        HEADER + "".join(f"a,2024-01-{day:02},1\n" for day in range(1, 31, 7)),
        "frequency",
        {"frequency": ()},
    ),
    "every quarter of an hour": (
        HEADER + "".join(f"a,2024-01-01T{n // 4:02}:{n % 4 * 15:02}:00,1\n" for n in range(40)),
        "frequency",
        {"frequency": (2, 3, 4, 6, 7, 8, 10, 11, 12, 14)},
    ),
    "an empty id": (HEADER + daily(5) + ",2024-01-01,1\n", "validation", {"server-id": (6,)}),
    "a blank id": (HEADER + daily(5) + "  ,2024-01-01,1\n", "validation", {"server-id": (6,)}),
    "an id of 10 KB": (HEADER + daily(5) + "x" * 10_240 + ",2024-01-01,1\n", "validation", {"server-id": (6,)}),
    "an unclosed quote": (HEADER + daily(5) + '"b,2024-01-01,1\n' + daily(300, "c"), "validation", {"quote": (6,)}),
    "an unclosed quote in a number": (
        HEADER + daily(5) + 'b,2024-01-01,"1\n' + daily(9),
        "validation",
        {"quote": (6,)},
    ),
    "an unclosed quote at the end": (HEADER + daily(5) + 'b,2024-01-01,"1', "validation", {"quote": (6,)}),
    "a value over two lines": (HEADER + daily(5) + '"b\nc",2024-01-01,1\n', "validation", {"server-id": (6,)}),
    "rows of other lengths": (HEADER + daily(3) + "a,2024-01-04\n" + "a,1,2,3\n", "validation", {"row-length": (4, 5)}),
    "a cell beyond all measure in a ragged row": (
        HEADER + daily(3) + "a,1\n" + "x" * 200_000 + ",1\n",
        "validation",
        {"row-length": (4,)},
    ),
    "a row beyond all measure": (HEADER + daily(3) + "x" * (3 << 20) + ",1\n", "unparseable", {"unparseable": ()}),
    "a name beyond all measure": ("x" * 200_000 + ",timestamp,cpu\n", "unparseable", {"unparseable": ()}),
    "nested parquet": (
        parquet(server_id=["a"], timestamp=DAYS[:1], cpu_p95=[1.0], tags=[["x"]]),
        "validation",
        {"unsupported-parquet": ()},
    ),
    "binary parquet": (
        parquet(server_id=["a"], timestamp=DAYS[:1], cpu_p95=[1.0], raw=[b"x"]),
        "validation",
        {"unsupported-parquet": ()},
    ),
    "encrypted parquet": (b"PARE" + b"\0" * 100 + b"PARE", "validation", {"unsupported-parquet": ()}),
    "an unreadable time beside a duplicate and a row off the day": (
        HEADER + "a,yesterday,1\n" + daily(5) + "a,2024-01-03,1\nb,2024-01-01T07:13:00,1\n",
        "validation",
        {"timestamp": (1,), "duplicate-timestamp": (7,), "frequency": (8,)},
    ),
    "a placeholder among duplicates": (
        HEADER + daily(5) + "a,9999-12-31,1\na,9999-12-31,1\na,2024-01-02,1\n",
        "validation",
        {"timestamp-range": (6, 7), "duplicate-timestamp": (8,)},
    ),
    "a zone too many among duplicates": (
        HEADER + daily(5) + "a,2024-01-06T00:00:00Z,1\na,2024-01-02,1\n",
        "validation",
        {"timezone": (6,), "duplicate-timestamp": (7,)},
    ),
    "an empty time in a parquet of quarters of an hour": (
        parquet(
            server_id=["a"] * 5,
            timestamp=pa.array([None, *(datetime(2024, 1, 1, 0, m) for m in (0, 15, 30, 30))], pa.timestamp("us")),
            cpu_p95=[1.0] * 5,
        ),
        "validation",
        {"timestamp": (1,), "frequency": (2, 3), "duplicate-timestamp": (5,)},
    ),
    "weekly, and an unreadable time": (
        HEADER + "".join(f"a,2024-01-{day:02},1\n" for day in range(1, 31, 7)) + "b,soon,1\n",
        "validation",
        {"timestamp": (6,), "frequency": ()},
    ),
    "every other time unreadable": (
        HEADER + "".join(f"a,{day if n % 2 else 'x'},1\n" for n, day in enumerate(DAYS)),
        "validation",
        {"timestamp": tuple(range(1, 21, 2))},
    ),
    "no time at all": (HEADER + "a,,1\na,,1\n", "validation", {"timestamp": (1, 2)}),
    "two rows of nobody at one time": (
        HEADER + daily(5) + ",2024-01-01,1\n,2024-01-01,1\na,2024-01-02,1\n",
        "validation",
        {"server-id": (6, 7), "duplicate-timestamp": (8,)},
    ),
    "several faults at once": (
        HEADER + daily(3) + "a,2024-01-03,inf\n" + "b,2024-01-01,lots\n" + ",2024-01-02,1\n",
        "validation",
        {"duplicate-timestamp": (4,), "non-finite": (4,), "text-in-number": (5,), "server-id": (6,)},
    ),
}


@pytest.mark.parametrize(("content", "slug", "complaints"), REFUSED.values(), ids=REFUSED)
def test_bad_input_is_refused_with_every_complaint(
    upload: Uploads, content: str | bytes, slug: str, complaints: dict[str, tuple[int, ...]]
) -> None:
    with pytest.raises(HeadroomError) as refused:
        upload(content)
    assert refused.value.status == 422
    assert refused.value.slug == slug
    assert {complaint.code: complaint.rows for complaint in refused.value.errors} == complaints
    assert not upload.history.exists()
    assert all(len(complaint.detail) < 1_000 for complaint in refused.value.errors)


def rows_of_zeros(rows: int) -> bytes:
    return (HEADER + "a,2024-01-01,0\n" * rows).encode()


TOO_LARGE: dict[str, Callable[[], bytes]] = {
    "gzip bomb of rows": lambda: gzip.compress(rows_of_zeros(400_000)),
    "gzip bomb of nothing": lambda: gzip.compress(bytes(50 << 20)),
    "too many rows": lambda: rows_of_zeros(210_000),
    "10,000 columns": lambda: ",".join(["server_id", "timestamp", *(f"m{n}" for n in range(10_000))]).encode(),
    "a first line without end": lambda: b"x" * (2 << 20),
    "parquet of 10,000 columns": lambda: parquet(server_id=["a"], **{f"m{n}": [1.0] for n in range(10_000)}),
    "parquet bomb": lambda: parquet(
        server_id=pa.array(["a"]).take(pa.array(np.zeros(5_000_000, np.int8))),
        timestamp=pa.array(["2024-01-01"]).take(pa.array(np.zeros(5_000_000, np.int8))),
        cpu_p95=np.zeros(5_000_000),
    ),
}


@pytest.mark.parametrize("content", TOO_LARGE.values(), ids=TOO_LARGE)
def test_bombs_are_too_large(upload: Uploads, content: Callable[[], bytes]) -> None:
    with pytest.raises(TooLarge):
        upload(content())


def test_a_text_column_that_shows_late_is_still_text(upload: Uploads) -> None:
    """Numbers in the first megabyte, and mostly text after it: an attribute that happens to begin with numbers."""
    lines = ["server_id,timestamp,cpu,rack"]
    for number in range(40_000):
        rack = number if number < 15_000 else f"r{number % 9}"
        lines.append(f"s{number:05},2024-01-01 00:00:00,{number % 90},{rack}")
    contents = upload("\n".join(lines))
    assert (contents.metrics, contents.attributes) == (("cpu",), ("rack",))


def test_what_may_look_odd_and_is_fine(upload: Uploads) -> None:
    """A BOM, CRLF, quotes, blank lines, padded numbers, formulas, markup and numbers as ids."""
    ids = ["<script>alert(1)</script>", "=cmd|' /C calc'!A0", "007", "7", "NA", "null", "größe", "a,b"]
    rows = "".join(f'"{name}",{day}, +1.5 \r\n\r\n' for name in ids for day in DAYS)
    contents = upload("\ufeffserver_id,timestamp,cpu_p95\r\n" + rows)
    assert contents.servers == len(ids)
    assert upload.panel().servers == tuple(sorted(ids, key=str.encode))
    assert (upload.panel().values == 1.5).all()


def test_lines_that_end_as_on_old_machines(upload: Uploads) -> None:
    assert upload((HEADER + daily()).replace("\n", "\r")).rows == 20


@pytest.mark.parametrize("missing", ["", "NaN", "NA", "null", '""'])
def test_missing_values_are_counted(upload: Uploads, missing: str) -> None:
    contents = upload(HEADER + daily(5) + f"a,2024-01-06,{missing}\n" + "a,2024-01-07,3\n")
    assert contents.quality.missing == 1
    assert np.isnan(upload.panel().values[0, 5])


def test_gaps_short_and_constant_servers_are_counted(upload: Uploads) -> None:
    gapped = "".join(f"gap,2024-01-{day:02},{day}\n" for day in range(1, 31) if day not in (5, 6, 20))
    flat = "".join(f"flat,2024-01-{day:02},7\n" for day in range(1, 31))
    quality = upload(HEADER + gapped + flat + daily(13, "short")).quality
    assert (quality.gaps, quality.constant_servers, quality.short_servers, quality.missing) == (3, 1, 1, 0)
    told = " ".join(quality.warnings)
    for name in ("'flat'", "'short'"):
        assert name in told


def test_a_fact_that_few_servers_change_makes_none_constant(upload: Uploads) -> None:
    rows = "".join(f"{name},{day},{number},288\n" for name in "abc" for number, day in enumerate(DAYS))
    assert upload("server_id,timestamp,cpu,samples\n" + rows).quality.constant_servers == 0


def test_a_number_that_describes_servers_and_was_not_declared_is_told(upload: Uploads) -> None:
    """Every numeric column is a metric but for three names; a price that nobody declared would cost all savings."""
    header = "server_id,timestamp,cpu,usd_per_month,cores,capacity,cost\n"
    sizes = {"a": ("50.0", 8, 100), "b": ("80.5", 16, 200)}
    rows = "".join(
        f"{name},{day},{number},{price},{cores},{capacity},{number % 3}\n"
        for name, (price, cores, capacity) in sizes.items()
        for number, day in enumerate(DAYS)
    )
    found = upload(header + rows)
    assert found.metrics == ("cpu", "usd_per_month", "cores", "cost")
    assert found.attributes == ("capacity",)
    told = {warning.partition(":")[0]: warning for warning in found.quality.warnings}
    assert told.keys() == {"usd_per_month", "cores"}
    assert all("`schema.attributes`" in warning for warning in told.values())
    assert "GET /risk/recommendations" in told["usd_per_month"]

    declared = upload(header + rows, Schema({"cores": Unit.ABSOLUTE}, attributes=("usd_per_month",)))
    assert set(declared.attributes) == {"usd_per_month", "capacity"}
    assert {warning.partition(":")[0] for warning in declared.quality.warnings} == {"cores"}
    assert "it never changes: 2 of 2 servers" in declared.quality.warnings[0]
    assert upload.facts()["a"].attributes == {"usd_per_month": "50.0", "capacity": 100.0}


@pytest.mark.parametrize(
    ("header", "id_column"),
    [("server_id,timestamp,x", "server_id"), ("item_id,ds,x", "item_id"), ("unique_id,date,x", "unique_id")],
)
def test_other_names_of_the_key_columns(upload: Uploads, header: str, id_column: str) -> None:
    contents = upload(f"{header}\n" + daily())
    assert contents.metrics == ("x",)
    assert contents.attributes == ()


def test_a_second_key_column_may_be_declared_something_else(upload: Uploads) -> None:
    rows = "".join(f"a,x-7,{day},{number}\n" for number, day in enumerate(DAYS))
    contents = upload("server_id,item_id,timestamp,cpu\n" + rows, Schema(attributes=("item_id",)))
    assert contents.attributes == ("item_id",)
    newer = upload("server_id,item_id,timestamp,cpu\na,x-7,2024-01-21,3\n", parent=upload.history)
    assert (newer.rows, newer.attributes) == (21, ("item_id",))


TIMES = {
    "dates": ("{0}", Frequency.DAILY, "2024-01-01T00:00:00"),
    "times": ("{0} 00:00:00", Frequency.DAILY, "2024-01-01T00:00:00"),
    "noon": ("{0}T12:00", Frequency.DAILY, "2024-01-01T00:00:00"),
    "utc": ("{0}T00:00:00Z", Frequency.DAILY, "2024-01-01T00:00:00"),
    "written date": ("{0}T00:00:00+05:30", Frequency.DAILY, "2024-01-01T00:00:00"),
}


@pytest.mark.parametrize(("form", "frequency", "start"), TIMES.values(), ids=TIMES)
def test_daily_data_keep_the_written_date(upload: Uploads, form: str, frequency: Frequency, start: str) -> None:
    contents = upload(HEADER + "".join(f"a,{form.format(day)},1\n" for day in DAYS))
    assert contents.frequency is frequency
    assert contents.start == datetime.fromisoformat(start).replace(tzinfo=UTC)
    assert upload.panel().steps == 20
    assert contents.quality.gaps == 0


def test_daily_data_in_a_zone_with_summer_time(upload: Uploads) -> None:
    """The offset changes on 31 March; the written dates go on."""
    days = np.datetime64("2024-03-20") + np.arange(20)
    rows = "".join(
        f"a,{day}T00:00:00{'+01:00' if day <= np.datetime64('2024-03-31') else '+02:00'},1\n" for day in days
    )
    contents = upload(HEADER + rows)
    assert (contents.frequency, contents.quality.gaps) == (Frequency.DAILY, 0)
    assert contents.start == datetime(2024, 3, 20, tzinfo=UTC)


def test_hourly_data_are_converted_to_utc(upload: Uploads) -> None:
    rows = "".join(f"a,2024-01-01T{hour:02}:30:00+02:00,{hour}\n" for hour in range(24))
    contents = upload(HEADER + rows)
    assert contents.frequency is Frequency.HOURLY
    assert contents.start == datetime(2023, 12, 31, 22, 30, tzinfo=UTC)
    assert upload.panel().start == np.datetime64("2023-12-31T22:30:00")
    assert upload.panel().times[-1] == np.datetime64("2024-01-01T21:30:00")


@pytest.mark.parametrize(
    "times",
    [
        pa.array(DAYS).cast(pa.date32()),
        pa.array(np.array(DAYS, "datetime64[ns]")),
        pa.array(np.array(DAYS, "datetime64[ms]")).cast(pa.timestamp("ms", "UTC")),
        pa.array(np.array(DAYS, "datetime64[us]")),
        pa.array(DAYS, pa.large_string()),
        pa.array(DAYS).dictionary_encode(),
    ],
    ids=lambda times: str(times.type),
)
def test_times_of_parquet(upload: Uploads, times: pa.Array) -> None:
    contents = upload(parquet(server_id=["a"] * 20, timestamp=times, cpu_p95=NUMBERS))
    assert (contents.frequency, contents.start) == (Frequency.DAILY, datetime(2024, 1, 1, tzinfo=UTC))
    assert contents.end == datetime(2024, 1, 20, tzinfo=UTC)


def test_local_midnights_of_parquet_are_written_dates(upload: Uploads) -> None:
    utc = np.array(DAYS, "datetime64[us]") - np.timedelta64(1, "h")
    contents = upload(
        parquet(
            server_id=["a"] * 20, timestamp=pa.array(utc).cast(pa.timestamp("us", "Europe/Berlin")), cpu_p95=NUMBERS
        )
    )
    assert (contents.frequency, contents.start) == (Frequency.DAILY, datetime(2024, 1, 1, tzinfo=UTC))


@pytest.mark.parametrize("pack", [str.encode, lambda text: gzip.compress(text.encode())], ids=["csv", "gzip"])
def test_forms_agree(upload: Uploads, pack: Callable[[str], bytes]) -> None:
    """The first bytes decide: a CSV, a gzipped CSV and a Parquet file of the same rows are the same panel."""
    upload(parquet(server_id=["a"] * 20 + ["b"] * 20, timestamp=DAYS * 2, cpu_p95=NUMBERS * 2))
    expected = upload.panel()
    rows = [f"{name},{day},{number}" for name in "ab" for day, number in zip(DAYS, NUMBERS, strict=True)]
    upload(pack(HEADER + "\n".join(rows)))
    found = upload.panel()
    assert found.servers == expected.servers
    np.testing.assert_array_equal(found.values, expected.values)


UNITS = {
    "percent by name": ("cpu_p95", 0.0, 150.0, Unit.PERCENT),
    "utilisation": ("utilisation", 1.0, 99.0, Unit.PERCENT),
    "above": ("mem_used", 0.0, 151.0, Unit.ABSOLUTE),
    "below": ("disk_busy", -1.0, 90.0, Unit.ABSOLUTE),
    "by another name": ("requests", 0.0, 90.0, Unit.ABSOLUTE),
}


@pytest.mark.parametrize(("name", "low", "high", "unit"), UNITS.values(), ids=UNITS)
def test_undeclared_units(upload: Uploads, name: str, low: float, high: float, unit: Unit) -> None:
    values = "".join(f"a,{day},{low if number % 2 else high}\n" for number, day in enumerate(DAYS))
    assert upload(f"server_id,timestamp,{name}\n{values}").units == {name: unit}


def test_bounds_follow_the_unit(upload: Uploads) -> None:
    header = "server_id,timestamp,share,over,load,drift\n"
    upload(
        header + "".join(f"a,{day},0.5,{number * 6},3,{number - 5}\n" for number, day in enumerate(DAYS)),
        Schema(units={"share": Unit.RATIO, "over": Unit.PERCENT}),
    )
    found = {
        name: (upload.panel(name).lower[0], upload.panel(name).upper[0]) for name in ("share", "over", "load", "drift")
    }
    assert found == {"share": (0, 1), "over": (0, 114), "load": (0, np.inf), "drift": (-np.inf, np.inf)}


def test_attributes_are_each_servers_last(upload: Uploads) -> None:
    header = "server_id,timestamp,cpu,region,capacity,tier\n"
    rows = [
        f"{name},{day},5,{'north' if number < 10 or name == 'a' else ''},{8 if number < 15 else 16},{number // 19}"
        for name in "ab"
        for number, day in enumerate(DAYS)
    ]
    contents = upload(header + "\n".join(rows), Schema(attributes=("tier",)))
    assert contents.metrics == ("cpu",)
    assert set(contents.attributes) == {"region", "capacity", "tier"}
    assert upload.facts()["b"].attributes == {"region": "north", "capacity": 16.0, "tier": "1"}
    changed = [warning for warning in contents.quality.warnings if "more than one" in warning]
    assert {warning.split(":")[0] for warning in changed} == {"capacity", "tier"}


def test_facts_of_a_server(upload: Uploads) -> None:
    upload(HEADER + daily(20, "b") + "a,2024-01-03,\na,2024-01-05,7.5\n")
    first = upload.facts()["a"]
    assert (first.first_at, first.last_at) == (datetime(2024, 1, 3, tzinfo=UTC), datetime(2024, 1, 5, tzinfo=UTC))
    assert (first.rows, first.counts, first.maxima) == (2, {"cpu_p95": 1}, {"cpu_p95": 7.5})
    assert list(upload.facts()) == ["a", "b"]


def test_known_ahead_columns_go_past_the_last_value(upload: Uploads) -> None:
    rows = [f"a,{day},{number if number < 15 else ''},{number % 2}" for number, day in enumerate(DAYS)]
    contents = upload("server_id,timestamp,cpu,promo\n" + "\n".join(rows), Schema(known_ahead=("promo",)))
    assert (contents.metrics, contents.known_ahead) == (("cpu",), ("promo",))
    assert contents.end == datetime(2024, 1, 15, tzinfo=UTC)
    assert (contents.quality.missing, contents.quality.gaps) == (0, 0)
    panel = upload.panel("cpu")
    assert (panel.last[0], panel.steps, panel.known["promo"].shape) == (14, 15, (1, 20))


@pytest.mark.parametrize(
    ("schema", "pointer"),
    [
        (Schema(units={"gone": Unit.PERCENT}), "/schema"),
        (Schema(units={"cpu_p95": Unit.PERCENT}, attributes=("cpu_p95",)), "/schema"),
        (Schema(attributes=("server_id",)), "/schema"),
    ],
)
def test_a_schema_that_does_not_fit(upload: Uploads, schema: Schema, pointer: str) -> None:
    with pytest.raises(HeadroomError) as refused:
        upload(HEADER + daily(), schema)
    assert [complaint.pointer for complaint in refused.value.errors] == [pointer]


def test_newer_rows_continue_the_panel(upload: Uploads) -> None:
    first = upload("server_id,timestamp,cpu_p95,region\n" + daily(20).replace("\n", ",north\n"))
    newer = "server_id,timestamp,cpu_p95,region\n" + daily(3, start="2024-01-21").replace("\n", ",south\n")
    both = upload(newer + "b,2024-01-22,9,south\n", parent=upload.history)
    assert (first.rows, both.rows, both.servers) == (20, 24, 2)
    assert both.end == datetime(2024, 1, 23, tzinfo=UTC)
    assert upload.facts()["a"].attributes == {"region": "south"}
    panel = upload.panel()
    assert panel.counts().tolist() == [23, 1]


def test_an_overlap_that_agrees_counts_once(upload: Uploads) -> None:
    upload(HEADER + daily(20))
    both = upload(HEADER + daily(25), parent=upload.history)
    assert both.rows == 25
    assert any(warning.startswith("20 rows were in the dataset already") for warning in both.quality.warnings)


def test_an_overlap_that_differs_is_refused(upload: Uploads) -> None:
    upload(HEADER + daily(20))
    with pytest.raises(HeadroomError) as refused:
        upload(HEADER + daily(25, value=51), parent=upload.history)
    assert refused.value.slug == "duplicate-timestamp"


def test_a_row_before_the_last_of_its_server_is_refused(upload: Uploads) -> None:
    """History is closed: forecasts were made on it. A server that is new has none."""
    gap = daily(20).splitlines(keepends=True)
    del gap[4]
    upload(HEADER + "".join(gap))
    with pytest.raises(HeadroomError) as refused:
        upload(HEADER + "a,2023-12-31,1\n" + daily(22), parent=upload.history)
    assert [complaint.code for complaint in refused.value.errors] == ["older-rows"]
    assert refused.value.detail.startswith("2 rows have a time before the last value that their server has already (")
    assert "'a' at 2023-12-31" in refused.value.detail
    upload(HEADER + "".join(gap))
    assert upload(HEADER + "b,2023-12-31,1\n" + "".join(gap[2:]) + "a,2024-01-21,1\n", parent=upload.history).rows == 21


AHEAD = "server_id,timestamp,cpu_p95,promo,region\n"


def with_open_rows(upload: Uploads) -> None:
    """20 days with values; of the next ten, only `promo` is known, and every other one has no row."""
    rows = "".join(f"a,{time},{50 + time.day},0,north\n" for time in january(20))
    ahead = "".join(f"a,{time},,1,\n" for time in january(30)[20::2])
    upload(AHEAD + rows + ahead, schema=Schema(known_ahead=("promo",)))


def january(days: int) -> list[date]:
    return [date(2024, 1, 1 + number) for number in range(days)]


def test_a_value_comes_to_a_row_that_was_known_ahead(upload: Uploads) -> None:
    with_open_rows(upload)
    assert upload.panel().as_of[0] == np.datetime64("2024-01-20")
    newer = "".join(f"a,{time},{50 + time.day},{promo},south\n" for time, promo in zip(
        january(24)[20:], ("1", "0", "", "0"), strict=True
    ))  # fmt: skip
    both = upload(AHEAD + newer, parent=upload.history)
    assert both.rows == 20 + 5 + 2
    assert not any("already" in warning for warning in both.quality.warnings)
    panel = upload.panel()
    assert panel.as_of[0] == np.datetime64("2024-01-24")
    assert panel.values[0].tolist() == [50.0 + day for day in range(1, 25)]
    assert panel.known["promo"][0, 20:25].tolist() == [1, 0, 1, 0, 1]
    assert upload.facts()["a"].attributes == {"region": "south"}


@pytest.mark.parametrize("row", ["a,2024-01-21,71,0,", "a,2024-01-20,71,0,", "a,2024-01-20,,0,\na,2024-01-21,71,1,"])
def test_what_was_known_does_not_change(upload: Uploads, row: str) -> None:
    with_open_rows(upload)
    with pytest.raises(HeadroomError) as refused:
        upload(AHEAD + row + "\n", parent=upload.history)
    assert refused.value.slug == "duplicate-timestamp"


@pytest.mark.parametrize(
    ("newer", "slug"),
    [
        (HEADER + "a,2024-02-01T03:00:00,1\na,2024-02-02T00:00:00,1\na,2024-02-03T00:00:00,1\n", "frequency"),
        ("server_id,timestamp,mem\na,2024-02-01,1\n", "validation"),
        (HEADER, "no-rows"),
    ],
)
def test_newer_rows_must_fit(upload: Uploads, newer: str, slug: str) -> None:
    upload(HEADER + daily(20))
    with pytest.raises(HeadroomError) as refused:
        upload(newer, parent=upload.history)
    assert refused.value.slug == slug


def test_one_newer_hour_is_an_hour(upload: Uploads) -> None:
    """On its own a single row could be anything; it means what the dataset does."""
    upload(HEADER + "".join(f"a,2024-01-01T{hour:02}:00:00Z,{hour}\n" for hour in range(24)))
    both = upload(HEADER + "a,2024-01-02T00:00:00Z,5\n", parent=upload.history)
    assert (both.frequency, both.rows, both.quality.gaps) == (Frequency.HOURLY, 25, 0)


def test_a_panel_of_some_servers(upload: Uploads) -> None:
    upload(HEADER + "".join(daily(20, name, value=ord(name)) for name in "dcba"))
    panel = upload.panel(servers=["c", "a"])
    assert panel.servers == ("a", "c")
    assert panel.values[:, 0].tolist() == [97.0, 99.0]
    with pytest.raises(NotFound):
        upload.panel(servers=["a", "nobody"])
    with pytest.raises(NotFound):
        upload.panel("mem")


@settings(max_examples=30, deadline=None)
@given(
    rows=st.dictionaries(
        st.tuples(st.sampled_from("abcdefgh"), st.integers(0, 40)),
        st.floats(-1e9, 1e9) | st.just(float("nan")),
        min_size=30,
    ),
    seed=st.randoms(),
)
def test_the_order_of_the_rows_does_not_matter(
    tmp_path_factory: pytest.TempPathFactory, rows: dict[tuple[str, int], float], seed: object
) -> None:
    upload = Uploads(tmp_path_factory.mktemp("any"))
    shuffled = list(rows.items())
    seed.shuffle(shuffled)  # type: ignore[attr-defined]
    anchor = "".join(daily(41, "z"))
    lines = "".join(f"{name},{np.datetime64('2024-01-01') + day},{value}\n" for (name, day), value in shuffled)
    upload(HEADER + lines + anchor)
    panel = upload.panel()
    dense = {name: panel.values[place] for place, name in enumerate(panel.servers)}
    for (name, day), value in rows.items():
        np.testing.assert_equal(dense[name][day], value)
    assert np.isfinite(panel.values).sum() == sum(np.isfinite(list(rows.values()))) + 41


@pytest.mark.skipif(not REAL.is_dir(), reason="the real data lie beside the repository")
@pytest.mark.parametrize("name", ["ec2_hourly", "machines_hourly", "regions_daily", "regions_raw_daily", "vms_daily"])
def test_real_data_are_taken(upload: Uploads, name: str) -> None:
    source = REAL / f"{name}.parquet"
    contents = upload(source.read_bytes(), limits=replace(LIMITS, cells=10**9, bytes=1 << 30))
    table = pq.read_table(source)
    assert contents.rows == table.num_rows
    assert contents.servers == len(table.column(ID).unique())
    for metric in contents.metrics:
        assert np.isfinite(upload.panel(metric).values).sum() == np.isfinite(table.column(metric).to_numpy()).sum()
