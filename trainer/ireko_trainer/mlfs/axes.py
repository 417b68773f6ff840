"""The words in which an architecture is described: which axis each dimension of each parameter lies on.

Slicing, importance permutation, parameter counting, extraction and the config of a subnet are all the same
question, "where on its axis does this dimension end?", so they are answered from one table per family
(`architectures.py`) instead of from code per family. A family is added by writing its table; nothing else
changes.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from types import MappingProxyType

from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.mlfs.shapes import Shape


class Axis(Enum):
    """What a dimension of a parameter counts."""

    HIDDEN = "hidden"
    """Channels of the residual stream: one order for the whole model."""
    ATTENTION = "attention"
    """Heads × head size inside one layer: heads move as blocks, each layer has its own order."""
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


@dataclass(frozen=True, kw_only=True)
class Tensor:
    """One row of an axis table: a relative parameter name and the axis of each dimension."""

    name: str
    axes: tuple[Axis, ...]


def linear(name: str, *, out: Axis, into: Axis) -> tuple[Tensor, ...]:
    """Rows of an `nn.Linear`: weight [out, in] and bias [out]."""
    return (Tensor(name=f"{name}.weight", axes=(out, into)), Tensor(name=f"{name}.bias", axes=(out,)))


def norm(name: str) -> tuple[Tensor, ...]:
    """Rows of a LayerNorm over the residual stream."""
    return (
        Tensor(name=f"{name}.weight", axes=(Axis.HIDDEN,)),
        Tensor(name=f"{name}.bias", axes=(Axis.HIDDEN,)),
    )


def embedding(name: str) -> tuple[Tensor, ...]:
    """Row of an `nn.Embedding` table [entries, hidden]."""
    return (Tensor(name=f"{name}.weight", axes=(Axis.FIXED, Axis.HIDDEN)),)


@dataclass(frozen=True, kw_only=True)
class ConfigNames:
    """How the family's config calls its sizes."""

    hidden: str
    heads: str
    intermediate: str
    layers: str


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
    """The LayerNorms inside a block, whose outputs are the residual stream."""
    model_inputs: tuple[str, ...]
    """The entries of a batch that the models of this family take."""


@dataclass(frozen=True, kw_only=True)
class Place:
    """Where one parameter of one concrete model stands: its full size, its axes and its layer."""

    size: tuple[int, ...]
    axes: tuple[Axis, ...]
    role: Role
    layer: int | None
    """Index of the layer it belongs to, `None` outside the layers."""


@dataclass(frozen=True, kw_only=True)
class Layout:
    """An axis table resolved for one concrete model: every parameter has its place, or construction fails."""

    architecture: Architecture
    full: Shape
    head_size: int
    places: Mapping[str, Place]
    block_prefix: str
    """Prefix of a layer's parameters in this model, before the index: `bert.encoder.layer.`."""

    def block_name(self, layer: int, name: str) -> str:
        """The full name of something in a block: `(2, "output.dense")` to `encoder.layer.2.output.dense`."""
        return f"{self.block_prefix}{layer}.{name}"

    def source_name(self, name: str, shape: Shape) -> str:
        """What the full model calls the `name` of a subnet, whose kept layers are renumbered."""
        if not name.startswith(self.block_prefix):
            return name
        index, _, rest = name[len(self.block_prefix) :].partition(".")
        return self.block_name(shape.layers[int(index)], rest)

    def sliced(self, place: Place, shape: Shape) -> tuple[slice, ...]:
        """The leading part of each dimension that a subnet of this shape keeps."""
        kept = {
            Axis.HIDDEN: shape.hidden,
            Axis.POOLED: shape.hidden,
            Axis.ATTENTION: shape.heads * self.head_size,
            Axis.INTERMEDIATE: shape.intermediate,
        }
        return tuple(
            slice(0, kept.get(axis, size)) for axis, size in zip(place.axes, place.size, strict=True)
        )

    def names_on(self, axis: Axis, *, layer: int | None = None) -> list[tuple[str, int]]:
        """Every (parameter, dimension) on this axis, of one layer or, with `None`, of the whole model."""
        return [
            (name, dimension)
            for name, place in self.places.items()
            for dimension, found in enumerate(place.axes)
            if found is axis and (layer is None or place.layer == layer)
        ]


def resolve(*, architecture: Architecture, model: PreTrainedModel) -> Layout:
    """Give every parameter of `model` its place.

    Raises:
        ValueError: a parameter is in no table, its rank differs from the table's, or a size contradicts the
            config.
    """
    full = full_shape(architecture=architecture, config=model.config)
    names = [name for name, _ in model.named_parameters()]
    inside = any(name.startswith(architecture.base_prefix) for name in names)
    base = architecture.base_prefix if inside else ""
    rows = _rows(architecture, base=base, layers=len(full.layers), with_head=inside)
    layout = Layout(
        architecture=architecture,
        full=full,
        head_size=full.hidden // full.heads,
        block_prefix=f"{base}{architecture.layer_prefix}",
        places=MappingProxyType(
            {name: _place(name, tuple(tensor.shape), rows) for name, tensor in model.named_parameters()}
        ),
    )
    for name, place in layout.places.items():
        kept = tuple(part.stop for part in layout.sliced(place, full))
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
        intermediate=getattr(config, names.intermediate),
        layers=tuple(range(getattr(config, names.layers))),
    )


def _rows(
    architecture: Architecture, *, base: str, layers: int, with_head: bool
) -> dict[str, tuple[tuple[Axis, ...], Role, int | None]]:
    """The table with its relative names written out for a model of so many layers."""
    rows: dict[str, tuple[tuple[Axis, ...], Role, int | None]] = {}
    for row in architecture.embeddings:
        rows[f"{base}{row.name}"] = (row.axes, Role.EMBEDDING, None)
    for layer in range(layers):
        for row in architecture.block:
            rows[f"{base}{architecture.layer_prefix}{layer}.{row.name}"] = (row.axes, Role.BODY, layer)
    for row in architecture.head:
        # A pooler is written with the base prefix: it lives inside the base model but is counted as head.
        name = row.name if with_head else row.name.removeprefix(architecture.base_prefix)
        rows[name] = (row.axes, Role.HEAD, None)
    return rows


def _place(
    name: str, size: tuple[int, ...], rows: Mapping[str, tuple[tuple[Axis, ...], Role, int | None]]
) -> Place:
    if name not in rows:
        raise ValueError(
            f"the axis table does not say on which axes {name} {list(size)} lies; "
            "add the parameter to its family in ireko_trainer/mlfs/architectures.py"
        )
    axes, role, layer = rows[name]
    if len(axes) != len(size):
        raise ValueError(f"the axis table gives {name} {len(axes)} dimensions, the model has {list(size)}")
    return Place(size=size, axes=axes, role=role, layer=layer)
