"""The singular value decompositions of a plan as jobs: each a pure function of plain tensors that needs no other.

A plan takes hundreds of them and little else, so whoever runs an algorithm may run several at once, elsewhere even. The
algorithms ask for a `Spread`, which is `map` unless somebody has more to offer, and know nothing of what it is. Jobs
hold matrices that are weighed already: the roots of a large matrix's moments are several times its size, and a job may
have a long way to go.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from torch import Tensor

from ireko_trainer.delta.factors import (
    Basis,
    Metric,
    Metrics,
    Root,
    shared_basis,
    tail_energies,
    weighed_factors,
)

Job = TypeVar("Job")
Result = TypeVar("Result")


class Spread(Protocol):
    """The results of a function for every job, in the order of the jobs.

    Jobs are taken as there is room for them, so that only a few exist at a time.
    """

    def __call__(self, function: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]:
        """See the class."""


def one_by_one(function: Callable[[Job], Result], jobs: Iterable[Job], /) -> Iterator[Result]:
    """The builtin `map`: in this process."""
    return map(function, jobs)


@dataclass(frozen=True, kw_only=True)
class Single:
    """A weighed matrix [m, n] float64."""

    weighed: Tensor


@dataclass(frozen=True, kw_only=True)
class Stack:
    """Matrices that are to share a basis, weighed by their outputs alone: s·A' W [m, n] float64 of each.

    inputs: the roots of their inputs' moments; common: the root of the mean of these moments.
    """

    weighed: tuple[Tensor, ...]
    inputs: tuple[Root | None, ...]
    common: Root | None

    def basis(self) -> Basis:
        """The basis and its errors."""
        return shared_basis(
            self.weighed, metrics=[Metric(inputs=root) for root in self.inputs], common=self.common
        )


@dataclass(frozen=True, kw_only=True)
class Pair:
    """A matrix and one that it may follow, both [m, n] float64 and weighed by the metric of the first."""

    target: Tensor
    base: Tensor
    projected: bool
    """Whether the projection is tried beside c = 1."""


@dataclass(frozen=True, kw_only=True)
class Truncation:
    """A weighed matrix [m, n] float64 whose best factors of a rank are wanted."""

    weighed: Tensor
    rank: int
    scale: float


def stack_of(weights: Sequence[Tensor], *, modules: Sequence[str], metrics: Metrics) -> Stack:
    """The stack of the named matrices, whose weights [m, n] are given."""
    own = [metrics.of(name) for name in modules]
    return Stack(
        weighed=tuple(metric.weigh_outputs(weight) for weight, metric in zip(weights, own, strict=True)),
        inputs=tuple(metric.inputs for metric in own),
        common=metrics.common(modules),
    )


Curves = tuple[tuple[float, Tensor], ...]
"""Coefficients of a base, 0 without one, with the squared errors of every rank."""


def curves_of(job: Single | Stack | Pair) -> Curves:
    """What every rank costs."""
    if isinstance(job, Single):
        return ((0.0, tail_energies(job.weighed)),)
    if isinstance(job, Stack):
        return ((0.0, job.basis().errors),)
    coefficients = (1.0, projection(job.target, job.base)) if job.projected else (1.0,)
    return tuple((c, tail_energies(job.target - c * job.base)) for c in coefficients)


def factors_of(job: Truncation | Stack) -> tuple[Tensor | None, Tensor]:
    """U [m, r] and V [r, n] under the metric of a truncation; the rows of a basis, without a U, of a stack."""
    if isinstance(job, Stack):
        return None, job.basis().rows
    return weighed_factors(job.weighed, rank=job.rank, scale=job.scale)


def projection(target: Tensor, base: Tensor) -> float:
    """c* = ⟨base, target⟩ / ‖base‖², which takes the most away from the target."""
    norm = float(base.square().sum())
    return float((base * target).sum()) / norm if norm > 0 else 0.0


def residual_error(*, target: Tensor, base: Tensor, coefficient: float, metric: Metric, rank: int) -> float:
    """Squared error of c·base + the best U V of `rank`."""
    return float(tail_energies(metric.weigh(target - coefficient * base.to(target)))[rank])


def spread_counted(
    spread: Spread,
    function: Callable[[Job], Result],
    jobs: Iterable[Job],
    *,
    total: int,
    on_done: Callable[[int, int], None],
) -> Iterator[Result]:
    """`spread`, telling how many of `total` results there are."""
    for done, result in enumerate(spread(function, jobs), start=1):
        on_done(done, total)
        yield result
