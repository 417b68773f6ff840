"""Which subnets a step trains."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.mlfs import Palette, Shape, draw

FULL = Shape(hidden=384, heads=12, intermediate=1536, layers=tuple(range(6)))
SHAPES = tuple(
    Shape(hidden=32 * heads, heads=heads, intermediate=size, layers=layers)
    for heads in (6, 12)
    for size in (192, 768)
    for layers in ((0, 2, 5), FULL.layers)
)

palettes = st.sets(st.sampled_from([*SHAPES, FULL]), min_size=1).map(
    lambda shapes: Palette(shapes=tuple(shapes))
)


@given(palette=palettes, count=st.integers(1, 5), seed=st.integers(0, 9), step=st.integers(0, 500))
def test_a_step_trains_distinct_shapes_of_the_palette(
    palette: Palette, count: int, seed: int, step: int
) -> None:
    shapes = draw(palette=palette, full=FULL, count=count, seed=seed, step=step, in_place=False)
    assert len(set(shapes)) == len(shapes) == min(count, len(palette.shapes))
    assert set(shapes) <= set(palette.shapes)


@given(palette=palettes, count=st.integers(1, 5), step=st.integers(0, 500))
def test_in_place_the_maxnet_comes_before_the_others(palette: Palette, count: int, step: int) -> None:
    shapes = draw(palette=palette, full=FULL, count=count, seed=0, step=step, in_place=True)
    assert shapes[0] == FULL
    assert len(set(shapes)) == len(shapes) == 1 + min(count, len({*palette.shapes} - {FULL}))


@pytest.mark.parametrize("count", [1, 2, 4])
def test_all_shapes_take_turns(count: int) -> None:
    palette = Palette(shapes=SHAPES)
    counts = Counter(
        shape
        for step in range(24)
        for shape in draw(palette=palette, full=FULL, count=count, seed=0, step=step, in_place=False)
    )
    assert counts == dict.fromkeys(SHAPES, 24 * count // len(SHAPES))


def test_in_place_the_others_take_turns() -> None:
    palette = Palette(shapes=(*SHAPES, FULL))
    counts = Counter(
        shape
        for step in range(16)
        for shape in draw(palette=palette, full=FULL, count=1, seed=0, step=step, in_place=True)
    )
    assert counts.pop(FULL) == 16
    assert counts == dict.fromkeys(SHAPES, 2)


def test_a_draw_depends_on_seed_and_step_alone() -> None:
    def draws(seed: int) -> list[tuple[Shape, ...]]:
        palette = Palette(shapes=SHAPES)
        return [
            draw(palette=palette, full=FULL, count=3, seed=seed, step=step, in_place=False)
            for step in range(20)
        ]

    assert draws(1) == draws(1)
    assert draws(1) != draws(2)


def test_targets_are_in_the_palette_once() -> None:
    target = Shape(hidden=288, heads=9, intermediate=192, layers=FULL.layers)
    palette = Palette.of(SHAPES, targets=[target, SHAPES[0]])
    assert set(palette.shapes) == {*SHAPES, target}
    assert len(palette.shapes) == len(SHAPES) + 1


def test_the_widths_of_a_palette_keep_every_layer() -> None:
    assert {shape.layers for shape in Palette(shapes=SHAPES).widths(full=FULL).shapes} == {FULL.layers}


def test_an_empty_palette_is_refused() -> None:
    with pytest.raises(ValueError, match="at least one"):
        Palette(shapes=())
