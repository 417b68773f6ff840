"""The documents that a language model is trained on and judged by: plain texts, or conversations as their template
writes them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ireko_api.spec import DataSource
from ireko_trainer.data.location import locate
from ireko_trainer.data.rows import TEXT_COLUMN, detect_format, read_rows
from ireko_trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Documents:
    """Texts in the order of their file."""

    texts: list[str]
    uri: str


def read_documents(
    *, source: DataSource, base_dir: Path, tokenizer: PreTrainedTokenizerBase, field: str
) -> Documents:
    """Read the text column of a source, at most `source.limit` rows.

    A value is a text, or a list of messages with `role` and `content`, which the tokenizer's own chat template
    turns into a text. Plain text holds one document per line, or, where lines that are only `<|endoftext|>` part
    them, documents of many lines.

    Raises:
        UserError: the file is missing, empty or broken, the column does not exist, a row holds neither text nor
            messages, or the tokenizer has no template for them.
    """
    location = locate(source.uri, base_dir=base_dir, field=f"{field}.uri")
    file_format = detect_format(location, declared=source.format)
    column = TEXT_COLUMN if file_format == "text" else source.text_columns[0]
    reader = "documents" if file_format == "text" else file_format
    rows = list(islice(read_rows(location, file_format=reader), source.limit))
    if not rows:
        raise UserError(f"{field}.uri: {location.shown} holds no rows; give a file with at least one text.")
    if column not in rows[0].values:
        columns = ", ".join(map(repr, rows[0].values))
        raise UserError(
            f"{field}.textColumns: {source.uri} has no column {column!r}; its columns are {columns}."
        )
    unit = "row" if file_format == "parquet" else "line"
    writer = _Writer(tokenizer=tokenizer, column=column, field=field)
    return Documents(
        texts=[
            writer.text(row.values.get(column), where=f"{source.uri}, {unit} {row.place}") for row in rows
        ],
        uri=source.uri,
    )


@dataclass(frozen=True, kw_only=True)
class _Writer:
    """Makes a text of what stands in a column."""

    tokenizer: PreTrainedTokenizerBase
    column: str
    field: str

    def text(self, value: object, *, where: str) -> str:
        if isinstance(value, str):
            return value
        messages = _messages(value)
        if messages is None:
            found = "no text" if value is None else f"{value!r:.80}, which is not a text,"
            raise UserError(
                f"{self.field}.textColumns: {where} has {found} in column {self.column!r}; give a text, or a "
                "conversation: a list of objects with role and content."
            )
        if self.tokenizer.chat_template is None:
            raise UserError(
                f"{self.field}.textColumns: {where} has a conversation in column {self.column!r}, and the "
                "teacher's tokenizer has no chat template; give plain texts, or save the tokenizer with its "
                "chat_template."
            )
        try:
            written = self.tokenizer.apply_chat_template(messages, tokenize=False)
        # A template is a program of its author's: it refuses what it was not made for with an error of its own.
        except Exception as error:
            raise UserError(
                f"{self.field}.textColumns: {where} has a conversation that the teacher's chat template refuses "
                f"({error}); correct or remove the row."
            ) from error
        assert isinstance(written, str)
        return written


def _messages(value: object) -> list[dict[str, Any]] | None:
    if not isinstance(value, Sequence) or not value:
        return None
    messages = [dict(item) for item in value if isinstance(item, dict)]
    complete = all(isinstance(item.get(key), str) for item in messages for key in ("role", "content"))
    return messages if complete and len(messages) == len(value) else None
