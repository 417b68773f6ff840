"""Search over allocations by exchange of bits, after EvoPress (ICML 2025).

(1 + λ): every generation makes λ copies of the parent, each with a few units one width up and others one down inside
the budget; the copies are measured on few tokens, the best of them on more, the last ones and the parent on all.
The parent is replaced only by what is measured closer on all: errors do not add up, and this search does not
assume that they do. Its state is a few numbers, so it goes on where it was stopped.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from ireko_trainer.quant.knapsack import Limit
from ireko_trainer.quant.units import Unit

Fitness = Callable[[Sequence[int]], float]
"""Widths of the units -> divergence; the smaller the better."""


@dataclass(frozen=True, kw_only=True)
class SearchSettings:
    """How long and how wide."""

    generations: int = 50
    offspring: int = 32
    survivors: tuple[int, ...] = (8, 2)
    """How many go on from each measure to the next larger one; one fewer than there are measures."""
    most_exchanges: int = 3
    seed: int = 0


DEFAULT_SETTINGS = SearchSettings()


@dataclass
class SearchState:
    """Where a search stands."""

    bits: list[int]
    value: float
    generation: int = 0
    history: list[float] = field(default_factory=list)

    def as_json(self) -> dict[str, Any]:
        """Return the state as JSON values; `SearchState(**state)` reads it."""
        return asdict(self)


def evolve(
    *,
    units: Sequence[Unit],
    limits: Sequence[Limit],
    start: Sequence[int],
    measures: Sequence[Fitness],
    settings: SearchSettings = DEFAULT_SETTINGS,
    state: SearchState | None = None,
    on_generation: Callable[[SearchState], None] | None = None,
) -> SearchState:
    """Return the best allocation found within `limits`, never one measured worse than `start`.

    measures: from the cheapest to the one that decides. `state` continues an earlier search. `on_generation` is called
    after each generation (to save, to show, to raise).
    """
    if len(settings.survivors) != len(measures) - 1:
        raise ValueError(
            f"{len(measures)} measures need {len(measures) - 1} survivors, got {settings.survivors}"
        )
    state = state or SearchState(bits=list(start), value=measures[-1](start))
    while state.generation < settings.generations:
        # Seeded by generation, not by history: a search that was interrupted takes the same way.
        chance = random.Random(f"{settings.seed}/{state.generation}")
        candidates = _offspring(units, limits, state.bits, settings, chance)
        for measure, survivors in zip(measures[:-1], settings.survivors, strict=True):
            if len(candidates) > survivors:
                candidates = sorted(candidates, key=measure)[:survivors]
        for candidate in candidates:
            value = measures[-1](candidate)
            if value < state.value:
                state.bits, state.value = list(candidate), value
        state.generation += 1
        state.history.append(state.value)
        if on_generation is not None:
            on_generation(state)
    return state


def _offspring(
    units: Sequence[Unit],
    limits: Sequence[Limit],
    parent: Sequence[int],
    settings: SearchSettings,
    chance: random.Random,
) -> list[tuple[int, ...]]:
    found = dict.fromkeys(
        exchanged(units=units, limits=limits, bits=parent, most=settings.most_exchanges, chance=chance)
        for _ in range(settings.offspring)
    )
    found.pop(tuple(parent), None)
    return list(found)


def exchanged(
    *, units: Sequence[Unit], limits: Sequence[Limit], bits: Sequence[int], most: int, chance: random.Random
) -> tuple[int, ...]:
    """Return `bits` with a few units raised and others lowered, within the limits and with no room left unused.

    The number of raised units is the smaller of two draws from 1 to `most`, so that most children differ little.
    """
    child = list(bits)
    raised: set[int] = set()
    for _ in range(min(chance.randint(1, most), chance.randint(1, most))):
        index = _step(units, child, chance, up=True, banned=raised)
        if index is not None:
            raised.add(index)
    while any(limit.total(child) > limit.most for limit in limits):
        if _step(units, child, chance, up=False, banned=raised) is None:
            return tuple(bits)
    _fill(units, limits, child, chance)
    return tuple(child)


def _step(
    units: Sequence[Unit], bits: list[int], chance: random.Random, *, up: bool, banned: set[int]
) -> int | None:
    end = -1 if up else 0
    free = [i for i, unit in enumerate(units) if i not in banned and bits[i] != unit.widths[end]]
    if not free:
        return None
    index = chance.choice(free)
    widths = units[index].widths
    bits[index] = widths[widths.index(bits[index]) + (1 if up else -1)]
    return index


def _fill(units: Sequence[Unit], limits: Sequence[Limit], bits: list[int], chance: random.Random) -> None:
    """Raise units, one width at a time and in random order, until none fits any more."""
    order = list(range(len(units)))
    chance.shuffle(order)
    while order:
        order = [index for index in order if _raise(units[index], limits, bits, index)]


def _raise(unit: Unit, limits: Sequence[Limit], bits: list[int], index: int) -> bool:
    before = bits[index]
    if before == unit.widths[-1]:
        return False
    bits[index] = unit.widths[unit.widths.index(before) + 1]
    if any(limit.total(bits) > limit.most for limit in limits):
        bits[index] = before
        return False
    return True
