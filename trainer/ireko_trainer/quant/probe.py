"""Measuring many variants of one model that differ in a few matrices, without running all of it each time.

Nothing before the first changed block differs from the unchanged model, so its hidden states there are kept and a
variant starts from them. Behind the last changed block all variants meet the same weights, so they continue
stacked into one batch: as few and as large products as the memory given to `tokens_at_once` allows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.quant.calls import Batch, Recorded, record, resume
from ireko_trainer.quant.checkpoint import QuantizedWeights
from ireko_trainer.quant.divergence import Kind, answer, as_reference, divergence, repeated
from ireko_trainer.quant.grid import dequantize
from ireko_trainer.quant.layout import block_modules, put_weight

TOKENS_AT_ONCE = 4096
"""Tokens of variants that are run together: every token of a language model has a row of logits."""

Variant = Mapping[str, int]
"""Module -> width; modules left out keep the weights that the model has."""


class Probe:
    """The dense model's answers on calibration batches, and the divergence of variants from them.

    `base` are widths that every measurement starts from (None: the dense model); the model itself is left as it
    was after every call. Hidden states of all blocks are kept for `base`: (blocks + 1) × tokens × width floats.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        weights: QuantizedWeights,
        batches: Sequence[Batch],
        kind: Kind,
        tokens_at_once: int = TOKENS_AT_ONCE,
        on_variant: Callable[[], None] | None = None,
    ) -> None:
        self._model = model.eval()
        self._weights = weights
        self._batches = [{k: v for k, v in batch.items() if k != "labels"} for batch in batches]
        self._kind = kind
        self._answer = answer(kind)
        self._tokens_at_once = tokens_at_once
        self._told = on_variant or (lambda: None)
        self._names = list(block_modules(model))
        self._blocks = list(block_modules(model).values())
        self._base: dict[str, int] = {}
        self._recorded: list[Recorded] = [
            record(model=model, blocks=self._blocks, batch=batch) for batch in self._batches
        ]
        self._hidden: list[list[Tensor]] = []
        self._reference: list[Tensor] = []
        self._run_base()
        self._reference = [
            as_reference(kind=kind, answers=self._finish(len(self._blocks), number, hidden[-1], 1)[0])
            for number, hidden in enumerate(self._hidden)
        ]

    def rebase(self, bits: Variant) -> None:
        """Measure from now on what changes on top of `bits`; the reference stays the dense model."""
        self._base = dict(bits)
        with self._applied(self._base):
            self._run_base()

    def value(self, bits: Variant) -> float:
        """Divergence of the model with exactly these widths, whatever the base."""
        with self._applied(bits):
            sums = [
                float(self._divergence(number, self._answer(self._forward(batch), batch)).double().sum())
                for number, batch in enumerate(self._batches)
            ]
        self._told()
        return sum(sums) / self._items()

    def changes(self, variants: Sequence[Variant]) -> list[float]:
        """Divergence of each variant: the base with some of its matrices at other widths."""
        totals = [0.0] * len(variants)
        places = [self._place(variant) for variant in variants]
        with self._applied(self._base):
            for start in sorted(set(places)):
                members = [index for index, place in enumerate(places) if place == start]
                self._from_block(start, members, variants, totals)
        return [total / self._items() for total in totals]

    def _from_block(
        self, start: int, members: list[int], variants: Sequence[Variant], totals: list[float]
    ) -> None:
        for number in range(len(self._batches)):
            entry = self._hidden[number][start]
            at_once = max(1, self._tokens_at_once // (entry.shape[0] * entry.shape[1]))
            for chunk in _chunks(members, at_once):
                hidden = [self._through(start, number, entry, variants[index]) for index in chunk]
                for index, answers in zip(
                    chunk, self._behind(start, number, hidden, variants, chunk), strict=True
                ):
                    totals[index] += float(self._divergence(number, answers).double().sum())
                    self._told()

    def _through(self, start: int, number: int, hidden: Tensor, variant: Variant) -> Tensor:
        """The block `start` with the variant's matrices."""
        if start == len(self._blocks):
            return hidden
        with self._applied(variant, within=self._names[start]):
            arguments = self._recorded[number].arguments[start]
            with torch.no_grad():
                return arguments.call(self._blocks[start], hidden)

    def _behind(
        self, start: int, number: int, hidden: list[Tensor], variants: Sequence[Variant], chunk: list[int]
    ) -> list[Tensor]:
        """The answers of all members of a chunk after block `start`."""
        if all(self._one_block(variants[index]) for index in chunk) and start < len(self._blocks):
            return self._finish(start + 1, number, torch.cat(hidden), len(chunk))
        answers = []
        for index, states in zip(chunk, hidden, strict=True):
            with self._applied(variants[index]):
                answers += self._finish(min(start + 1, len(self._blocks)), number, states, 1)
        return answers

    def _finish(self, start: int, number: int, hidden: Tensor, times: int) -> list[Tensor]:
        batch = self._batches[number]
        stacked = repeated(batch, times)
        output = resume(model=self._model, blocks=self._blocks, start=start, hidden=hidden, batch=stacked)
        return list(self._answer(output, stacked).chunk(times))

    def _forward(self, batch: Batch) -> object:
        with torch.no_grad():
            extra = {"use_cache": False} if hasattr(self._model.config, "use_cache") else {}
            return self._model(**batch, **extra)

    def _run_base(self) -> None:
        self._hidden = []
        for recorded in self._recorded:
            states = [recorded.hidden]
            for block, arguments in zip(self._blocks, recorded.arguments, strict=True):
                with torch.no_grad():
                    states.append(arguments.call(block, states[-1]))
            self._hidden.append(states)

    def _divergence(self, number: int, answers: Tensor) -> Tensor:
        return divergence(kind=self._kind, reference=self._reference[number], candidate=answers)

    def _items(self) -> int:
        return sum(len(reference) for reference in self._reference)

    def _place(self, variant: Variant) -> int:
        """The first block that a variant changes; the number of blocks for the head alone."""
        indices = [self._block_of(name) for name in variant]
        return min(indices, default=len(self._blocks))

    def _block_of(self, module: str) -> int:
        for index, name in enumerate(self._names):
            if module.startswith(f"{name}."):
                return index
        tables = {m.module for m in self._weights.layout.embeddings}
        if module in tables:
            raise ValueError(f"{module} comes before the blocks; measure it with value()")
        return len(self._blocks)

    def _one_block(self, variant: Variant) -> bool:
        return len({self._block_of(name) for name in variant}) == 1

    @contextmanager
    def _applied(self, bits: Variant, *, within: str | None = None) -> Iterator[None]:
        """Put the quantized matrices into the model; on leaving put back what was there."""
        modules = {
            name: self._model.get_submodule(name)
            for name in bits
            if within is None or name.startswith(f"{within}.")
        }
        before = {name: module.weight.data for name, module in modules.items()}
        try:
            for name, module in modules.items():
                put_weight(module, dequantize(self._weights.at(name, bits[name])))
            yield
        finally:
            for name, module in modules.items():
                module.weight.data = before[name]


def _chunks(items: Sequence[int], size: int) -> Iterable[list[int]]:
    return (list(items[start : start + size]) for start in range(0, len(items), size))
