"""Whom a server's calendar is learnt with."""

from datetime import UTC, datetime

from app.domain.dataset import Server
from app.services.explanations import NEAR, PEERS, alike

NOW = datetime(2024, 1, 1, tzinfo=UTC)


def server(number: int, kind: str, region: str) -> Server:
    return Server(f"SRV-{number:05}", NOW, NOW, 100, {}, {}, {"kind": kind, "region": region})


def test_a_small_fleet_takes_part_whole() -> None:
    fleet = [server(number, "web", "north") for number in range(5)]
    assert sorted(alike(fleet, 3)) == [one.server_id for one in fleet]


def test_of_a_large_one_those_near_and_most_alike() -> None:
    fleet = [
        server(number, "web" if number % 10 == 0 else "batch", "north" if number % 4 else "south")
        for number in range(3 * NEAR)
    ]
    chosen = alike(fleet, 1_500)
    assert chosen[0] == "SRV-01500"
    assert len(set(chosen)) == PEERS
    places = [int(name[4:]) for name in chosen]
    assert all(abs(place - 1_500) <= NEAR // 2 for place in places)
    web = [number for number in range(1_000, 2_000) if number % 10 == 0]
    assert {place for place in web if place % 4 == 0} <= set(places), "both attributes in common"
    assert alike(fleet, 0)[0] == "SRV-00000"
    assert len(alike(fleet, 3 * NEAR - 1)) == PEERS
