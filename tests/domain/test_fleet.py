from datetime import date
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet
import pytest

from app.domain import calendar, fleet
from app.domain.panel import Array, Frequency, Panel
from app.domain.preparation import fill_gaps
from app.services import reference_fleet

WINDOW = 90
YEAR = (date(2024, 1, 1), date(2024, 12, 31))


def grid(table: pa.Table, metric: str, servers: int) -> Array:
    return table[metric].to_numpy().reshape(servers, -1)


def smape(forecast: Array, actual: Array) -> float:
    """On the 0-200 % scale, the mean over the points that there are."""
    there = np.isfinite(actual)
    error = 200 * np.abs(forecast - actual) / (np.abs(forecast) + np.abs(actual))
    return float(error[there].mean())


def history_of(values: Array, start: np.datetime64) -> Array:
    """All but the last window, its gaps filled."""
    servers, steps = values.shape
    edge = np.zeros(servers, dtype=np.int64)
    known = Panel(
        servers=tuple(map(str, range(servers))),
        start=start,
        frequency=Frequency.DAILY,
        values=values[:, :-WINDOW],
        first=edge,
        last=edge + steps - WINDOW - 1,
        lower=edge * 0.0,
        upper=edge + 100.0,
    )
    return fill_gaps(known).values


@pytest.mark.parametrize("seed", [fleet.SEED, 1, 7])
def test_the_default_fleet_is_as_hard_to_forecast_as_it_was_made_to_be(seed: int) -> None:
    made = fleet.make(seed=seed)
    values = grid(reference_fleet.generate(seed=seed), "cpu_p95", 120)
    history, actual = history_of(values, made.times[0]), values[:, -WINDOW:]
    four_weeks = history[:, -28:].reshape(120, 4, 7).mean(axis=1)
    assert 9 < smape(np.tile(four_weeks, 13)[:, :WINDOW], actual) < 11
    assert smape(np.tile(history[:, -7:], 13)[:, :WINDOW], actual) > 11
    assert 6 < smape(fleet.parts(made, "cpu_p95").mean[:, -WINDOW:], actual) < 7


@pytest.mark.parametrize("seed", [fleet.SEED, 1, 7])
def test_the_default_fleet_has_servers_at_risk_and_idle_ones(seed: int) -> None:
    last = grid(reference_fleet.generate(seed=seed), "cpu_p95", 120)[:, -WINDOW:]
    assert 0.10 <= (np.nanmax(last, axis=1) > 90).mean() <= 0.20
    assert 0.15 <= (np.nanmean(last, axis=1) < 40).mean() <= 0.25


def test_a_fleet_is_one_row_per_server_and_day_in_percent() -> None:
    table = reference_fleet.generate(12, *YEAR, seed=3)
    assert table.column_names == [
        *("server_id", "timestamp", "cpu_p95", "mem_p95", "disk_p95", "net_p95"),
        *("business_unit", "region", "criticality"),
    ]
    assert table.num_rows == 12 * 366
    ids = table["server_id"].to_pylist()
    assert ids == sorted(ids)
    assert (ids[0], ids[-1]) == ("SRV-0001", "SRV-0012")
    assert table["timestamp"].to_pylist()[:366:365] == list(YEAR)
    for metric in fleet.METRICS:
        values = grid(table, metric.name, 12)
        assert 0 <= np.nanmin(values) < np.nanmax(values) <= 100
        assert table[metric.name].null_count == np.isnan(values).sum() > 0
    owners = set(zip(ids, table["business_unit"].to_pylist(), table["region"].to_pylist(), strict=True))
    assert len(owners) == 12


def test_the_same_arguments_give_the_same_fleet() -> None:
    assert reference_fleet.generate(5, *YEAR, seed=3).equals(reference_fleet.generate(5, *YEAR, seed=3))
    assert not reference_fleet.generate(5, *YEAR, seed=3).equals(reference_fleet.generate(5, *YEAR, seed=4))


