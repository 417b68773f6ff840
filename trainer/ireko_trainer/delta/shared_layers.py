"""The layer that a delta-compressed model has in the place of a linear one, and the loader of its checkpoints.

MLflow stores this file beside the serving code and runs it wherever a member is loaded, so it must stand alone: it
imports what the member's requirements name and never Ireko. What it reads:

    config.json         of the architecture that was compressed
    delta.json          which linear layers are factored, what each shares and with whom
    delta.safetensors   every tensor once, in floats or packed integers (`quantization_config` in config.json)

The weight file has a name of its own on purpose: `from_pretrained` would take a `model.safetensors`, find half of
the weights missing and draw them at random.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
import transformers
from safetensors.torch import load_file
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

STRUCTURE_FILE = "delta.json"
WEIGHTS_FILE = "delta.safetensors"
GENERATION_FILE = "generation_config.json"


class Gate:
    """How much of a block is compressed while its deltas train: 1 all of it, 0 the original, between them a blend."""

    def __init__(self) -> None:
        self.value = 1.0


class DeltaLinear(nn.Module):
    """y = c·W_base x + U V x + bias, where W_base belongs to another block and V may belong to another layer.

    Tensor attributes: `inner.weight` V [r, n] (only in the layer that owns it), `outer.weight` U [m, r] with the
    layer's own `outer.bias` [m], and `coefficient` [1] where there is a base. Borrowed weights are referred to and not
    registered, so the state dict of a model holds every tensor once.

    In the compact form V = [I, T] on chosen inputs: `pivots` [n] bool says where the identity lies and `inner.weight`
    is T [r, n - r]. Every product U V of rank r has this form, and it stores r·(m + n - r) numbers instead of
    r·(m + n).
    """

    def __init__(
        self,
        *,
        inner: nn.Linear,
        outer: nn.Linear,
        base: nn.Module | None = None,
        coefficient: float = 0.0,
        lender: DeltaLinear | None = None,
        pivots: Tensor | None = None,
        transposed: bool = False,
    ) -> None:
        super().__init__()
        if lender is None:
            self.inner = inner
        self.outer = outer
        self.transposed = transposed
        self._borrowed: tuple[nn.Module | None, DeltaLinear | None] = (base, lender)
        self.original: tuple[nn.Module] | None = None
        self.gate: Gate | None = None
        weight = outer.weight
        if base is not None:
            self.coefficient = nn.Parameter(weight.new_full((1,), coefficient), requires_grad=False)
        self.pivots: Tensor | None
        self._kept: Tensor | None
        self._rest: Tensor | None
        self.register_buffer("pivots", None)
        self.register_buffer("_kept", None, persistent=False)
        self.register_buffer("_rest", None, persistent=False)
        if pivots is not None and lender is None:
            self.repivot(pivots)

    def _apply(self, fn: Any, recurse: bool = True) -> DeltaLinear:
        """Convert what is borrowed, too: a copy of one block has copies of its bases, which no block of it contains."""
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]  # torch leaves it without types
        for lent in self._borrowed:
            if lent is not None:
                lent._apply(fn, recurse)
        return self

    def repivot(self, pivots: Tensor) -> None:
        """Let the identity in V lie on other inputs [n] bool; indices are cheaper than a mask in every forward pass."""
        self.pivots = pivots
        self._kept, self._rest = pivots.nonzero().flatten(), (~pivots).nonzero().flatten()

    @property
    def base(self) -> nn.Module | None:
        """The layer whose weight is shared."""
        return self._borrowed[0]

    @property
    def owner(self) -> DeltaLinear:
        """The layer that V belongs to; mostly this one."""
        return self._borrowed[1] or self

    @property
    def rank(self) -> int:
        """Columns of U."""
        return self.outer.in_features

    def forward(self, values: Tensor) -> Tensor:
        """[..., n] to [..., m]."""
        share = 1.0 if self.gate is None else self.gate.value
        if share == 1.0 or self.original is None:
            return self._compressed(values)
        before: Tensor = self.original[0](values)
        return before if share == 0.0 else (1 - share) * before + share * self._compressed(values)

    def _compressed(self, values: Tensor) -> Tensor:
        result: Tensor = self.outer(self.owner.reduced(values))
        if self.base is not None:
            result = result + self.coefficient * F.linear(values, matrix_of(self.base))
        return result

    def reduced(self, values: Tensor) -> Tensor:
        """V x, [..., n] to [..., r]."""
        kept, rest = self._kept, self._rest
        if kept is None or rest is None:
            result: Tensor = self.inner(values)
            return result
        picked = values.index_select(-1, kept)
        return picked if len(rest) == 0 else picked + self.inner(values.index_select(-1, rest))

    def among_rest(self, values: Tensor) -> Tensor:
        """The rows of [n, …] that belong to the inputs of `inner.weight`."""
        rest = self._rest
        return values if rest is None else values[rest]

    def right(self) -> Tensor:
        """V [r, n], whatever form it is stored in."""
        kept, rest, weight = self._kept, self._rest, self.inner.weight
        if kept is None or rest is None:
            return weight
        full = weight.new_zeros(len(kept), len(kept) + len(rest))
        full[:, kept] = torch.eye(len(kept), dtype=weight.dtype, device=weight.device)
        full[:, rest] = weight
        return full

    def matrix(self) -> Tensor:
        """The weight [m, n] that the layer stands for."""
        product = self.outer.weight @ self.owner.right()
        return product if self.base is None else product + self.coefficient * matrix_of(self.base)


def matrix_of(layer: nn.Module) -> Tensor:
    """The weight [outputs, inputs] of a linear layer; GPT-2's keeps it the other way round."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(layer, Conv1D) else weight


