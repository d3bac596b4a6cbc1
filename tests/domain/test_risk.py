from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from app.domain import paths, quantiles, risk
from app.domain.panel import Frequency
from app.domain.paths import Template
from app.domain.risk import Levels, Outlook

BASE = (0.1, 0.5, 0.9)
END_2022 = np.datetime64("2022-12-31T00:00:00", "s")


def outlook(values, levels=BASE, *, frequency=Frequency.DAILY, unit="percent", lower=0.0, upper=100.0, as_of=END_2022):
    values = np.asarray(values)
    servers = len(values)
    return Outlook(
        values, levels, np.full(servers, as_of), frequency, unit, np.full(servers, lower), np.full(servers, upper)
    )


def assess(view, threshold, template=None, rules=None):
    thresholds = np.broadcast_to(np.asarray(threshold, dtype=np.float64), len(view)).copy()
    return risk.assess(view, thresholds, template or paths.autoregressive(view.horizon), rules or Levels())


# The example of docs/risk.md: one server, three days, ten paths, threshold 90.
EXAMPLE = [[[70, 80, 90], [74, 84, 94], [78, 88, 98]]]
EXAMPLE_RANKS = [
    [0, 1, 2],
    [1, 0, 0],
    [2, 2, 1],
    [3, 4, 3],
    [4, 3, 6],
    [5, 5, 4],
    [6, 9, 5],
    [7, 6, 8],
    [8, 7, 7],
    [9, 8, 9],
]


def test_the_example_worked_by_hand_in_the_docs():
    template = Template(np.array(EXAMPLE_RANKS, dtype=np.uint16), "by hand")
    found = assess(outlook(EXAMPLE, upper=np.inf), 90.0, template)
    assert found.level.tolist() == ["very_high"]
    assert found.risk_high.tolist() == [True]
    assert found.max_p90.tolist() == [98.0]
    assert found.mean_p50.tolist() == [84.0]
    assert found.headroom_pct.tolist() == [0.0]
    assert found.runway_conservative.tolist() == [2.0]
    assert np.isnan(found.runway_expected).all()
    assert found.breach_probability.tolist() == [0.5]
    assert found.first_breach_p10 == np.datetime64("2023-01-01")
    assert found.first_breach_p50 == np.datetime64("2023-01-03")
    assert round(found.expected_breach_days.item(), 4) == 0.7198
    assert round(found.severity.item(), 4) == 4.9658


def test_the_docs_show_the_figures_of_the_example():
    text = (Path(__file__).parents[2] / "docs" / "risk.md").read_text("utf-8")
    values, limit = np.array(EXAMPLE, dtype=np.float64), np.full((1, 3), 90.0)
    template = Template(np.array(EXAMPLE_RANKS, dtype=np.uint16), "by hand")
    below = quantiles.cdf(values, BASE, limit, 0.0, np.inf)
    excess = quantiles.mean_excess(values, BASE, limit, 0.0, np.inf)
    names, seen = np.array(list("ABCDEFGHIJ")), set()
    for day in range(3):
        breaching = names[(template.ranks[:, day] + 0.5) / 10 > below[0, day]]
        seen |= set(breaching.tolist())
        ranks = " ".join(map(str, template.ranks[:, day]))
        p10, p50, p90 = EXAMPLE[0][day]
        assert f"| {day + 1} | {p10} | {p50} | {p90} | {ranks} |" in text
        row = (
            f"{day + 1}",
            f"{norm.ppf(below[0, day]):.5f}",
            f"{1 - below[0, day]:.4f}",
            " ".join(breaching),
            " ".join(sorted(seen)),
            f"{template.breached_by(below)[0, day]:.4f}",
            f"{excess[0, day]:.4f}",
        )
        assert f"| {' | '.join(row)} |" in text
    assert f"{1 - below.prod():.4f}." in text


def test_a_breach_is_strictly_over_the_threshold():
    at = assess(outlook([[[90, 90, 90], [90, 90, 90]]]), 90.0)
    assert not at.risk_high.any()
    assert at.breach_probability.tolist() == [0.0]
    assert at.expected_breach_days.tolist() == [0.0]
    assert np.isnan(at.severity).all()
    over = assess(outlook([[[90, 90, 90.5]]]), 90.0)
    assert over.runway_conservative.tolist() == [1.0]


