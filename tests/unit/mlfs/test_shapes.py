"""Shapes: what a standard config can say, and which layers a depth keeps."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs import Heads, Shape, layers_kept, shapes_of_space
from ireko_trainer.mlfs.shapes import check

FULL = Shape(hidden=384, heads=12, intermediate=1536, layers=tuple(range(6)))


@given(st.integers(2, 48).flatmap(lambda layers: st.tuples(st.just(layers), st.integers(2, layers))))
def test_a_depth_keeps_the_first_and_the_last_layer_and_spreads_the_rest(sizes: tuple[int, int]) -> None:
    layers, depth = sizes
    kept = layers_kept(layers, depth)
    gaps = {after - before for before, after in itertools.pairwise(kept)}
    assert (len(kept), kept[0], kept[-1]) == (depth, 0, layers - 1)
    assert min(gaps) >= 1
    assert max(gaps) - min(gaps) <= 1


def test_one_layer_is_the_first() -> None:
    assert layers_kept(6, 1) == (0,)


@pytest.mark.parametrize("depth", [0, 7])
def test_a_depth_that_the_model_has_not_is_refused(depth: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 6"):
        layers_kept(6, depth)


@pytest.mark.parametrize(
    ("changed", "remedy"),
    [
        ({"hidden": 320, "heads": 12}, "nearest is hidden 320 with 10 heads"),
        ({"hidden": 416, "heads": 13}, "up to 384"),
        ({"hidden": 0, "heads": 0}, "nearest is hidden 32 with 1 heads"),
        ({"intermediate": 1537}, "choose 1 to 1536"),
        ({"intermediate": 0}, "choose 1 to 1536"),
        ({"layers": ()}, "one or more"),
        ({"layers": (0, 6)}, "0 to 5"),
        ({"layers": (2, 1)}, "ascending"),
    ],
)
def test_a_shape_that_cannot_be_cut_is_refused_with_a_remedy(changed: dict[str, object], remedy: str) -> None:
    values: dict[str, object] = {"hidden": 384, "heads": 12, "intermediate": 1536, "layers": FULL.layers}
    with pytest.raises(UserError, match=remedy):
        check(Shape(**(values | changed)), full=FULL)  # type: ignore[arg-type]


ratios = st.lists(st.floats(0.01, 1), min_size=1, max_size=3)


@given(
    hidden=ratios,
    intermediate=ratios,
    layers=ratios,
    heads=st.builds(Heads, per_group=st.sampled_from([1, 2, 4]), follow_hidden=st.booleans()),
)
def test_every_shape_of_a_space_can_be_cut(
    hidden: list[float], intermediate: list[float], layers: list[float], heads: Heads
) -> None:
    shapes = shapes_of_space(full=FULL, hidden=hidden, intermediate=intermediate, layers=layers, heads=heads)
    assert shapes == tuple(sorted(set(shapes)))
    for shape in shapes:
        check(shape, full=FULL, heads=heads)
        assert shape.within(FULL)
        assert shape.intermediate % 32 == 0


def test_a_space_is_the_product_of_its_axes() -> None:
    shapes = shapes_of_space(full=FULL, hidden=[1, 0.75], intermediate=[0.25, 0.125], layers=[1, 0.67])
    assert {(shape.hidden, shape.intermediate, len(shape.layers)) for shape in shapes} == {
        (hidden, intermediate, depth)
        for hidden in (384, 288)
        for intermediate in (384, 192)
        for depth in (6, 4)
    }
    assert {shape.layers for shape in shapes} == {(0, 1, 2, 3, 4, 5), (0, 2, 3, 5)}


def test_ratio_one_is_the_full_size_even_if_no_multiple_of_32() -> None:
    odd = Shape(hidden=48, heads=4, intermediate=100, layers=(0, 1))
    assert shapes_of_space(full=odd, hidden=[1], intermediate=[1], layers=[1]) == (odd,)


def test_heads_are_cut_in_groups_and_a_free_hidden_size_to_what_they_divide() -> None:
    full = Shape(hidden=192, heads=6, intermediate=512, layers=(0, 1))
    heads = Heads(per_group=3, follow_hidden=False)
    shapes = shapes_of_space(full=full, hidden=[1, 0.75, 0.5], intermediate=[1], layers=[1], heads=heads)
    # Two groups: three quarters of them are both, a half is one.
    assert [(shape.hidden, shape.heads) for shape in shapes] == [(96, 3), (144, 6), (192, 6)]


def test_a_free_hidden_size_that_its_heads_do_not_divide_is_refused() -> None:
    shape = Shape(hidden=100, heads=12, intermediate=1536, layers=FULL.layers)
    with pytest.raises(UserError, match="nearest is 96"):
        check(shape, full=FULL, heads=Heads(follow_hidden=False))
