"""What the watches delivered against what the API server has: deafness, silent deletions, the first sync."""

from __future__ import annotations

from typing import Any

import pytest

from ireko_operator.kube.keys import Key, Kind
from ireko_operator.process.sight import Mark, Sight

RUN: Key = ("team", "run")
OTHER: Key = ("team", "other")


class World:
    """A sight of one kind, and a clock."""

    def __init__(self) -> None:
        self.now = 0.0
        self.sight = Sight(clock=lambda: self.now, wall_clock=lambda: 1e9 + self.now)
        self.sight.watch(frozenset({Kind.RUNS}))

    def deliver(
        self, event: str | None, key: Key, *, version: int, uid: str = "u", phase: str | None = None
    ) -> None:
        metadata = {"namespace": key[0], "name": key[1], "uid": uid, "resourceVersion": str(version)}
        body: dict[str, Any] = {"metadata": metadata, **({"status": {"phase": phase}} if phase else {})}
        self.sight.deliver(Kind.RUNS, event, body)

    def look(self, listed: dict[Key, int], *, uid: str = "u") -> list[tuple[Key, str]]:
        return self.sight.look(Kind.RUNS, {key: Mark(uid, version) for key, version in listed.items()})

    @property
    def deaf(self) -> float:
        return self.sight.deaf()[Kind.RUNS]


@pytest.fixture
def world() -> World:
    return World()


def test_it_is_synced_once_everything_of_the_first_look_was_delivered(world: World) -> None:
    assert not world.sight.synced()
    world.look({RUN: 5, OTHER: 7})
    world.deliver(None, RUN, version=5)
    assert not world.sight.synced()
    world.deliver(None, OTHER, version=8)
    assert world.sight.synced()


def test_an_empty_cluster_is_synced_at_the_first_look(world: World) -> None:
    world.look({})
    assert world.sight.synced()


def test_what_is_deleted_before_it_was_delivered_does_not_keep_the_sync_waiting(world: World) -> None:
    world.look({RUN: 5})
    world.look({})
    assert world.sight.synced()


def test_a_quiet_cluster_is_not_deaf(world: World) -> None:
    world.deliver(None, RUN, version=5)
    for _ in range(100):
        world.look({RUN: 5})
        world.now += 60
        assert world.deaf == 0.0
    assert world.sight.heard()[Kind.RUNS] == 1e9 + world.now - 60


def test_a_change_that_is_not_delivered_makes_a_watch_deaf_from_the_look_that_found_it(world: World) -> None:
    world.deliver(None, RUN, version=5)
    world.now = 60.0
    world.look({RUN: 6})
    world.now = 300.0
    world.look({RUN: 9})
    assert world.deaf == 240.0
    assert world.sight.heard()[Kind.RUNS] == 1e9


def test_a_busy_watch_that_is_always_a_little_behind_is_not_deaf(world: World) -> None:
    world.deliver(None, RUN, version=0)
    for look in range(1, 20):
        world.look({RUN: 10 * look})
        assert world.deaf == 0.0
        world.now += 60
        world.deliver("MODIFIED", RUN, version=10 * look + 1)


def test_hearing_again_heals(world: World) -> None:
    world.look({RUN: 5})
    world.now = 500.0
    assert world.deaf == 500.0
    world.deliver("ADDED", RUN, version=5)
    assert world.deaf == 0.0


def test_what_has_gone_unnoticed_is_told_at_the_second_look_and_once(world: World) -> None:
    world.deliver(None, RUN, version=5)
    assert world.look({}) == []
    assert world.look({}) == [(RUN, "u")]
    assert world.look({}) == []
    assert world.deaf == 0.0


def test_what_is_new_or_reported_deleted_between_two_looks_has_not_gone_unnoticed(world: World) -> None:
    world.deliver(None, RUN, version=5)
    assert world.look({}) == []  # the list was made before the object, and read after its event
    assert world.look({RUN: 5}) == []
    assert world.look({}) == []
    world.deliver("DELETED", RUN, version=6)
    assert world.look({}) == []


def test_the_deletion_of_a_namesake_does_not_remove_its_successor(world: World) -> None:
    world.deliver(None, RUN, version=5, uid="old")
    world.deliver("ADDED", RUN, version=8, uid="new")
    world.deliver("DELETED", RUN, version=7, uid="old")
    assert world.sight.uid(Kind.RUNS, RUN) == "new"


def test_phases_are_counted_until_a_run_is_deleted(world: World) -> None:
    world.deliver(None, RUN, version=1)
    world.deliver(None, OTHER, version=2, phase="Running")
    assert world.sight.phases() == {"Pending": 1, "Running": 1}
    world.deliver("MODIFIED", RUN, version=3, phase="Running")
    assert world.sight.phases() == {"Running": 2}
    world.deliver("DELETED", RUN, version=4)
    assert world.sight.phases() == {"Running": 1}


def test_a_kind_that_is_no_longer_served_is_forgotten(world: World) -> None:
    world.look({RUN: 5})
    world.now = 900.0
    world.sight.watch(frozenset({Kind.PODS}))
    assert world.sight.deaf() == {Kind.PODS: 0.0}
