"""The arithmetic: what every stage of a run holds at its peak, as terms that can be checked by hand.

Weights are float32 throughout. Where they come from a file and nothing changes them, they are mapped and the system
may drop them and read them again: they cost speed where memory is short, not the run. Everything else has to fit.
Members are not known before they are chosen: what they take is what the largest one can take.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from transformers import PretrainedConfig

from ireko_api.spec import CompressionRunSpec, Mlfs
from ireko_trainer.evaluation.language import TOKENS_AT_ONCE
from ireko_trainer.memory.deltas import DeltaParts
from ireko_trainer.memory.dry import Kept, Pass
from ireko_trainer.memory.parts import COPIES_IMITATING, COPIES_LEARNING, FLOAT, AtOnce, Texts, total
from ireko_trainer.memory.terms import Process, Stage, Term, size
from ireko_trainer.quant.probe import TOKENS_AT_ONCE as COMPARED_AT_ONCE

# Copies of the logits of all tokens, in float32, while a step is at its peak: seen in the trainer's own steps and
# held against them in tests/unit/memory.
_COPIES_IMPORTANCE = 6.2
_COPIES_JUDGING = 3.0
_COPIES_COMPARING = 3.5
_FEATURE_COPIES = 6
"""Of the projected hidden states: the teacher's, the subnet's, and what their comparison keeps."""


_MEASURED = ("Sensitivity", "Search", "Interaction")
"""Ways to choose bits that compare answers."""
_PER_MOMENT = 56
"""Bytes for each of the squared columns of a matrix while GPTQ solves it: second moments in float32, their order and
their damping, a factorisation and an inverse in float64."""
_PER_WEIGHT = 32
"""Bytes for each weight that GPTQ solves at once: weights, codes, scales and errors in float32, twice over."""


def estimate(
    *,
    spec: CompressionRunSpec,
    config: PretrainedConfig,
    texts: Texts,
    precision: torch.dtype,
    at_once: AtOnce,
    on_gpu: bool = False,
    passes: dict[Pass, Kept] | None = None,
) -> list[Stage]:
    """The stages of a run in order, with what each holds at its peak beside the process itself.

    Args:
        spec: the run.
        config: of the teacher.
        texts: how long they are.
        precision: that training computes in.
        at_once: how many texts the stages that measure something look at.
        on_gpu: whether the workers train on GPUs, to which everything has to be copied.
        passes: those of earlier estimates of the same config, which are not made again; new ones are added.
    """
    arithmetic = _Arithmetic(
        spec=spec,
        config=config,
        texts=texts,
        precision=precision,
        at_once=at_once,
        on_gpu=on_gpu,
        passes={} if passes is None else passes,
    )
    return [stage for stage in arithmetic.stages() if stage.terms]


@dataclass(frozen=True, kw_only=True)
class _Arithmetic(DeltaParts):
    def stages(self) -> Iterator[Stage]:
        mlfs = self.spec.pipeline.mlfs
        yield self._stage("teacher", "worker", self._teacher(mlfs))
        if mlfs is not None:
            if mlfs.sampling.importance_order:
                yield self._stage("order", "worker", self._order(mlfs))
            yield self._stage("palette", "worker", self._palette())
            for name, settings in (("widths", mlfs.stages.widths), ("depths", mlfs.stages.depths)):
                if settings.steps:
                    yield self._stage(name, "worker", self._supernet(mlfs))
        yield self._stage("select", "worker", self._select())
        if mlfs is not None and mlfs.recovery is not None:
            yield self._stage("recovery", "worker", self._recovery(mlfs))
        delta, quantization = self.spec.pipeline.delta, self.spec.pipeline.quantization
        if delta is not None:
            yield self._stage("factor", "worker", self._factor(delta))
            if delta.recovery is not None:
                yield self._stage("delta", "worker", self._delta(delta, delta.recovery))
        if quantization is not None and (quantization.method != "RTN" or delta is not None):
            yield self._stage("quantize", "trainer", self._solve())
        yield self._stage("ship", "trainer", self._ship())

    def _stage(self, name: str, process: Process, terms: Sequence[Term]) -> Stage:
        if process == "worker" and self.on_gpu:
            # A GPU maps no files.
            terms = [Term(what=one.what, how=one.how, bytes=one.bytes) for one in terms]
        return Stage(name=name, process=process, terms=tuple(one for one in terms if one.bytes))

    # --- training -------------------------------------------------------------------------------------------

    def _teacher(self, mlfs: Mlfs | None) -> list[Term]:
        method = "Skip" if mlfs is None else mlfs.stages.teacher.method
        if mlfs is None or method == "Skip":
            return [self._weights("weights of the teacher", mapped=self._is_stored_in_float32)]
        weights = self._weights("weights of the teacher")
        full = method == "Full"
        trained = self._sizes.parameters if full else self._pair(mlfs)
        return [
            weights,
            *self._optimized("weights" if full else "low-rank pairs", trained, own=not full),
            *self._activations(mlfs, rank=None if full else mlfs.rank, dropout=True),
            *self._logits(self._train_rows(mlfs) * self.texts.train, copies=COPIES_LEARNING, pair=not full),
        ]

    def _order(self, mlfs: Mlfs) -> list[Term]:
        length = self.texts.calibration
        rows = max(
            1, min(self.at_once.order_rows, self._train_rows(mlfs), self.at_once.batch_tokens // length)
        )
        kept = self._kept(Pass(rows=rows, length=length, precision=torch.float32, rank=1))
        return [
            self._weights("weights to put in order"),
            self._kept_term(kept, rows, length),
            *self._logits(rows * length, copies=_COPIES_IMPORTANCE),
        ]

    def _palette(self) -> list[Term]:
        return [
            self._weights("weights of the teacher", mapped=True),
            self._weights("a slice of it, uncut at most"),
            self._weights("the slice with rounded weights"),
            *self._codes(1, self._sizes.parameters),
            *self._judging(self.texts.calibration),
        ]

    def _supernet(self, mlfs: Mlfs) -> list[Term]:
        frozen = mlfs.distillation.teacher == "Frozen"
        return [
            *([self._weights("weights of the frozen teacher", mapped=True)] if frozen else []),
            self._weights("weights of the supernet"),
            *self._learning(mlfs),
        ]

    def _recovery(self, mlfs: Mlfs) -> list[Term]:
        return [
            self._weights("weights of the frozen teacher", mapped=True),
            self._weights("weights of the supernet", mapped=True),
            self._member("weights of the member"),
            *self._learning(mlfs),
        ]

    def _learning(self, mlfs: Mlfs) -> list[Term]:
        tokens = self._train_rows(mlfs) * self.texts.train
        return [
            *self._optimized("low-rank pairs", self._pair(mlfs), own=True),
            *self._activations(mlfs, rank=mlfs.rank),
            *self._features(mlfs, tokens),
            *self._logits(tokens, copies=COPIES_IMITATING, pair=True),
        ]

    def _activations(self, mlfs: Mlfs, *, rank: int | None, dropout: bool = False) -> list[Term]:
        rows, length = self._train_rows(mlfs), self.texts.train
        kept = self._kept(
            Pass(rows=rows, length=length, precision=self.precision, rank=rank, dropout=dropout)
        )
        if not mlfs.gradient_checkpointing:
            return [self._kept_term(kept, rows, length)]
        layers, tokens, hidden = self._sizes.layers, rows * length, self._sizes.hidden
        return [
            Term(
                what="activations",
                how=f"inputs of {layers} layers × {tokens:,} tokens × {hidden:,} × {FLOAT} bytes + 2 × "
                f"{size(kept.per_layer)} for the layer at work + {size(kept.elsewhere)} elsewhere",
                bytes=layers * tokens * hidden * FLOAT + 2 * kept.per_layer + kept.elsewhere,
            )
        ]

    def _features(self, mlfs: Mlfs, tokens: int) -> list[Term]:
        if mlfs.distillation.beta == 0:
            return []
        states = self._sizes.layers + 1
        wide = min(mlfs.distillation.projection, self._sizes.hidden)
        return [
            Term(
                what="hidden states that are compared",
                how=f"{_FEATURE_COPIES} copies × {states} × {tokens:,} tokens × {wide} × {FLOAT} bytes",
                bytes=_FEATURE_COPIES * states * tokens * wide * FLOAT,
            )
        ]

    # --- choosing, rounding and judging ---------------------------------------------------------------------

    def _select(self) -> list[Term]:
        quantization, delta = self.spec.pipeline.quantization, self.spec.pipeline.delta
        rounding = [
            *([] if quantization is None else [self._weights("the candidate with rounded weights")]),
            *self._codes(self._widths, self._sizes.parameters),
            *self._judging(self.texts.validation),
        ]
        return [
            self._weights("weights of the teacher", mapped=True),
            self._weights("weights of a candidate", mapped=self.spec.pipeline.mlfs is None and delta is None),
            *max(rounding, [] if delta is None else self._factoring(delta), key=total),
        ]

    def _solve(self) -> list[Term]:
        """GPTQ: one block after the other, all calibration texts between two blocks; then factors are fitted anew."""
        terms = [
            *self._language_teacher(),
            self._member("weights of a member", mapped=True),
            *self._codes(self._forms, self._member_parameters),
        ]
        delta = self.spec.pipeline.delta
        refit = [] if delta is None else self._measuring(delta)
        return [*terms, *max(self._solving(), self._comparing(), refit, key=total)]

    def _comparing(self) -> list[Term]:
        """Where bits are chosen by measuring: answers of several variants at once, and those of the dense model."""
        quantization = self.spec.pipeline.quantization
        if quantization is None or quantization.importance not in _MEASURED:
            return []
        tokens = max(self.texts.calibration, self.at_once.batch_tokens)
        states = (self._sizes.layers + 1) * tokens * self._sizes.hidden
        return [
            *self._logits(COMPARED_AT_ONCE, copies=_COPIES_COMPARING),
            Term(
                what="inputs of all layers",
                how=f"{states:,} × {FLOAT} bytes",
                bytes=states * FLOAT,
            ),
        ]

    def _solving(self) -> list[Term]:
        quantization = self.spec.pipeline.quantization
        if quantization is None or quantization.method == "RTN":
            return []
        widest = max(reading.columns for reading in self._sizes.readings)
        wide = 2 * self._sizes.hidden + widest
        solving = max(
            reading.columns**2 * _PER_MOMENT + reading.columns * sum(reading.rows) * _PER_WEIGHT
            for reading in self._sizes.readings
        )
        return [
            Term(
                what="a block",
                how=f"{self._sizes.block:,} × {FLOAT} bytes",
                bytes=self._sizes.block * FLOAT,
            ),
            self._calibration_texts(wide),
            Term(
                what="second moments and their inverse",
                how=f"{widest:,}² × {_PER_MOMENT} bytes and the matrices that are solved with them",
                bytes=solving,
            ),
        ]

    def _ship(self) -> list[Term]:
        return [
            *self._language_teacher(),
            self._member("weights of a member", mapped=True),
            self._member("the member as it ships, in float32"),
            *self._codes(self._forms, self._member_parameters),
            *self._judging(self.texts.validation),
        ]

    def _language_teacher(self) -> list[Term]:
        """Whoever judges language models keeps the teacher at hand."""
        if self._sizes.vocabulary is None:
            return []
        return [self._weights("weights of the teacher", mapped=True)]

    def _codes(self, widths: int, weights: int) -> list[Term]:
        if self.spec.pipeline.quantization is None:
            return []
        return [
            Term(
                what="rounded weights",
                how=f"{weights:,} × {widths} bytes (one for each of {widths} forms)",
                bytes=weights * widths,
            )
        ]

    def _judging(self, length: int) -> list[Term]:
        """A forward pass that keeps nothing: the logits of a language model, else one layer's intermediate results."""
        rows = self.spec.evaluation.batch_size
        if self._sizes.vocabulary is not None:
            rows = min(rows, max(1, TOKENS_AT_ONCE // length))
            return self._logits(rows * length, copies=_COPIES_JUDGING)
        kept = self._kept(Pass(rows=rows, length=length, precision=torch.float32, rank=1))
        return [
            Term(
                what="activations",
                how=f"one layer for {rows} × {length:,} tokens",
                bytes=kept.per_layer,
            )
        ]

    # --- what the terms are made of -------------------------------------------------------------------------

    @property
    def _is_stored_in_float32(self) -> bool:
        """Otherwise the file is converted while it is loaded."""
        return self.config.dtype in (None, torch.float32)

    @property
    def _widths(self) -> int:
        quantization = self.spec.pipeline.quantization
        return 0 if quantization is None else len(quantization.bits)

    @property
    def _forms(self) -> int:
        """Rounded forms of a member that are there at once: at every width, and, where rounding depends on the choice
        of bits, as chosen and as in the orders that it is compared with."""
        quantization = self.spec.pipeline.quantization
        alike = quantization is None or quantization.method == "RTN"
        return self._widths + (0 if alike else 1 + self.at_once.baselines)

    def _train_rows(self, mlfs: Mlfs) -> int:
        return math.ceil(mlfs.batch_size / self._workers)

    def _pair(self, mlfs: Mlfs) -> int:
        return self._sizes.pair_per_rank * mlfs.rank
