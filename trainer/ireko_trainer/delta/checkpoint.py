"""Delta checkpoints: every shared tensor once, what is needed to share it again, and their size before they exist.

The files are those that `shared_layers.load_delta` reads. Floats are written as they are, or as the quantization of the
run writes them: then factors are packed integers like any other matrix.
"""

from __future__ import annotations

import copy
import inspect
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from safetensors.torch import save_file
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.delta.shared_layers import STRUCTURE_FILE, WEIGHTS_FILE, delta_layers, structure_of
from ireko_trainer.quant import QuantizedWeights, save_quantized
from ireko_trainer.quant.checkpoint import WEIGHTS_NAME
from ireko_trainer.quant.storage import METADATA

_FORMAT = 1


def save_delta(*, model: PreTrainedModel, directory: Path) -> Path:
    """Write a delta checkpoint in the types that the model has; the tokenizer is the caller's. Returns `directory`."""
    directory.mkdir(parents=True, exist_ok=True)
    save_file(unique_tensors(model), directory / WEIGHTS_FILE, metadata=METADATA)
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = model.dtype
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)
    _write_structure(model, directory)
    return directory


def save_quantized_delta(
    *,
    model: PreTrainedModel,
    bits: Mapping[str, int],
    group_size: int,
    directory: Path,
    weights: QuantizedWeights | None = None,
) -> Path:
    """Write what `save_quantized` writes, for a model with factored layers; without `bits` everything is float16."""
    save_quantized(model=model, bits=bits, group_size=group_size, directory=directory, weights=weights)
    (directory / WEIGHTS_NAME).replace(directory / WEIGHTS_FILE)
    _write_structure(model, directory)
    return directory


def unique_tensors(model: nn.Module) -> dict[str, Tensor]:
    """Every tensor of the state once, under the first of its names."""
    found: dict[str, Tensor] = {}
    seen: set[int] = set()
    for name, tensor in model.state_dict(keep_vars=True).items():
        if id(tensor) not in seen:
            seen.add(id(tensor))
            found[name] = tensor.detach().contiguous()
    return found


def stored_numbers(model: nn.Module) -> int:
    """Numbers that the factored layers store: factors and coefficients, neither shared weights nor biases."""
    total = 0
    for layer in delta_layers(model).values():
        total += layer.outer.weight.numel()
        total += layer.inner.weight.numel() if layer.owner is layer else 0
        total += layer.coefficient.numel() if layer.base is not None else 0
    return total


def is_delta(directory: Path) -> bool:
    """Whether a checkpoint has factored layers."""
    return (directory / STRUCTURE_FILE).is_file()


def _write_structure(model: PreTrainedModel, directory: Path) -> None:
    described = {
        "format": _FORMAT,
        "model_class": type(model).__name__,
        "options": _options(model),
        "layers": structure_of(model),
    }
    (directory / STRUCTURE_FILE).write_text(json.dumps(described, indent=1, sort_keys=True) + "\n")


def _options(model: PreTrainedModel) -> dict[str, Any]:
    """What the model's class has to be told beside the config: BERT would add a pooler that nobody trained."""
    takes_pooler = "add_pooling_layer" in inspect.signature(type(model).__init__).parameters
    return {"add_pooling_layer": model.pooler is not None} if takes_pooler else {}