@pytest.mark.parametrize(("value", "unit"), [(42.2, "percent"), (0.8, "ratio"), (1234.56, "absolute")])
def test_a_server_that_stays_at_its_threshold_does_not_breach_it(value, unit):
    """Quantiles come in single precision, in which 42.2 is a little more than in double; thresholds don't."""
    view = outlook(np.full((1, 5, 3), value, np.float32), unit=unit, upper=np.inf)
    rules = Levels(value * 100 if unit == "ratio" else value if unit == "percent" else 100.0, 10.0, 5.0)
    at = assess(view, value, rules=rules)
    assert (at.risk_high.tolist(), at.breach_probability.tolist(), at.headroom_pct.tolist()) == ([False], [0.0], [0.0])
    assert np.isnan(at.runway_conservative).all()
    assert at.level.tolist() == ["high"]


def test_nothing_lies_beyond_a_bound_in_single_precision():
    values = np.full((1, 5, 3), 112.3, np.float32)
    assert assess(outlook(values, upper=112.3), 112.3).breach_probability.tolist() == [0.0]


def test_levels_go_by_the_highest_p90_then_by_the_mean_median():
    values = [[[20, 30, p90]] for p90 in (90.001, 90, 80.001, 80)] + [[[30, 40, 60]], [[30, 39.9, 60]]]
    found = assess(outlook(values), 95.0)
    assert found.level.tolist() == ["very_high", "high", "high", "underutilized", "normal", "underutilized"]
    lenient = assess(outlook(values), 95.0, rules=Levels(95.0, 85.0, 20.0))
    assert lenient.level.tolist() == ["high", "high", "normal", "normal", "normal", "normal"]


def test_other_units_are_judged_on_a_percent_scale():
    ratio = assess(outlook([[[0.6, 0.7, 0.85]]], unit="ratio", upper=1.0), 0.9)
    assert ratio.level.tolist() == ["high"]
    assert ratio.headroom_pct.item() == pytest.approx(5.0)
    absolute = assess(outlook([[[600, 700, 850]], [[100, 200, 300]]], unit="absolute", upper=np.inf), 1000.0)
    assert absolute.level.tolist() == ["high", "underutilized"]
    np.testing.assert_allclose(absolute.headroom_pct, [15.0, 70.0])


def test_hours_are_fractions_of_days():
    values = np.array([[[50, 60, 70]] * 29 + [[50, 95, 99]] * 19])
    found = assess(outlook(values, frequency=Frequency.HOURLY), 90.0, paths.autoregressive(48, 0.9))
    assert found.runway_conservative.item() == 30 / 24
    assert found.runway_expected.item() == 30 / 24
    assert found.first_breach_p50.item().isoformat() == "2023-01-01T06:00:00"
    by_hand = norm.sf(90, 60, 10 / norm.ppf(0.9)) * 29
    by_hand += 19 * (1 - norm.cdf((90 - 95) / (95 - 50) * norm.ppf(0.9)))
    assert found.expected_breach_days.item() == pytest.approx(by_hand / 24)


def test_mass_beyond_a_bound_sits_at_the_bound():
    values = np.array([[[80.0, 95.0, 100.0]]])
    tight = assess(outlook(values, upper=100.0), [100.0])
    assert tight.breach_probability.tolist() == [0.0]
    free = assess(outlook(values, upper=np.inf), [100.0])
    assert free.breach_probability.item() == pytest.approx(0.1, abs=1e-9)
    assert (
        assess(outlook(values, upper=100.0), [90.0]).severity < assess(outlook(values, upper=np.inf), [90.0]).severity
    )


@st.composite
def fleets(draw):
    """Ascending quantiles at 3 to 5 levels, sometimes flat, sometimes at the bound."""
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    levels = draw(st.sampled_from([BASE, (0.05, *BASE), (0.025, *BASE, 0.975)]))
    servers, horizon = draw(st.integers(1, 6)), draw(st.integers(1, 20))
    values = np.sort(random.normal(70, 25, (servers, horizon, len(levels))), axis=-1)
    if draw(st.booleans()):
        values = np.round(values, -1)
    template = paths.autoregressive(horizon, draw(st.sampled_from([0.0, 0.5, 0.95])), seed=1)
    return outlook(np.clip(values, 0, 100).astype(np.float32), levels), template


