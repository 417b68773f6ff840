"""The front holds exactly what nothing beats."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.report.fronts import pareto_front

POINTS = st.lists(
    st.tuples(st.integers(1, 12).map(float), st.integers(0, 12).map(lambda q: q / 12)), max_size=30
)


def beats(a: tuple[float, float], b: tuple[float, float]) -> bool:
    return a[0] <= b[0] and a[1] >= b[1] and a != b


@given(POINTS)
def test_no_point_beats_one_on_the_front(points: list[tuple[float, float]]) -> None:
    for index in pareto_front(points):
        assert not any(beats(other, points[index]) for other in points)


@given(POINTS)
def test_every_point_off_the_front_is_beaten_or_doubled_by_one_on_it(
    points: list[tuple[float, float]],
) -> None:
    front = pareto_front(points)
    for index, point in enumerate(points):
        if index not in front:
            assert any(beats(points[i], point) or points[i] == point for i in front)


@given(POINTS)
def test_the_front_rises_in_size_and_quality(points: list[tuple[float, float]]) -> None:
    front = [points[index] for index in pareto_front(points)]
    assert front == sorted(front)
    assert len({size for size, _ in front}) == len({quality for _, quality in front}) == len(front)


def test_a_hand_made_front() -> None:
    points = [(5.0, 0.80), (2.0, 0.70), (3.0, 0.65), (8.0, 0.80), (9.0, 0.90)]
    assert pareto_front(points) == [1, 0, 4]
