from __future__ import annotations

import pytest

from ireko_trainer.errors import NothingFitsError
from ireko_trainer.mlfs import Shape
from ireko_trainer.search.limits import MEBIBYTE, DeviceLimits, misses
from ireko_trainer.search.palette import largest, shapes_for_target
from ireko_trainer.search.selection import Candidate, choose, require_fit


def shape(hidden: int, intermediate: int, depth: int) -> Shape:
    return Shape(hidden=hidden, heads=hidden // 32, intermediate=intermediate, layers=tuple(range(depth)))


BIG, NARROW, SHALLOW, SMALL = shape(128, 512, 4), shape(64, 512, 4), shape(128, 512, 2), shape(64, 256, 2)
SHAPES = [BIG, NARROW, SHALLOW, SMALL]
BYTES = {BIG: 8, NARROW: 4, SHALLOW: 4, SMALL: 1}


def limits(mib: float, **floors: float) -> DeviceLimits:
    return DeviceLimits(
        target="camera", field="spec.deviceTargets[0]", max_bytes=int(mib * MEBIBYTE), **floors
    )


def size_of(subnet: Shape, bits: int | None) -> int:
    return BYTES[subnet] * (bits or 32) * MEBIBYTE // 4


def candidate(subnet: Shape, *, mib: float, quality: float) -> Candidate:
    return Candidate(shape=subnet, average_bits=4.25, size_bytes=int(mib * MEBIBYTE), quality=quality)


def test_only_shapes_that_no_other_contains_are_largest() -> None:
    assert largest([NARROW, SHALLOW, SMALL]) == [NARROW, SHALLOW]


def test_the_palette_of_a_target_is_ordered_by_quality_and_names_each_shape_once() -> None:
    quality = {(NARROW, 8): 0.5, (SHALLOW, 8): 0.6, (BIG, 4): 0.9, (SMALL, 8): 0.1}
    found = shapes_for_target(
        limits=limits(8),
        shapes=SHAPES,
        bits=[4, 8],
        size_of=size_of,
        quality_of=lambda subnet, bits: quality[subnet, bits],
        count=3,
    )
    assert [scored.shape for scored in found] == [BIG, SHALLOW, NARROW]


def test_a_limit_below_the_smallest_shape_names_the_size_that_would_do() -> None:
    with pytest.raises(
        NothingFitsError, match=r"maxSizeMiB: 0\.5 is too small for camera: .*needs 1 MiB; raise the limit"
    ):
        shapes_for_target(
            limits=limits(0.5),
            shapes=SHAPES,
            bits=[4, 8],
            size_of=size_of,
            quality_of=lambda *_: 0.0,
            count=1,
        )


def test_the_best_that_fits_is_chosen_and_the_smaller_one_at_equal_quality() -> None:
    offered = [
        candidate(BIG, mib=20, quality=0.95),
        candidate(NARROW, mib=9, quality=0.9),
        candidate(SHALLOW, mib=8, quality=0.9),
    ]
    assert choose(limits=limits(10), candidates=offered).shape == SHALLOW


@pytest.mark.parametrize(
    ("floors", "missed"),
    [
        ({}, []),
        ({"min_quality": 0.9}, []),
        ({"min_quality": 0.92}, ["minQuality"]),
        ({"min_quality_ratio": 0.98}, ["minQualityRatio"]),
        ({"min_quality": 0.92, "min_quality_ratio": 0.98}, ["minQuality", "minQualityRatio"]),
    ],
)
def test_every_missed_constraint_is_named(floors: dict[str, float], missed: list[str]) -> None:
    found = misses(limits(10, **floors), size_bytes=MEBIBYTE, quality=0.9, teacher_quality=0.95)
    assert [miss.constraint for miss in found] == missed


def test_a_member_below_its_floor_is_refused_with_the_constraint_and_the_value() -> None:
    with pytest.raises(NothingFitsError, match=r"misses minQuality is 0\.92 and it reaches 0\.9\. Relax"):
        require_fit(
            limits=limits(10, min_quality=0.92),
            member=candidate(SMALL, mib=1, quality=0.9),
            teacher_quality=0.95,
        )


def test_the_stricter_of_two_floors_holds() -> None:
    both = limits(10, min_quality=0.5, min_quality_ratio=0.9)
    assert both.quality_floor(teacher_quality=0.8) == pytest.approx(0.72)
    assert limits(10).quality_floor(teacher_quality=0.8) is None
