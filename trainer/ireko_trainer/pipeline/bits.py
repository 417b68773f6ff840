"""Bits for a concrete model under the budget of a concrete target, and the weights rounded to them."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal, cast

from torch import Tensor
from transformers import PreTrainedModel

from ireko_api.spec import Quantization
from ireko_trainer.pipeline.allocation import MeasuredAllocator, Watch
from ireko_trainer.pipeline.precision import training_precision
from ireko_trainer.quant import (
    Batch,
    BudgetTooSmallError,
    GptqOptions,
    Kind,
    ModelInMemory,
    NothingFitsTheLimitsError,
    QuantizedWeights,
    Tie,
    allocate,
    average_bits,
    check_group_size,
    describe,
    effective_bits,
    fake_quantized,
    gptq_blocks,
    gptq_database,
    importance_tiers,
    lim,
    stored_size,
    zd,
)
from ireko_trainer.quant import Importance as BlockOrder
from ireko_trainer.quant.layout import Layout

Measured = Literal["Sensitivity", "Search", "Interaction"]
Importance = BlockOrder | Measured

BASELINE_ORDERS: tuple[Importance, ...] = ("LIM", "Uniform", "Random", "Reverse")
"""What the chosen bits of every member are compared with."""
DEFAULT_GROUP = 64
"""Columns per scale where the manifest does not say; 32 where it does not divide."""
_MEASURED: tuple[Measured, ...] = ("Sensitivity", "Search", "Interaction")
_MEASURED_TOKENS = {False: 1024, True: 256}
"""Calibration tokens on which divergences are measured, a hundred times and more; fewer for a draft."""
_GPTAQ_SHARE = 0.5
"""Of the inherited error that a layer makes up for. On a 12-layer decoder .25, .5 and 1 were close, .5 the best at 2
bits and 1 at 3."""


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """The bits of every matrix of a model and what they cost."""

    module_bits: Mapping[str, int]
    """In the model's order. Matrices that are left out are stored as float16."""
    block_bits: Mapping[str, float]
    """Mean code bits of each block, in the model's order."""
    size_bytes: int
    """Of the weight file that ships."""
    average_bits: float
    """Stored bits per weight of all matrices, scales included."""


