"""Allocation on plain numbers: the knapsack, the search and the interactions, against brute force."""

from __future__ import annotations

import itertools
import random
from collections.abc import Sequence

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_trainer.quant.evolve import SearchSettings, SearchState, evolve, exchanged
from ireko_trainer.quant.interactions import Interactions, choose_lowered, fit, measure_interactions
from ireko_trainer.quant.knapsack import Limit, NothingFitsTheLimitsError, knapsack, non_increasing
from ireko_trainer.quant.units import Unit

WIDTHS = (2, 3, 4, 8)


@st.composite
def instances(draw: st.DrawFn) -> tuple[list[dict[int, float]], list[Limit]]:
    count = draw(st.integers(1, 5))
    sizes = draw(st.lists(st.integers(1, 10**7), min_size=count, max_size=count))
    costs = [
        dict(zip(WIDTHS, draw(st.lists(st.floats(0, 10), min_size=4, max_size=4)), strict=True))
        for _ in sizes
    ]
    amounts = [{width: size * width for width in WIDTHS} for size in sizes]
    flat = [{width: size * width // 3 + 7 for width in WIDTHS} for size in sizes]
    low, high = sum(2 * size for size in sizes), sum(8 * size for size in sizes)
    return costs, [
        Limit(amounts=amounts, most=draw(st.integers(low - 1, high + 1))),
        Limit(amounts=flat, most=draw(st.integers(low // 3, high))),
    ]


@settings(deadline=None, max_examples=80)
@given(instance=instances())
def test_the_knapsack_is_as_good_as_trying_everything(
    instance: tuple[list[dict[int, float]], list[Limit]],
) -> None:
    costs, limits = instance
    fitting = [
        sum(table[width] for table, width in zip(costs, bits, strict=True))
        for bits in itertools.product(WIDTHS, repeat=len(costs))
        if all(limit.total(bits) <= limit.most for limit in limits)
    ]
    if not fitting:
        with pytest.raises(NothingFitsTheLimitsError):
            knapsack(costs=costs, limits=limits)
        return
    bits = knapsack(costs=costs, limits=limits)
    assert all(limit.total(bits) <= limit.most for limit in limits)
    cost = sum(table[width] for table, width in zip(costs, bits, strict=True))
    assert cost <= min(fitting) + 1e-7 * max(1.0, max(max(table.values()) for table in costs))


@given(values=st.lists(st.floats(0, 10), min_size=4, max_size=4))
def test_costs_are_made_to_fall_with_the_width_and_never_lowered(values: list[float]) -> None:
    costs = dict(zip(WIDTHS, values, strict=True))
    fixed = non_increasing(costs)
    assert all(fixed[narrow] >= fixed[wide] for narrow, wide in itertools.pairwise(WIDTHS))
    assert all(fixed[width] >= costs[width] for width in WIDTHS)


# --- search ---------------------------------------------------------------------------------------


def units(sizes: Sequence[int]) -> list[Unit]:
    return [
        Unit(modules=(f"m{index}",), block=0, weights=size, widths=WIDTHS) for index, size in enumerate(sizes)
    ]


def code_bits(sizes: Sequence[int], most: int) -> Limit:
    return Limit(amounts=[{width: width * size for width in WIDTHS} for size in sizes], most=most)


@settings(deadline=None, max_examples=60)
@given(
    sizes=st.lists(st.integers(1, 50), min_size=2, max_size=12),
    share=st.floats(0, 1),
    seed=st.integers(0, 10**6),
)
def test_children_stay_within_the_budget_and_leave_no_room_unused(
    sizes: list[int], share: float, seed: int
) -> None:
    limit = code_bits(sizes, int(sum(sizes) * (2 + 6 * share)))
    parent = knapsack(costs=[{w: 1 / w for w in WIDTHS} for _ in sizes], limits=[limit])
    child = exchanged(units=units(sizes), limits=[limit], bits=parent, most=3, chance=random.Random(seed))
    assert limit.total(child) <= limit.most
    room = limit.most - limit.total(child)
    steps = [
        (WIDTHS[WIDTHS.index(width) + 1] - width) * size
        for width, size in zip(child, sizes, strict=True)
        if width != WIDTHS[-1]
    ]
    assert child == tuple(parent) or all(step > room for step in steps)


def landscape(seed: int) -> tuple[list[int], Limit, object]:
    """Twelve units whose errors interact, so that no order of them is right."""
    chance = np.random.default_rng(seed)
    sizes = [1] * 12
    weight, mixed = chance.uniform(0.1, 2, 12), chance.uniform(-0.3, 0.3, (12, 12))

    def fitness(bits: Sequence[int]) -> float:
        error = weight * 2.0 ** -np.array(bits, dtype=float)
        return float(error @ (np.eye(12) + mixed @ mixed.T) @ error)

    return sizes, code_bits(sizes, 36), fitness


@pytest.mark.parametrize("seed", range(3))
def test_the_search_is_elitist_and_finds_better(seed: int) -> None:
    sizes, limit, fitness = landscape(seed)
    found = evolve(
        units=units(sizes),
        limits=[limit],
        start=[3] * 12,
        measures=[fitness, fitness],  # type: ignore[list-item]
        settings=SearchSettings(generations=20, offspring=12, survivors=(3,), seed=seed),
    )
    start = fitness([3] * 12)  # type: ignore[operator]
    assert found.value < 0.9 * start
    assert found.value == fitness(found.bits)  # type: ignore[operator]
    assert limit.total(found.bits) <= limit.most
    assert all(later <= earlier for earlier, later in itertools.pairwise([start, *found.history]))


def test_a_search_that_was_stopped_takes_the_same_way() -> None:
    sizes, limit, fitness = landscape(0)

    def run(generations: int, state: SearchState | None) -> SearchState:
        return evolve(
            units=units(sizes),
            limits=[limit],
            start=[3] * 12,
            measures=[fitness],  # type: ignore[list-item]
            settings=SearchSettings(generations=generations, offspring=6, survivors=()),
            state=state,
        )

    halfway = SearchState(**run(5, None).as_json())
    assert run(10, halfway).as_json() == run(10, None).as_json()


def test_a_start_that_cannot_be_bettered_is_returned() -> None:
    found = evolve(
        units=units([1, 1]),
        limits=[code_bits([1, 1], 6)],
        start=[3, 3],
        measures=[lambda bits: float(abs(bits[0] - 3))],
        settings=SearchSettings(generations=3, offspring=4, survivors=()),
    )
    assert found.bits == [3, 3]


# --- interactions ---------------------------------------------------------------------------------


def random_model(count: int, seed: int) -> Interactions:
    return fit(np.abs(np.random.default_rng(seed).normal(1, 1, (30, count))))


@settings(deadline=None, max_examples=25)
@given(count=st.integers(1, 9), share=st.floats(0, 1), seed=st.integers(0, 999))
def test_few_units_are_chosen_exactly(count: int, share: float, seed: int) -> None:
    model = random_model(count, seed)
    savings = [int(size) for size in np.random.default_rng(seed).integers(1, 9, count)]
    least = int(share * sum(savings))
    chosen = choose_lowered(model=model, savings=savings, least_saved=least)
    assert sum(size for size, low in zip(savings, chosen, strict=True) if low) >= least
    best = min(
        model.cost(np.array(q, dtype=float))
        for q in itertools.product((0, 1), repeat=count)
        if np.dot(q, savings) >= least
    )
    assert model.cost(np.array(chosen, dtype=float)) == pytest.approx(best, abs=1e-6)


def test_many_units_are_chosen_at_least_as_well_as_by_shapley_values() -> None:
    for seed in range(5):
        model = random_model(40, seed)
        chosen = np.array(choose_lowered(model=model, savings=[1] * 40, least_saved=20), dtype=float)
        plain = np.zeros(40)
        plain[np.argsort(model.shapley)[:20]] = 1
        assert chosen.sum() >= 20
        assert model.cost(chosen) <= model.cost(plain)


def test_payments_of_an_additive_game_are_its_costs_and_nothing_interacts() -> None:
    costs = np.array([1.0, 2.0, 4.0])
    model = measure_interactions(
        units=3, divergence=lambda lowered: float(costs @ np.array(lowered, dtype=float)), orders=7
    )
    assert model.shapley == pytest.approx(costs)
    assert np.abs(model.quadratic).max() < 1e-12


def test_shapley_values_share_out_the_whole_cost() -> None:
    def divergence(lowered: Sequence[bool]) -> float:
        return sum(lowered) ** 2 + 3.0 * lowered[0] * lowered[2]

    model = measure_interactions(units=4, divergence=divergence, orders=9)
    assert model.shapley.sum() == pytest.approx(divergence([True] * 4))


def test_savings_that_cannot_be_reached_are_refused() -> None:
    with pytest.raises(NothingFitsTheLimitsError, match="all units lowered save 3, of 4"):
        choose_lowered(model=random_model(3, 0), savings=[1, 1, 1], least_saved=4)
