"""The subnets to train: those that the device targets will need, found before training starts.

Subnets outside the palette learn more slowly than those in it, so the palette holds few shapes and the right ones.
For each target and each bit width, the shapes that fit its size limit are known by arithmetic; of these only the
largest can be best; and which of the largest is best shows in the quality of its untrained, quantized slice, which
costs one evaluation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from ireko_trainer.errors import NothingFitsError
from ireko_trainer.mlfs import Shape
from ireko_trainer.search.limits import MEBIBYTE, DeviceLimits

SizeOf = Callable[[Shape, int | None], int]
"""Bytes of the shipped file of a shape at a uniform bit width; None: not quantized."""

QualityOf = Callable[[Shape, int | None], float]
"""Quality of the untrained slice at a uniform bit width."""


@dataclass(frozen=True, kw_only=True)
class Scored:
    """A shape at a bit width, with the size and the quality of its untrained slice."""

    shape: Shape
    bits: int | None
    size_bytes: int
    quality: float


def largest(shapes: Sequence[Shape]) -> list[Shape]:
    """The shapes that no other of `shapes` contains: enlarging any of them leaves the sequence."""
    return [
        shape for shape in shapes if not any(_contains(other, shape) for other in shapes if other != shape)
    ]


def shapes_for_target(
    *,
    limits: DeviceLimits,
    shapes: Sequence[Shape],
    bits: Sequence[int | None],
    size_of: SizeOf,
    quality_of: QualityOf,
    count: int,
) -> list[Scored]:
    """The `count` most promising distinct shapes for one target, best first.

    Raises NothingFitsError, naming the smallest reachable size, if no shape fits at any bit width.
    """
    scored: list[Scored] = []
    for width in bits:
        fitting = [shape for shape in shapes if size_of(shape, width) <= limits.max_bytes]
        scored += [
            Scored(
                shape=shape, bits=width, size_bytes=size_of(shape, width), quality=quality_of(shape, width)
            )
            for shape in largest(fitting)
        ]
    if not scored:
        raise NothingFitsError(_too_small(limits, shapes=shapes, bits=bits, size_of=size_of))
    best = sorted(scored, key=lambda candidate: (-candidate.quality, candidate.size_bytes))
    distinct: dict[Shape, Scored] = {}
    for candidate in best:
        distinct.setdefault(candidate.shape, candidate)
    return list(distinct.values())[:count]


def _contains(larger: Shape, smaller: Shape) -> bool:
    return (
        larger.hidden >= smaller.hidden
        and larger.intermediate >= smaller.intermediate
        and len(larger.layers) >= len(smaller.layers)
    )


def _too_small(
    limits: DeviceLimits, *, shapes: Sequence[Shape], bits: Sequence[int | None], size_of: SizeOf
) -> str:
    size, shape, width = min((size_of(shape, width), shape, width) for shape in shapes for width in bits)
    at = f"at {width} bits" if width is not None else "unquantized"
    smallest = -(-size * 100 // MEBIBYTE) / 100
    return (
        f"{limits.field}.constraints.maxSizeMiB: {limits.max_mebibytes:g} is too small for {limits.target}: the "
        f"closest candidate, {describe(shape)} {at}, needs {smallest:g} MiB; raise the limit to that, or add smaller "
        "ratios to spec.pipeline.mlfs.searchSpace"
    )


def describe(shape: Shape) -> str:
    """A shape in words: `hidden 192, intermediate 768, 6 layers`."""
    return f"hidden {shape.hidden}, intermediate {shape.intermediate}, {len(shape.layers)} layers"
