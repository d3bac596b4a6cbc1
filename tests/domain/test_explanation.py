"""Parts that add up, whatever scale they come from."""

import numpy as np
import pytest

from app.domain.explanation import Parts, additive, explanation


def test_on_a_logarithm_the_parts_are_the_logarithmic_mean_divisia_index() -> None:
    """Ang 2005: Δ_k = (v1 - v0) / ln(v1 / v0) · ln(factor of k)."""
    factors = np.array([[1.2, 0.7, 1.0], [1.1, 2.0, 0.5]])
    level, effects = additive(np.log(40.0), np.log(factors), np.exp)
    end = 40 * factors.prod(axis=0)
    assert level == pytest.approx(40)
    assert effects == pytest.approx((end - 40) / np.log(end / 40) * np.log(factors))
    assert level + effects.sum(axis=0) == pytest.approx(end)
    assert effects[0, 2] == 0


def test_parts_that_cancel_out_keep_their_size() -> None:
    """Between two equal ends the logarithmic mean is that end."""
    _, effects = additive(np.log(40.0), np.log([[1.25], [0.8]]), np.exp)
    assert effects[:, 0] == pytest.approx(40 * np.log([1.25, 0.8]), rel=1e-5)
    assert effects.sum() == pytest.approx(0, abs=1e-9)


def test_on_a_straight_scale_the_parts_are_themselves() -> None:
    steps = np.array([[1.0, -2.0], [0.5, 2.0]])
    level, effects = additive(3.0, steps, lambda scaled: 10 * scaled - 5)
    assert level == 25
    assert effects == pytest.approx(10 * steps)


def test_beyond_a_bound_they_share_what_is_left() -> None:
    level, effects = additive(0.0, np.array([[300.0], [100.0]]), lambda scaled: np.exp(np.minimum(scaled, 1.0)))
    assert level + effects.sum() == pytest.approx(np.e)
    assert effects[0] == pytest.approx(3 * effects[1])


def test_a_forecast_of_any_model_adds_up_and_is_told_in_short() -> None:
    weekday, calendar = np.array([1.0, -1.0, 0.0]), np.array([0.0, 4.0, 6.0])
    parts = Parts(20.0, {"weekday": weekday, "calendar": calendar}, {"end_of_quarter": np.array([np.nan, 4.0, 6.0])})
    p50 = np.array([22.0, 23.0, 25.0])
    found = explanation(parts, p50)
    assert found.names == ("level", "weekday", "calendar", "other")
    assert found.rows.sum(axis=1) == pytest.approx(p50, abs=1e-12)
    assert [found.falling(step) for step in range(3)] == [[], ["end_of_quarter"], ["end_of_quarter"]]
    (event,) = found.event_lifts()
    assert (event.event, event.steps, event.lift, event.percent) == ("end_of_quarter", 2, 5.0, 25.0)
    lifts = {lift.part: lift for lift in found.lifts()}
    assert (lifts["weekday"].low, lifts["weekday"].high) == (-1.0, 1.0)
    assert lifts["calendar"].share == pytest.approx(10 / 14)
    assert sum(lift.share for lift in lifts.values()) == pytest.approx(1)


def test_nothing_at_all_has_shares_of_nothing() -> None:
    parts = Parts(0.0, {"weekday": np.zeros(2)}, {"end_of_quarter": np.zeros(2)})
    found = explanation(parts, np.zeros(2))
    assert [lift.share for lift in found.lifts()] == [0.0, 0.0]
    assert found.event_lifts()[0].percent is None
