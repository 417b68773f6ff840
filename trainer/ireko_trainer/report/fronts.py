"""The Pareto front of size and quality."""

from __future__ import annotations

from collections.abc import Sequence


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points (size, quality) that nothing beats, by ascending size.

    A point is beaten by one that is not larger and not worse, and is smaller or better. Of equal points the
    first stands for all.
    """
    front: list[int] = []
    best = float("-inf")
    for index in sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i)):
        if points[index][1] > best:
            front.append(index)
            best = points[index][1]
    return front
