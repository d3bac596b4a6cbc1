"""What a fleet tells of how far its servers depart from it."""

import numpy as np

from app.forecasters import _shrinkage

STEPS, SERVERS = 700, 200


def seen(departure: tuple[float, float], correlation: float, servers: int = SERVERS) -> _shrinkage.Shrinkage:
    """Learnt from servers that differ by so much in two kinds of effects, and err as an AR(1) of deviation 1."""
    random = np.random.default_rng(3)
    rows = (random.random((STEPS, 6)) < 0.2).astype(np.float64)
    kinds = np.array(["strong"] * 3 + ["weak"] * 3)
    own = random.normal(0, np.repeat(departure, 3), (servers, 6))
    noise = random.standard_normal((servers, STEPS))
    for step in range(1, STEPS):
        noise[:, step] = correlation * noise[:, step - 1] + np.sqrt(1 - correlation**2) * noise[:, step]
    level = np.ones((STEPS, 1))
    return _shrinkage.learn(
        np.hstack([level, rows]),
        np.ones(7),
        np.array(["level", *kinds]),
        own @ rows.T + noise,
        np.array([True] + [False] * 6),
    )


def test_each_kind_is_believed_as_much_as_servers_differ_in_it() -> None:
    learnt = seen((1.0, 0.1), 0.6)
    effects, first = 3 * SERVERS, _shrinkage.FIRST_COUNTS
    for its, truth in ((learnt.stiffness[1:4], 1.0), (learnt.stiffness[4:], 100.0)):
        blended = (effects + first) / (effects / truth + first / _shrinkage.FIRST)
        np.testing.assert_allclose(its, blended, rtol=0.3)
    assert learnt.stiffness[0] == 1.0


def test_what_lasts_from_step_to_step_is_found_and_taken_out() -> None:
    for correlation in (0.0, 0.6):
        learnt = seen((0.0, 0.0), correlation)
        assert abs(learnt.correlation - correlation) < 0.06
    lasting = np.array([[1.0, learnt.correlation, learnt.correlation**2, learnt.correlation**3]])
    np.testing.assert_allclose(learnt.white(lasting), [[1.0, 0.0, 0.0, 0.0]], atol=1e-12)


def test_one_server_teaches_next_to_nothing() -> None:
    few, many = (seen((1.0, 1.0), 0.3, servers).stiffness[1] for servers in (1, SERVERS))
    assert many < 2 < few < 1.1 * _shrinkage.FIRST
