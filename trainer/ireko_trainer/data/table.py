"""The columns of a data source that the manifest names, checked row by row."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

from ireko_api.spec import DataSource
from ireko_trainer.data.location import locate
from ireko_trainer.data.rows import TEXT_COLUMN, Row, detect_format, read_rows
from ireko_trainer.errors import UserError


@dataclass(frozen=True, kw_only=True)
class TextTable:
    """Texts or text pairs with the labels as the file has them."""

    texts: list[str]
    seconds: list[str] | None
    """The second text of every pair; None for single texts."""
    labels: list[object] | None
    """Raw values: numbers or strings, never null; None when the source names no label column."""
    places: list[int]
    """Line or row of the file per text."""
    uri: str
    unit: str
    """`line` or `row`: what `places` counts."""

    def where(self, index: int) -> str:
        """The place of a text, for error texts."""
        return f"{self.uri}, {self.unit} {self.places[index]}"


def read_table(*, source: DataSource, base_dir: Path, field: str) -> TextTable:
    """Read the text and label columns of a source, at most `source.limit` rows.

    Args:
        source: `spec.data.train` or one of its siblings.
        base_dir: where relative paths start.
        field: path of `source` in the manifest, for error texts.

    Raises:
        UserError: the file is missing, empty or broken, a column does not exist, or a row lacks a text or
            label.
    """
    location = locate(source.uri, base_dir=base_dir, field=f"{field}.uri")
    file_format = detect_format(location, declared=source.format)
    columns = tuple(source.text_columns)
    if file_format == "text":
        columns = _plain_text_columns(source, field=field)
    rows = list(islice(read_rows(location, file_format=file_format), source.limit))
    if not rows:
        raise UserError(f"{field}.uri: {location.shown} holds no rows; give a file with at least one text.")
    _require_columns(rows[0], source=source, columns=columns, field=field)
    unit = "row" if file_format == "parquet" else "line"
    texts = [_texts(rows, column=column, uri=source.uri, unit=unit, field=field) for column in columns]
    return TextTable(
        texts=texts[0],
        seconds=texts[1] if len(texts) == 2 else None,
        labels=_labels(rows, source=source, unit=unit, field=field),
        places=[row.place for row in rows],
        uri=source.uri,
        unit=unit,
    )


def _plain_text_columns(source: DataSource, *, field: str) -> tuple[str, ...]:
    """Plain text has one nameless column, whatever the manifest calls it."""
    if len(source.text_columns) != 1:
        raise UserError(
            f"{field}.textColumns: {_listed(source.text_columns)} asks for text pairs, but {source.uri} is "
            "plain text with one text per line; name one column, or use jsonl, csv or parquet."
        )
    if source.label_column is not None:
        raise UserError(
            f"{field}.labelColumn: {source.uri} is plain text and has no column {source.label_column!r}; "
            "remove labelColumn, or use jsonl, csv or parquet."
        )
    return (TEXT_COLUMN,)


def _require_columns(first: Row, *, source: DataSource, columns: Sequence[str], field: str) -> None:
    wanted = [("textColumns", column) for column in columns]
    if source.label_column is not None:
        wanted.append(("labelColumn", source.label_column))
    for key, column in wanted:
        if column not in first.values:
            raise UserError(
                f"{field}.{key}: {source.uri} has no column {column!r}; its columns are "
                f"{_listed(first.values)}."
            )


def _texts(rows: Sequence[Row], *, column: str, uri: str, unit: str, field: str) -> list[str]:
    texts: list[str] = []
    for row in rows:
        text = row.values.get(column)
        if not isinstance(text, str):
            found = "no text" if text is None else f"{text!r}, which is not a text,"
            raise UserError(
                f"{field}.textColumns: {uri}, {unit} {row.place} has {found} in column {column!r}; "
                "correct or remove the row."
            )
        texts.append(text)
    return texts


def _labels(rows: Sequence[Row], *, source: DataSource, unit: str, field: str) -> list[object] | None:
    column = source.label_column
    if column is None:
        return None
    labels = [row.values.get(column) for row in rows]
    missing = [row.place for row, label in zip(rows, labels, strict=True) if label is None]
    if missing:
        raise UserError(
            f"{field}.labelColumn: {source.uri}, {unit} {missing[0]} has no label in column {column!r} "
            f"({len(missing)} of {len(rows)} rows have none); label every row, or remove labelColumn to use the "
            "texts alone."
        )
    return labels


def _listed(names: Iterable[str]) -> str:
    return ", ".join(repr(name) for name in names)
