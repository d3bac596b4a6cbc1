import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from app.domain import paths, quantiles, totals
from app.domain.panel import Frequency
from app.domain.risk import Outlook

BASE = (0.1, 0.5, 0.9)
NEWEST = np.datetime64("2022-12-31T00:00:00", "s")
DAY = np.timedelta64(86_400, "s")


def outlook(values, *, behind=0, lower=-np.inf, upper=np.inf, levels=BASE):
    values = np.asarray(values, dtype=np.float32)
    servers = len(values)
    return Outlook(
        values,
        levels,
        NEWEST - np.broadcast_to(behind, servers) * DAY,
        Frequency.DAILY,
        "absolute",
        np.full(servers, lower),
        np.full(servers, upper),
    )


def normals(servers, horizon, mean=100.0, deviation=10.0):
    return np.broadcast_to(mean + deviation * norm.ppf(BASE), (servers, horizon, 3))


def summed(view, ranks, weights=None, order=None):
    rows = np.arange(len(view))
    order = totals.order_of([f"server {row}" for row in rows]) if order is None else order
    return totals.total(view, rows, np.ones(len(view)) if weights is None else weights, ranks, order, NEWEST)


def test_every_server_keeps_its_marginal_on_every_date():
    ranks = totals.orders(paths.autoregressive(12, 0.9), 12, 0.5)
    every = np.broadcast_to(np.arange(256), ranks.shape)
    np.testing.assert_array_equal(np.sort(ranks, axis=2), every)
    alone, p90 = summed(outlook(normals(1, 12)), ranks)
    np.testing.assert_allclose(totals.quantiles_of(alone, BASE), normals(1, 12)[0], rtol=1e-4)
    np.testing.assert_allclose(p90, normals(1, 12)[0, :, 2], rtol=1e-6)


@pytest.mark.parametrize("between", [0.0, 0.2, 0.6, 0.95])
def test_the_spread_of_a_sum_is_that_of_servers_so_correlated(between):
    servers, horizon = 200, 40
    ranks = totals.orders(paths.autoregressive(horizon, 0.3, paths=2048), horizon, between)
    found, p90s = summed(outlook(normals(servers, horizon)), ranks)
    spread = found.std(axis=1).mean()
    assert found.mean() == pytest.approx(servers * 100.0)
    least = max(between, 1 / totals.ORDERS)
    assert spread == pytest.approx(10 * np.sqrt(servers + servers * (servers - 1) * least), rel=0.1)
    p90 = totals.quantiles_of(found, BASE)[:, 2]
    assert (p90 < p90s).all(), "a p90 of a sum is not the sum of the p90s"


def test_servers_that_go_together_add_up_to_the_sum_of_their_quantiles():
    template = paths.autoregressive(9, 0.9)
    found, p90s = summed(outlook(normals(30, 9)), totals.orders(template, 9, 1.0))
    np.testing.assert_allclose(totals.quantiles_of(found, BASE)[:, 2], p90s, rtol=1e-4)
    np.testing.assert_array_equal(np.argsort(np.argsort(found, axis=1), axis=1), template.ranks.T)


def test_how_surprises_persist_is_that_of_the_template():
    for correlation in (0.1, 0.6, 0.95):
        template = paths.autoregressive(30, correlation, paths=1024)
        ranks = totals.orders(template, 30, 0.4)[:8]
        scores = norm.ppf((ranks + 0.5) / 1024)
        neighbours = [np.corrcoef(order[t], order[t + 1])[0, 1] for order in scores for t in range(29)]
        assert np.mean(neighbours) == pytest.approx(correlation, abs=0.05)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=40, deadline=None)