class BitPlanner:
    """Plans for one model: what does not depend on the budget is measured once.

    Without `quantization` everything is stored as float16. `batches` gives calibration batches without labels;
    `kind` says what the model answers with. A `draft` compares plans without their full cost: weights are rounded to
    nearest, bits are chosen for whole blocks, on fewer tokens, and not searched for. `watch` is told what goes on and
    may raise to stop; a search that was stopped goes on from `state_file`; `keep` is called when that has changed.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        quantization: Quantization | None,
        batches: Callable[[], Iterable[Mapping[str, Tensor]]],
        seed: int,
        kind: Kind = "distribution",
        draft: bool = False,
        watch: Watch = lambda _: None,
        state_file: Path | None = None,
        keep: Callable[[], None] = lambda: None,
    ) -> None:
        self.model = model
        self.layout = describe(model)
        self.group_size = group_size(quantization)
        self.weights = QuantizedWeights(model=model, group_size=self.group_size)
        self._quantization = quantization
        self._batches = batches
        self._seed = seed
        self._kind = kind
        self._watch = watch
        self._state_file = state_file
        self._keep = keep
        self._draft = draft
        self._solved: dict[tuple[tuple[str, int], ...], QuantizedWeights] = {}
        require_whole_groups(self.layout, quantization)

    @cached_property
    def lim(self) -> dict[str, float]:
        """LIM of every block."""
        return lim(model=self.model, batches=self._batches())

    @cached_property
    def zd(self) -> dict[str, float]:
        """ZD of every block."""
        return zd(model=self.model)

    @property
    def sensitivity(self) -> dict[str, float]:
        """Divergence caused by the matrices of every block at the lowest width; empty where it decides nothing."""
        measured = self._quantization is not None and self._quantization.importance in _MEASURED
        return self._allocator.by_block() if measured else {}

    def plan(self, *, max_bytes: int, importance: Importance | None = None) -> BitPlan:
        """Give the matrices the bits that fit into `max_bytes`, as the manifest's importance asks.

        `importance` overrides the manifest's. Where even the lowest bits exceed the budget the plan is the one
        with the lowest bits: whether a plan fits is for its reader to say, with everything else that it misses.
        """
        quantization = self._quantization
        if quantization is None:
            return self._plan({})
        wanted = importance or quantization.importance
        try:
            if wanted in _MEASURED:
                return self._plan(self._by_measure(wanted, max_bytes))
            return self._plan(self._by_order(cast("BlockOrder", wanted), quantization, max_bytes))
        except (BudgetTooSmallError, NothingFitsTheLimitsError):
            lowest = dict.fromkeys(self.layout.blocks, min(quantization.bits))
            return self._plan(self.layout.module_bits(lowest))

    def weights_for(self, plan: BitPlan) -> QuantizedWeights:
        """The model's weights, rounded as the manifest's method asks; plans of the same bits share the work."""
        if self._draft or self._quantization is None or self._quantization.method == "RTN":
            return self.weights
        inside = {m.module for block in self.layout.blocks.values() for m in block}
        bits = {name: width for name, width in plan.module_bits.items() if name in inside}
        key = tuple(bits.items())
        if key not in self._solved:
            solved = dict(
                gptq_blocks(
                    source=ModelInMemory(self.model),
                    batches=list(self._batches()),
                    bits=bits,
                    group_size=self.group_size,
                    options=self._options,
                    on_block=lambda done, total: self._watch(f"GPTQ, block {done} of {total}"),
                )
            )
            self._solved[key] = QuantizedWeights(model=self.model, group_size=self.group_size, given=solved)
        return self._solved[key]

    @contextmanager
    def applied(self, plan: BitPlan) -> Iterator[PreTrainedModel]:
        """The model with the weights that it would have after saving and loading, for the length of the block."""
        with fake_quantized(
            self.model, bits=plan.module_bits, group_size=self.group_size, weights=self.weights_for(plan)
        ) as model:
            yield model

    @property
    def _options(self) -> GptqOptions:
        asymmetric = self._quantization is not None and self._quantization.method == "GPTAQ"
        precision = training_precision(wanted="auto", device=self.model.device)
        return GptqOptions(asymmetry=_GPTAQ_SHARE if asymmetric else 0.0, precision=precision)

    def _by_measure(self, importance: Measured, max_bytes: int) -> dict[str, int]:
        if self._draft or importance == "Sensitivity":
            return self._allocator.sensitivity(max_bytes=max_bytes)
        if importance == "Search":
            return self._allocator.search(max_bytes=max_bytes)
        return self._allocator.interaction(max_bytes=max_bytes)

    def _by_order(self, importance: BlockOrder, quantization: Quantization, max_bytes: int) -> dict[str, int]:
        scores = self.zd if importance == "ZD" else self.lim if importance in ("LIM", "Reverse") else None
        tiers = importance_tiers(
            importance=importance, blocks=tuple(self.layout.blocks), scores=scores, seed=self._seed
        )
        found = allocate(
            tiers=tiers,
            levels=quantization.bits,
            weights=self.layout.block_weights(),
            size_of=self._size,
            max_bytes=max_bytes,
            max_average_bits=quantization.average_bits,
        )
        return self.layout.module_bits(found.block_bits)

    @cached_property
    def _allocator(self) -> MeasuredAllocator:
        quantization = self._quantization
        assert quantization is not None, "nothing is measured where nothing is quantized"
        return MeasuredAllocator(
            model=self.model,
            weights=self._candidates(quantization.bits),
            batches=_few(self._batches(), tokens=_MEASURED_TOKENS[self._draft]),
            kind=self._kind,
            widths=quantization.bits,
            tie="block" if self._draft else cast("Tie", quantization.granularity.lower()),
            group_size=self.group_size,
            average_bits=quantization.average_bits,
            seed=self._seed,
            watch=self._watch,
            state_file=self._state_file,
            keep=self._keep,
        )

    def _candidates(self, widths: Sequence[int]) -> QuantizedWeights:
        """The forms that are compared: rounded as the members will be, as far as that goes before bits are known."""
        weights = QuantizedWeights(model=self.model, group_size=self.group_size)
        if self._draft or self._quantization is None or self._quantization.method == "RTN":
            return weights
        modules = [m.module for block in self.layout.blocks.values() for m in block]
        for name, tensor in gptq_database(
            source=ModelInMemory(self.model),
            batches=list(self._batches()),
            widths=dict.fromkeys(modules, widths),
            group_size=self.group_size,
            on_block=lambda done, total: self._watch(f"GPTQ at every width, block {done} of {total}"),
        ):
            weights.add(name, tensor)
        return weights

    def _size(self, block_bits: Mapping[str, int]) -> int:
        return stored_size(
            self.layout, bits=self.layout.module_bits(block_bits), group_size=self.group_size
        ).total

    def _plan(self, module_bits: Mapping[str, int]) -> BitPlan:
        ordered = {m.module: module_bits[m.module] for m in self.layout.matrices if m.module in module_bits}
        return BitPlan(
            # An allocation lists the most important block first; readers number blocks by their place in the model.
            block_bits={
                name: average_bits(
                    {m.module: ordered[m.module] for m in matrices}, {m.module: m.weights for m in matrices}
                )
                for name, matrices in self.layout.blocks.items()
                if all(m.module in ordered for m in matrices)
            },
            module_bits=ordered,
            size_bytes=stored_size(self.layout, bits=ordered, group_size=self.group_size).total,
            average_bits=effective_bits(self.layout, bits=ordered, group_size=self.group_size),
        )


def _few(batches: Iterable[Batch], *, tokens: int) -> list[Batch]:
    """The first batches that hold so many tokens, padding included."""
    found: list[Batch] = []
    for batch in batches:
        found.append(batch)
        if sum(one["input_ids"].numel() for one in found) >= tokens:
            break
    return found


def group_size(quantization: Quantization | None) -> int:
    """Columns per scale."""
    return (quantization and quantization.group_size) or DEFAULT_GROUP


def require_whole_groups(layout: Layout, quantization: Quantization | None) -> None:
    """Raise UserError where the manifest's groups do not divide the rows of a matrix."""
    if quantization is None or quantization.group_size is None:
        return
    for matrix in layout.matrices:
        if not matrix.table:
            check_group_size(matrix.module, matrix.columns, group_size=quantization.group_size)


def answer_kind(*, task: str, regression: bool) -> Kind:
    """What a model of this task answers with, which decides how two models are compared."""
    if task == "feature-extraction":
        return "embedding"
    return "number" if regression else "distribution"


def uniform_bits(layout: Layout, *, bits: int | None) -> dict[str, int]:
    """The bits of every matrix when all blocks have the same; None: nothing is quantized."""
    return {} if bits is None else layout.module_bits(dict.fromkeys(layout.blocks, bits))