def delta_layers(model: nn.Module) -> dict[str, DeltaLinear]:
    """The factored layers of a model by name, in its order."""
    return {name: module for name, module in model.named_modules() if isinstance(module, DeltaLinear)}


def replace_layer(model: nn.Module, name: str, layer: nn.Module) -> None:
    """Put `layer` in the place of the module called `name`."""
    owner, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(owner), leaf, layer)


def structure_of(model: nn.Module) -> dict[str, dict[str, Any]]:
    """What `delta.json` says of each factored layer: rank, size of T or V, and whom it shares with."""
    names = {id(module): name for name, module in model.named_modules()}
    return {
        name: {
            "rank": layer.rank,
            "columns": layer.owner.inner.in_features,
            "base": None if layer.base is None else names[id(layer.base)],
            "owner": None if layer.owner is layer else names[id(layer.owner)],
            "compact": layer.owner.pivots is not None,
            "bias": layer.outer.bias is not None,
            "transposed": layer.transposed,
        }
        for name, layer in delta_layers(model).items()
    }


def load_delta(
    directory: Path, *, dtype: torch.dtype = torch.float32, **settings: Any
) -> transformers.PreTrainedModel:
    """Load a delta checkpoint in evaluation mode, with every shared tensor in memory once.

    Packed integers are widened to `dtype`; `settings` override those of config.json.
    """
    config = transformers.AutoConfig.from_pretrained(directory, **settings)
    described = json.loads((directory / STRUCTURE_FILE).read_text())
    packed = getattr(config, "quantization_config", None)
    if packed is not None:
        # The loader of transformers knows nothing of factored layers: the integers are unpacked here.
        del config.quantization_config
    model = _hollow(getattr(transformers, described["model_class"]), config, described["options"])
    tensors = _floats(load_file(directory / WEIGHTS_FILE), packed=packed, dtype=dtype)
    _restore_structure(model, described["layers"], tensors)
    model.load_state_dict(tensors, strict=False, assign=True)
    model.requires_grad_(requires_grad=False)
    model.tie_weights()
    if (directory / GENERATION_FILE).is_file():
        model.generation_config = transformers.GenerationConfig.from_pretrained(directory)
    left = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if left:
        raise RuntimeError(f"{directory / WEIGHTS_FILE} lacks {left[0]}; download the model again")
    return model.eval()


