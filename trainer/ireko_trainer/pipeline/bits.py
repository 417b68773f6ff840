"""Bits for a concrete model under the budget of a concrete target."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property

from torch import Tensor
from transformers import PreTrainedModel

from ireko_api.spec import Quantization
from ireko_trainer.quant import (
    BudgetTooSmallError,
    Importance,
    QuantizedWeights,
    allocate,
    describe,
    effective_bits,
    fake_quantized,
    importance_tiers,
    lim,
    stored_size,
    zd,
)
from ireko_trainer.quant.layout import Layout

_UNQUANTIZED_GROUP = 64
"""Groups of a model without quantized matrices: any size says the same."""


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """The bits of every matrix of a model and what they cost."""

    module_bits: Mapping[str, int]
    """In the model's order. Matrices that are left out are stored as float16."""
    block_bits: Mapping[str, int]
    """In the model's order."""
    size_bytes: int
    """Of the weight file that ships."""
    average_bits: float
    """Stored bits per weight of all matrices, scales included."""


class BitPlanner:
    """Plans for one model: importance is measured once, each matrix is quantized once per width.

    Without `quantization` everything is stored as float16. `batches` gives calibration batches without labels.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        quantization: Quantization | None,
        batches: Callable[[], Iterable[Mapping[str, Tensor]]],
        seed: int,
    ) -> None:
        self.model = model
        self.layout = describe(model)
        self.group_size = _UNQUANTIZED_GROUP if quantization is None else quantization.group_size
        self.weights = QuantizedWeights(model=model, group_size=self.group_size)
        self._quantization = quantization
        self._batches = batches
        self._seed = seed

    @cached_property
    def lim(self) -> dict[str, float]:
        """LIM of every block."""
        return lim(model=self.model, batches=self._batches())

    @cached_property
    def zd(self) -> dict[str, float]:
        """ZD of every block."""
        return zd(model=self.model)

    def plan(self, *, max_bytes: int, importance: Importance | None = None) -> BitPlan:
        """Give the blocks as many bits as fit into `max_bytes`, the most important ones first.

        `importance` overrides the manifest's order. Where even the lowest bits exceed the budget the plan is the one
        with the lowest bits: whether a plan fits is for its reader to say, with everything else that it misses.
        """
        quantization = self._quantization
        if quantization is None:
            return self._plan(block_bits={}, module_bits={})
        tiers = importance_tiers(
            importance=importance or quantization.importance,
            blocks=tuple(self.layout.blocks),
            scores=self._scores(importance or quantization.importance),
            seed=self._seed,
        )
        try:
            block_bits = allocate(
                tiers=tiers,
                levels=quantization.bits,
                weights=self.layout.block_weights(),
                size_of=self._size,
                max_bytes=max_bytes,
                max_average_bits=quantization.average_bits,
            ).block_bits
        except BudgetTooSmallError:
            block_bits = dict.fromkeys(self.layout.blocks, min(quantization.bits))
        return self._plan(block_bits=block_bits, module_bits=self.layout.module_bits(block_bits))

    @contextmanager
    def applied(self, plan: BitPlan) -> Iterator[PreTrainedModel]:
        """The model with the weights that it would have after saving and loading, for the length of the block."""
        with fake_quantized(
            self.model, bits=plan.module_bits, group_size=self.group_size, weights=self.weights
        ) as model:
            yield model

    def _scores(self, importance: Importance) -> dict[str, float] | None:
        if importance in ("LIM", "Reverse"):
            return self.lim
        return self.zd if importance == "ZD" else None

    def _size(self, block_bits: Mapping[str, int]) -> int:
        return stored_size(
            self.layout, bits=self.layout.module_bits(block_bits), group_size=self.group_size
        ).total

    def _plan(self, *, block_bits: Mapping[str, int], module_bits: Mapping[str, int]) -> BitPlan:
        return BitPlan(
            # An allocation lists the most important block first; readers number blocks by their place in the model.
            block_bits={name: block_bits[name] for name in self.layout.blocks if name in block_bits},
            module_bits={
                m.module: module_bits[m.module] for m in self.layout.matrices if m.module in module_bits
            },
            size_bytes=stored_size(self.layout, bits=module_bits, group_size=self.group_size).total,
            average_bits=effective_bits(self.layout, bits=module_bits, group_size=self.group_size),
        )


def uniform_bits(layout: Layout, *, bits: int | None) -> dict[str, int]:
    """The bits of every matrix when all blocks have the same; None: nothing is quantized."""
    return {} if bits is None else layout.module_bits(dict.fromkeys(layout.blocks, bits))


def uniform_size(layout: Layout, *, bits: int | None, group_size: int) -> int:
    """Bytes of the weight file when all blocks have the same bits."""
    return stored_size(layout, bits=uniform_bits(layout, bits=bits), group_size=group_size).total
