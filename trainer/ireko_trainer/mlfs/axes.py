"""The words in which an architecture is described: which axis each dimension of each parameter lies on.

Slicing, importance permutation, parameter counting, extraction and the config of a subnet are all the same
question, "where on its axis does this dimension end?", so they are answered from one table per family
(`architectures.py`, `decoders.py`) instead of from code per family. A family is added by writing its table;
nothing else changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum
from types import MappingProxyType

import torch
from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.mlfs.shapes import Heads, Shape


class Axis(Enum):
    """What a dimension of a parameter counts."""

    HIDDEN = "hidden"
    """Channels of the residual stream: one order for the whole model."""
    ATTENTION = "attention"
    """Heads × head size inside one layer: heads move as blocks, each layer has its own order. Where several query
    heads share a key-value head, they move with it as one block."""
    KEY_VALUE = "key_value"
    """Key-value heads × head size inside one layer: follows the order of ATTENTION."""
    INTERMEDIATE = "intermediate"
    """Neurons of one layer's feed-forward part: each layer has its own order."""
    POOLED = "pooled"
    """Outputs of the pooler: as many as hidden channels, but with an order of their own."""
    FIXED = "fixed"
    """Vocabulary, positions, classes: never cut."""


class Role(Enum):
    """The part of the model that a parameter is counted under."""

    EMBEDDING = "embedding"
    BODY = "body"
    HEAD = "head"


Dimension = Axis | tuple[Axis, ...]
"""What a dimension counts; several axes one after the other where a family fuses matrices: `(gate, up)`."""


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One row of an axis table: a relative parameter name and the axis of each dimension.

    A table may have rows that a model lacks: biases and norms are often a matter of the config.
    """

    name: str
    axes: tuple[Dimension, ...]


def linear(name: str, *, out: Dimension, into: Dimension) -> tuple[Tensor, ...]:
    """Rows of an `nn.Linear`: weight [out, in] and bias [out]."""
    return (Tensor(name=f"{name}.weight", axes=(out, into)), Tensor(name=f"{name}.bias", axes=(out,)))


def conv1d(name: str, *, out: Dimension, into: Dimension) -> tuple[Tensor, ...]:
    """Rows of GPT-2's `Conv1D`, a linear that keeps its weight as [in, out]: weight and bias [out]."""
    return (Tensor(name=f"{name}.weight", axes=(into, out)), Tensor(name=f"{name}.bias", axes=(out,)))


def norm(name: str, *, over: Axis = Axis.HIDDEN) -> tuple[Tensor, ...]:
    """Rows of a LayerNorm or RMSNorm, over the residual stream unless said otherwise."""
    return (Tensor(name=f"{name}.weight", axes=(over,)), Tensor(name=f"{name}.bias", axes=(over,)))


def embedding(name: str) -> tuple[Tensor, ...]:
    """Row of an `nn.Embedding` table [entries, hidden]."""
    return (Tensor(name=f"{name}.weight", axes=(Axis.FIXED, Axis.HIDDEN)),)


@dataclass(frozen=True, kw_only=True)
class ConfigNames:
    """How the family's config calls its sizes."""

    hidden: str
    heads: str
    intermediate: str
    """`None` in a config means four times hidden, as in GPT-2."""
    layers: str
    kv_heads: str | None = None
    """Where several query heads may share a key-value head."""
    head_size: str | None = None
    """Where the config says the head size itself, so that hidden size and heads are cut independently."""


@dataclass(frozen=True, kw_only=True)
class Architecture:
    """The axis table of one family.

    Names in `embeddings` are relative to the base model, names in `block` to one layer, names in `head` to
    the whole task model.
    """

    family: str
    base_prefix: str
    """Prefix of the base model inside a task model: `bert.`; absent in the base model itself."""
    layer_prefix: str
    """What precedes the layer's index inside the base model: `encoder.layer.`."""
    config: ConfigNames
    embeddings: tuple[Tensor, ...]
    block: tuple[Tensor, ...]
    head: tuple[Tensor, ...]
    attention_output: str
    """The linear inside a block whose input is all heads' output, head after head."""
    intermediate_output: str
    """The linear inside a block whose input is the feed-forward activation."""
    norms: tuple[str, ...]
    """The norms inside a block whose outputs are the residual stream, or what is read from it."""
    model_inputs: tuple[str, ...]
    """The entries of a batch that the models of this family take."""
    final_norm: str | None = None
    """The norm of the base model behind the last layer, where there is one."""
    options: Mapping[str, bool] = field(default_factory=dict)
    """What the models are called with beside the batch: decoders are told to keep no cache."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one parameter of one concrete model stands: its full size, its axes and its layer."""

    size: tuple[int, ...]
    axes: tuple[Dimension, ...]
    role: Role
    layer: int | None
    """Index of the layer it belongs to, `None` outside the layers."""


