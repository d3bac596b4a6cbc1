"""The files that Canvas learns from: what is in them, that series stay whole, and that the panel's secrets stay in."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from app.canvas import staging
from app.canvas.staging import Inputs, write_inputs
from app.domain import calendar
from app.domain.panel import Frequency, Panel
from app.domain.preparation import prepare

NAMES = ("a", 'b,"c"', "=cmd", "0012", "naïve\nid")
STEPS, HORIZON = 60, 7


def fleet(
    names: Sequence[str] = NAMES, frequency: Frequency = Frequency.DAILY, steps: int = STEPS, seed: int = 0
) -> Panel:
    """Servers with gaps; the last begins ten steps late, the last but one ends five steps early."""
    rng = np.random.default_rng(seed)
    count = len(names)
    first, last = np.zeros(count, np.int64), np.full(count, steps - 1)
    first[-1], last[-2] = 10, steps - 6
    values = 50 + rng.normal(0, 5, (count, steps))
    values[rng.random(values.shape) < 0.1] = np.nan
    column = np.arange(steps)
    values[(column < first[:, None]) | (column > last[:, None])] = np.nan
    values[np.arange(count), first] = values[np.arange(count), last] = 40.0
    return Panel(
        servers=tuple(names),
        start=np.datetime64("2024-02-01T00:00:00"),
        frequency=frequency,
        values=values,
        first=first,
        last=last,
        lower=np.zeros(count),
        upper=np.full(count, 100.0),
    )


def read(inputs: Inputs) -> pd.DataFrame:
    """All files, with their texts as they are."""
    texts = {"item_id": str, "timestamp": str}
    return pd.concat(
        [
            pd.read_csv(file, dtype=texts, keep_default_na=False, na_values={"target_value": [""]})
            for file in inputs.files
        ]
    )


@pytest.mark.parametrize("frequency", Frequency)
@pytest.mark.parametrize("cut", [0, 7])
def test_each_server_has_its_prepared_history_and_its_horizon(tmp_path: Path, frequency: Frequency, cut: int) -> None:
    panel = fleet(frequency=frequency)
    inputs = write_inputs(panel, HORIZON, cut, tmp_path)
    table = read(inputs)
    assert inputs.servers == NAMES
    assert len(table) == inputs.rows
    assert inputs.bytes == sum(file.stat().st_size for file in tmp_path.iterdir())

    past, changes = prepare(panel.before(cut))
    assert inputs.filled == changes.filled.sum() > 0
    form = "%Y-%m-%d" if frequency is Frequency.DAILY else "%Y-%m-%d %H:%M:%S"
    for place, name in enumerate(NAMES):
        rows = table[table.item_id == name]
        first, last = past.first[place], past.last[place]
        times = panel.start + np.arange(first, last + 1 + HORIZON) * frequency.step
        assert rows.timestamp.tolist() == pd.to_datetime(times).strftime(form).tolist()
        assert inputs.starts[place] == times[-HORIZON]
        target = rows.target_value.to_numpy()
        np.testing.assert_array_equal(target[:-HORIZON], past.values[place, first : last + 1])
        assert np.isfinite(target[:-HORIZON]).all()
        assert np.isnan(target[-HORIZON:]).all()
        for column, flags in calendar.events(times, "US").items():
            np.testing.assert_array_equal(rows[column], flags)


def test_nothing_of_the_held_out_window_gets_out(tmp_path: Path) -> None:
    panel = fleet()
    changed = replace(panel, values=panel.values.copy())
    for row, last in enumerate(panel.last):
        changed.values[row, last - HORIZON + 1 : last + 1] = 99.0
    one, other = (
        write_inputs(some, HORIZON, HORIZON, tmp_path / name) for some, name in ((panel, "a"), (changed, "b"))
    )
    assert [file.read_bytes() for file in one.files] == [file.read_bytes() for file in other.files]
    assert len(one.files) == 2


def test_known_ahead_columns_go_on_to_the_end_without_holes(tmp_path: Path) -> None:
    panel = fleet()
    wide = np.arange(STEPS + 3.0) + np.zeros((len(NAMES), 1))
    wide[:, 20:25] = np.nan
    wide[0, :5] = np.nan
    wide[1] = np.nan
    panel = replace(panel, known={"releases": wide, "holiday": wide + 0.5})
    table = read(write_inputs(panel, HORIZON, 0, tmp_path))
    assert table.columns.tolist()[3:] == ["end_of_quarter", "holiday", "weekend", "releases", "holiday_"]
    rows = table[table.item_id == "a"].releases.tolist()
    assert rows == [*[5] * 6, *range(6, 20), *[19] * 5, *range(25, 63), *[62] * 4]
    assert table[table.item_id == NAMES[1]].releases.unique().tolist() == [0]
    assert table[table.item_id == "a"]["holiday_"].tolist() == [value + 0.5 for value in rows]


def test_files_hold_whole_series_of_servers_that_end_together(tmp_path: Path) -> None:
    names = [f"s{number:02}" for number in range(40)]
    most = 10_000
    inputs = write_inputs(fleet(names), HORIZON, 0, tmp_path, file_bytes=most)
    later = [f"2024-03-31-{number:03}.csv" for number in range(len(inputs.files) - 1)]
    assert [file.name for file in inputs.files] == ["2024-03-26-000.csv", *later]
    assert len(later) > 3
    homes: dict[str, str] = {}
    for file in inputs.files:
        assert file.stat().st_size <= most
        rows = pd.read_csv(file)
        assert rows.columns[0] == "item_id"
        assert rows[rows.target_value.notna()].groupby("item_id").timestamp.max().nunique() == 1
        for name in rows.item_id.unique():
            assert homes.setdefault(name, file.name) == file.name
    assert sorted(homes) == names
    assert len(read(inputs)) == inputs.rows


def test_a_series_too_long_for_any_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="'a' is too long"):
        write_inputs(fleet(["a", "b"]), HORIZON, 0, tmp_path, file_bytes=1_000)


def test_a_fleet_in_parts_is_the_fleet_at_once(tmp_path: Path) -> None:
    panel = fleet([f"s{number}" for number in range(9)])
    parts = (panel.take(np.arange(start, start + 3)) for start in (0, 3, 6))
    whole, some = write_inputs(panel, HORIZON, 0, tmp_path / "a"), write_inputs(parts, HORIZON, 0, tmp_path / "b")
    assert replace(some, files=(), starts=None) == replace(whole, files=(), starts=None)
    assert (some.starts == whole.starts).all()
    pd.testing.assert_frame_equal(
        *(read(inputs).sort_values(["item_id", "timestamp"], ignore_index=True) for inputs in (whole, some))
    )


def test_writing_again_leaves_the_same_files(tmp_path: Path) -> None:
    first = {file.name: file.read_bytes() for file in write_inputs(fleet(), HORIZON, 0, tmp_path).files}
    again = {file.name: file.read_bytes() for file in write_inputs(fleet(), HORIZON, 0, tmp_path).files}
    assert again == first


def test_servers_without_history_before_the_origin_are_left_out(tmp_path: Path) -> None:
    panel = fleet(["long", "ends early", "short"])
    panel.first[2] = STEPS - 20
    panel.values[2, : STEPS - 20] = np.nan
    inputs = write_inputs(panel, HORIZON, 14, tmp_path)
    assert inputs.servers == ("long", "ends early")
    nobody = write_inputs(panel, HORIZON, STEPS, tmp_path / "nobody")
    assert (nobody.files, nobody.servers, nobody.rows, len(nobody.starts)) == ((), (), 0, 0)


def test_an_outlier_is_capped_on_the_way(tmp_path: Path) -> None:
    panel = fleet(["a", "b", "c"])
    panel.values[0, 30] = 5_000.0
    assert write_inputs(panel, HORIZON, 0, tmp_path / "a").capped >= 1
    assert write_inputs(panel, HORIZON, 0, tmp_path / "b", outlier_z=0).capped == 0


def test_blocks_do_not_show(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = write_inputs(fleet(), HORIZON, 0, tmp_path / "a")
    monkeypatch.setattr(staging, "_BLOCK_ROWS", 70)
    pieces = write_inputs(fleet(), HORIZON, 0, tmp_path / "b")
    assert [file.read_bytes() for file in pieces.files] == [file.read_bytes() for file in whole.files]
