"""Which subnets a step trains.

A pure function of (seed, step), so a resumed run and every data-parallel worker draw the same without
talking. The smallest subnet is in every step (the sandwich rule: it bounds the palette from below and lags
otherwise); the others take turns in shuffled rounds, so that within a round each of them gets exactly one
step of its own.
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

    @property
    def smallest(self) -> Shape:
        """The shape with the fewest multiplications."""
        return min(self.shapes, key=_work)

    def widths(self, *, full: Shape) -> Palette:
        """The shapes that keep every layer: what the first supernet stage trains.

        A space without such a shape falls back to all of it: then there is no width to train alone.
        """
        deep = tuple(shape for shape in self.shapes if shape.layers == full.layers)
        return Palette(shapes=deep or self.shapes)


def draw(
    *, palette: Palette, full: Shape, count: int, seed: int, step: int, in_place: bool
) -> tuple[Shape, ...]:
    """The subnets of one step, distinct, at most `count` of them.

    With a frozen teacher: the smallest, then others in turn. The full shape is drawn only if the palette
    holds it. In place, as the paper: the maxnet first (it teaches the rest), the smallest, then others in
    turn.
    """
    first = (full,) if in_place else ()
    fixed = tuple(dict.fromkeys((*first, palette.smallest)))[:count]
    others = [shape for shape in palette.shapes if shape not in fixed]
    per_step = min(count - len(fixed), len(others))
    if per_step == 0:
        return fixed
    steps_per_round = len(others) // per_step
    turn = random.Random(f"{seed}/{step // steps_per_round}")
    turn.shuffle(others)
    start = (step % steps_per_round) * per_step
    return (*fixed, *others[start : start + per_step])


def _work(shape: Shape) -> tuple[int, Shape]:
    return len(shape.layers) * shape.hidden * (2 * shape.hidden + shape.intermediate), shape
