from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from app.domain import paths, rightsizing, risk
from app.domain.panel import Frequency
from app.domain.paths import Template
from app.domain.rightsizing import Prospect, Rules
from app.domain.risk import Levels, Outlook

BASE = (0.1, 0.5, 0.9)
END_2022 = np.datetime64("2022-12-31T00:00:00", "s")


def prospect(values, threshold=90.0, template=None, unit="percent", highest=0.0):
    values = np.asarray(values, dtype=np.float64)
    servers, horizon = values.shape[:2]
    outlook = Outlook(
        values,
        BASE,
        np.full(servers, END_2022),
        Frequency.DAILY,
        unit,
        np.zeros(servers),
        np.full(servers, 100.0 if unit == "percent" else np.inf),
    )
    limits = np.broadcast_to(np.asarray(threshold, dtype=np.float64), (servers,))
    past = np.broadcast_to(np.asarray(highest, dtype=np.float64), (servers,))
    return Prospect(outlook, limits, template or paths.autoregressive(horizon), past)


def level(*medians, spread=2.0, days=10):
    """Servers of a constant forecast: p10 and p90 lie a spread below and above."""
    middle = np.array(medians, dtype=np.float64)[:, None, None] + np.array([-spread, 0.0, spread])
    return np.broadcast_to(np.maximum(middle, 0.0), (len(medians), days, 3))


def plan(prospects, prices=None, groups=None, sizes=None, rules=None):
    servers = len(prospects[0])
    return rightsizing.plan(
        prospects,
        groups or ["one"] * servers,
        np.ones(servers) if sizes is None else np.array(sizes, dtype=np.float64),
        prices or [100_000_000] * servers,
        rules or Rules(),
    )


# The example of docs/risk.md: one server, two metrics, three days, the ten paths A to J of the first example.
CPU = [[[28, 34, 40], [30, 36, 42], [29, 35, 41]]]
MEMORY = [[[29, 33, 37], [30, 34, 38], [31, 35, 39]]]
RANKS = [[0, 1, 2], [1, 0, 0], [2, 2, 1], [3, 4, 3], [4, 3, 6], [5, 5, 4], [6, 9, 5], [7, 6, 8], [8, 7, 7], [9, 8, 9]]


def test_the_example_worked_by_hand_in_the_docs():
    template = Template(np.array(RANKS, dtype=np.uint16), "by hand")
    both = [prospect(CPU, 90.0, template), prospect(MEMORY, 80.0, template)]
    assert rightsizing.downsizes(both[:1], 0.05, 2).halvings.tolist() == [1]
    assert rightsizing.downsizes(both, 0.05, 2).halvings.tolist() == [0]
    assert rightsizing.downsizes(both, 0.1, 2).halvings.tolist() == [1]
    assert rightsizing.saved(100_000_000, 1) == 50_000_000
    section = (Path(__file__).parents[2] / "docs" / "risk.md").read_text("utf-8").partition("## Rightsizing")[2]
    for name, values, limit in (("cpu", CPU, 90.0), ("mem", MEMORY, 80.0)):
        for share, size in ((0.5, "1/2"), (0.25, "1/4")):
            breach = rightsizing.breach_probability(prospect(values, limit, template), share).item()
            days = [norm.sf((limit * share - p50) / (p90 - p50) * norm.ppf(0.9)) for _, p50, p90 in values[0]]
            shown = " | ".join(f"{day:.4f}" for day in days)
            assert f"| {name} | {size} | {limit * share:g} | {shown} | {breach:.4f} |" in section
    pair = prospect([[[6, 8, 10]] * 3, [[54, 60, 66]] * 3], 90.0, template)
    onto = np.array([1, -1])
    assert f"= {rightsizing.merged([pair], np.ones(2), onto)[1, 0]:.4f}" in section
    assert plan([pair]).host.tolist() == onto.tolist()


def test_the_probability_is_that_of_the_risk_answer_at_the_lower_threshold():
    view = prospect(level(20.0, 60.0, 88.0, spread=6.0), [90.0, 80.0, 95.0])
    whole = risk.assess(view.outlook, view.thresholds, view.template, Levels()).breach_probability
    np.testing.assert_array_equal(rightsizing.breach_probability(view), whole)
    half = risk.assess(view.outlook, view.thresholds / 2, view.template, Levels()).breach_probability
    np.testing.assert_array_equal(rightsizing.breach_probability(view, 0.5), half)


def test_a_bound_of_today_s_size_hides_no_breach():
    """At a threshold of 100 nothing ever breaches today; at half the size 60 % of today's is 120 %."""
    view = prospect(level(60.0), 100.0)
    assert risk.assess(view.outlook, view.thresholds, view.template, Levels()).breach_probability.item() == 0.0
    assert rightsizing.breach_probability(view, 0.5).item() == 1.0
    above = prospect(level(99.0, spread=10.0), 150.0)
    assert rightsizing.breach_probability(above, 0.75).item() > 0.05


def test_the_smallest_size_that_will_do_and_no_metric_is_spared():
    cpu = prospect(level(5.0, 30.0, 5.0, 60.0))
    memory = prospect(level(5.0, 5.0, 60.0, 5.0))
    assert rightsizing.downsizes([cpu], 0.05, 2).halvings.tolist() == [2, 1, 2, 0]
    found = rightsizing.downsizes([cpu, memory], 0.05, 2)
    assert found.halvings.tolist() == [2, 1, 0, 0]
    assert (found.breach[:2] <= 0.05).all()
    assert (found.breach[2:] > 0.05).any(axis=1).all()
    assert rightsizing.downsizes([cpu], 0.05, 1).halvings.tolist() == [1, 1, 1, 0]