Parts = tuple[tuple[slice, ...], ...]
"""For each dimension of a tensor the pieces of it that are kept, ascending and apart from each other."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An axis table resolved for one concrete model: every parameter has its place, or construction fails."""

    architecture: Architecture
    full: Shape
    heads: Heads
    """In which units heads are cut."""
    head_size: int
    places: Mapping[str, Place]
    aliases: Mapping[str, str]
    """Other names of a parameter -> its name in `places`: a head that is tied to the embeddings."""
    base_prefix: str
    """Prefix of the base model's parameters in this model: `bert.`, or nothing where it is the base model."""

    @property
    def block_prefix(self) -> str:
        """Prefix of a layer's parameters in this model, before the index: `bert.encoder.layer.`."""
        return f"{self.base_prefix}{self.architecture.layer_prefix}"

    def block_name(self, layer: int, name: str) -> str:
        """The full name of something in a block: `(2, "output.dense")` to `encoder.layer.2.output.dense`."""
        return f"{self.block_prefix}{layer}.{name}"

    def source_name(self, name: str, shape: Shape) -> str:
        """What the full model calls the `name` of a subnet, whose kept layers are renumbered."""
        if not name.startswith(self.block_prefix):
            return self.aliases.get(name, name)
        index, _, rest = name[len(self.block_prefix) :].partition(".")
        return self.block_name(shape.layers[int(index)], rest)

    def parts(self, place: Place, shape: Shape) -> Parts:
        """What a subnet of this shape keeps of a parameter: the leading part of every axis."""
        return tuple(self._parts(place, dimension, shape) for dimension in range(len(place.size)))

    def size(self, place: Place, shape: Shape) -> tuple[int, ...]:
        """How large a parameter is in a subnet of this shape."""
        return tuple(sum(part.stop - part.start for part in pieces) for pieces in self.parts(place, shape))

    def segments(self, place: Place, dimension: int) -> list[tuple[Axis, int]]:
        """The axes that lie one after the other on a dimension, with their lengths in the full model."""
        axes = place.axes[dimension]
        if not isinstance(axes, tuple):
            return [(axes, place.size[dimension])]
        return [(axis, self._length(axis, self.full)) for axis in axes]

    def unit(self, axis: Axis) -> int:
        """Channels that move together when this axis is reordered."""
        return {Axis.ATTENTION: self.heads.per_group * self.head_size, Axis.KEY_VALUE: self.head_size}.get(
            axis, 1
        )

    def names_on(self, axis: Axis, *, layer: int | None = None) -> list[tuple[str, int]]:
        """Every (parameter, dimension) that has this axis, of one layer or, with `None`, of the whole model."""
        return [
            (name, dimension)
            for name, place in self.places.items()
            for dimension, found in enumerate(place.axes)
            if axis in (found if isinstance(found, tuple) else (found,))
            and (layer is None or place.layer == layer)
        ]

    def _parts(self, place: Place, dimension: int, shape: Shape) -> tuple[slice, ...]:
        pieces: list[slice] = []
        start = 0
        for axis, length in self.segments(place, dimension):
            kept = length if axis is Axis.FIXED else self._length(axis, shape)
            if pieces and pieces[-1].stop == start:
                # Nothing is left out between the two, so that a full-size tensor stays one piece.
                pieces[-1] = slice(pieces[-1].start, start + kept)
            else:
                pieces.append(slice(start, start + kept))
            start += length
        return tuple(pieces)

    def _length(self, axis: Axis, shape: Shape) -> int:
        return {
            Axis.HIDDEN: shape.hidden,
            Axis.POOLED: shape.hidden,
            Axis.ATTENTION: shape.heads * self.head_size,
            Axis.KEY_VALUE: shape.heads // self.heads.per_group * self.head_size,
            Axis.INTERMEDIATE: shape.intermediate,
        }[axis]


def take(tensor: torch.Tensor, parts: Parts) -> torch.Tensor:
    """The kept parts of a tensor: a view where each dimension is kept in one piece, else a copy."""
    for dimension, pieces in enumerate(parts):
        tensor = take_along(tensor, pieces, dimension=dimension)
    return tensor


