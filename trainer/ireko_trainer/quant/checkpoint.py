"""Quantized weights in place, for evaluation, and on disk, where plain transformers loads them exactly.

The file is a `compressed-tensors` checkpoint: linear weights `pack-quantized` (b bits each, 32 codes in b
int32 words, float16 scales), one config group per width, named by explicit patterns.
`AutoModel*.from_pretrained` unpacks it on the first call of the *whole* model; the weights then equal code ×
scale in float32, bit for bit those of `fake_quantize_`. Everything that is not quantized is stored as float16
and config.json says float32, so the loader widens it again without loss.

Embeddings are stored as one int8 per weight and one scale per row (`naive-quantized`). compressed-tensors
0.20 can pack them to fewer bits, but transformers 5.23 cannot load the result:
`PreTrainedModel._init_weights` reads `module.weight` of every `nn.Embedding`, which a packed table no longer
has, and raises AttributeError (linear layers are guarded against this; transformers#47959 and #48123 proposed
the same guard for embeddings and were closed). Int8 codes live under the name `weight` itself and pass. So 8
bits is the lowest width of an embedding here. A head that is tied to the embeddings shares their codes and has a copy
of their scales: transformers ties the codes after loading, and each of the two unpacks them on its own.

Never load such a checkpoint with `dequantize=True`: transformers 5.23 then applies the first group's width to
every layer, without an error.
"""

from __future__ import annotations

import copy
import re
from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.errors import UserError
from ireko_trainer.quant.grid import QuantizedTensor, dequantize, quantize
from ireko_trainer.quant.layout import OUTSIDE_BITS, Layout, Matrix, describe, weight_matrix
from ireko_trainer.quant.storage import METADATA, matrix_group

WEIGHTS_NAME = "model.safetensors"
_LARGEST_FLOAT16 = torch.finfo(torch.float16).max