def test_what_was_needed_once_may_be_needed_again():
    past = np.array([20.0, 40.0, 50.0])
    cpu = prospect(level(10.0, 10.0, 10.0), highest=past)
    assert rightsizing.downsizes([cpu], 0.05, 2).halvings.tolist() == [2, 1, 0]
    assert plan([prospect(level(10.0, 50.0), highest=[30.0, 55.0])]).host.tolist() == [1, -1]
    assert plan([prospect(level(10.0, 50.0), highest=[40.0, 55.0])]).host.tolist() == [-1, -1]


def test_a_server_is_in_one_recommendation_at_most_and_the_sum_is_whole_microdollars():
    cpu = prospect(level(4.0, 5.0, 6.0, 70.0, 25.0))
    found = plan([cpu], prices=[100_000_001, 33_333_333, 10, 100_000_000, 80_000_000])
    moved = found.host >= 0
    assert moved.any()
    assert not moved[found.host[moved]].any()
    assert (found.halvings[moved] == 0).all()
    assert (found.halvings[found.host[moved]] == 0).all()
    assert all(isinstance(saving, int) for saving in found.saving)
    assert rightsizing.saved(100_000_001, 1) == 50_000_000
    assert rightsizing.saved(10, 2) == 7


def test_servers_are_put_together_within_their_group_only():
    cpu = prospect(level(4.0, 5.0, 60.0, 62.0))
    apart = plan([cpu], groups=["north", "south", "north", "south"])
    assert apart.host.tolist() == [2, 3, -1, -1]
    assert (plan([cpu], groups=["a", "b", "c", "d"]).host < 0).all()


def test_what_a_percentage_is_of_counts():
    """5 % of a large server is half of a small one."""
    cpu = prospect(level(5.0, 60.0))
    assert plan([cpu], sizes=[1.0, 1.0]).host.tolist() == [1, -1]
    assert plan([cpu], sizes=[10.0, 1.0]).host.tolist() == [-1, -1]


def test_peaks_count_not_averages():
    quiet, busy = level(10.0, 60.0).copy(), 4
    quiet[0, busy] += 30.0
    assert plan([prospect(level(10.0, 60.0))]).host.tolist() == [1, -1]
    assert plan([prospect(quiet)]).host.tolist() == [-1, -1]


def test_only_idle_servers_are_emptied():
    cpu = prospect(level(41.0, 20.0, 20.0))
    assert rightsizing.idle([cpu], 40.0).tolist() == [False, True, True]
    peak = level(20.0).copy()
    peak[0, 3, 2] = 45.0
    assert rightsizing.idle([prospect(peak)], 40.0).tolist() == [False]
    assert rightsizing.idle([cpu, prospect(level(5.0, 70.0, 5.0))], 40.0).tolist() == [False, False, True]


fleets = st.integers(2, 8).flatmap(
    lambda servers: st.tuples(
        *(
            st.lists(st.tuples(st.integers(0, 80), st.integers(0, 12)), min_size=servers, max_size=servers)
            for _ in range(2)
        ),
        st.sampled_from([0.02, 0.05, 0.2]),
        st.integers(0, 3),
    )
)


@given(fleets)
@settings(max_examples=40, deadline=None)
def test_no_recommendation_breaches_more_often_than_epsilon_when_it_is_computed_anew(case):
    *metrics, epsilon, seed = case
    days, random = 12, np.random.default_rng(seed)
    prospects = []
    for number, metric in enumerate(metrics):
        middle = np.array([m for m, _ in metric], dtype=np.float64)[:, None] * random.uniform(0.8, 1.2, (1, days))
        spread = np.array([s for _, s in metric], dtype=np.float64)[:, None, None]
        values = np.maximum(middle[..., None] + spread * np.array([-1.0, 0.0, 1.0]), 0.0)
        prospects.append(prospect(values, 90.0 - 10 * number, paths.autoregressive(days, 0.7, seed=seed)))
    found = plan(prospects, rules=Rules(epsilon=epsilon))
    for row, halvings in enumerate(found.halvings.tolist()):
        if halvings:
            for view in prospects:
                shrunk = view.outlook.values * 2.0**halvings
                bare = replace(view.outlook, values=shrunk, upper=np.full(len(shrunk), np.inf))
                again = risk.assess(bare, view.thresholds, view.template, Levels())
                assert again.breach_probability[row] <= epsilon
    for host in np.unique(found.host[found.host >= 0]).tolist():
        its = [host, *np.flatnonzero(found.host == host).tolist()]
        for number, view in enumerate(prospects):
            total = view.outlook.values[its].sum(axis=0, keepdims=True)
            again = risk.assess(prospect(total).outlook, view.thresholds[:1], view.template, Levels())
            assert again.breach_probability.item() <= epsilon
            assert found.breach[its[1], number] <= epsilon


@pytest.mark.parametrize("epsilon", [0.001, 0.05, 0.3])
def test_a_threshold_over_the_safe_level_is_breached_by_few_enough_paths(epsilon):
    template = paths.autoregressive(30, 0.9)
    safe = rightsizing.safe_level(template, 30, epsilon)
    assert template.breached_by(np.full((1, 30), safe))[0, -1] <= epsilon
