"""Canvas's answers: whatever their order and spelling, all of them or none."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from app.canvas.outcome import BadModelOutput, Expected, Outcome, read_by_hand, read_outputs
from app.domain.panel import Frequency
from app.errors import Invalid

HORIZON, LEVELS = 3, (0.1, 0.5, 0.9)
EXPECTED = Expected(
    servers=("web-1", 'a "b", c', "0012"),
    starts=np.array(["2023-01-01", "2023-01-01", "2022-12-30"], "datetime64[s]"),
    frequency=Frequency.DAILY,
    horizon=HORIZON,
    levels=LEVELS,
)
HOURLY = replace(EXPECTED, frequency=Frequency.HOURLY)
VALUES = np.arange(27, dtype=np.float32).reshape(3, HORIZON, 3)
Row = list[str]
HEADER = ["item_id", "timestamp", "p10", "p50", "p90"]


def rows(expected: Expected = EXPECTED, form: str = "%Y-%m-%d") -> list[Row]:
    found = []
    for server, name in enumerate(expected.servers):
        for step in range(HORIZON):
            time = (expected.starts[server] + step * expected.frequency.step).item()
            quoted = '"' + name.replace('"', '""') + '"'
            found.append([quoted, time.strftime(form), *(f"{value:g}" for value in VALUES[server, step])])
    return found


def written(path: Path, body: list[Row], header: Row | None = None) -> Path:
    path.write_text("".join(",".join(row) + "\n" for row in [header or HEADER, *body]))
    return path


def same(outcome: Outcome, crossed: int = 0) -> bool:
    assert outcome.values.dtype == np.float32
    np.testing.assert_array_equal(outcome.values, VALUES)
    return outcome.crossed == crossed


@pytest.mark.parametrize(
    "form", ["%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%d %H:%M:%S+00:00"]
)
def test_any_way_to_write_a_day(tmp_path: Path, form: str) -> None:
    assert same(read_outputs([written(tmp_path / "x", rows(form=form))], EXPECTED))


@pytest.mark.parametrize("form", ["%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%Y-%m-%dT%H:%M:%S.000"])
def test_hours(tmp_path: Path, form: str) -> None:
    assert same(read_outputs([written(tmp_path / "x", rows(HOURLY, form))], HOURLY))


def test_hours_taken_at_half_past_may_be_answered_on_the_hour(tmp_path: Path) -> None:
    half_past = replace(HOURLY, starts=HOURLY.starts + np.timedelta64(30, "m"))
    assert same(read_outputs([written(tmp_path / "x", rows(HOURLY, "%Y-%m-%d %H:%M:%S"))], half_past))


def test_rows_and_columns_in_any_order_over_any_number_of_files(tmp_path: Path) -> None:
    body = [[row[3], "x", row[1], row[4], row[0], "0", row[2]] for row in rows()]
    header = ["p50", "note", "timestamp", "p90", "item_id", "mean", "p10"]
    np.random.default_rng(0).shuffle(body)
    files = [written(tmp_path / "x.csv.out", body[:4], header), written(tmp_path / "y.csv.out", body[4:], header)]
    assert same(read_outputs(files, EXPECTED))


def test_a_mark_at_the_start_and_names_in_capitals(tmp_path: Path) -> None:
    file = written(tmp_path / "x", rows(), ["\ufeffITEM_ID", "Timestamp", " p10", "P50", "p90"])
    assert same(read_outputs([file], EXPECTED))


def test_quantiles_that_cross_are_sorted_and_counted(tmp_path: Path) -> None:
    body = rows()
    body[4][2], body[4][4] = body[4][4], body[4][2]
    assert same(read_outputs([written(tmp_path / "x", body)], EXPECTED), crossed=1)


def test_values_outside_the_bounds_are_kept(tmp_path: Path) -> None:
    body = rows()
    body[0][2], body[0][4] = "-3.5", "1e3"
    assert read_outputs([written(tmp_path / "x", body)], EXPECTED).values[0, 0].tolist() == [-3.5, 1, 1000]


@pytest.mark.parametrize("said", ["12", "12.0", " 0012", "1.2e1"])
def test_an_id_that_was_taken_for_a_number(tmp_path: Path, said: str) -> None:
    body = [[said, *row[1:]] if row[0] == '"0012"' else row for row in rows()]
    assert same(read_outputs([written(tmp_path / "x", body)], EXPECTED))


def test_a_number_that_two_servers_bear_is_neither(tmp_path: Path) -> None:
    expected = replace(EXPECTED, servers=("web-1", "12.0", "0012"))
    body = [["12", *row[1:]] if row[0] == '"0012"' else row for row in rows(expected)]
    with pytest.raises(BadModelOutput, match="nothing was asked of a server '12'"):
        read_outputs([written(tmp_path / "x", body)], expected)


def test_many_blocks(tmp_path: Path) -> None:
    """More than one block of the reader; the last row once more, so that a repetition is seen across blocks."""
    servers = tuple(f"server-{number:05}-{'x' * 60}" for number in range(3_000))
    starts = np.full(len(servers), np.datetime64("2023-01-01", "s"))
    expected = Expected(servers, starts, Frequency.DAILY, 10, LEVELS)
    body = [[name, f"2023-01-{day:02}", "1", "2", "3"] for day in range(1, 11) for name in servers]
    file = written(tmp_path / "x", body)
    assert file.stat().st_size > 2 << 20
    assert (read_outputs([file], expected).values == [1, 2, 3]).all()
    with pytest.raises(BadModelOutput, match=r"'server-00000-x+' at 2023-01-01 is there more than once"):
        read_outputs([written(tmp_path / "x", [*body, body[0]])], expected)


def without(number: int) -> Callable[[list[Row]], list[Row]]:
    return lambda body: body[:number] + body[number + 1 :]


def replaced(number: int, column: int, text: str) -> Callable[[list[Row]], list[Row]]:
    return lambda body: [
        [text if (at, place) == (number, column) else cell for place, cell in enumerate(row)]
        for at, row in enumerate(body)
    ]


MALFORMED: dict[str, tuple[Callable[[list[Row]], list[Row]], str]] = {
    "NaN": (replaced(4, 3, "NaN"), r"x\.out: p50 of server 'a \"b\", c' at 2023-01-02 is missing"),
    "empty value": (replaced(0, 2, ""), "p10 of server 'web-1' at 2023-01-01 is missing"),
    "inf": (replaced(0, 4, "inf"), "p90 of server 'web-1' at 2023-01-01 is not a finite number"),
    "too large for a float": (replaced(0, 4, "1e39"), "not a finite number"),
    "text": (replaced(5, 2, "low"), r"x\.out: .*'low'"),
    "missing row": (without(8), "1 of 3 servers lack values: '0012' has 2 of the 3 steps from 2022-12-30 on"),
    "missing server": (lambda body: body[3:], "1 of 3 servers lack values: 'web-1' has 0 of the 3 steps"),
    "nothing but a header": (lambda _: [], "3 of 3 servers lack values"),
    "extra server": (replaced(3, 0, "db-9"), r"x\.out: nothing was asked of a server 'db-9'"),
    "server without a name": (replaced(3, 0, ""), "nothing was asked of a server ''"),
    "row twice": (lambda body: [*body, body[0]], "'web-1' at 2023-01-01 is there more than once"),
    "a step further": (lambda body: [*body, [*body[0][:1], "2023-01-04", "1", "2", "3"]], "2023-01-04 is outside"),
    "a step too soon": (replaced(0, 1, "2022-12-31"), "outside the horizon, 3 steps from 2023-01-01 on"),
    "no time": (replaced(2, 1, "soon"), "'soon' is no time that can be read"),
    "impossible day": (replaced(2, 1, "2023-02-30"), "'2023-02-30' is no time"),
    "short row": (lambda body: [*body[:3], body[3][:3], *body[4:]], r"x\.out: .*[Ee]xpected 5 columns, got 3"),
    "long row": (lambda body: [*body[:3], [*body[3], "1"], *body[4:]], "got 6"),
}


@pytest.mark.parametrize("case", MALFORMED)
def test_malformed_output(tmp_path: Path, case: str) -> None:
    spoil, words = MALFORMED[case]
    with pytest.raises(BadModelOutput, match=words):
        read_outputs([written(tmp_path / "x.out", spoil(rows()))], EXPECTED)


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "no column 'item_id'"),
        (b"item_id,timestamp,p10,p90\n", "no column 'p50', but 'item_id', 'timestamp', 'p10', 'p90'"),
        (b"item_id,timestamp,p10,p50,P50,p90\n", "2 columns 'p50'"),
        (b"\x89PNG\r\n\x1a\n\x00\xff", "no CSV in UTF-8"),
        (b"<html><body>We encountered an internal error</body></html>", "no column 'item_id'"),
        (b'item_id,timestamp,p10,p50,p90\n"web-1,2023-01-01,1,2,3\n', "x.out"),
        ("item_id,timestamp,p10,p50,p90\ncafé,2023-01-01,1,2,3\n".encode("latin-1"), "x.out"),
        (b'"' + b"x" * 200_000, "no CSV"),
    ],
)
def test_no_output_at_all(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "x.out").write_bytes(content)
    with pytest.raises(BadModelOutput, match=words):
        read_outputs([tmp_path / "x.out"], EXPECTED)


def test_no_files() -> None:
    with pytest.raises(BadModelOutput, match="3 of 3 servers lack values"):
        read_outputs([], EXPECTED)


@pytest.mark.parametrize(
    "form",
    [
        "%Y-%m-%d", "%Y-%m-%d %H:%M:%S", "%Y-%m-%dT%H:%M:%SZ", "%m/%d/%Y", "%m/%d/%y", "%m/%d/%y %H:%M", "%Y/%m/%d",
        "%Y/%m/%d %H:%M:%S", "%d/%m/%Y", "%d/%m/%y", "%d-%m-%Y", "%d-%m-%y %H:%M",
    ],
)  # fmt: skip
@pytest.mark.parametrize("start", ["2022-12-30", "2023-01-10", "2023-02-01", "2023-03-03"])
def test_any_day_of_the_screens(tmp_path: Path, form: str, start: str) -> None:
    """`01/02/2023` is what the rest of the file and the days of the forecast make of it."""
    expected = replace(EXPECTED, starts=np.full(3, np.datetime64(start, "s")))
    assert same(read_by_hand(written(tmp_path / "x", rows(expected, form)), expected))


@pytest.mark.parametrize(
    "header",
    [
        ["item_id", "timestamp", "p10", "p50", "p90"],
        ["server_id", "date", "P10", "P50", "P90"],
        ["Item_ID", "Timestamp", "0.1", "0.5", "0.9"],
        ["unique_id", "ds", "q0.1", "q0.50", "q0.9"],
        ["item_id", "timestamp", "quantile 10", "quantile_50", "Quantile 90%"],
        ["item_id", "timestamp", "target_value_p10", "target_value_p50", "target_value_p90"],
    ],
)
def test_any_names_of_the_screens(tmp_path: Path, header: Row) -> None:
    assert same(read_by_hand(written(tmp_path / "x", rows(), header), EXPECTED))


def test_by_hand_what_was_not_asked_is_left_aside(tmp_path: Path) -> None:
    more = [
        ["other", "2023-01-01", "1", "2", "3"],
        ["web-1", "2022-11-01", "", "", ""],
        ["web-1", "2023-05-01", "", "", ""],
    ]
    assert same(read_by_hand(written(tmp_path / "x", more + rows()), EXPECTED))


def test_by_hand_an_exact_name_goes_first(tmp_path: Path) -> None:
    body = [[*row, "7"] for row in rows()]
    assert same(read_by_hand(written(tmp_path / "x", body, [*HEADER, "0.5"]), EXPECTED))


@pytest.mark.parametrize(
    ("header", "spoil", "words"),
    [
        (["item_id", "timestamp", "p10", "mean", "p90"], without(99), "no column 'p50' among"),
        (["item_id", "timestamp", "p10", "0.5", "x_50"], without(99), "no column 'p90'"),
        (["item_id", "timestamp", "0.1", "10", "p90"], without(99), "2 columns for 'p10'"),
        (["name", "timestamp", "p10", "p50", "p90"], without(99), "no column 'item_id'"),
        (HEADER, without(0), "lack values: 'web-1' has 2 of the 3 steps from 2023-01-01 on"),
        (HEADER, replaced(0, 1, "31.12.2022"), "no time that can be read"),
        (HEADER, replaced(0, 2, "nan"), "p10 of server 'web-1' at 2023-01-01 is missing"),
        (HEADER, lambda body: [*body, body[0]], "more than once"),
    ],
)
def test_by_hand_what_cannot_be_used(
    tmp_path: Path, header: Row, spoil: Callable[[list[Row]], list[Row]], words: str
) -> None:
    with pytest.raises(Invalid, match=words) as refused:
        read_by_hand(written(tmp_path / "x", spoil(rows()), header), EXPECTED)
    assert refused.value.slug == "bad-model-output"
    assert str(tmp_path) not in refused.value.detail
