"""Which subnets a step trains.

A pure function of (seed, step), so a resumed run and every data-parallel worker draw the same without
talking. The shapes of the palette take turns in shuffled rounds, so that within a round each of them gets one
step of its own. All of them share one low-rank pair, so a step for one is a step for the others too, and the
smallest needs no more turns than the rest (docs/benchmarks.md). In place, as the paper has it, the maxnet
comes first in every step, for it teaches.
"""

from __future__ import annotations

import random
from collections.abc import Iterable
from dataclasses import dataclass

from ireko_trainer.mlfs.shapes import Shape


@dataclass(frozen=True, kw_only=True)
class Palette:
    """The shapes that a stage trains, ascending. Subnets outside it lag by 1-2 points: put the targets in.

    Raises:
        ValueError: there is no shape.
    """

    shapes: tuple[Shape, ...]

    def __post_init__(self) -> None:
        if not self.shapes:
            raise ValueError("a palette needs at least one shape")
        object.__setattr__(self, "shapes", tuple(sorted(set(self.shapes))))

    @classmethod
    def of(cls, shapes: Iterable[Shape], *, targets: Iterable[Shape] = ()) -> Palette:
        """A search space and the shapes that devices ask for, which are always in."""
        return cls(shapes=(*shapes, *targets))

    def widths(self, *, full: Shape) -> Palette:
        """The shapes that keep every layer: what the first supernet stage trains.

        A space without such a shape falls back to all of it: then there is no width to train alone.
        """
        deep = tuple(shape for shape in self.shapes if shape.layers == full.layers)
        return Palette(shapes=deep or self.shapes)


def draw(
    *, palette: Palette, full: Shape, count: int, seed: int, step: int, in_place: bool
) -> tuple[Shape, ...]:
    """The subnets of one step: `count` distinct ones of the palette, or all if it has no more.

    The full shape has its turn only if the palette holds it. In place it comes before the others, in every step.
    """
    first = (full,) if in_place else ()
    others = [shape for shape in palette.shapes if shape not in first]
    per_step = min(count, len(others))
    if per_step == 0:
        return first
    steps_per_round = len(others) // per_step
    turn = random.Random(f"{seed}/{step // steps_per_round}")
    turn.shuffle(others)
    start = (step % steps_per_round) * per_step
    return (*first, *others[start : start + per_step])
