"""Allocation that knows that errors interact, after CoopQ (arXiv 2509.15455).

Units are players of a game: from all at the higher of two widths, they go to the lower one in a random order, and
each pays the rise of the divergence at its turn. Its mean over orders is the unit's Shapley value φ, and the
covariance of the payments shows who hurts whom. The paper shrinks the covariance towards its diagonal, K = (1 - s) C +
s diag(C), and asks for the set to be lowered with the least a'q + q'Kq, a = φ - (row sums of K off the diagonal).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import Bounds, LinearConstraint, milp

from ireko_trainer.quant.knapsack import NothingFitsTheLimitsError

Floats = NDArray[np.float64]

SHRINKAGE = 0.5
"""s, as in the paper."""
_EXACT_UNITS = 16  # products of more pairs make the integer program slow
_STARTS = 20
_MOST_PASSES = 200

Divergence = Callable[[Sequence[bool]], float]
"""Which units are lowered -> divergence."""


@dataclass(frozen=True, kw_only=True)
class Interactions:
    """The quadratic model of what a set of lowered units costs."""

    linear: Floats
    """[units]"""
    quadratic: Floats
    """[units, units], symmetric."""
    shapley: Floats
    """[units], the mean payments."""

    def cost(self, lowered: Floats) -> float:
        """Return a'q + q'Kq for q in {0, 1}."""
        return float(self.linear @ lowered + lowered @ self.quadratic @ lowered)


def measure_interactions(
    *,
    units: int,
    divergence: Divergence,
    orders: int,
    seed: int = 0,
    shrinkage: float = SHRINKAGE,
    on_order: Callable[[int, int], None] | None = None,
) -> Interactions:
    """Play `orders` random orders, each of `units` measurements, and fit the model."""
    payments = np.zeros((orders, units))
    chance = random.Random(seed)
    at_the_top = divergence([False] * units)
    for number in range(orders):
        order = list(range(units))
        chance.shuffle(order)
        lowered, before = [False] * units, at_the_top
        for index in order:
            lowered[index] = True
            after = divergence(lowered)
            payments[number, index] = after - before
            before = after
        if on_order is not None:
            on_order(number + 1, orders)
    return fit(payments, shrinkage=shrinkage)


def fit(payments: Floats, *, shrinkage: float = SHRINKAGE) -> Interactions:
    """Return the model of payments [orders, units]."""
    shapley = payments.mean(axis=0)
    centered = payments - shapley
    covariance = centered.T @ centered / len(payments)
    quadratic = (1 - shrinkage) * covariance + shrinkage * np.diag(np.diag(covariance))
    linear = shapley - (quadratic.sum(axis=1) - np.diag(quadratic))
    return Interactions(linear=linear, quadratic=quadratic, shapley=shapley)


def choose_lowered(
    *, model: Interactions, savings: Sequence[int], least_saved: int, seed: int = 0
) -> list[bool]:
    """Return the units to lower: the least cost that saves at least `least_saved`, unit i saving `savings[i]`.

    Exact up to 16 units, beyond that the best local optimum (no flip and no exchange helps) of 20 starts, one of
    which is the best choice by Shapley values alone. Raises `NothingFitsTheLimitsError`.
    """
    if sum(savings) < least_saved:
        raise NothingFitsTheLimitsError(
            f"all units lowered save {sum(savings)}, of {least_saved} that are needed"
        )
    saved = np.array(savings, dtype=np.int64)
    if len(saved) <= _EXACT_UNITS:
        return _exactly(model, saved, least_saved)
    chance = random.Random(seed)
    starts = [
        _by_ratio(model.shapley, saved, least_saved, chance, noise) for noise in (0.0, *[1.0] * (_STARTS - 1))
    ]
    found = [_descend(model, saved, least_saved, start) for start in starts]
    return [bool(q) for q in min(found, key=model.cost)]


def _exactly(model: Interactions, saved: NDArray[np.int64], least: int) -> list[bool]:
    """q'Kq with a variable for each product of a pair, bounded from the side that the objective pulls away from."""
    count = len(saved)
    pairs = [(i, j) for i in range(count) for j in range(i)]
    values = np.concatenate(
        [
            model.linear + np.diag(model.quadratic),
            [2 * model.quadratic[i, j] for i, j in pairs],
        ]
    )
    scale = float(np.abs(values).max()) or 1.0
    rows, lows, highs = [], [], []
    for number, (i, j) in enumerate(pairs):
        product = count + number
        for terms, low, high in (
            ({i: 1, j: 1, product: -1}, -np.inf, 1),
            ({i: 1, product: -1}, 0, np.inf),
            ({j: 1, product: -1}, 0, np.inf),
        ):
            row = np.zeros(len(values))
            row[list(terms)] = list(terms.values())
            rows.append(row)
            lows.append(low)
            highs.append(high)
    rows.append(np.concatenate([saved.astype(float), np.zeros(len(pairs))]))
    result = milp(
        values / scale,
        integrality=np.concatenate([np.ones(count), np.zeros(len(pairs))]),
        bounds=Bounds(0, 1),
        constraints=LinearConstraint(np.array(rows), [*lows, least], [*highs, np.inf]),
        options={"mip_rel_gap": 0.0},
    )
    if result.x is None:
        raise NothingFitsTheLimitsError(result.message)
    return [bool(share > 0.5) for share in result.x[:count]]


def _by_ratio(
    shapley: Floats, saved: NDArray[np.int64], least: int, chance: random.Random, noise: float
) -> Floats:
    ratio = [
        cost / max(1, size) * (1 + noise * chance.uniform(-1, 1))
        for cost, size in zip(shapley, saved, strict=True)
    ]
    lowered = np.zeros(len(saved))
    for index in sorted(range(len(saved)), key=lambda i: ratio[i]):
        if int(saved @ lowered) >= least:
            break
        lowered[index] = 1
    return lowered


def _descend(model: Interactions, saved: NDArray[np.int64], least: int, start: Floats) -> Floats:
    lowered = start.copy()
    for _ in range(_MOST_PASSES):
        sign = 1 - 2 * lowered
        slope = sign * (model.linear + 2 * model.quadratic @ lowered) + np.diag(model.quadratic)
        gain = sign * saved
        room = int(saved @ lowered) - least
        # Change of the cost when i and j flip; the diagonal is a flip of i alone.
        change = slope[:, None] + slope[None, :] + 2 * np.outer(sign, sign) * model.quadratic
        np.fill_diagonal(change, slope)
        kept = gain[:, None] + gain[None, :]
        np.fill_diagonal(kept, gain)
        change[kept + room < 0] = np.inf
        i, j = np.unravel_index(int(change.argmin()), change.shape)
        if not change[i, j] < -1e-12 * abs(model.cost(lowered)):
            break
        lowered[i] = 1 - lowered[i]
        if i != j:
            lowered[j] = 1 - lowered[j]
    return lowered
