"""Bits for a concrete model under the budget of a concrete target."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel

from ireko_api.spec import Quantization
from ireko_trainer.quant import (
    BudgetTooSmallError,
    allocate,
    describe,
    effective_bits,
    rank_blocks,
    stored_size,
)
from ireko_trainer.quant.layout import Layout


@dataclass(frozen=True, kw_only=True)
class BitPlan:
    """The bits of every matrix of a model and what they cost."""

    module_bits: Mapping[str, int]
    """Matrices that are left out are stored as float16."""
    block_bits: Mapping[str, int]
    scores: Mapping[str, float]
    """Importance of each block, empty if the order needs none."""
    size_bytes: int
    """Of the weight file that ships."""
    average_bits: float
    """Stored bits per weight of all matrices, scales included."""
    group_size: int


def plan_bits(
    *,
    model: PreTrainedModel,
    quantization: Quantization | None,
    batches: Iterable[Mapping[str, Tensor]],
    max_bytes: int,
    seed: int,
) -> BitPlan:
    """Give the blocks of `model` as many bits as fit into `max_bytes`, the most important ones first.

    Without `quantization` everything is stored as float16. Where even the lowest bits exceed the budget the plan is
    the one with the lowest bits: whether a plan fits is for its reader to say, with everything else that it misses.
    """
    layout = describe(model)
    if quantization is None:
        return _plan(layout, block_bits={}, module_bits={}, scores={}, group_size=64)
    group_size = quantization.group_size
    tiers, scores = rank_blocks(model=model, importance=quantization.importance, batches=batches, seed=seed)
    try:
        block_bits = allocate(
            tiers=tiers,
            levels=quantization.bits,
            weights=layout.block_weights(),
            size_of=lambda bits: _size(layout, bits, group_size),
            max_bytes=max_bytes,
            max_average_bits=quantization.average_bits,
        ).block_bits
    except BudgetTooSmallError:
        block_bits = dict.fromkeys(layout.blocks, min(quantization.bits))
    return _plan(
        layout,
        block_bits=block_bits,
        module_bits=layout.module_bits(block_bits),
        scores=scores,
        group_size=group_size,
    )


def uniform_bits(layout: Layout, *, bits: int | None) -> dict[str, int]:
    """The bits of every matrix when all blocks have the same; None: nothing is quantized."""
    return {} if bits is None else layout.module_bits(dict.fromkeys(layout.blocks, bits))


def uniform_size(layout: Layout, *, bits: int | None, group_size: int) -> int:
    """Bytes of the weight file when all blocks have the same bits."""
    return stored_size(layout, bits=uniform_bits(layout, bits=bits), group_size=group_size).total


def _size(layout: Layout, block_bits: Mapping[str, int], group_size: int) -> int:
    return stored_size(layout, bits=layout.module_bits(block_bits), group_size=group_size).total


def _plan(layout: Layout, *, module_bits: Mapping[str, int], group_size: int, **rest: Any) -> BitPlan:
    return BitPlan(
        module_bits=module_bits,
        group_size=group_size,
        size_bytes=stored_size(layout, bits=module_bits, group_size=group_size).total,
        average_bits=effective_bits(layout, bits=module_bits, group_size=group_size),
        **rest,
    )
