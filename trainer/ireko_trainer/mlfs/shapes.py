"""What a member of the family looks like: a handful of integers that a standard config can say.

A shape never says *which* channels it keeps: always the leading ones, because the importance permutation has
put the important ones first. Layers are the exception, they are kept by name.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass

from ireko_trainer.errors import UserError

INTERMEDIATE_STEP = 32
"""Intermediate sizes are multiples of this: what vector units and group-wise quantization divide."""

HIDDEN_STEP = 8
"""Where hidden is free, it is a multiple of this times the heads."""


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """The architecture of one subnet.

    `heads` are query heads; how many key-value heads there are follows from them. They are not free, see
    `Heads`.
    """

    hidden: int
    heads: int
    intermediate: int
    layers: tuple[int, ...]
    """Indices of the teacher's layers that are kept, ascending."""

    def __str__(self) -> str:
        return f"hidden{self.hidden}-intermediate{self.intermediate}-layers{len(self.layers)}"

    def within(self, other: Shape) -> bool:
        """Whether this shape is nested in the other one on every axis."""
        return (
            self.hidden <= other.hidden
            and self.heads <= other.heads
            and self.intermediate <= other.intermediate
            and set(self.layers) <= set(other.layers)
        )


@dataclass(frozen=True, kw_only=True)
class Heads:
    """What a family's standard config can say about heads."""

    per_group: int = 1
    """Query heads that share one key-value head, and are kept or cut together with it."""
    follow_hidden: bool = True
    """BERT-like configs derive the head size as hidden / heads, so that a checkpoint with the teacher's head
    size has as many heads as its hidden size allows. Configs that say the head size leave hidden free, as
    long as heads divide it."""


_BERT_LIKE = Heads()


def check(shape: Shape, *, full: Shape, heads: Heads = _BERT_LIKE) -> None:
    """Refuse a shape that cannot be cut from `full` or that no standard config can say.

    Raises:
        UserError: with the value and the nearest one that would do.
    """
    whole = 0 < shape.heads <= full.heads and shape.heads % heads.per_group == 0
    if heads.follow_hidden:
        _check_hidden_of_heads(shape, full=full, heads=heads, whole=whole)
    else:
        _check_free_hidden(shape, full=full, heads=heads, whole=whole)
    if not 0 < shape.intermediate <= full.intermediate:
        raise UserError(
            f"intermediate size {shape.intermediate} cannot be cut from {full.intermediate}: "
            f"choose 1 to {full.intermediate}."
        )
    if not shape.layers or list(shape.layers) != sorted(set(shape.layers) & set(full.layers)):
        raise UserError(
            f"layers {list(shape.layers)} cannot be kept of {len(full.layers)}: name one or more of the "
            f"layers 0 to {len(full.layers) - 1}, each once, in ascending order."
        )


def _check_hidden_of_heads(shape: Shape, *, full: Shape, heads: Heads, whole: bool) -> None:
    head_size = full.hidden // full.heads
    if whole and shape.hidden == shape.heads * head_size:
        return
    unit = heads.per_group * head_size
    groups = min(max(1, round(shape.hidden / unit)), full.heads // heads.per_group)
    raise UserError(
        f"a subnet of hidden size {shape.hidden} with {shape.heads} heads is no standard checkpoint: "
        f"heads have {head_size} channels, so hidden is {head_size} × heads{_in_groups(heads)}, up to {full.hidden}. "
        f"The nearest is hidden {groups * unit} with {groups * heads.per_group} heads."
    )


def _check_free_hidden(shape: Shape, *, full: Shape, heads: Heads, whole: bool) -> None:
    if not whole:
        groups = min(max(1, round(shape.heads / heads.per_group)), full.heads // heads.per_group)
        raise UserError(
            f"{shape.heads} heads cannot be cut from {full.heads}{_in_groups(heads)}. "
            f"The nearest is {groups * heads.per_group} heads."
        )
    if not 0 < shape.hidden <= full.hidden or shape.hidden % shape.heads:
        nearest = min(max(1, round(shape.hidden / shape.heads)), full.hidden // shape.heads) * shape.heads
        raise UserError(
            f"a subnet of hidden size {shape.hidden} with {shape.heads} heads is no standard checkpoint: hidden is "
            f"a multiple of the heads, up to {full.hidden}. The nearest is {nearest}."
        )


def _in_groups(heads: Heads) -> str:
    if heads.per_group == 1:
        return ""
    return f" (the {heads.per_group} that share a key-value head stay together)"


def layers_kept(layers: int, depth: int) -> tuple[int, ...]:
    """Which of `layers` layers a subnet of this depth keeps: evenly spaced, always the first and the last.

    A depth of one keeps the first layer, the one that reads the embeddings.
    """
    if not 1 <= depth <= layers:
        raise UserError(f"a depth of {depth} cannot be cut from {layers} layers: choose 1 to {layers}.")
    gaps = max(depth - 1, 1)
    return tuple((2 * index * (layers - 1) + gaps) // (2 * gaps) for index in range(depth))


def shapes_of_space(
    *,
    full: Shape,
    hidden: Sequence[float],
    intermediate: Sequence[float],
    layers: Sequence[float],
    heads: Heads = _BERT_LIKE,
) -> tuple[Shape, ...]:
    """Every shape of a search space whose axes are given as ratios of the full shape, in (0, 1].

    Heads are cut by the ratio of the hidden size, to whole groups, and hidden is rounded to what fits to
    them; intermediate to a multiple of 32 (the full size stays as it is), layers to whole layers. Ascending,
    without duplicates.
    """
    widths = {_width(ratio, full=full, heads=heads) for ratio in hidden}
    neurons = {_intermediate(ratio, full.intermediate) for ratio in intermediate}
    depths = {max(1, round(ratio * len(full.layers))) for ratio in layers}
    shapes = [
        Shape(
            hidden=channels,
            heads=count,
            intermediate=size,
            layers=layers_kept(len(full.layers), depth),
        )
        for (channels, count), size, depth in itertools.product(widths, neurons, depths)
    ]
    for shape in shapes:
        check(shape, full=full, heads=heads)
    return tuple(sorted(shapes))


def _width(ratio: float, *, full: Shape, heads: Heads) -> tuple[int, int]:
    """Hidden size and heads."""
    groups = full.heads // heads.per_group
    count = max(1, round(ratio * groups)) * heads.per_group
    if heads.follow_hidden:
        return full.hidden // full.heads * count, count
    if ratio == 1:
        return full.hidden, full.heads
    step = HIDDEN_STEP * count
    return min(max(1, round(ratio * full.hidden / step)) * step, full.hidden // count * count), count


def _intermediate(ratio: float, full: int) -> int:
    if ratio == 1:
        return full
    return min(full, max(1, round(ratio * full / INTERMEDIATE_STEP)) * INTERMEDIATE_STEP)
