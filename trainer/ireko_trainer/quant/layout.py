"""Which parts of a model are quantized, and as what: found in the modules, not in a table of architectures.

Everything below works on names and shapes, so it takes a model on the meta device as well: the size of a
member is known before the member exists.

Three kinds of matrices. *Blocks* are the transformer layers; their widths are chosen. *Embeddings* (every
table: words, positions, token types) and the *head* (linear layers outside the blocks) always take 8 bits:
the head is small, and lower embeddings cannot be loaded, see `checkpoint.py`. A table to which a head is tied is
one matrix. Norms and biases stay floats, as do matrices that are shared in any other way. GPT-2's `Conv1D` is a
linear layer whose weight lies the other way round; here every matrix is [outputs, inputs].
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.errors import UserError

OUTSIDE_BITS = 8
"""Width of whatever is quantized outside the blocks."""


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A quantizable weight [rows, columns]: the module that owns it, and whether it is a lookup table."""

    module: str
    rows: int
    columns: int
    table: bool
    transposed: bool = False
    """The module keeps its weight as [columns, rows]."""
    aliases: tuple[str, ...] = ()
    """Linear layers that multiply with the same tensor: a language model's head, tied to its embeddings."""

    @property
    def weights(self) -> int:
        """Number of weights."""
        return self.rows * self.columns


@dataclass(frozen=True, kw_only=True)
class Remainder:
    """A tensor that is stored as it is: float16 when `floating`, else in its own type."""

    name: str
    shape: tuple[int, ...]
    floating: bool
    dtype: torch.dtype


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The tensors of one model, sorted by what happens to them.

    blocks: block name -> its matrices, in the order of the forward pass
    embeddings, head: matrices outside the blocks
    remainder: every tensor that is not the weight of a matrix above, aliases of tied tensors left out
    """

    blocks: Mapping[str, tuple[Matrix, ...]]
    embeddings: tuple[Matrix, ...]
    head: tuple[Matrix, ...]
    remainder: tuple[Remainder, ...]

    @property
    def matrices(self) -> tuple[Matrix, ...]:
        """All quantizable matrices."""
        return (*self.embeddings, *(m for block in self.blocks.values() for m in block), *self.head)

    def block_weights(self) -> dict[str, int]:
        """Return the number of quantizable weights of each block."""
        return {name: sum(m.weights for m in matrices) for name, matrices in self.blocks.items()}

    def outside_bits(self) -> dict[str, int]:
        """Return the bits of the modules outside the blocks."""
        return {m.module: OUTSIDE_BITS for m in (*self.embeddings, *self.head)}

    def module_bits(self, block_bits: Mapping[str, int]) -> dict[str, int]:
        """Spread bits per block to bits per module; embeddings and head get `OUTSIDE_BITS`."""
        bits = self.outside_bits()
        bits |= {m.module: block_bits[name] for name, matrices in self.blocks.items() for m in matrices}
        return bits


def block_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Return the transformer blocks by name: the items of the module list that holds the most parameters."""
    lists = {name: module for name, module in model.named_modules() if isinstance(module, nn.ModuleList)}
    if not lists:
        raise UserError(
            f"{type(model).__name__} has no list of blocks, so its layers cannot be ranked or quantized"
        )
    sizes = {name: sum(p.numel() for p in module.parameters()) for name, module in lists.items()}
    name = max(sizes, key=lambda key: (sizes[key], -len(key)))
    blocks = {f"{name}.{index}": block for index, block in enumerate(lists[name])}
    for key, block in blocks.items():
        if not any(isinstance(module, nn.Linear | Conv1D) for module in block.modules()):
            raise UserError(
                f"{type(model).__name__}: {key} has no linear layer, and other layers are not quantized"
            )
    return blocks


def describe(model: PreTrainedModel) -> Layout:
    """Sort the tensors of `model`, which may live on the meta device."""
    matrices = _matrices(model)
    names = list(block_modules(model))
    blocks = {name: tuple(m for key, m in matrices.items() if key.startswith(f"{name}.")) for name in names}
    outside = [m for key, m in matrices.items() if not any(key.startswith(f"{name}.") for name in names)]
    return Layout(
        blocks=blocks,
        embeddings=tuple(m for m in outside if m.table),
        head=tuple(m for m in outside if not m.table),
        remainder=_remainder(model, {f"{module}.weight" for module in matrices}),
    )


def weight_matrix(module: nn.Module) -> Tensor:
    """Return the weight of a linear layer or a table as [outputs, inputs], in its own storage."""
    weight = module.weight
    assert isinstance(weight, Tensor)
    return weight.T if isinstance(module, Conv1D) else weight


def put_weight(module: nn.Module, value: Tensor) -> None:
    """Give a linear layer another weight [outputs, inputs].

    The old tensor is not written to: it may belong to somebody else, or to a mapped file.
    """
    weight = module.weight
    assert isinstance(weight, nn.Parameter)
    weight.data = value.T.contiguous() if isinstance(module, Conv1D) else value


def _matrices(model: nn.Module) -> dict[str, Matrix]:
    kinds = nn.Linear | nn.Embedding | Conv1D
    users: defaultdict[int, list[str]] = defaultdict(list)
    for name, module in model.named_modules():
        if isinstance(module, kinds):
            users[id(module.weight)].append(name)
    found = {}
    for name, module in model.named_modules():
        if not isinstance(module, kinds):
            continue
        aliases = tuple(user for user in users[id(module.weight)] if user != name)
        if aliases and not _is_tied_table(model, name, aliases):
            continue
        found[name] = Matrix(
            module=name,
            rows=weight_matrix(module).shape[0],
            columns=weight_matrix(module).shape[1],
            table=isinstance(module, nn.Embedding),
            transposed=isinstance(module, Conv1D),
            aliases=aliases,
        )
    return found


def _is_tied_table(model: nn.Module, name: str, aliases: tuple[str, ...]) -> bool:
    return isinstance(model.get_submodule(name), nn.Embedding) and all(
        isinstance(model.get_submodule(alias), nn.Linear) for alias in aliases
    )


def _remainder(model: nn.Module, quantized: set[str]) -> tuple[Remainder, ...]:
    state = model.state_dict(keep_vars=True)
    seen = {id(state[name]) for name in quantized}
    found = []
    for name, tensor in state.items():
        if name in quantized or id(tensor) in seen:
            continue
        seen.add(id(tensor))
        floating = tensor.is_floating_point()
        found.append(Remainder(name=name, shape=tuple(tensor.shape), floating=floating, dtype=tensor.dtype))
    return tuple(found)
