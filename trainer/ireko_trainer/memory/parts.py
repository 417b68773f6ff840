"""The terms that several stages have, and what a run says about them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from transformers import PretrainedConfig

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.memory.dry import Kept, Pass, kept_bytes
from ireko_trainer.memory.skeletons import Sizes, sizes_of
from ireko_trainer.memory.terms import Term, size

FLOAT = 4
_ADAM = 2 * FLOAT
"""Bytes that AdamW keeps for every number that it trains."""
DOUBLE = 8
"""Bytes of a float64."""

# Copies of the logits of all tokens, in float32, while a step is at its peak: seen in the trainer's own steps and
# held against them in tests/unit/memory.
COPIES_LEARNING = 4.2
COPIES_IMITATING = 8.5
_COPIES_OF_A_PAIR = 1.5
"""More, where the head has a low-rank pair, whose answers are added to its own."""


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Tokens of the longest text of each split."""

    train: int
    validation: int
    calibration: int


@dataclass(frozen=True, kw_only=True)
class AtOnce:
    """How many calibration texts are looked at together, at most."""

    order_rows: int
    """While units are put in order."""
    delta_rows: int
    """While the gradients of all matrices are measured."""
    batch_tokens: int
    """In a batch of either, with padding."""
    sample_rows: int
    """In all batches, which quantization takes from block to block together."""
    sample_tokens: int
    """In all batches, with padding."""
    baselines: int
    """Orders of bits that every member is compared with."""


def total(terms: Sequence[Term]) -> int:
    """Bytes of all terms."""
    return sum(term.bytes for term in terms)


@dataclass(frozen=True, kw_only=True)
class Parts:
    """One run, and the terms that its stages share."""

    spec: CompressionRunSpec
    config: PretrainedConfig
    texts: Texts
    precision: torch.dtype
    at_once: AtOnce
    on_gpu: bool
    passes: dict[Pass, Kept]

    def _optimized(self, what: str, numbers: int, *, own: bool) -> list[Term]:
        """Gradients and AdamW's two means; the numbers themselves where they are not weights of the model already."""
        each = FLOAT + _ADAM + (FLOAT if own else 0) + (FLOAT if self._workers > 1 else 0)
        parts = [
            *(["numbers"] if own else []),
            "gradients",
            "2 × AdamW",
            *(["their mean over the workers"] if self._workers > 1 else []),
        ]
        return [
            Term(
                what=f"{what} in training",
                how=f"{numbers:,} × {each} bytes ({', '.join(parts)})",
                bytes=numbers * each,
            )
        ]

    def _kept_term(self, kept: Kept, rows: int, length: int) -> Term:
        layers = self._sizes.layers
        return Term(
            what="activations",
            how=f"{layers} layers and once more for the one at work × {size(kept.per_layer)} for {rows} × {length:,} "
            f"tokens + {size(kept.elsewhere)} elsewhere",
            bytes=(layers + 1) * kept.per_layer + kept.elsewhere,
        )

    def _calibration_texts(self, wide: int) -> Term:
        return Term(
            what="calibration texts between two layers",
            how=f"{self._sampled_tokens:,} tokens × {wide:,} × {FLOAT} bytes",
            bytes=self._sampled_tokens * wide * FLOAT,
        )

    def _weights(self, what: str, *, mapped: bool = False) -> Term:
        count = self._sizes.parameters
        return Term(what=what, how=f"{count:,} × {FLOAT} bytes", bytes=count * FLOAT, mapped=mapped)

    def _member(self, what: str, *, mapped: bool = False) -> Term:
        count = self._member_parameters
        return Term(what=what, how=f"{count:,} × {FLOAT} bytes", bytes=count * FLOAT, mapped=mapped)

    def _logits(self, tokens: int, *, copies: float, pair: bool = False) -> list[Term]:
        vocabulary = self._sizes.vocabulary
        if vocabulary is None:
            return []
        if pair and self._sizes.head_has_pair:
            copies += _COPIES_OF_A_PAIR
        return [
            Term(
                what="logits",
                how=f"{copies:g} copies × {tokens:,} tokens × {vocabulary:,} × {FLOAT} bytes",
                bytes=int(copies * tokens * vocabulary * FLOAT),
            )
        ]

    @cached_property
    def _sizes(self) -> Sizes:
        teacher = self.spec.teacher
        return sizes_of(self.config, task=teacher.task, trust_remote_code=teacher.trust_remote_code)

    @cached_property
    def _member_parameters(self) -> int:
        """Of the largest model that any target has room for, before it is factored."""
        most = max(target.constraints.max_size_mib for target in self.spec.device_targets) * 2**20
        quantization, delta = self.spec.pipeline.quantization, self.spec.pipeline.delta
        least_bits = 16 if quantization is None else min(quantization.bits)
        if delta is not None and delta.rank is not None:
            return self._sizes.parameters
        left = 1.0 if delta is None or delta.materialize else 1 - (delta.target_reduction or 0.0)
        return min(self._sizes.parameters, math.ceil(most * 8 / least_bits / left))

    def _kept(self, step: Pass) -> Kept:
        teacher = self.spec.teacher
        if step not in self.passes:
            self.passes[step] = kept_bytes(
                config=self.config, task=teacher.task, step=step, trust_remote_code=teacher.trust_remote_code
            )
        return self.passes[step]

    @property
    def _sampled_tokens(self) -> int:
        """Of the calibration texts, with padding."""
        length = self.texts.calibration
        return max(1, min(self.at_once.sample_tokens // length, self.at_once.sample_rows)) * length

    @property
    def _workers(self) -> int:
        return max(1, self.spec.training_workers)
