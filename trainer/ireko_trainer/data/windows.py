"""Running text for language models: documents one after the other, cut into windows of one length.

Padding every document to the longest would waste most of the arithmetic, and cutting each would throw most of the
text away. So documents are laid end to end and cut every `maxLength` tokens. A document begins with the tokenizer's
BOS, or, where it has none, ends with its EOS, so that a model can tell where one ends; what is left behind the last
whole window is dropped. What is held out is held out by whole documents: windows of one document that lie on both sides
would let a model be judged by what it has read.
"""

from __future__ import annotations

from array import array
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np
from transformers import PreTrainedTokenizerBase

from ireko_api.spec import DataSource
from ireko_trainer.data.documents import Documents, read_documents
from ireko_trainer.data.encoded import HOLDOUT_STREAM, EncodedDataset
from ireko_trainer.errors import UserError

_CHUNK = 512
"""Documents per call of the tokenizer."""


def load_windows(
    *, source: DataSource, base_dir: Path, tokenizer: PreTrainedTokenizerBase, field: str
) -> EncodedDataset:
    """Read one data source as windows of `source.max_length` tokens each, without labels.

    Args:
        source: `spec.data.train` or one of its siblings.
        base_dir: where relative paths start.
        tokenizer: the teacher's.
        field: path of `source` in the manifest, such as `spec.data.train`, for error texts.

    Raises:
        UserError: the source cannot be used, or holds less text than one window.
    """
    _require_readable(source, tokenizer=tokenizer, field=field)
    documents = read_documents(source=source, base_dir=base_dir, tokenizer=tokenizer, field=field)
    tokens = _end_to_end(document_tokens(documents, tokenizer=tokenizer))
    if len(tokens) < source.max_length:
        raise _too_little(tokens, source=source, field=field)
    return _windows(tokens, length=source.max_length)


def load_split_windows(
    *,
    source: DataSource,
    base_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    field: str,
    percent: float,
    seed: int,
) -> tuple[EncodedDataset, EncodedDataset]:
    """Read one data source and set about `percent` of its tokens aside, whole documents at random: `(rest, holdout)`.

    The same documents, percentage and seed give the same split. Both parts hold at least one window.

    Raises:
        UserError: as `load_windows`, or the documents cannot be parted so that both sides have a window.
    """
    _require_readable(source, tokenizer=tokenizer, field=field)
    documents = read_documents(source=source, base_dir=base_dir, tokenizer=tokenizer, field=field)
    found = document_tokens(documents, tokenizer=tokenizer)
    if sum(map(len, found)) < source.max_length:
        raise _too_little(_end_to_end(found), source=source, field=field)
    held = _held_out(found, percent=percent, seed=seed, length=source.max_length)
    parts = [
        _end_to_end(tokens for index, tokens in enumerate(found) if (index in held) == aside)
        for aside in (False, True)
    ]
    if min(map(len, parts)) < source.max_length:
        raise UserError(
            f"spec.data.holdoutPercent: {percent:g} % cannot be set aside from the {len(found)} document(s) of "
            f"{source.uri}, because documents stay whole and each side needs a window of {source.max_length} tokens; "
            f"give spec.data.validation, part the text into more documents, or lower {field}.maxLength."
        )
    rest, holdout = (_windows(tokens, length=source.max_length) for tokens in parts)
    return rest, holdout


def document_tokens(documents: Documents, *, tokenizer: PreTrainedTokenizerBase) -> list[array[int]]:
    """The tokens of every document, with what parts it from the next."""
    found: list[array[int]] = []
    for start in range(0, len(documents.texts), _CHUNK):
        encoded = tokenizer(
            documents.texts[start : start + _CHUNK],
            add_special_tokens=False,
            return_attention_mask=False,
            verbose=False,
        )
        found += [array("i", _parted(ids, tokenizer=tokenizer)) for ids in encoded["input_ids"]]
    return found


def _held_out(found: Sequence[Sequence[int]], *, percent: float, seed: int, length: int) -> set[int]:
    """Documents at random that hold the share of the tokens, and a window at least.

    One that would lead further from the share than it is from it now is passed over: a book among letters would be most
    of the text.
    """
    missing = max(percent / 100 * sum(map(len, found)), length)
    order = np.random.default_rng([seed, HOLDOUT_STREAM]).permutation(len(found)).tolist()
    held: set[int] = set()
    for index in order:
        if len(found[index]) <= 2 * missing:
            held.add(index)
            missing -= len(found[index])
    rest = sorted((index for index in order if index not in held), key=lambda index: len(found[index]))
    while rest and sum(len(found[index]) for index in held) < length:
        held.add(rest.pop(0))
    return held


def _end_to_end(found: Iterable[Sequence[int]]) -> array[int]:
    tokens: array[int] = array("i")
    for one in found:
        tokens.extend(one)
    return tokens


def _windows(tokens: array[int], *, length: int) -> EncodedDataset:
    count = len(tokens) // length
    return EncodedDataset(
        input_ids=[tokens[start : start + length] for start in range(0, count * length, length)]
    )


def _require_readable(source: DataSource, *, tokenizer: PreTrainedTokenizerBase, field: str) -> None:
    if source.max_length > tokenizer.model_max_length:
        raise UserError(
            f"{field}.maxLength: {source.max_length} is more than the {tokenizer.model_max_length} tokens that the "
            "teacher reads; choose at most that."
        )


def _too_little(tokens: Sequence[int], *, source: DataSource, field: str) -> UserError:
    return UserError(
        f"{field}.uri: {source.uri} holds {len(tokens)} tokens, fewer than one window of maxLength "
        f"{source.max_length}; give more text, or set {field}.maxLength to {len(tokens)} or less."
    )


def _parted(ids: list[int], *, tokenizer: PreTrainedTokenizerBase) -> list[int]:
    """A document with its mark; a chat template may have written it already."""
    begin, end = tokenizer.bos_token_id, tokenizer.eos_token_id
    if begin is not None:
        return ids if ids[:1] == [begin] else [begin, *ids]
    if end is not None:
        return ids if ids[-1:] == [end] else [*ids, end]
    return ids
