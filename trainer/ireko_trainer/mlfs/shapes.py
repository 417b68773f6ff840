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


@dataclass(frozen=True, kw_only=True, order=True)
class Shape:
    """The architecture of one subnet.

    `heads` is not free: BERT-like configs derive the head size as hidden / heads, so a standard checkpoint
    with the teacher's head size has as many heads as its hidden size allows.
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


def check(shape: Shape, *, full: Shape) -> None:
    """Refuse a shape that cannot be cut from `full` or that no standard config can say.

    Raises:
        UserError: with the value and the nearest one that would do.
    """
    head_size = full.hidden // full.heads
    if shape.hidden != shape.heads * head_size or not 0 < shape.heads <= full.heads:
        heads = min(max(1, round(shape.hidden / head_size)), full.heads)
        raise UserError(
            f"a subnet of hidden size {shape.hidden} with {shape.heads} heads is no standard checkpoint: "
            f"heads have {head_size} channels, so hidden is {head_size} × heads, up to {full.hidden}. "
            f"The nearest is hidden {heads * head_size} with {heads} heads."
        )
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


def layers_kept(layers: int, depth: int) -> tuple[int, ...]:
    """Which of `layers` layers a subnet of this depth keeps: evenly spaced, always the first and the last.

    A depth of one keeps the first layer, the one that reads the embeddings.
    """
    if not 1 <= depth <= layers:
        raise UserError(f"a depth of {depth} cannot be cut from {layers} layers: choose 1 to {layers}.")
    gaps = max(depth - 1, 1)
    return tuple((2 * index * (layers - 1) + gaps) // (2 * gaps) for index in range(depth))


def shapes_of_space(
    *, full: Shape, hidden: Sequence[float], intermediate: Sequence[float], layers: Sequence[float]
) -> tuple[Shape, ...]:
    """Every shape of a search space whose axes are given as ratios of the full shape, in (0, 1].

    Hidden is rounded to whole heads, intermediate to a multiple of 32 (the full size stays as it is), layers
    to whole layers. Ascending, without duplicates.
    """
    head_size = full.hidden // full.heads
    heads = {max(1, round(ratio * full.heads)) for ratio in hidden}
    neurons = {_intermediate(ratio, full.intermediate) for ratio in intermediate}
    depths = {max(1, round(ratio * len(full.layers))) for ratio in layers}
    shapes = [
        Shape(
            hidden=head_size * count,
            heads=count,
            intermediate=size,
            layers=layers_kept(len(full.layers), depth),
        )
        for count, size, depth in itertools.product(heads, neurons, depths)
    ]
    for shape in shapes:
        check(shape, full=full)
    return tuple(sorted(shapes))


def _intermediate(ratio: float, full: int) -> int:
    if ratio == 1:
        return full
    return min(full, max(1, round(ratio * full / INTERMEDIATE_STEP)) * INTERMEDIATE_STEP)