def test_a_total_is_what_adding_up_path_by_path_and_date_by_date_gives(seed):
    """Servers that end on different days are read at one date in the same column of their order."""
    random = np.random.default_rng(seed)
    servers, horizon = int(random.integers(1, 9)), int(random.integers(4, 15))
    levels = BASE if seed % 2 else (0.05, *BASE, 0.975)
    behind = random.integers(0, horizon // 2 + 1, servers)
    values = np.sort(random.normal(60, 30, (servers, horizon, len(levels))), axis=-1)
    view = outlook(values, behind=behind, lower=0.0, upper=100.0, levels=levels)
    weights, order = random.uniform(0.1, 3, servers), random.integers(0, totals.ORDERS, servers)
    ranks = totals.orders(paths.autoregressive(horizon, 0.8, paths=32), horizon, 0.5)
    found, p90s = summed(view, ranks, weights, order)
    at = (np.arange(32) + 0.5) / 32
    dates = horizon - behind.max()
    expected, expected_p90 = np.zeros((dates, 32)), np.zeros(dates)
    for server in range(servers):
        for date in range(dates):
            step = behind[server] + date
            curve = np.clip(quantiles.interpolate(view.values[server, step].astype(float), levels, at), 0, 100)
            expected_p90[date] += weights[server] * view.values[server, step, levels.index(0.9)]
            for path in range(32):
                expected[date, path] += weights[server] * curve[ranks[order[server], date, path]]
    np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-3)
    np.testing.assert_allclose(p90s, expected_p90, rtol=1e-5)


def test_blocks_of_servers_do_not_show(monkeypatch):
    random = np.random.default_rng(3)
    view = outlook(np.sort(random.normal(80, 10, (50, 14, 3)), axis=-1), behind=random.integers(0, 7, 50))
    ranks = totals.orders(paths.autoregressive(14), 14, 0.5)
    whole, _ = summed(view, ranks)
    monkeypatch.setattr(totals, "_CELLS", 256 * 14 * 3)
    cut, _ = summed(view, ranks)
    np.testing.assert_allclose(cut, whole, rtol=1e-6)


def test_who_ended_long_ago_does_not_count():
    view = outlook(normals(3, 10), behind=[0, 5, 6])
    assert totals.reaching(view, np.arange(3), NEWEST).tolist() == [True, True, False]


def test_the_first_passage_is_the_share_of_paths_that_have_passed():
    found = np.array([[1.0, 5.0, 1.0, 9.0], [6.0, 1.0, 1.0, 1.0], [9.0, 9.0, 5.0, 1.0]])
    assert totals.passed_by(found, 5.0).tolist() == [0.25, 0.5, 0.75]


@pytest.mark.parametrize("between", [0.0, 0.5, 0.9])
def test_the_correlation_between_servers_is_learnt_from_the_back_tests(between):
    random = np.random.default_rng(5)
    common, own = random.standard_normal((4, 1, 60)), random.standard_normal((4, 80, 60))
    scores = np.sqrt(between) * common + np.sqrt(1 - between) * own
    scores[random.uniform(size=scores.shape) < 0.1] = np.nan
    found = paths.template(scores, 60)
    assert found.between == pytest.approx(between, abs=0.1)
    kept = paths.Template.from_bytes(found.to_bytes(), len(found), found.source, found.between)
    assert kept.between == found.between


def test_only_servers_of_one_last_day_are_compared():
    """A week of the calendar that was surprising is another step for a server that ends a day later."""
    random = np.random.default_rng(5)
    common = random.standard_normal((6, 1, 61))
    scores = np.concatenate([np.repeat(common[..., :60], 5, axis=1), np.repeat(common[..., 1:], 5, axis=1)], axis=1)
    as_of = np.repeat([NEWEST, NEWEST - DAY], 5)
    together = paths.template(scores, 60, as_of=as_of).between
    assert together == pytest.approx(0.99)
    assert paths.template(scores, 60).between < 0.7


def test_nothing_is_known_of_servers_without_back_tests():
    assert paths.template(np.empty((0, 5, 20)), 20).between is None
    assert paths.template(np.full((2, 5, 20), np.nan), 20).between is None
    assert paths.template(np.random.default_rng(0).standard_normal((4, 1, 60)), 60).between is None
