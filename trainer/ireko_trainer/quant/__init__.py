"""Mixed-width quantization: the grid, GPTQ, bits under a budget, and packed checkpoints.

layout = describe(model)
tiers, scores = rank_blocks(model=model, importance="LIM", batches=batches)
best = allocate(tiers=tiers, levels=(2, 3, 4, 8), weights=layout.block_weights(), size_of=…, max_bytes=…)
found = dict(gptq_blocks(source=ModelInMemory(model), batches=batches, bits=…, group_size=64))
weights = QuantizedWeights(model=model, group_size=64, given=found)
with fake_quantized(model, bits=…, group_size=64, weights=weights): …evaluate…
save_quantized(model=model, bits=…, group_size=64, directory=…, weights=weights)

Or, per matrix and by measure: `Probe`, `sensitivities`, `knapsack`, `relinearize`, `evolve`, `measure_interactions`.
Models larger than memory: `quantize_on_disk(source=ModelOnDisk(directory), …)`.
"""

from __future__ import annotations

from ireko_trainer.quant.allocate import (
    Allocation,
    BudgetTooSmallError,
    allocate,
    allocation_path,
    average_bits,
)
from ireko_trainer.quant.blockwise import BlockSource, ModelInMemory, gptq_blocks, gptq_database
from ireko_trainer.quant.calls import Batch
from ireko_trainer.quant.checkpoint import (
    QuantizedWeights,
    fake_quantize_,
    fake_quantized,
    quantization_config,
    save_quantized,
)
from ireko_trainer.quant.divergence import Kind
from ireko_trainer.quant.evolve import SearchSettings, SearchState, evolve
from ireko_trainer.quant.gptq import GptqOptions
from ireko_trainer.quant.grid import (
    GroupSizeError,
    QuantizedTensor,
    check_group_size,
    dequantize,
    quantize,
)
from ireko_trainer.quant.hessian import Hessian
from ireko_trainer.quant.interactions import Interactions, choose_lowered, measure_interactions
from ireko_trainer.quant.knapsack import Limit, NothingFitsTheLimitsError, knapsack
from ireko_trainer.quant.layout import OUTSIDE_BITS, Layout, block_modules, describe
from ireko_trainer.quant.probe import Probe
from ireko_trainer.quant.scores import Importance, Tiers, importance_tiers, lim, rank_blocks, zd
from ireko_trainer.quant.sensitivity import relinearize, sensitivities
from ireko_trainer.quant.storage import StoredSize, effective_bits, stored_size
from ireko_trainer.quant.streaming import ModelOnDisk, quantize_on_disk
from ireko_trainer.quant.units import Tie, Unit, find_units, module_bits, unit_bytes
from ireko_trainer.quant.windows import calibration_windows

__all__ = [
    "OUTSIDE_BITS",
    "Allocation",
    "Batch",
    "BlockSource",
    "BudgetTooSmallError",
    "GptqOptions",
    "GroupSizeError",
    "Hessian",
    "Importance",
    "Interactions",
    "Kind",
    "Layout",
    "Limit",
    "ModelInMemory",
    "ModelOnDisk",
    "NothingFitsTheLimitsError",
    "Probe",
    "QuantizedTensor",
    "QuantizedWeights",
    "SearchSettings",
    "SearchState",
    "StoredSize",
    "Tie",
    "Tiers",
    "Unit",
    "allocate",
    "allocation_path",
    "average_bits",
    "block_modules",
    "calibration_windows",
    "check_group_size",
    "choose_lowered",
    "dequantize",
    "describe",
    "effective_bits",
    "evolve",
    "fake_quantize_",
    "fake_quantized",
    "find_units",
    "gptq_blocks",
    "gptq_database",
    "importance_tiers",
    "knapsack",
    "lim",
    "measure_interactions",
    "module_bits",
    "quantization_config",
    "quantize",
    "quantize_on_disk",
    "rank_blocks",
    "relinearize",
    "save_quantized",
    "sensitivities",
    "stored_size",
    "unit_bytes",
    "zd",
]