def take_along(tensor: torch.Tensor, pieces: tuple[slice, ...], *, dimension: int) -> torch.Tensor:
    """The kept pieces of one dimension, one after the other."""
    found = [tensor.narrow(dimension, piece.start, piece.stop - piece.start) for piece in pieces]
    return found[0] if len(found) == 1 else torch.cat(found, dim=dimension)


def resolve(*, architecture: Architecture, model: PreTrainedModel) -> Layout:
    """Give every parameter of `model` its place.

    Raises:
        ValueError: a parameter is in no table, its rank differs from the table's, or a size contradicts the
            config.
    """
    full = full_shape(architecture=architecture, config=model.config)
    heads = heads_of(architecture=architecture, config=model.config)
    names = [name for name, _ in model.named_parameters()]
    inside = any(name.startswith(architecture.base_prefix) for name in names)
    base = architecture.base_prefix if inside else ""
    rows = _rows(architecture, base=base, layers=len(full.layers), with_head=inside)
    layout = Layout(
        architecture=architecture,
        full=full,
        heads=heads,
        head_size=head_size(architecture=architecture, config=model.config),
        aliases=MappingProxyType(_aliases(model)),
        base_prefix=base,
        places=MappingProxyType(
            {name: _place(name, tuple(tensor.shape), rows) for name, tensor in model.named_parameters()}
        ),
    )
    for name, place in layout.places.items():
        kept = layout.size(place, full)
        if kept != place.size:
            raise ValueError(
                f"{name} has size {place.size}, but the config of this {architecture.family} says {kept}"
            )
    return layout


def full_shape(*, architecture: Architecture, config: PretrainedConfig) -> Shape:
    """The shape that a config describes, every layer kept."""
    names = architecture.config
    return Shape(
        hidden=getattr(config, names.hidden),
        heads=getattr(config, names.heads),
        intermediate=getattr(config, names.intermediate) or 4 * getattr(config, names.hidden),
        layers=tuple(range(getattr(config, names.layers))),
    )


def heads_of(*, architecture: Architecture, config: PretrainedConfig) -> Heads:
    """In which units the heads of a model can be cut."""
    names = architecture.config
    heads = getattr(config, names.heads)
    groups = heads if names.kv_heads is None else getattr(config, names.kv_heads)
    return Heads(per_group=heads // groups, follow_hidden=names.head_size is None)


def head_size(*, architecture: Architecture, config: PretrainedConfig) -> int:
    """Channels of a head: the config's own number, or hidden / heads."""
    names = architecture.config
    said = None if names.head_size is None else getattr(config, names.head_size, None)
    return int(said or getattr(config, names.hidden) // getattr(config, names.heads))


_Rows = dict[str, tuple[tuple[Dimension, ...], Role, int | None]]


def _rows(architecture: Architecture, *, base: str, layers: int, with_head: bool) -> _Rows:
    """The table with its relative names written out for a model of so many layers."""
    rows: _Rows = {}
    for row in architecture.embeddings:
        rows[f"{base}{row.name}"] = (row.axes, Role.EMBEDDING, None)
    for layer in range(layers):
        for row in architecture.block:
            rows[f"{base}{architecture.layer_prefix}{layer}.{row.name}"] = (row.axes, Role.BODY, layer)
    if architecture.final_norm is not None:
        for row in norm(architecture.final_norm):
            rows[f"{base}{row.name}"] = (row.axes, Role.BODY, None)
    for row in architecture.head:
        # A pooler is written with the base prefix: it lives inside the base model but is counted as head.
        name = row.name if with_head else row.name.removeprefix(architecture.base_prefix)
        rows[name] = (row.axes, Role.HEAD, None)
    return rows


def _aliases(model: PreTrainedModel) -> dict[str, str]:
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    every = model.named_parameters(remove_duplicate=False)
    return {name: names[id(parameter)] for name, parameter in every if names[id(parameter)] != name}


def _place(name: str, size: tuple[int, ...], rows: _Rows) -> Place:
    if name not in rows:
        raise ValueError(
            f"the axis table does not say on which axes {name} {list(size)} lies; "
            "add the parameter to its family in ireko_trainer/mlfs/architectures.py"
        )
    axes, role, layer = rows[name]
    if len(axes) != len(size):
        raise ValueError(f"the axis table gives {name} {len(axes)} dimensions, the model has {list(size)}")
    return Place(size=size, axes=axes, role=role, layer=layer)
