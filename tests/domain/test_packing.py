from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from app.domain import packing
from app.domain.packing import Group


def group(loads, room, movable=None, gains=None, forgone=None):
    loads = np.array(loads, dtype=np.float64)
    servers = len(loads)
    return Group(
        loads,
        np.asarray(room, dtype=np.float64) - loads,
        np.ones(servers, dtype=np.bool_) if movable is None else np.array(movable, dtype=np.bool_),
        np.full(servers, 100.0) if gains is None else np.array(gains, dtype=np.float64),
        np.zeros(servers) if forgone is None else np.array(forgone, dtype=np.float64),
    )


def pack(group):
    return packing.pack([group])[0]


def best_of_all(group):
    """Every assignment tried."""
    every = map(np.array, product(range(-1, len(group)), repeat=len(group)))
    return max(group.saving(hosts) for hosts in every if (hosts != np.arange(len(group))).all() and group.holds(hosts))


def test_the_solver_packs_where_first_fit_decreasing_does_not():
    """Two hosts with room for 10 take 4 + 3 + 3 each; first fit puts 4 + 4 and 3 + 3 + 3, and a 3 is left."""
    its = group([[0.0], [0.0], [4.0], [4.0], [3.0], [3.0], [3.0], [3.0]], 10.1, [False] * 2 + [True] * 6)
    simple, best = packing.first_fit(its), packing.solved(its)
    assert best is not None
    assert its.holds(simple)
    assert its.holds(best)
    assert (its.saving(simple), its.saving(best)) == (500.0, 600.0)
    assert pack(its)[1] == "milp"


def test_a_host_loses_what_it_could_have_saved_itself():
    its = group([[10.0], [10.0]], 90.0, gains=[25.0, 25.0], forgone=[75.0, 75.0])
    hosts, _ = pack(its)
    assert hosts.tolist() == [-1, -1]
    its = group([[10.0], [10.0], [60.0]], 90.0, [True, True, False], [25.0, 25.0, 0.0], [75.0, 75.0, 0.0])
    hosts, _ = pack(its)
    assert hosts.tolist() == [2, 2, -1]


def test_more_load_than_room_takes_nobody_in():
    its = group([[0.0], [95.0]], 90.0, [True, False])
    assert pack(its)[0].tolist() == [-1, -1]


small = st.integers(2, 4).flatmap(
    lambda servers: st.tuples(
        st.lists(st.lists(st.integers(0, 60), min_size=2, max_size=2), min_size=servers, max_size=servers),
        st.lists(st.booleans(), min_size=servers, max_size=servers),
        st.lists(st.integers(0, 8), min_size=servers, max_size=servers),
        st.lists(st.integers(0, 8), min_size=servers, max_size=servers),
    )
)


@given(small)
@settings(max_examples=30, deadline=None)
def test_packings_hold_and_the_solver_s_is_the_best_there_is(case):
    loads, movable, gains, forgone = case
    its = group(loads, 90.5, movable, gains, forgone)  # whole loads never fill it to the last digit
    simple, best = packing.first_fit(its), packing.solved(its)
    assert best is not None
    assert its.holds(simple)
    assert its.holds(best)
    assert 0.0 <= its.saving(simple) <= its.saving(best) == best_of_all(its)


@given(st.integers(0, 2**32 - 1))
@settings(max_examples=3, deadline=None)
def test_a_group_that_is_solved_in_parts_is_packed_no_worse_than_first_fit(seed):
    random = np.random.default_rng(seed)
    servers = 2 * packing.PART + 3
    loads = random.uniform(1, 60, (servers, 1)) + random.uniform(0, 5, (servers, 2))
    movable = loads[:, 0] < 12
    its = group(loads, 90.0, movable, random.integers(25, 100, servers), np.where(movable, 50.0, 0.0))
    hosts, _ = pack(its)
    assert its.holds(hosts)
    assert its.saving(hosts) >= its.saving(packing.first_fit(its)) > 0


def test_a_large_group_is_packed_first_fit_decreasing():
    servers = packing.SOLVED + 1
    its = group(np.full((servers, 1), 8.0), 90.0)
    hosts, method = pack(its)
    assert method == "first_fit_decreasing"
    assert its.holds(hosts)
    assert (hosts < 0).sum() == -(-servers // 11)


def test_the_solver_sees_the_smallest_groups_and_no_more_servers_than_it_may():
    small, large = (group(np.full((servers, 1), 8.0), 90.0) for servers in (20, packing.SOLVED))
    assert [method for _, method in packing.pack([large, small])] == ["first_fit_decreasing", "milp"]
