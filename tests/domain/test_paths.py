import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from app.domain import paths
from app.domain.paths import Template


def correlated(trajectories: int, horizon: int, correlation: float, seed: int = 7) -> np.ndarray:
    """Gaussian trajectories whose every two steps correlate alike: (1, trajectories, horizon)."""
    random = np.random.default_rng(seed)
    common = random.standard_normal((trajectories, 1))
    own = random.standard_normal((trajectories, horizon))
    return (np.sqrt(correlation) * common + np.sqrt(1 - correlation) * own)[None]


def assert_permutations(ranks: np.ndarray) -> None:
    every = np.broadcast_to(np.arange(len(ranks))[:, None], ranks.shape)
    np.testing.assert_array_equal(np.sort(ranks, axis=0), every)


@pytest.mark.parametrize("trajectories", [0, 5, 77, 1000])
def test_every_rank_occurs_once_per_step_however_many_trajectories_there_are(trajectories):
    found = paths.template(correlated(trajectories, 12, 0.5), 12, seed=3)
    assert found.ranks.dtype == np.uint16
    assert found.ranks.shape == (256, 12)
    assert_permutations(found.ranks)


def test_persistence_is_what_a_trajectory_has_in_common():
    for correlation in (0.0, 0.5, 0.9):
        share = correlation + (1 - correlation) / 30
        assert paths.persistence(correlated(2000, 30, correlation)) == pytest.approx([share], abs=0.02)


def test_errors_that_stay_and_errors_that_pass_give_other_paths():
    """Many windows outweigh what is taken for granted of few."""
    staying, passing = (np.repeat(correlated(400, 60, c), 40, axis=0) for c in (0.8, 0.0))
    for scores, share in ((staying, 0.8 + 0.2 / 60), (passing, 1 / 60)):
        found = paths.persistence(normal_scores_of(paths.template(scores, 60, paths=2048))[None])
        prior = paths.persistence(normal_scores_of(paths.autoregressive(60, paths=2048))[None])
        assert found == pytest.approx((40 * share + 4 * prior) / 44, abs=0.03)


def test_one_window_is_hardly_more_than_a_word():
    one = paths.template(correlated(400, 60, 0.0), 60, paths=2048)
    assert correlation_of(one) > 0.9
    assert correlation_of(paths.template(np.repeat(correlated(400, 60, 0.0), 30, axis=0), 60)) < 0.8


def normal_scores_of(template: Template) -> np.ndarray:
    return norm.ppf((template.ranks + 0.5) / len(template))


def correlation_of(template: Template) -> float:
    name, correlation = template.source.split(", correlation ")
    assert name == "autoregressive"
    return float(correlation)


def test_the_same_seed_gives_the_same_paths_and_another_seed_other_ones():
    scores = correlated(100, 10, 0.3)
    first, again, other = (paths.template(scores, 10, seed=seed).to_bytes() for seed in (1, 1, 2))
    assert first == again != other


def test_trajectories_with_few_holes_count_and_sparse_ones_do_not():
    scores = np.repeat(np.linspace(-2, 2, 30)[None, :, None], 9, axis=2)
    scores[0, :, 4] = np.nan
    assert paths.persistence(scores) == pytest.approx([1.0])
    scores[0, 20:] = np.where(np.arange(9) % 2, 3.0, -3.0)
    assert paths.persistence(scores)[0] < 0.7
    scores[0, 20:, :4] = np.nan
    assert paths.persistence(scores) == pytest.approx([1.0])


def test_without_scores_paths_persist_over_half_the_horizon():
    usual = np.exp(-1 / 15)
    for nothing in (np.full((2, 3, 30), np.nan), np.zeros((0, 3, 30)), np.zeros((1, 0, 30)), np.zeros((1, 3, 30))):
        assert correlation_of(paths.template(nothing, 30)) == pytest.approx(usual, abs=2e-3)
    assert correlation_of(paths.autoregressive(30)) == pytest.approx(usual, abs=1e-3)
    assert paths.template(np.full((1, 3, 1), 0.3), 1).horizon == 1


def test_an_ar1_forgets_as_it_says():
    ranks = paths.autoregressive(20, 0.8, paths=20_000).ranks
    scores = norm.ppf((ranks + 0.5) / 20_000)
    for lag in (1, 3, 10):
        assert np.corrcoef(scores[:, 5], scores[:, 5 + lag])[0, 1] == pytest.approx(0.8**lag, abs=0.03)


def test_another_seed_moves_a_probability_little():
    """256 random paths would scatter by 3 points at a probability of one half."""
    below = np.full((1, 60), norm.cdf(1.4))
    told = [paths.autoregressive(60, 0.95, seed=seed).breached_by(below)[0, -1] for seed in range(20)]
    assert 0.3 < np.mean(told) < 0.7
    assert np.std(told) < 0.02


def test_bytes_and_back():
    found = paths.autoregressive(7, 0.5, paths=300)
    back = Template.from_bytes(found.to_bytes(), 300, found.source)
    np.testing.assert_array_equal(back.ranks, found.ranks)
    assert len(found.to_bytes()) == 300 * 7 * 2
    with pytest.raises(ValueError, match="reshape"):
        Template.from_bytes(found.to_bytes()[:-2], 300, found.source)


@given(
    horizon=st.integers(1, 6),
    many=st.sampled_from([4, 63, 64, 65, 256]),
    seed=st.integers(0, 2**32 - 1),
)
@settings(max_examples=60, deadline=None)
def test_first_passage_by_masks_is_first_passage_path_by_path(horizon, many, seed):
    random = np.random.default_rng(seed)
    template = paths.autoregressive(horizon, 0.5, paths=many, seed=seed)
    below = random.uniform(size=(5, horizon)) ** 0.2
    level = (template.ranks + 0.5) / many
    breached = level[None] > below[:, None, :]
    counted = np.maximum.accumulate(breached, axis=2).mean(axis=1)
    marginal = 1 - below
    expected = np.clip(counted, np.maximum.accumulate(marginal, axis=1), np.minimum(np.cumsum(marginal, axis=1), 1.0))
    np.testing.assert_allclose(template.breached_by(below), expected, atol=1e-12)


def test_what_cannot_breach_never_does_and_what_must_does():
    template = paths.autoregressive(3, 0.5)
    found = template.breached_by(np.array([[1.0, 1.0, 1.0], [1.0, 0.0, 1.0]]))
    np.testing.assert_array_equal(found, [[0, 0, 0], [0, 1, 1]])
