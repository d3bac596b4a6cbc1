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


@pytest.mark.parametrize("trajectories", [0, 5, 20, 77, 256, 1000])
def test_every_rank_occurs_once_per_step_however_many_trajectories_there_are(trajectories):
    found = paths.template(correlated(trajectories, 12, 0.5), 12, seed=3)
    assert found.ranks.dtype == np.uint16
    assert found.ranks.shape == (256, 12)
    assert_permutations(found.ranks)


def test_the_order_is_that_of_the_trajectories():
    level = np.linspace(-2, 2, 40)
    found = paths.template(np.repeat(level[None, :, None], 9, axis=2), 9, paths=40)
    assert found.source == "residuals"
    np.testing.assert_array_equal(found.ranks, np.repeat(found.ranks[:, :1], 9, axis=1))


def test_dependence_survives_and_is_measured_on_ranks():
    for correlation in (0.0, 0.5, 0.9):
        found = paths.template(correlated(2000, 30, correlation), 30, paths=1024)
        between = np.corrcoef(norm.ppf((found.ranks + 0.5) / 1024), rowvar=False)
        mean = between[np.triu_indices(30, 1)].mean()
        assert mean == pytest.approx(correlation, abs=0.05)


def test_the_same_seed_gives_the_same_paths_and_another_seed_other_ones():
    scores = correlated(100, 10, 0.3)
    first, again, other = (paths.template(scores, 10, seed=seed).to_bytes() for seed in (1, 1, 2))
    assert first == again != other


def test_trajectories_with_few_holes_are_filled_and_sparse_ones_left_out():
    scores = np.repeat(np.linspace(-2, 2, 30)[None, :, None], 9, axis=2)
    scores[0, :, 4] = np.nan
    scores[0, 20:, :8] = np.nan
    few = paths.template(scores, 9, paths=20)
    np.testing.assert_array_equal(few.ranks, np.repeat(few.ranks[:, :1], 9, axis=1))
    scores[0, 19, :8] = np.nan
    assert paths.template(scores, 9).source.startswith("autoregressive")


def test_too_few_trajectories_become_an_ar1_with_their_own_correlation():
    random = np.random.default_rng(5)
    scores = np.zeros((1, 10, 400))
    for step in range(1, 400):
        scores[..., step] = 0.6 * scores[..., step - 1] + 0.8 * random.standard_normal((1, 10))
    name, estimated = paths.template(scores, 400).source.split(", correlation ")
    assert name == "autoregressive"
    assert float(estimated) == pytest.approx(0.6, abs=0.03)
    assert paths.template(np.full((2, 3, 30), np.nan), 30).source == "autoregressive, correlation 0.90"
    assert paths.template(np.zeros((0, 3, 30)), 30).horizon == 30


def test_an_ar1_forgets_as_it_says():
    ranks = paths.autoregressive(20, 0.8, paths=20_000).ranks
    scores = norm.ppf((ranks + 0.5) / 20_000)
    for lag in (1, 3, 10):
        assert np.corrcoef(scores[:, 5], scores[:, 5 + lag])[0, 1] == pytest.approx(0.8**lag, abs=0.03)


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