class QuantizedWeights:
    """The quantized forms of one model's matrices, each computed once, when first asked for.

    Keeps references to the float originals (not copies), so candidates can be compared in place at the price
    of a dequantization each. The model must not be trained meanwhile. Matrices that something better than
    rounding has quantized already are `given`; all others are rounded to the nearest point of the grid.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        group_size: int,
        given: Mapping[str, QuantizedTensor] | None = None,
    ) -> None:
        self.layout: Layout = describe(model)
        self.group_size = group_size
        self._matrices = {m.module: m for m in self.layout.matrices}
        self._originals = {name: weight_matrix(model.get_submodule(name)).detach() for name in self._matrices}
        self._done = {(name, tensor.bits): tensor for name, tensor in (given or {}).items()}

    def add(self, module: str, tensor: QuantizedTensor) -> None:
        """Take `tensor` as the form of `module` at its width."""
        self._done[module, tensor.bits] = tensor

    def original(self, module: str) -> Tensor:
        """Return the float weight [outputs, inputs] of `module`."""
        return self._originals[module]

    def at(self, module: str, bits: int) -> QuantizedTensor:
        """Return the weight of `module` at `bits`."""
        matrix = self._matrices.get(module)
        if matrix is None:
            raise ValueError(f"not quantizable in this model: {module}")
        if matrix.table and bits != OUTSIDE_BITS:
            raise ValueError(
                f"{module}: an embedding is stored at {OUTSIDE_BITS} bits or as float16, not at {bits}"
            )
        if (module, bits) not in self._done:
            group = matrix_group(matrix, group_size=self.group_size)
            self._done[module, bits] = quantize(self._originals[module], bits=bits, group_size=group)
        return self._done[module, bits]


def fake_quantize_(
    model: PreTrainedModel,
    *,
    bits: Mapping[str, int],
    group_size: int,
    weights: QuantizedWeights | None = None,
) -> None:
    """Replace every parameter and stored buffer by the value it has after save and load.

    `bits` maps module names to widths; a module left out becomes float16-rounded, as the rest. Parameters
    must be float32. Pass the same `weights` for every candidate of one model to quantize each matrix only
    once.
    """
    weights = weights or QuantizedWeights(model=model, group_size=group_size)
    # All values first: an error must not leave the model half replaced.
    for tensor, value in list(_shipped_values(model, bits, weights)):
        tensor.data = value


@contextmanager
def fake_quantized(
    model: PreTrainedModel,
    *,
    bits: Mapping[str, int],
    group_size: int,
    weights: QuantizedWeights | None = None,
) -> Iterator[PreTrainedModel]:
    """Do `fake_quantize_` for the length of a `with` block, then put the same float tensors back."""
    originals = [(tensor, tensor.data) for tensor in model.state_dict(keep_vars=True).values()]
    try:
        fake_quantize_(model, bits=bits, group_size=group_size, weights=weights)
        yield model
    finally:
        for tensor, data in originals:
            tensor.data = data


def save_quantized(
    *,
    model: PreTrainedModel,
    bits: Mapping[str, int],
    group_size: int,
    directory: Path,
    weights: QuantizedWeights | None = None,
) -> Path:
    """Write `model.safetensors` and `config.json` into `directory` and return it.

    The tokenizer is the caller's. `model` holds the float originals. The length of the file is what
    `stored_size` says.
    """
    weights = weights or QuantizedWeights(model=model, group_size=group_size)
    check_storable(type(model).__name__, weights.layout, bits)
    directory.mkdir(parents=True, exist_ok=True)
    save_file(_file_tensors(model, bits, weights), directory / WEIGHTS_NAME, metadata=METADATA)
    save_config(model=model, layout=weights.layout, bits=bits, group_size=group_size, directory=directory)
    return directory


def save_config(
    *,
    model: PreTrainedModel,
    layout: Layout,
    bits: Mapping[str, int],
    group_size: int,
    directory: Path,
) -> None:
    """Write the `config.json` that tells loaders how `model.safetensors` is packed, and, beside it, how a model that
    generates does so."""
    config = copy.deepcopy(model.config)
    config.architectures = [type(model).__name__]
    config.dtype = torch.float32
    if bits:
        config.quantization_config = quantization_config(
            layout, bits=bits, group_size=group_size, prefix=model.base_model_prefix
        )
    config.save_pretrained(directory)
    if model.can_generate():
        model.generation_config.save_pretrained(directory)


def quantization_config(
    layout: Layout, *, bits: Mapping[str, int], group_size: int, prefix: str
) -> dict[str, Any]:
    """Return the `quantization_config` of config.json: one group per width, group size and format.

    Targets are patterns that take a name with or without the base model's `prefix`, so that a classifier's
    checkpoint also loads into the bare encoder.
    """
    members: defaultdict[tuple[bool, int, int], list[str]] = defaultdict(list)
    for matrix in layout.matrices:
        if matrix.module in bits:
            group = matrix_group(matrix, group_size=group_size)
            per_row = group == matrix.columns
            key = (matrix.table, bits[matrix.module], 0 if per_row else group)
            members[key] += [_target(name, prefix) for name in (matrix.module, *matrix.aliases)]
    groups = {
        f"{'embeddings' if table else 'linear'}_{width}_bits_{f'group_{group}' if group else 'per_row'}": {
            "targets": targets,
            "format": "naive-quantized" if table else "pack-quantized",
            "weights": {
                "num_bits": width,
                "type": "int",
                "symmetric": True,
                **({"strategy": "group", "group_size": group} if group else {"strategy": "channel"}),
            },
        }
        for (table, width, group), targets in sorted(members.items())
    }
    formats = {str(group["format"]) for group in groups.values()}
    return {
        "quant_method": "compressed-tensors",
        # Releases before June 2026 lay 3-bit codes out in another way; the file says who wrote it.
        "version": version("compressed-tensors"),
        "format": formats.pop() if len(formats) == 1 else "mixed-precision",
        "quantization_status": "compressed",
        "config_groups": groups,
        "ignore": [],
    }


def pack(quantized: QuantizedTensor) -> Tensor:
    """Return the codes [O, I] as int32 words [O, ceil(I × bits / 32)], densely packed along the rows."""
    from compressed_tensors.compressors.pack_quantized.helpers import pack_to_int32

    packed: Tensor = pack_to_int32(quantized.codes, quantized.bits)
    return packed


def stored_form(matrix: Matrix, quantized: QuantizedTensor) -> dict[str, Tensor]:
    """Return the entries of the file for one quantized matrix."""
    name = matrix.module
    scales = {f"{user}.weight_scale": quantized.scales.clone() for user in (name, *matrix.aliases)}
    if matrix.table:
        return {f"{name}.weight": quantized.codes, **scales}
    return {
        f"{name}.weight_packed": pack(quantized),
        f"{name}.weight_shape": torch.tensor(quantized.codes.shape),
        **scales,
    }


def check_storable(model: str, layout: Layout, bits: Mapping[str, int]) -> None:
    """Raise `UserError` where `bits` name a matrix that the file format cannot hold."""
    refused = [m.module for m in layout.matrices if m.transposed and m.module in bits]
    if refused:
        raise UserError(
            f"{model}: compressed-tensors stores the weights of torch.nn.Linear only, and {refused[0]} is a Conv1D; "
            "leave spec.pipeline.quantization out, or choose a runtime whose format holds this family"
        )


def _target(module: str, prefix: str) -> str:
    bare = module.removeprefix(f"{prefix}.") if prefix else module
    optional = rf"(?:{re.escape(prefix)}\.)?" if prefix else ""
    return f"re:^{optional}{re.escape(bare)}$"


def _shipped_values(
    model: PreTrainedModel, bits: Mapping[str, int], weights: QuantizedWeights
) -> Iterator[tuple[Tensor, Tensor]]:
    state = model.state_dict(keep_vars=True)
    transposed = {m.module for m in weights.layout.matrices if m.transposed}
    for module, width in bits.items():
        value = dequantize(weights.at(module, width))
        yield state[f"{module}.weight"], value.T.contiguous() if module in transposed else value
    for name, tensor in _floats(state, bits):
        yield tensor, as_float16(name, tensor).to(torch.float32)


def _file_tensors(
    model: PreTrainedModel, bits: Mapping[str, int], weights: QuantizedWeights
) -> dict[str, Tensor]:
    state = model.state_dict(keep_vars=True)
    tensors: dict[str, Tensor] = {}
    for matrix in weights.layout.matrices:
        if matrix.module in bits:
            tensors |= stored_form(matrix, weights.at(matrix.module, bits[matrix.module]))
    tensors |= {name: as_float16(name, tensor) for name, tensor in _floats(state, bits)}
    for rest in weights.layout.remainder:
        if not rest.floating:
            tensors[rest.name] = state[rest.name].detach().contiguous()
    return tensors


def _floats(state: Mapping[str, Tensor], bits: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """Yield the floating tensors that are not quantized, each once, under the first of its names."""
    seen = {id(state[f"{module}.weight"]) for module in bits}
    for name, tensor in state.items():
        if tensor.is_floating_point() and id(tensor) not in seen:
            seen.add(id(tensor))
            yield name, tensor


def as_float16(name: str, tensor: Tensor) -> Tensor:
    """Return a tensor that is not quantized as it is stored; raises `UserError` on values beyond float16."""
    if tensor.dtype != torch.float32:
        raise ValueError(f"{name} is {tensor.dtype}; call model.float() before quantizing")
    if not bool((tensor.abs() <= _LARGEST_FLOAT16).all()):
        raise UserError(f"{name} holds values that float16 cannot hold (NaN or above {_LARGEST_FLOAT16:g})")
    return tensor.detach().to(torch.float16).contiguous()
