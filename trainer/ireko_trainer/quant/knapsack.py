"""The cheapest choice of one width per unit within limits, exactly.

A multiple-choice knapsack as an integer program. The solver works in floating point, the limits are bytes: every
solution is checked in integers and the limit tightened until one passes, so a budget is never exceeded.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import gcd

import numpy as np
from scipy.optimize import Bounds, LinearConstraint, milp
from scipy.sparse import csr_array

_COST_SCALE = 1e4  # the solver's absolute gap is 1e-6: costs are scaled to make that nothing


@dataclass(frozen=True, kw_only=True)
class Limit:
    """An upper bound on a sum over units of what the chosen width takes up."""

    amounts: Sequence[Mapping[int, int]]
    """For each unit: width -> amount."""
    most: int

    def total(self, bits: Sequence[int]) -> int:
        """Return what a choice takes up."""
        return sum(amounts[width] for amounts, width in zip(self.amounts, bits, strict=True))

    def least(self) -> int:
        """Return the smallest sum that there is."""
        return sum(min(amounts.values()) for amounts in self.amounts)


class NothingFitsTheLimitsError(ValueError):
    """No choice satisfies all limits."""


def knapsack(*, costs: Sequence[Mapping[int, float]], limits: Sequence[Limit]) -> list[int]:
    """Return the width of each unit that makes the sum of costs least.

    costs: for each unit, width -> cost; limits hold the same widths. Raises `NothingFitsTheLimitsError`.
    """
    tightened = [limit.most for limit in limits]
    while True:
        bits = _solve(costs, limits, tightened)
        excess = [max(0, limit.total(bits) - limit.most) for limit in limits]
        if not any(excess):
            return bits
        tightened = [most - over for most, over in zip(tightened, excess, strict=True)]


def non_increasing(costs: Mapping[int, float]) -> dict[int, float]:
    """Return costs that never rise with the width: a narrower width costs at least what every wider one does."""
    result: dict[int, float] = {}
    floor = 0.0
    for width in sorted(costs, reverse=True):
        floor = max(floor, costs[width])
        result[width] = floor
    return result


def _solve(costs: Sequence[Mapping[int, float]], limits: Sequence[Limit], most: Sequence[int]) -> list[int]:
    choices = [(unit, width) for unit, table in enumerate(costs) for width in sorted(table)]
    values = np.array([costs[unit][width] for unit, width in choices], dtype=float)
    largest = float(np.abs(values).max(initial=0.0))
    result = milp(
        values / largest * _COST_SCALE if largest > 0 else values,
        integrality=np.ones(len(choices)),
        bounds=Bounds(0, 1),
        constraints=[_one_each(choices), *_within(choices, limits, most)],
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise NothingFitsTheLimitsError(result.message)
    chosen: dict[int, int] = {}
    for (unit, width), share in zip(choices, result.x, strict=True):
        if share > 0.5:
            chosen[unit] = width
    return [chosen[unit] for unit in range(len(costs))]


def _one_each(choices: Sequence[tuple[int, int]]) -> LinearConstraint:
    units = [unit for unit, _ in choices]
    matrix = csr_array((np.ones(len(choices)), (units, range(len(choices)))))
    return LinearConstraint(matrix, 1, 1)


def _within(
    choices: Sequence[tuple[int, int]], limits: Sequence[Limit], most: Sequence[int]
) -> list[LinearConstraint]:
    found = []
    for limit, bound in zip(limits, most, strict=True):
        amounts = [limit.amounts[unit][width] for unit, width in choices]
        step = gcd(*amounts) or 1
        row = np.array([[amount // step for amount in amounts]], dtype=float)
        found.append(LinearConstraint(row, -np.inf, bound // step))
    return found
