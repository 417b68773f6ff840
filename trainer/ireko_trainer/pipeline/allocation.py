"""Bits by measuring: what each matrix costs at each width, and the best choice under a target's budget."""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from transformers import PreTrainedModel

from ireko_trainer.pipeline.files import write_bytes
from ireko_trainer.quant import (
    Batch,
    Interactions,
    Kind,
    Limit,
    NothingFitsTheLimitsError,
    Probe,
    QuantizedWeights,
    SearchSettings,
    SearchState,
    Tie,
    Unit,
    choose_lowered,
    evolve,
    find_units,
    knapsack,
    measure_interactions,
    module_bits,
    relinearize,
    sensitivities,
    stored_size,
    unit_bytes,
)

_ROUNDS = 6
"""Of relinearizing, before the search."""
_SEARCH = SearchSettings(generations=20, offspring=16, survivors=(4,))
_ORDERS = 30
"""Random orders in which blocks are lowered; the paper saw little gain beyond 50, for models of 32 blocks."""

Watch = Callable[[str], None]
"""Told what goes on, in words; raises to stop."""


@dataclass(kw_only=True)
class MeasuredAllocator:
    """Allocations for one model; everything that does not depend on the budget is measured once.

    `weights` are the candidates' forms: rounded, or a database of GPTQ.
    """

    model: PreTrainedModel
    weights: QuantizedWeights
    batches: Sequence[Batch]
    kind: Kind
    widths: Sequence[int]
    tie: Tie
    group_size: int
    average_bits: float | None
    seed: int
    watch: Watch = field(default=lambda _: None)
    state_file: Path | None = None
    """Where a search keeps its state, to go on after an interruption; None: it starts anew."""
    keep: Callable[[], None] = field(default=lambda: None)
    """Called when that file has changed."""

    @cached_property
    def units(self) -> tuple[Unit, ...]:
        """What gets bits as one."""
        return self._units(self.tie, self.widths)

    @cached_property
    def costs(self) -> tuple[dict[int, float], ...]:
        """Divergence of each unit at each width, alone."""
        return sensitivities(probe=self._probe, weights=self.weights, units=self.units)

    def by_block(self) -> dict[str, float]:
        """Sum of the divergences at the lowest width over the units of each block."""
        names = list(self.weights.layout.blocks)
        sums = dict.fromkeys(names, 0.0)
        for unit, costs in zip(self.units, self.costs, strict=True):
            if unit.block is not None:
                sums[names[unit.block]] += max(costs.values())
        return sums

    def sensitivity(self, *, max_bytes: int) -> dict[str, int]:
        """Bits per module with the least sum of divergences. Raises `NothingFitsTheLimitsError`."""
        return module_bits(self.units, self._knapsack(max_bytes))

    def search(self, *, max_bytes: int) -> dict[str, int]:
        """Bits per module that are found by exchanging bits and measuring, from `sensitivity`."""
        limits = self._limits(self.units, max_bytes)
        state = self._kept_state()
        few = self._probe_on(self.batches[:1])
        found = evolve(
            units=self.units,
            limits=limits,
            start=state.bits if state else self._exchanged(limits, max_bytes),
            measures=[
                lambda bits: few.value(module_bits(self.units, bits)),
                lambda bits: self._probe.value(module_bits(self.units, bits)),
            ],
            settings=_SEARCH,
            state=state,
            on_generation=self._after_generation,
        )
        return module_bits(self.units, found.bits)

    def _exchanged(self, limits: Sequence[Limit], max_bytes: int) -> list[int]:
        bits, _ = relinearize(
            probe=self._probe,
            units=self.units,
            bits=self._knapsack(max_bytes),
            limits=limits,
            rounds=_ROUNDS,
            on_round=lambda number, value: self.watch(
                f"exchanging bits, round {number} of {_ROUNDS}: divergence {value:.4g}"
            ),
        )
        return bits

    def _kept_state(self) -> SearchState | None:
        if self.state_file is None or not self.state_file.is_file():
            return None
        return SearchState(**json.loads(self.state_file.read_text()))

    def _after_generation(self, state: SearchState) -> None:
        if self.state_file is not None:
            write_bytes(self.state_file, json.dumps(state.as_json()).encode())
            self.keep()
        self.watch(
            f"search, generation {state.generation} of {_SEARCH.generations}: divergence {state.value:.4g}"
        )

    def interaction(self, *, max_bytes: int) -> dict[str, int]:
        """Bits per module when blocks take one of two neighbouring widths and their errors interact.

        The two widths are the highest one that fits everywhere and the next; everything outside the blocks takes
        its widest.
        """
        low, high = self._levels(max_bytes)
        units = self._units("block", (low, high))
        blocks = [unit for unit in units if unit.block is not None]
        outside = [unit for unit in units if unit.block is None]
        fixed = [unit.widths[-1] for unit in outside]
        lowered = [False] * len(blocks)
        if low < high:
            limits = self._limits([*blocks, *outside], max_bytes)
            lowered = self._lowered(blocks, low, high, fixed, limits)
        bits = [low if one else high for one in lowered]
        return module_bits([*blocks, *outside], [*bits, *fixed])

    def _lowered(
        self, blocks: Sequence[Unit], low: int, high: int, fixed: Sequence[int], limits: Sequence[Limit]
    ) -> list[bool]:
        """The blocks to lower so that every limit holds; the one that asks for most leads."""

        def over(limit: Limit, lowered: Sequence[bool]) -> int:
            return limit.total([*(low if one else high for one in lowered), *fixed]) - limit.most

        def savings(limit: Limit) -> list[int]:
            return [limit.amounts[index][high] - limit.amounts[index][low] for index in range(len(blocks))]

        lowered = [False] * len(blocks)
        lead = max(limits, key=lambda limit: over(limit, lowered) / sum(savings(limit)))
        least = over(lead, lowered)
        if least <= 0:
            return lowered
        model = self._interactions(blocks, low, high)
        while any(over(limit, lowered) > 0 for limit in limits):
            lowered = choose_lowered(model=model, savings=savings(lead), least_saved=least, seed=self.seed)
            least += min(savings(lead))
        return lowered

    def _interactions(self, blocks: Sequence[Unit], low: int, high: int) -> Interactions:
        return measure_interactions(
            units=len(blocks),
            divergence=lambda lowered: self._probe.value(
                module_bits(blocks, [low if one else high for one in lowered])
            ),
            orders=_ORDERS,
            seed=self.seed,
            on_order=lambda done, total: self.watch(f"interactions, order {done} of {total}"),
        )

    def _levels(self, max_bytes: int) -> tuple[int, int]:
        fitting = []
        for width in self.widths:
            units = self._units("block", (width,))
            limits = self._limits(units, max_bytes)
            if all(limit.total([unit.widths[-1] for unit in units]) <= limit.most for limit in limits):
                fitting.append(width)
        if not fitting:
            raise NothingFitsTheLimitsError(f"not even {min(self.widths)} bits everywhere fit")
        ascending = sorted(self.widths)
        place = ascending.index(max(fitting))
        return ascending[place], ascending[min(place + 1, len(ascending) - 1)]

    def _knapsack(self, max_bytes: int) -> list[int]:
        return knapsack(costs=self.costs, limits=self._limits(self.units, max_bytes))

    def _limits(self, units: Sequence[Unit], max_bytes: int) -> list[Limit]:
        amounts = unit_bytes(layout=self.weights.layout, units=units, group_size=self.group_size)
        # The header of the file is the longest where the offsets are the largest.
        widest = [unit.widths[-1] for unit in units]
        largest = stored_size(
            self.weights.layout, bits=module_bits(units, widest), group_size=self.group_size
        ).total
        fixed = largest - sum(table[width] for table, width in zip(amounts, widest, strict=True))
        limits = [Limit(amounts=amounts, most=max_bytes - fixed)]
        if self.average_bits is not None:
            weights = [unit.weights if unit.block is not None else 0 for unit in units]
            limits.append(
                Limit(
                    amounts=[
                        {width: width * count for width in unit.widths}
                        for unit, count in zip(units, weights, strict=True)
                    ],
                    most=int(self.average_bits * sum(weights)),
                )
            )
        return limits

    def _units(self, tie: Tie, widths: Sequence[int]) -> tuple[Unit, ...]:
        return find_units(
            model=self.model, layout=self.weights.layout, batch=self.batches[0], widths=widths, tie=tie
        )

    @cached_property
    def _probe(self) -> Probe:
        return self._probe_on(self.batches)

    def _probe_on(self, batches: Sequence[Batch]) -> Probe:
        counted = 0

        def tell() -> None:
            nonlocal counted
            counted += 1
            if counted % 16 == 0:
                self.watch(f"sensitivity, {counted} measurements")

        return Probe(model=self.model, weights=self.weights, batches=batches, kind=self.kind, on_variant=tell)
