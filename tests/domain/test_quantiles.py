from statistics import NormalDist

import numpy as np
import pytest

from app.domain import quantiles

WANTED = (0.001, 0.05, 0.1, 0.3, 0.5, 0.8, 0.9, 0.975, 0.999)


@pytest.mark.parametrize(
    ("label", "level"), [("p5", 0.05), ("p10", 0.1), ("p50", 0.5), ("p97.5", 0.975), ("p0.1", 0.001)]
)
def test_name_and_level_are_inverse(label: str, level: float) -> None:
    assert quantiles.name(level) == label
    assert quantiles.level(label) == level


def test_a_normal_marginal_is_reproduced_at_every_level() -> None:
    normal = NormalDist(40, 7)
    base = np.array([[[normal.inv_cdf(level) for level in quantiles.BASE]]])
    expected = [normal.inv_cdf(level) for level in WANTED]
    np.testing.assert_allclose(quantiles.interpolate(base, quantiles.BASE, WANTED)[0, 0], expected)


def test_known_levels_stay_as_they_are_and_each_tail_has_its_own_slope() -> None:
    base = np.array([10.0, 20.0, 60.0])
    found = quantiles.interpolate(base, quantiles.BASE, WANTED)
    np.testing.assert_allclose(found[[2, 4, 6]], base)
    assert (np.diff(found) > 0).all()
    assert found[-1] - 60 > 3 * (10 - found[0])


def test_a_flat_segment_has_a_flat_tail() -> None:
    np.testing.assert_array_equal(
        quantiles.interpolate(np.full((2, 3), 42.0), quantiles.BASE, WANTED), np.full((2, len(WANTED)), 42.0)
    )