def test_a_fleet_has_its_share_of_every_kind() -> None:
    made = fleet.make(1000)
    assert np.bincount(made.archetype).tolist() == [350, 250, 250, 150]
    assert set(made.business_unit) == set(fleet.BUSINESS_UNITS)
    assert (made.region == "us-east").sum() == 400
    assert set(made.criticality) == set(fleet.CRITICALITIES)


def test_the_causes_are_where_the_calendar_has_them() -> None:
    made = fleet.make(40, date(2023, 1, 1), date(2024, 12, 31))
    cpu = fleet.parts(made, "cpu_p95")
    closing = calendar.end_of_quarter(made.times)
    holiday = calendar.is_holiday(made.times, fleet.COUNTRY)
    assert (cpu.events[:, closing & ~holiday] > 0).all()
    assert (cpu.events[:, holiday & ~closing] < 0).all()
    assert (cpu.events[:, ~holiday & ~closing] == 0).all()
    web = made.archetype == 0
    assert cpu.weekday[web][:, calendar.is_weekend(made.times)].max() < 0
    assert (cpu.trend[:, -1] == 0).all()
    assert (cpu.shifts[:, -1] == 0).all()
    assert np.unique(cpu.shifts, axis=1).shape[1] > 1


def test_what_was_observed_is_mean_and_noise_but_for_few_values() -> None:
    made = fleet.make(40, *YEAR)
    cpu = fleet.parts(made, "cpu_p95")
    seen = grid(reference_fleet.generate(40, *YEAR), "cpu_p95", 40)
    told = np.clip(cpu.mean * (1 + cpu.noise), 0, 100)
    there = np.isfinite(seen)
    assert 0.98 < there.mean() < 1
    assert 0.99 < (np.abs(seen - told)[there] < 0.01).mean() < 1


def test_noise_is_as_strong_and_as_lasting_as_it_says() -> None:
    cpu = fleet.parts(fleet.make(200, date(2022, 1, 1), date(2025, 12, 31)), "cpu_p95")
    assert np.median(cpu.noise.std(axis=1) / cpu.noise_scale) == pytest.approx(1, abs=0.03)
    lasting = (cpu.noise[:, 1:] * cpu.noise[:, :-1]).mean(axis=1) / cpu.noise.var(axis=1)
    assert np.median(lasting - cpu.persistence) == pytest.approx(0, abs=0.02)


def test_some_disks_fill_up_and_are_cleaned() -> None:
    disk = fleet.parts(fleet.make(50, *YEAR), "disk_p95")
    cleaned = (np.diff(disk.mean / disk.level) < -0.08).sum(axis=1)
    assert 0.4 < (cleaned > 0).mean() < 0.8


@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".parquet"])
def test_a_written_fleet_reads_back(tmp_path: Path, suffix: str) -> None:
    table = reference_fleet.generate(3, *YEAR)
    path = tmp_path / f"fleet{suffix}"
    reference_fleet.write(table, path)
    read = pyarrow.parquet.read_table(path) if suffix == ".parquet" else pyarrow.csv.read_csv(path)
    assert read.column_names == table.column_names
    for name in table.column_names:
        assert read[name].to_pylist() == table[name].to_pylist()
    assert read.schema.field("server_id").type == pa.string()


def test_another_ending_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"'fleet.xlsx' ends neither in .csv"):
        reference_fleet.write(reference_fleet.generate(1, *YEAR), tmp_path / "fleet.xlsx")


def test_a_fleet_needs_servers_and_days() -> None:
    with pytest.raises(ValueError, match="at least one server"):
        reference_fleet.generate(0)
    with pytest.raises(ValueError, match="before it starts"):
        reference_fleet.generate(3, date(2024, 2, 1), date(2024, 1, 31))
    with pytest.raises(KeyError):
        fleet.parts(fleet.make(3), "gpu_p95")


def test_a_fleet_of_one_server_and_one_day() -> None:
    assert reference_fleet.generate(1, date(2024, 2, 29), date(2024, 2, 29)).num_rows == 1