@given(fleets(), st.floats(1, 99), st.floats(0, 20))
@settings(max_examples=80, deadline=None)
def test_a_higher_threshold_is_never_riskier(fleet, threshold, more):
    view, template = fleet
    low, high = assess(view, threshold, template), assess(view, threshold + more, template)
    slack = 1e-12
    assert (high.breach_probability <= low.breach_probability + slack).all()
    assert (high.expected_breach_days <= low.expected_breach_days + slack).all()
    assert (high.headroom_pct >= low.headroom_pct).all()
    for name in ("runway_conservative", "runway_expected"):
        first, later = (np.nan_to_num(getattr(found, name), nan=np.inf) for found in (low, high))
        assert (later >= first).all()


@given(fleets(), st.floats(1, 99, width=32))
@settings(max_examples=80, deadline=None)
def test_the_figures_of_one_answer_agree(fleet, threshold):
    view, template = fleet
    found = assess(view, threshold, template)
    below = quantiles.cdf(
        view.values.astype(np.float64), view.levels, np.full(view.values.shape[:2], threshold), 0.0, 100.0
    )
    marginal = 1 - below
    slack = 1e-12
    assert (found.breach_probability >= marginal.max(axis=1) - slack).all()
    assert (found.breach_probability <= np.minimum(marginal.sum(axis=1), 1) + slack).all()
    np.testing.assert_allclose(found.expected_breach_days, marginal.sum(axis=1))
    np.testing.assert_array_equal(found.risk_high, np.isfinite(found.runway_conservative))
    np.testing.assert_array_equal(~np.isnat(found.first_breach_p50), found.breach_probability >= 0.5 - 1e-9)
    for date, runway in (
        (found.first_breach_p10, found.runway_conservative),
        (found.first_breach_p50, found.runway_expected),
    ):
        happens = np.isfinite(runway)
        days = (date[happens] - END_2022) / np.timedelta64(1, "D")
        assert (days <= runway[happens]).all(), "joint paths know at least what the marginal knows"
    severe = np.isfinite(found.severity)
    np.testing.assert_array_equal(severe, found.expected_breach_days > 1e-9)
    assert (found.severity[severe] >= -1e-9).all()


def test_steps_are_never_taken_as_independent():
    values = np.tile([[60.0, 75.0, 92.0]], (1, 30, 1))
    marginal = 1 - quantiles.cdf(values, BASE, np.full((1, 30), 90.0), 0.0, 100.0)
    together = Template(np.repeat(np.arange(256, dtype=np.uint16)[:, None], 30, axis=1), "one and the same")
    assert assess(outlook(values), 90.0, together).breach_probability.item() == pytest.approx(
        marginal.max(), abs=1 / 256
    )
    independent = 1 - (1 - marginal).prod()
    assert independent > 0.9
    sticky = assess(outlook(values), 90.0, paths.autoregressive(30, 0.99)).breach_probability.item()
    loose = assess(outlook(values), 90.0, paths.autoregressive(30, 0.0)).breach_probability.item()
    assert marginal.max() < sticky < 0.5 < loose
    assert loose == pytest.approx(independent, abs=0.05)


def test_blocks_of_servers_do_not_show(monkeypatch):
    random = np.random.default_rng(3)
    view = outlook(np.sort(random.normal(80, 10, (50, 14, 3)), axis=-1))
    whole = assess(view, 90.0)
    monkeypatch.setattr(risk, "_CELLS", 100)
    cut = assess(view, 90.0)
    for field in fields(whole):
        np.testing.assert_array_equal(getattr(whole, field.name), getattr(cut, field.name))


