"""How the soak counts: what a registry shows against what it should show."""

from __future__ import annotations

import random
from itertools import islice

import pytest

from chain.place import Registered
from chain.soak import outcome, rounds

EXPECTED: Registered = {
    "versions": {1: ("gateway", "aa"), 2: ("camera", "bb")},
    "aliases": {"gateway": 1, "camera": 2},
}


@pytest.mark.parametrize(
    ("registered", "counted"),
    [
        (EXPECTED, "survived"),
        ({"versions": {1: ("gateway", "aa")}, "aliases": {"gateway": 1}}, "lost"),
        ({**EXPECTED, "aliases": {"gateway": 1}}, "lost"),
        ({**EXPECTED, "versions": {1: ("gateway", "aa"), 2: ("camera", "cc")}}, "lost"),
        ({**EXPECTED, "versions": {**EXPECTED["versions"], 3: ("camera", "bb")}}, "duplicated"),
        ({**EXPECTED, "versions": {**EXPECTED["versions"], 3: ("camera", "cc")}}, "duplicated"),
        ({**EXPECTED, "versions": {1: ("camera", "bb"), 2: ("camera", "bb")}}, "duplicated"),
    ],
)
def test_what_became_of_a_run_is_read_off_its_registry(registered: Registered, counted: str) -> None:
    assert outcome(registered, expected=EXPECTED) == counted


def test_every_fault_comes_up_once_in_a_round() -> None:
    faults = ["a", "b", "c", "d"]

    drawn = list(islice(rounds(faults, chance=random.Random(0)), 12))

    assert [sorted(drawn[first : first + 4]) for first in (0, 4, 8)] == [faults] * 3
    assert drawn[:4] != drawn[4:8]