def _restore_structure(
    model: nn.Module, layers: Mapping[str, Mapping[str, Any]], tensors: Mapping[str, Tensor]
) -> None:
    """Put factored layers into a hollow model, lenders first."""
    for name in sorted(layers, key=lambda key: layers[key]["owner"] is not None):
        entry = layers[name]
        lender = None if entry["owner"] is None else model.get_submodule(entry["owner"])
        assert lender is None or isinstance(lender, DeltaLinear)
        base = None if entry["base"] is None else model.get_submodule(entry["base"])
        rows = tensors[f"{name}.outer.weight"].shape[0]
        layer = DeltaLinear(
            inner=nn.Linear(entry["columns"], entry["rank"], bias=False, device="meta"),
            outer=nn.Linear(entry["rank"], rows, bias=entry["bias"], device="meta"),
            base=base,
            lender=lender,
            pivots=tensors[f"{name}.pivots"] if entry["compact"] and lender is None else None,
            transposed=entry["transposed"],
        )
        replace_layer(model, name, layer)


def _hollow(model_class: Any, config: Any, options: Mapping[str, Any]) -> transformers.PreTrainedModel:
    """The model with parameters on the meta device and real buffers: rotary frequencies are in no file."""
    register = nn.Module.register_parameter

    def on_meta(module: nn.Module, name: str, parameter: nn.Parameter | None) -> None:
        if parameter is not None:
            parameter = nn.Parameter(parameter.to("meta"), requires_grad=False)
        register(module, name, parameter)

    # PyTorch has no other way to have parameters without storage and buffers with it; accelerate's
    # `init_empty_weights` does the same, and a member has to load where accelerate is not installed.
    nn.Module.register_parameter = on_meta  # type: ignore[method-assign, assignment]
    try:
        model: transformers.PreTrainedModel = model_class(config, **options)
    finally:
        nn.Module.register_parameter = register  # type: ignore[method-assign]
    return model


def _floats(
    tensors: dict[str, Tensor], *, packed: Mapping[str, Any] | None, dtype: torch.dtype
) -> dict[str, Tensor]:
    """Tensors by parameter name: floats in `dtype`, packed and int8 weights unpacked."""
    widths = [] if packed is None else list(_widths(packed))
    found = {}
    for name, tensor in tensors.items():
        if name.endswith((".weight_scale", ".weight_shape")):
            continue
        module = name.rpartition(".")[0]
        if name.endswith(".weight_packed"):
            bits = next(bits for pattern, bits in widths if pattern.match(module))
            shape = torch.Size(tensors[f"{module}.weight_shape"].tolist())
            codes = _unpacked(tensor, bits=bits, shape=shape)
            found[f"{module}.weight"] = _scaled(codes, tensors[f"{module}.weight_scale"], dtype)
        elif f"{name}_scale" in tensors:
            found[name] = _scaled(tensor, tensors[f"{name}_scale"], dtype)
        else:
            found[name] = tensor.to(dtype) if tensor.is_floating_point() else tensor
    return found


def _widths(packed: Mapping[str, Any]) -> Iterator[tuple[re.Pattern[str], int]]:
    groups: Sequence[Mapping[str, Any]] = list(packed["config_groups"].values())
    for group in groups:
        for target in group["targets"]:
            yield re.compile(str(target).removeprefix("re:")), int(group["weights"]["num_bits"])


def _unpacked(words: Tensor, *, bits: int, shape: torch.Size) -> Tensor:
    from compressed_tensors.compressors.pack_quantized.helpers import unpack_from_int32

    codes: Tensor = unpack_from_int32(words, bits, shape)
    return codes


def _scaled(codes: Tensor, scales: Tensor, dtype: torch.dtype) -> Tensor:
    """Codes [O, I] times scales [O, G], each over I / G consecutive columns."""
    rows, columns = codes.shape
    groups = scales.shape[1]
    values = codes.float().view(rows, groups, columns // groups) * scales.float().unsqueeze(-1)
    return values.view(rows, columns).to(dtype)
