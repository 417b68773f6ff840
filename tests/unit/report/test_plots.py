"""Pictures are drawn for whatever the content has, at a known size."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from ireko_trainer.report import Curve, ReportContent
from ireko_trainer.report.plots import (
    bits_picture,
    curves_picture,
    importance_picture,
    pareto_picture,
    round_numbers,
    series_of,
    shortened,
    smoothed,
)
from ireko_trainer.report.style import DARK, DOTS_PER_INCH, LIGHT, Canvas

Picture = Callable[[ReportContent, Canvas], bytes]
PICTURES = [pareto_picture, bits_picture, importance_picture, curves_picture]


def pixels(png: bytes) -> np.ndarray:
    image = Image.open(io.BytesIO(png))
    assert image.format == "PNG"
    return np.asarray(image.convert("RGB"))


@pytest.mark.parametrize("picture", PICTURES)
@pytest.mark.parametrize(("narrow", "theme", "inches"), [(False, LIGHT, 8.6), (True, DARK, 3.9)])
def test_a_picture_has_its_width_its_ground_and_something_on_it(
    picture: Picture, narrow: bool, theme: object, inches: float, content: ReportContent
) -> None:
    canvas = Canvas(narrow=narrow, theme=DARK if theme is DARK else LIGHT)
    drawn = pixels(picture(content, canvas))
    assert drawn.shape[1] == pytest.approx(inches * DOTS_PER_INCH, abs=1)
    ground = [int(canvas.theme.ground[i : i + 2], 16) for i in (1, 3, 5)]
    np.testing.assert_allclose(drawn[0, 0], ground, atol=3)
    assert 0.01 < np.mean(np.abs(drawn.astype(int) - drawn[0, 0]).sum(axis=2) > 60) < 0.9


def test_the_same_numbers_give_the_same_bytes(content: ReportContent) -> None:
    canvas = Canvas(narrow=True, theme=LIGHT)
    assert importance_picture(content, canvas) == importance_picture(content, canvas)


def test_a_family_of_one_without_candidates_is_drawn(content: ReportContent) -> None:
    alone = replace(content, members=content.members[:1], candidates=(), baselines=())
    assert pixels(pareto_picture(alone, Canvas(narrow=False, theme=LIGHT))).size > 0


def test_sixteen_members_of_one_size_are_drawn(content: ReportContent) -> None:
    crowd = replace(
        content,
        members=tuple(replace(content.members[0], target=f"target-{i}-" + "x" * 50) for i in range(16)),
    )
    for picture in (pareto_picture, bits_picture):
        assert pixels(picture(crowd, Canvas(narrow=False, theme=LIGHT))).size > 0


@given(st.lists(st.floats(-5, 5), min_size=1, max_size=400))
def test_smoothing_stays_between_the_extremes_and_keeps_the_length(values: list[float]) -> None:
    means = smoothed(values)
    assert len(means) == len(values)
    assert min(values) - 1e-9 <= min(means)
    assert max(means) <= max(values) + 1e-9


def test_a_short_curve_is_not_smoothed() -> None:
    assert smoothed([1.0, 3.0, 2.0]) == pytest.approx([1.0, 3.0, 2.0])


def test_rates_norms_and_numbers_that_are_none_are_not_drawn() -> None:
    curve = Curve(stage="widths", points=((1, {"loss": 1.0, "learning_rate": 0.1}), (2, {"loss": math.nan})))
    assert series_of(curve) == {"loss": ([1], [1.0])}


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0.9, 12, [1, 2, 5, 10]), (30, 400, [50, 100, 200]), (0.03, 0.3, [0.05, 0.1, 0.2])],
)
def test_ticks_are_round(low: float, high: float, ticks: list[float]) -> None:
    assert round_numbers(low, high) == pytest.approx(ticks)


def test_long_names_are_cut_where_they_would_not_fit() -> None:
    assert shortened("gateway") == "gateway"
    assert len(shortened("g" * 63)) == 24
    assert shortened("g" * 63).endswith("…")
