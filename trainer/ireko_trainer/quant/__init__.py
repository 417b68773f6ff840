"""Mixed-width quantization: the grid, the importance of blocks, bits under a budget, and packed checkpoints.

layout = describe(model)
tiers, scores = rank_blocks(model=model, importance="LIM", batches=batches)
best = allocate(tiers=tiers, levels=(2, 3, 4, 8), weights=layout.block_weights(), size_of=…, max_bytes=…)
with fake_quantized(model, bits=layout.module_bits(best.block_bits), group_size=64): …evaluate…
save_quantized(model=model, bits=…, group_size=64, directory=…)
"""

from __future__ import annotations

from ireko_trainer.quant.allocate import (
    Allocation,
    BudgetTooSmallError,
    allocate,
    allocation_path,
    average_bits,
)
from ireko_trainer.quant.checkpoint import (
    QuantizedWeights,
    fake_quantize_,
    fake_quantized,
    quantization_config,
    save_quantized,
)
from ireko_trainer.quant.grid import QuantizedTensor, dequantize, quantize
from ireko_trainer.quant.layout import OUTSIDE_BITS, Layout, block_modules, describe
from ireko_trainer.quant.scores import Importance, Tiers, importance_tiers, lim, rank_blocks, zd
from ireko_trainer.quant.storage import StoredSize, effective_bits, stored_size

__all__ = [
    "OUTSIDE_BITS",
    "Allocation",
    "BudgetTooSmallError",
    "Importance",
    "Layout",
    "QuantizedTensor",
    "QuantizedWeights",
    "StoredSize",
    "Tiers",
    "allocate",
    "allocation_path",
    "average_bits",
    "block_modules",
    "dequantize",
    "describe",
    "effective_bits",
    "fake_quantize_",
    "fake_quantized",
    "importance_tiers",
    "lim",
    "quantization_config",
    "quantize",
    "rank_blocks",
    "save_quantized",
    "stored_size",
    "zd",
]
