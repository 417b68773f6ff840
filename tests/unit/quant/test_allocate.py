from __future__ import annotations

import itertools
from collections.abc import Mapping

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.quant.allocate import Allocation, BudgetTooSmallError, allocate, allocation_path

WEIGHTS = {"a": 100, "b": 300, "c": 200, "d": 400}
OUTSIDE = 5000


def size_of(bits: Mapping[str, int]) -> int:
    return OUTSIDE + sum(WEIGHTS[name] * width // 8 for name, width in bits.items())


orders = st.permutations(sorted(WEIGHTS)).map(lambda names: tuple((name,) for name in names))
level_sets = st.sets(st.sampled_from([2, 3, 4, 8]), min_size=1).map(sorted)
budgets = st.integers(size_of(dict.fromkeys(WEIGHTS, 2)), size_of(dict.fromkeys(WEIGHTS, 8)) + 100)


def fit(tiers: object, levels: list[int], max_bytes: int) -> Mapping[str, int] | None:
    try:
        found = allocate(tiers=tiers, levels=levels, weights=WEIGHTS, size_of=size_of, max_bytes=max_bytes)  # type: ignore[arg-type]
    except BudgetTooSmallError:
        return None
    return found.block_bits


def capped(tiers: object, levels: list[int], cap: float) -> Allocation:
    return allocate(
        tiers=tiers,  # type: ignore[arg-type]
        levels=levels,
        weights=WEIGHTS,
        size_of=size_of,
        max_average_bits=cap,
    )


@given(tiers=orders, levels=level_sets, max_bytes=budgets)
def test_the_budget_is_never_exceeded(tiers: object, levels: list[int], max_bytes: int) -> None:
    bits = fit(tiers, levels, max_bytes)
    if bits is None:
        assert size_of(dict.fromkeys(WEIGHTS, min(levels))) > max_bytes
    else:
        assert size_of(bits) <= max_bytes


@given(tiers=orders, levels=level_sets, one=budgets, other=budgets)
def test_more_budget_never_lowers_any_bits(tiers: object, levels: list[int], one: int, other: int) -> None:
    less, more = fit(tiers, levels, min(one, other)), fit(tiers, levels, max(one, other))
    if less is not None:
        assert more is not None
        assert all(more[name] >= less[name] for name in WEIGHTS)


@given(tiers=orders, levels=level_sets)
def test_the_sets_above_each_level_are_nested_along_the_path(tiers: object, levels: list[int]) -> None:
    path = list(allocation_path(tiers=tiers, levels=levels))  # type: ignore[arg-type]
    for level in levels:
        above = [{name for name, bits in point.items() if bits >= level} for point in path]
        assert all(before <= after for before, after in itertools.pairwise(above))


@given(tiers=orders, levels=level_sets)
def test_the_ends_are_uniform_and_levels_stay_adjacent(tiers: object, levels: list[int]) -> None:
    path = list(allocation_path(tiers=tiers, levels=levels))  # type: ignore[arg-type]
    assert set(path[0].values()) == {min(levels)}
    assert set(path[-1].values()) == {max(levels)}
    assert all(len({levels.index(bits) for bits in point.values()}) <= 2 for point in path)
    assert len(path) == len(WEIGHTS) * (len(levels) - 1) + 1


@given(tiers=orders, levels=level_sets, cap=st.floats(2, 9))
def test_the_cap_on_the_mean_bits_holds(tiers: object, levels: list[int], cap: float) -> None:
    if cap < min(levels):
        with pytest.raises(BudgetTooSmallError) as caught:
            capped(tiers, levels, cap)
        assert caught.value.smallest_bits == min(levels)
    else:
        found = capped(tiers, levels, cap)
        mean = sum(WEIGHTS[name] * bits for name, bits in found.block_bits.items()) / sum(WEIGHTS.values())
        assert found.average_bits == pytest.approx(mean)
        assert mean <= cap


def test_the_most_important_block_rises_first() -> None:
    one_step = size_of({"a": 2, "b": 3, "c": 2, "d": 2})
    assert fit((("b",), ("a",), ("c",), ("d",)), [2, 3], one_step) == {"a": 2, "b": 3, "c": 2, "d": 2}


def test_blocks_of_one_tier_rise_together() -> None:
    found = fit((tuple(WEIGHTS),), [2, 3, 4], size_of(dict.fromkeys(WEIGHTS, 4)) - 1)
    assert found == dict.fromkeys(WEIGHTS, 3)


def test_without_a_budget_everything_gets_the_highest_level() -> None:
    found = allocate(tiers=(tuple(WEIGHTS),), levels=[3, 2], weights=WEIGHTS, size_of=size_of)
    assert found.block_bits == dict.fromkeys(WEIGHTS, 3)


def test_a_budget_that_nothing_fits_names_the_smallest_reachable_size() -> None:
    smallest = size_of(dict.fromkeys(WEIGHTS, 2))
    with pytest.raises(BudgetTooSmallError, match=r"5,250 bytes, the limit is 5,249") as caught:
        allocate(
            tiers=(("a", "b", "c", "d"),),
            levels=[2, 4],
            weights=WEIGHTS,
            size_of=size_of,
            max_bytes=smallest - 1,
        )
    assert caught.value.smallest_bytes == smallest
    assert caught.value.smallest_bits == 2