def test_probability_and_excess_are_those_of_the_sampled_marginal():
    random = np.random.default_rng(0)
    levels = (0.05, 0.1, 0.5, 0.9)
    values = np.clip(np.sort(random.normal(60, 25, (8, 5, 4)), axis=-1), 0, 100)
    at = random.uniform(5, 99, (8, 5))
    grid = (np.arange(20_000) + 0.5) / 20_000
    sampled = np.clip(quantiles.interpolate(values, levels, grid), 0, 100)
    share = (sampled <= at[..., None]).mean(axis=-1)
    excess = np.maximum(sampled - at[..., None], 0).mean(axis=-1)
    np.testing.assert_allclose(quantiles.cdf(values, levels, at, 0.0, 100.0), share, atol=2e-4)
    np.testing.assert_allclose(quantiles.mean_excess(values, levels, at, 0.0, 100.0), excess, atol=2e-3)


def test_the_tail_is_that_of_a_normal():
    levels = (0.05, 0.5, 0.9)
    normal = norm(50, 8)
    values = normal.ppf(levels)[None]
    for x in (20.0, 45.0, 50.0, 63.0, 80.0):
        at = np.array([x])
        assert quantiles.cdf(values, levels, at, -np.inf, np.inf).item() == pytest.approx(normal.cdf(x))
        by_hand = 8 * norm.pdf((x - 50) / 8) + (50 - x) * normal.sf(x)
        assert quantiles.mean_excess(values, levels, at, -np.inf, np.inf).item() == pytest.approx(by_hand)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=50, deadline=None)
def test_cdf_is_the_inverse_of_interpolate(seed):
    random = np.random.default_rng(seed)
    values = np.cumsum(random.uniform(0.1, 10, (4, 5)), axis=-1)
    levels = (0.05, 0.1, 0.5, 0.9, 0.95)
    wanted = np.sort(random.uniform(0.001, 0.999, 6))
    for k, x in enumerate(quantiles.interpolate(values, levels, wanted).T):
        np.testing.assert_allclose(quantiles.cdf(values, levels, x, -np.inf, np.inf), wanted[k], rtol=1e-9)


def test_an_end_of_quarter_stands_out_over_the_same_weekdays_around_it():
    days = END_2022 + np.arange(1, 121) * np.timedelta64(1, "D")
    weekend = ((days.astype("datetime64[D]").astype(int) + 3) % 7) >= 5
    plain = np.where(weekend, 40.0, 50.0)
    lifted = plain * np.where((days >= np.datetime64("2023-03-25")) & (days <= np.datetime64("2023-03-31")), 1.18, 1.0)
    quiet, busy = risk.peaks(np.stack([np.full(120, 50.0), lifted]), END_2022, Frequency.DAILY, "US")
    assert quiet == ()
    ends = [peak for peak in busy if peak.cause == "end_of_quarter"]
    assert [(str(peak.start), str(peak.end)) for peak in ends] == [("2023-03-25", "2023-03-31")]
    assert ends[0].uplift_pct == pytest.approx(18.0)
    rhythm = [peak for peak in busy if peak.cause == "weekday"]
    assert len(rhythm) == 1
    assert rhythm[0].end - rhythm[0].start == np.timedelta64(4, "D")
    assert [peak.start for peak in busy] == sorted(peak.start for peak in busy)


@pytest.mark.parametrize(("country", "causes"), [("US", ["holiday"]), ("GB", [])])
def test_a_busy_holiday_is_named_where_it_is_one_and_hours_count_as_their_day(country, causes):
    as_of = np.datetime64("2023-06-14T23:00", "s")
    hours = as_of + np.arange(1, 24 * 40 + 1) * np.timedelta64(1, "h")
    fourth_of_july = hours.astype("datetime64[D]") == np.datetime64("2023-07-04")
    values = (50 + 20 * np.sin(np.arange(len(hours)) / 24 * 2 * np.pi)) * np.where(fourth_of_july, 1.5, 1.0)
    (found,) = risk.peaks(values[None], as_of, Frequency.HOURLY, country)
    assert [peak.cause for peak in found] == causes
    for peak in found:
        assert peak.start == peak.end == np.datetime64("2023-07-04")
        assert peak.uplift_pct == pytest.approx(50.0)


def test_without_surroundings_there_is_no_peak():
    as_of = np.datetime64("2023-06-26", "s")
    assert risk.peaks(np.array([[90.0, 95.0, 90.0]]), as_of, Frequency.DAILY, "US") == [()]
