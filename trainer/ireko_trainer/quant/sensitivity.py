"""What each unit costs at each width: the divergence of the model with nothing else quantized.

And what it costs from where the others are: errors do not add up, so costs around the dense model say little about
the last bit between two good allocations. `relinearize` measures them again around the current one, lets the
knapsack exchange bits, and keeps an exchange only when the measured divergence falls.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

from ireko_trainer.quant.checkpoint import QuantizedWeights
from ireko_trainer.quant.grid import dequantize
from ireko_trainer.quant.knapsack import Limit, knapsack, non_increasing
from ireko_trainer.quant.probe import Probe
from ireko_trainer.quant.units import Unit, module_bits

_WIDEST_MEASURED = (
    4  # above, a divergence is so small and so regular that it follows from the weights' errors
)
_SMALLEST_EXCHANGE = 2  # units

OnRound = Callable[[int, float], None]
"""Called with the number of finished rounds and the divergence reached; may raise to stop."""


def sensitivities(
    *, probe: Probe, weights: QuantizedWeights, units: Sequence[Unit]
) -> tuple[dict[int, float], ...]:
    """Return, for each unit, width -> divergence with that unit alone quantized; never rising with the width.

    Widths above 4 are extrapolated by the squared errors of the weights. A unit that has no choice costs nothing.
    """
    asked = [(index, width) for index, unit in enumerate(units) for width in _measured(unit)]
    variants = [dict.fromkeys(units[index].modules, width) for index, width in asked]
    tables: list[dict[int, float]] = [{} for _ in units]
    for (index, width), cost in zip(asked, probe.changes(variants), strict=True):
        tables[index][width] = max(0.0, cost)
    for unit, table in zip(units, tables, strict=True):
        _extrapolate(unit, table, weights)
    return tuple(non_increasing(table) for table in tables)


def relinearize(
    *,
    probe: Probe,
    units: Sequence[Unit],
    bits: Sequence[int],
    limits: Sequence[Limit],
    rounds: int,
    on_round: OnRound | None = None,
) -> tuple[list[int], float]:
    """Return an allocation at most as far from the dense model as `bits`, within the limits, and its divergence.

    Each round measures every unit one width up and one down from the current allocation and exchanges at most a
    quarter of the units, a half of that when the divergence does not fall, until fewer than two are left.
    """
    current, best = list(bits), probe.value(module_bits(units, bits))
    for number in range(rounds):
        probe.rebase(module_bits(units, current))
        changes = _neighbours(probe, units, current, best)
        found = _exchange(probe, units, current, best, changes, limits)
        if found is None:
            break
        current, best = found
        if on_round is not None:
            on_round(number + 1, best)
    return current, best


def _measured(unit: Unit) -> tuple[int, ...]:
    if len(unit.widths) == 1:
        return ()
    return tuple(width for width in unit.widths if width <= _WIDEST_MEASURED) or unit.widths[:1]


def _extrapolate(unit: Unit, table: dict[int, float], weights: QuantizedWeights) -> None:
    if len(unit.widths) == 1:
        table[unit.widths[0]] = 0.0
        return
    widest = max(table)
    known = _squared_error(unit, widest, weights)
    for width in unit.widths:
        if width > widest:
            share = _squared_error(unit, width, weights) / known if known > 0 else 0.0
            table[width] = table[widest] * share


def _squared_error(unit: Unit, width: int, weights: QuantizedWeights) -> float:
    return sum(
        float((dequantize(weights.at(name, width)) - weights.original(name)).square().sum())
        for name in unit.modules
    )


def _neighbours(
    probe: Probe, units: Sequence[Unit], current: Sequence[int], base: float
) -> list[dict[int, float]]:
    """For each unit: its width -> 0, the widths beside it -> change of the divergence."""
    asked = []
    for index, (unit, width) in enumerate(zip(units, current, strict=True)):
        place = unit.widths.index(width)
        asked += [(index, unit.widths[p]) for p in (place - 1, place + 1) if 0 <= p < len(unit.widths)]
    values = probe.changes([dict.fromkeys(units[index].modules, width) for index, width in asked])
    tables: list[dict[int, float]] = [{width: 0.0} for width in current]
    for (index, width), value in zip(asked, values, strict=True):
        change = value - base
        # A wider matrix that seems to harm is noise of few tokens; what it would save elsewhere is not.
        tables[index][width] = min(0.0, change) if width > current[index] else max(0.0, change)
    return tables


def _exchange(
    probe: Probe,
    units: Sequence[Unit],
    current: Sequence[int],
    best: float,
    changes: Sequence[Mapping[int, float]],
    limits: Sequence[Limit],
) -> tuple[list[int], float] | None:
    within = [Limit(amounts=_only(limit.amounts, changes), most=limit.most) for limit in limits]
    moved = [
        {width: int(width != now) for width in table} for table, now in zip(changes, current, strict=True)
    ]
    most = max(_SMALLEST_EXCHANGE, len(units) // 4)
    tried: set[tuple[int, ...]] = set()
    while most >= _SMALLEST_EXCHANGE:
        candidate = knapsack(costs=changes, limits=[*within, Limit(amounts=moved, most=most)])
        if candidate != list(current) and tuple(candidate) not in tried:
            tried.add(tuple(candidate))
            value = probe.value(module_bits(units, candidate))
            if value < best:
                return candidate, value
        most //= 2
    return None


def _only(
    amounts: Sequence[Mapping[int, int]], tables: Sequence[Mapping[int, float]]
) -> list[dict[int, int]]:
    return [{width: amount[width] for width in table} for amount, table in zip(amounts, tables, strict=True)]
