"""Prices round up, estimates add up, and what a person wrote is checked."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from app.domain.cost import (
    LIST_PRICES,
    Assumptions,
    Balance,
    PriceTable,
    Usage,
    dollars,
    estimate,
    microdollars,
    shown,
    transform_instance,
)


@pytest.mark.parametrize(
    ("usd", "amount"), [(0.2, 200_000), ("0.115", 115_000), (0, 0), (1e-7, 0), (0.1 + 0.2, 300_000), ("12", 12_000_000)]
)
def test_dollars_become_micro_dollars(usd: float | str, amount: int) -> None:
    assert microdollars(usd) == amount
    assert microdollars(dollars(amount)) == amount


@pytest.mark.parametrize("usd", ["much", "-1", -0.01, float("nan"), float("inf")])
def test_what_is_no_amount_is_refused(usd: float | str) -> None:
    with pytest.raises(ValueError, match="not an amount"):
        microdollars(usd)


@pytest.mark.parametrize(
    ("amount", "text"), [(200_000, "$0.20"), (0, "$0.00"), (1, "$0.000001"), (12_345_600, "$12.3456")]
)
def test_amounts_are_shown_in_full(amount: int, text: str) -> None:
    assert shown(amount) == text


@pytest.mark.parametrize(
    ("instance", "seconds", "count", "amount"),
    [
        ("ml.m5.xlarge", 3_600, 1, 230_000),
        ("ml.m5.xlarge", 1_800, 2, 230_000),
        ("ml.m5.large", 1, 1, 32),  # 31.94: rounded up
        ("ml.m5.large", 0.01, 1, 32),  # a second that was begun
        ("ml.m5.large", 0, 1, 0),
        ("ml.m5.large", -5, 1, 0),  # clocks that disagree
        ("ml.p9.huge", 3_600, 1, 5_530_000),  # unknown: as the dearest
    ],
)
def test_prices(instance: str, seconds: float, count: int, amount: int) -> None:
    assert LIST_PRICES.price(instance, seconds, count) == amount


@given(st.integers(0, 10**6), st.integers(0, 10**6), st.sampled_from(sorted(LIST_PRICES.per_hour)))
def test_a_job_cut_in_two_is_never_cheaper(first: int, second: int, instance: str) -> None:
    whole = LIST_PRICES.price(instance, first + second)
    parts = LIST_PRICES.price(instance, first) + LIST_PRICES.price(instance, second)
    assert whole <= parts <= whole + 1


def test_a_settled_line_says_where_it_comes_from() -> None:
    jobs = [Usage("a", "ml.m5.xlarge", 120, 2), Usage("b", "ml.new.one", 1)]
    line = LIST_PRICES.settled("automl", jobs)
    assert line.amount == LIST_PRICES.total(jobs) == 15_334 + 1_537
    assert line.detail["priced_as_dearest"] == ["ml.new.one"]
    assert line.detail["jobs"] == [
        {"job": "a", "instance": "ml.m5.xlarge", "seconds": 120, "count": 2, "usd_per_hour": 0.23},
        {"job": "b", "instance": "ml.new.one", "seconds": 1, "count": 1, "usd_per_hour": 5.53},
    ]


TABLE: dict[str, str | float] = {"ml.m5.large": 0.13, "ml.m5.xlarge": "0.26", "ml.m5.4xlarge": 1.04}


def test_a_table_of_ones_own_replaces_the_list() -> None:
    table = PriceTable.of({**TABLE, "as_of": "2026-01-31", "region": "eu-west-1"})
    assert (table.price("ml.m5.large", 3_600), table.as_of, table.region) == (130_000, "2026-01-31", "eu-west-1")
    assert not table.knows("ml.m5.12xlarge")


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (TABLE, "as_of"),
        ({"as_of": "2026-01-31", "ml.m5.large": 0.13}, "ml.m5.xlarge, ml.m5.4xlarge"),
        ({**TABLE, "as_of": "2026-01-31", "ml.m5.large": 0}, "ml.m5.large"),
        ({**TABLE, "as_of": "2026-01-31", "ml.c5.xlarge": "cheap"}, "'cheap'"),
    ],
)
def test_a_table_that_lacks_something_says_what(wrong: dict[str, str | float], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        PriceTable.of(wrong)


def test_assumptions_are_replaced_by_name() -> None:
    assert Assumptions.of({"training_instances": 6}) == Assumptions(training_instances=6)
    for wrong in ({"training_costs": 1}, {"row_bytes": "many"}, {"training_instances": -1}):
        with pytest.raises(ValueError, match=next(iter(wrong))):
            Assumptions.of(wrong)


def test_a_hundred_servers_of_three_years_fit_under_twenty_cents() -> None:
    """The sum that docs/costs.md writes out."""
    expected = estimate(servers=100, steps=1_095, horizon=90, windows=1, training_seconds=1_200)
    assert [(item.purpose, item.instance, item.amount) for item in expected.items] == [
        ("automl", "ml.m5.xlarge", 153_334),
        ("transform-forecast", "ml.m5.large", 10_702),
        ("transform-window-1", "ml.m5.large", 10_478),
    ]
    assert expected.total == 174_514 <= microdollars(0.20)
    assert expected.seconds == pytest.approx(1_534.8)
    assert expected.seconds < 30 * 60


def test_a_model_used_again_pays_no_training_and_a_retrained_one_two() -> None:
    once, never, twice = (
        estimate(servers=100, steps=1_095, horizon=90, windows=1, training_seconds=1_200, trainings=trainings)
        for trainings in (1, 0, 2)
    )
    assert once.total - never.total == twice.total - once.total == 153_334
    assert twice.seconds == once.seconds, "side by side"
    assert [item.purpose for item in never.items] == ["transform-forecast", "transform-window-1"]


def test_each_window_has_a_transform_over_the_history_before_it() -> None:
    two = estimate(servers=50, steps=400, horizon=30, windows=2, training_seconds=600)
    forecast, first, second = (item.seconds for item in two.items[1:])
    assert [item.purpose for item in two.items[2:]] == ["transform-window-1", "transform-window-2"]
    assert forecast - first == pytest.approx(first - second)  # a horizon less each time
    assert forecast > first


@pytest.mark.parametrize(
    ("megabytes", "instance"),
    [(0.1, "ml.m5.large"), (10.1, "ml.m5.xlarge"), (474, "ml.m5.4xlarge"), (1e5, "ml.m5.4xlarge")],
)
def test_small_fleets_take_a_small_instance(megabytes: float, instance: str) -> None:
    assert transform_instance(megabytes)[0] == instance
    assert LIST_PRICES.knows(instance)


def test_what_is_committed_is_spent_or_held() -> None:
    assert (Balance(reserved=10).committed, Balance(reserved=10).held) == (10, 10)
    closed = Balance(reserved=10, settled=12, overrun=2)
    assert (closed.committed, closed.held) == (12, 0)
