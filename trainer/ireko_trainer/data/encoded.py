"""Tokenized texts in memory, padded only when a batch asks for them.

Padding the whole set to one length would waste most of the arithmetic on short texts, and a loader with
worker processes would make the order of samples depend on their timing. Rows of token ids plus an explicit
list of indices keep every batch a pure function of its arguments, which is what resuming a run at a step
needs.
"""

from __future__ import annotations

import hashlib
from array import array
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TypeAlias

import numpy as np
import torch
from torch import Tensor

from ireko_trainer.errors import UserError

Batch: TypeAlias = dict[str, Tensor]
"""`input_ids`, `attention_mask` and, if the model has segments, `token_type_ids`: int64 `[B, S]`;
`labels`, if the data has them: `[B]`, int64 (classes) or float32 (regression)."""

TokenRows: TypeAlias = Sequence[Sequence[int]]


@dataclass(frozen=True, kw_only=True, eq=False)
class EncodedDataset:
    """`N` tokenized texts of any length, with one label each or none."""

    input_ids: TokenRows
    """`N` rows of token ids, special tokens included, without padding."""
    token_type_ids: TokenRows | None = None
    """Segment ids of the same lengths, for models that have segments."""
    labels: Tensor | None = None
    """`[N]`, int64 class indices or float32 values."""
    pad_token_id: int = 0
    pairs: bool = False
    """Rows `2i` and `2i + 1` are the two texts of pair `i`, embedded one by one and compared afterwards, and
    carry the same label. A pair that the model reads as one sequence is one row and not marked."""

    def __post_init__(self) -> None:
        rows = len(self.input_ids)
        for name, values in (("token_type_ids", self.token_type_ids), ("labels", self.labels)):
            if values is not None and len(values) != rows:
                raise ValueError(f"{name} has {len(values)} rows, input_ids has {rows}")
        if self.pairs and rows % 2:
            raise ValueError(f"pairs need an even number of rows, got {rows}")

    def __len__(self) -> int:
        return len(self.input_ids)

    @cached_property
    def lengths(self) -> Tensor:
        """Tokens per row, int64 `[N]`."""
        return torch.tensor([len(row) for row in self.input_ids], dtype=torch.int64)

    @cached_property
    def digest(self) -> str:
        """SHA-256 over token ids, segment ids and labels: equal data and tokenizer give an equal digest."""
        sha = hashlib.sha256(self.lengths.numpy().astype("<i8").tobytes())
        for rows in (self.input_ids, self.token_type_ids or ()):
            for row in rows:
                sha.update(np.asarray(row, dtype="<i4").tobytes())
        if self.labels is not None:
            kind = "<f4" if self.labels.is_floating_point() else "<i8"
            sha.update(kind.encode() + self.labels.numpy().astype(kind).tobytes())
        return sha.hexdigest()

    def batch(self, indices: Sequence[int]) -> Batch:
        """The rows `indices`, in that order, padded to the longest of them."""
        longest = max(len(self.input_ids[index]) for index in indices)
        batch = {
            "input_ids": _padded(self.input_ids, indices=indices, length=longest, value=self.pad_token_id),
            "attention_mask": (torch.arange(longest) < self.lengths[list(indices)][:, None]).long(),
        }
        if self.token_type_ids is not None:
            batch["token_type_ids"] = _padded(self.token_type_ids, indices=indices, length=longest, value=0)
        if self.labels is not None:
            batch["labels"] = self.labels[list(indices)]
        return batch

    def subset(self, indices: Sequence[int]) -> EncodedDataset:
        """The rows `indices`, in that order; the caller keeps the two rows of a pair together."""
        segments = self.token_type_ids
        return EncodedDataset(
            input_ids=[self.input_ids[index] for index in indices],
            token_type_ids=None if segments is None else [segments[index] for index in indices],
            labels=None if self.labels is None else self.labels[list(indices)],
            pad_token_id=self.pad_token_id,
            pairs=self.pairs,
        )

    def take(self, count: int | None) -> EncodedDataset:
        """The first `count` examples (a pair is one example); everything when `count` is None."""
        rows = len(self) if count is None else min(len(self), count * (2 if self.pairs else 1))
        return self if rows == len(self) else self.subset(range(rows))


def _padded(rows: TokenRows, *, indices: Sequence[int], length: int, value: int) -> Tensor:
    """The chosen rows as int64 `[B, length]`, filled up on the right with `value`."""
    matrix = np.full((len(indices), length), value, dtype=np.int64)
    for position, index in enumerate(indices):
        matrix[position, : len(rows[index])] = rows[index]
    return torch.from_numpy(matrix)


def compact(rows: Sequence[Sequence[int]]) -> list[array[int]]:
    """The same rows at 4 bytes a token: a list of Python integers takes ten times as much."""
    return [array("i", row) for row in rows]


def split_holdout(
    *, data: EncodedDataset, percent: float, seed: int
) -> tuple[EncodedDataset, EncodedDataset]:
    """Set a random share of the examples aside: `(rest, holdout)`, both in the order of `data`.

    The same data, percentage and seed give the same split. Both parts hold at least one example; pairs stay
    whole.

    Raises:
        UserError: the data has fewer than two examples, so that nothing can be set aside.
    """
    if not 0 < percent < 100:
        raise ValueError(f"percent must lie between 0 and 100, got {percent}")
    width = 2 if data.pairs else 1
    examples = len(data) // width
    if examples < 2:
        raise UserError(
            f"spec.data.holdoutPercent: {percent:g} % cannot be set aside from {examples} example(s); "
            "give spec.data.validation, or more training data."
        )
    count = min(max(round(examples * percent / 100), 1), examples - 1)
    chosen = np.zeros(examples, dtype=bool)
    chosen[np.random.default_rng([seed, HOLDOUT_STREAM]).permutation(examples)[:count]] = True
    mask = np.repeat(chosen, width)
    return data.subset(np.flatnonzero(~mask).tolist()), data.subset(np.flatnonzero(mask).tolist())


HOLDOUT_STREAM = 0x686F6C64  # "hold": keeps this draw independent of the batch order under the same seed
