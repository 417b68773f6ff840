"""From a data source of the manifest to tokens: read, check, tokenize."""

from __future__ import annotations

from array import array
from collections.abc import Iterator, Sequence
from pathlib import Path

from torch import Tensor
from transformers import PreTrainedTokenizerBase

from ireko_api.spec import DataSource
from ireko_trainer.data.encoded import EncodedDataset, compact, split_holdout
from ireko_trainer.data.labels import LabelSpace, encode_labels
from ireko_trainer.data.table import TextTable, read_table
from ireko_trainer.data.windows import load_split_windows, load_windows
from ireko_trainer.errors import UserError

_CHUNK = 2048
"""Texts per call of the tokenizer: enough to keep its threads busy, small enough that its output stays
small."""


def load_data(
    *,
    source: DataSource,
    base_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    labels: LabelSpace | None,
    field: str,
) -> EncodedDataset:
    """Read and tokenize one data source.

    Texts longer than `source.max_length` tokens are cut. For `text-classification` two text columns become
    one sequence with two segments. For `feature-extraction` they are two rows of their own
    (`EncodedDataset.pairs`) and the labels are similarities; labels of single texts have no meaning there and
    are refused. For `text-generation` all texts are one running text, in windows (`windows.py`).

    Args:
        source: `spec.data.train` or one of its siblings.
        base_dir: where relative paths start.
        tokenizer: the teacher's.
        task: `text-classification`, `feature-extraction` or `text-generation`.
        labels: what the labels mean (`label_space`); not needed for `feature-extraction` or without a label
            column.
        field: path of `source` in the manifest, such as `spec.data.train`, for error texts.

    Raises:
        UserError: the file, a row or a label cannot be used; the text names field, value and remedy.
    """
    if task == "text-generation":
        return load_windows(source=source, base_dir=base_dir, tokenizer=tokenizer, field=field)
    _require_usable(source=source, tokenizer=tokenizer, task=task, field=field)
    table = read_table(source=source, base_dir=base_dir, field=field)
    separate = task == "feature-extraction" and table.seconds is not None
    values = _label_values(table, task=task, labels=labels, field=field)
    if separate:
        input_ids, segments = _tokenize(
            _interleaved(table), None, tokenizer=tokenizer, length=source.max_length
        )
        values = None if values is None else values.repeat_interleave(2)
    else:
        input_ids, segments = _tokenize(
            table.texts, table.seconds, tokenizer=tokenizer, length=source.max_length
        )
    for row, ids in enumerate(input_ids):
        if not ids:
            place = table.where(row // 2 if separate else row)
            raise UserError(f"{field}.textColumns: {place} has no tokens; remove the empty text.")
    return EncodedDataset(
        input_ids=input_ids,
        token_type_ids=segments,
        labels=values,
        pad_token_id=tokenizer.pad_token_id,
        pairs=separate,
    )


def load_split(
    *,
    source: DataSource,
    base_dir: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    labels: LabelSpace | None,
    field: str,
    percent: float,
    seed: int,
) -> tuple[EncodedDataset, EncodedDataset]:
    """Read one data source and set `percent` of it aside: `(rest, holdout)`; of running text by whole documents.

    The other arguments and errors are those of `load_data`.
    """
    if task == "text-generation":
        return load_split_windows(
            source=source,
            base_dir=base_dir,
            tokenizer=tokenizer,
            field=field,
            percent=percent,
            seed=seed,
        )
    data = load_data(
        source=source, base_dir=base_dir, tokenizer=tokenizer, task=task, labels=labels, field=field
    )
    return split_holdout(data=data, percent=percent, seed=seed)


def _require_usable(*, source: DataSource, tokenizer: PreTrainedTokenizerBase, task: str, field: str) -> None:
    if tokenizer.pad_token_id is None:
        raise UserError(
            "spec.teacher.model: the teacher's tokenizer has no padding token; set pad_token in its files."
        )
    if source.max_length > tokenizer.model_max_length:
        raise UserError(
            f"{field}.maxLength: {source.max_length} is more than the {tokenizer.model_max_length} tokens "
            "that the teacher reads; choose at most that."
        )
    if task == "feature-extraction" and source.label_column is not None and len(source.text_columns) == 1:
        raise UserError(
            f"{field}.labelColumn: task feature-extraction compares texts, so labels need two textColumns; "
            f"name the second one, or remove labelColumn {source.label_column!r}."
        )


def _label_values(table: TextTable, *, task: str, labels: LabelSpace | None, field: str) -> Tensor | None:
    if table.labels is None:
        return None
    if task == "feature-extraction":
        labels = LabelSpace(regression=True)
    if labels is None:
        raise ValueError("a source with labels needs a label space")
    return encode_labels(table, space=labels, field=field)


def _interleaved(table: TextTable) -> list[str]:
    assert table.seconds is not None  # the caller saw the pairs
    return [text for pair in zip(table.texts, table.seconds, strict=True) for text in pair]


def _tokenize(
    texts: Sequence[str], seconds: Sequence[str] | None, *, tokenizer: PreTrainedTokenizerBase, length: int
) -> tuple[list[array[int]], list[array[int]] | None]:
    """Token ids and, if the tokenizer makes them, segment ids, one row per text."""
    input_ids: list[array[int]] = []
    segments: list[array[int]] = []
    for chunk in _chunks(len(texts)):
        encoded = tokenizer(
            list(texts[chunk]),
            None if seconds is None else list(seconds[chunk]),
            truncation=True,
            max_length=length,
            return_attention_mask=False,
        )
        input_ids.extend(compact(encoded["input_ids"]))
        segments.extend(compact(encoded.get("token_type_ids", [])))
    return input_ids, segments or None


def _chunks(count: int) -> Iterator[slice]:
    return (slice(start, start + _CHUNK) for start in range(0, count, _CHUNK))
