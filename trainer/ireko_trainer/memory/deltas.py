"""What factoring takes: second moments and their roots in float64, decompositions, and factors in training.

Held against a process's own peak in tests/integration/test_memory_measured.py.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from ireko_api.spec import Delta, DeltaRecovery
from ireko_trainer.memory.dry import Pass
from ireko_trainer.memory.parts import COPIES_IMITATING, COPIES_LEARNING, DOUBLE, FLOAT, Parts, total
from ireko_trainer.memory.skeletons import Reading
from ireko_trainer.memory.terms import Term

_PER_COLLECTED_MOMENT = 2 * DOUBLE
"""Bytes while moments are collected: the sum and the matrix that is read off it."""
_PER_ROOT = 2 * DOUBLE
"""Bytes of the root of a moment matrix: the factor and its inverse."""
_PER_ROOT_FOUND = 8 * DOUBLE
"""Bytes while such a root is found: damped, turned round, factorised, and inverted twice with what LAPACK copies."""
_PER_DECOMPOSED = 6 * DOUBLE
"""Bytes for each weight of the matrices that are decomposed together: as they are, weighed, stacked, LAPACK's copy, and
two factors."""


@dataclass(frozen=True, kw_only=True)
class DeltaParts(Parts):
    """The stages that factor members and train the factors."""

    def _factor(self, delta: Delta) -> list[Term]:
        """What factors a member; Ray tasks that help do so beside workers that wait, and hold one matrix each."""
        return [self._member("weights of a member"), *self._factoring(delta)]

    def _factoring(self, delta: Delta) -> list[Term]:
        """The largest of its phases: inputs are measured, gradients are measured, ranks are traded."""
        phases = [self._measuring(delta), self._trading(delta)]
        if delta.initialization == "Curvature":
            phases.append(self._learning_curvature(delta))
        if delta.materialize:
            phases.append([self._member("weights once more, factored and multiplied out")])
        return max(phases, key=total)

    def _measuring(self, delta: Delta) -> list[Term]:
        return [
            self._moments("second moments of all inputs", self._read(delta), _PER_COLLECTED_MOMENT),
            self._calibration_texts(2 * self._sizes.hidden),
        ]

    def _learning_curvature(self, delta: Delta) -> list[Term]:
        rows = max(1, min(self.at_once.delta_rows, self.at_once.batch_tokens // self.texts.calibration))
        length = self.texts.calibration
        kept = self._kept(Pass(rows=rows, length=length, precision=torch.float32, rank=1))
        return [
            self._moments("second moments of all inputs", self._read(delta), _PER_COLLECTED_MOMENT),
            self._moments("and of all gradients", self._written(delta), DOUBLE),
            self._kept_term(kept, rows, length),
            *self._logits(rows * length, copies=COPIES_LEARNING),
        ]

    def _trading(self, delta: Delta) -> list[Term]:
        """Moments and their roots in float64, the matrices in float64, and one decomposition."""
        rooted = 0 if delta.initialization == "Plain" else self._read(delta)
        curved = self._written(delta) if delta.initialization == "Curvature" else 0
        readings, layers = self._factored(delta)
        weights = layers * sum(reading.columns * sum(reading.rows) for reading in readings)
        decomposed = max((reading.columns * sum(reading.rows) for reading in readings), default=0)
        widest = max((max(reading.columns, *reading.rows) for reading in readings), default=0)
        return [
            self._moments("second moments of all inputs", self._read(delta), DOUBLE),
            self._moments("and of all gradients", curved, DOUBLE),
            self._moments("their roots, both ways", rooted + curved, _PER_ROOT),
            Term(
                what="matrices in float64",
                how=f"{weights:,} × {DOUBLE} bytes",
                bytes=weights * DOUBLE,
            ),
            max(
                Term(
                    what="a decomposition",
                    how=f"{decomposed:,} × {_PER_DECOMPOSED} bytes",
                    bytes=decomposed * _PER_DECOMPOSED,
                ),
                Term(
                    what="a root while it is found",
                    how=f"{widest:,}² × {_PER_ROOT_FOUND} bytes",
                    bytes=widest**2 * _PER_ROOT_FOUND,
                ),
                key=lambda term: term.bytes,
            ),
        ]

    def _moments(self, what: str, numbers: int, each: int) -> Term:
        return Term(what=what, how=f"{numbers:,} × {each} bytes", bytes=numbers * each)

    def _factored(self, delta: Delta) -> tuple[list[Reading], int]:
        """The matrices of a block that take part, and how many blocks do."""
        wanted = [
            reading
            for reading in self._sizes.readings
            if delta.modules == "All" or reading.feed_forward == (delta.modules == "Mlp")
        ]
        return wanted, max(0, self._sizes.layers - delta.keep_first - delta.keep_last)

    def _read(self, delta: Delta) -> int:
        """Numbers in the second moments of what all matrices read; those that read the same tensor share them."""
        readings, layers = self._factored(delta)
        return layers * sum(reading.columns**2 for reading in readings)

    def _written(self, delta: Delta) -> int:
        """Numbers in the second moments of the gradients of what all matrices write."""
        readings, layers = self._factored(delta)
        return layers * sum(rows**2 for reading in readings for rows in reading.rows)

    def _delta(self, delta: Delta, recovery: DeltaRecovery) -> list[Term]:
        rows, length = math.ceil(recovery.batch_size / self._workers), self.texts.train
        kept = self._kept(Pass(rows=rows, length=length, precision=self.precision, rank=None))
        factors, ranks = self._factor_numbers(delta)
        return [
            self._member("weights of the member as it was", mapped=True),
            self._member("weights of the factored member"),
            *self._optimized("factors", factors, own=True),
            self._kept_term(kept, rows, length),
            Term(
                what="between two factors",
                how=f"{rows * length:,} tokens × {ranks:,} × {FLOAT} bytes",
                bytes=rows * length * ranks * FLOAT,
            ),
            *self._logits(rows * length, copies=COPIES_IMITATING),
        ]

    def _factor_numbers(self, delta: Delta) -> tuple[int, int]:
        """Numbers that train, and the sum of the ranks, where all matrices have the same share of theirs.

        Factors train in full, r·(m + n), and are stored without their common freedom, r·(m + n - r): training can take
        more numbers than the matrix had.
        """
        readings, layers = self._factored(delta)
        share = self._share_left(delta)
        numbers = ranks = 0
        for reading in readings:
            for rows in reading.rows:
                both, weights = rows + reading.columns, rows * reading.columns
                rank = (
                    math.ceil((both - math.sqrt(both**2 - 4 * share * weights)) / 2)
                    if delta.rank is None
                    else min(delta.rank, rows, reading.columns)
                )
                numbers += layers * rank * both
                ranks += layers * rank
        return numbers, ranks

    def _share_left(self, delta: Delta) -> float:
        """Of the numbers of the matrices that take part, where the target is a share of all of them."""
        readings, layers = self._factored(delta)
        some = layers * sum(reading.columns * sum(reading.rows) for reading in readings)
        whole = self._sizes.layers * sum(
            reading.columns * sum(reading.rows) for reading in self._sizes.readings
        )
        return max(0.0, 1 - (delta.target_reduction or 0.0) * whole / max(1, some))
