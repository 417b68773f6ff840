"""Rows of a table file, one at a time, each with its place in the file.

JSON lines, CSV and plain text are read line by line instead of by a columnar reader: those guess types over
blocks of rows (a text "NA" becomes a missing value, a label column that turns to strings fails somewhere
inside a block) and cannot say which line is broken. Parquet has types and no lines, and goes through
`datasets`.
"""

from __future__ import annotations

import csv
import json
import tempfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, NamedTuple

from ireko_trainer.data.location import Location, scheme_of
from ireko_trainer.errors import UserError

FORMATS_BY_SUFFIX = {
    ".jsonl": "jsonl",
    ".ndjson": "jsonl",
    ".json": "jsonl",
    ".csv": "csv",
    ".tsv": "csv",
    ".parquet": "parquet",
    ".txt": "text",
}
_COMPRESSED = (".gz", ".bz2", ".xz")

_PARQUET_BATCH = 1024
"""Rows decoded at a time. Without it the size of the first row group is taken, which fails when that is empty."""

TEXT_COLUMN = "text"
"""The column under which plain text appears."""


END_OF_DOCUMENT = "<|endoftext|>"
"""A line that is only this parts the documents of a plain text, as in TinyStories and the corpora of GPT-2."""


class Row(NamedTuple):
    """One record of a file."""

    place: int
    """Line of the file, counted from 1 (where the record ends); for Parquet the row, counted from 1."""
    values: Mapping[str, object]


def detect_format(location: Location, *, declared: str) -> str:
    """`jsonl`, `csv`, `parquet` or `text`: what the manifest says, else what the file's name ends in.

    Raises:
        UserError: the format is `auto` and the suffix says nothing.
    """
    if declared != "auto":
        return declared
    suffix = _suffix(location.path)
    if suffix not in FORMATS_BY_SUFFIX:
        known = ", ".join(FORMATS_BY_SUFFIX)
        raise UserError(
            f"{location.field}: the format of {location.uri} cannot be told from the suffix {suffix!r} "
            f"(known: {known}); set format to jsonl, csv, parquet or text."
        )
    return FORMATS_BY_SUFFIX[suffix]


def read_rows(location: Location, *, file_format: str) -> Iterator[Row]:
    """The rows of a file in its order; blank lines are skipped, but inside the documents of format `documents`,
    which is plain text read as documents: one per line, or what stands between lines of `END_OF_DOCUMENT`.

    Raises:
        UserError: while iterating, when the file is missing, unreadable or broken; the text has the line.
    """
    readers: dict[str, Callable[[Location], Iterator[Row]]] = {
        "jsonl": _json_lines,
        "csv": _csv,
        "parquet": _parquet,
        "text": _text_lines,
        "documents": _documents,
    }
    with _readable(location):
        yield from readers[file_format](location)


def _suffix(path: str) -> str:
    name = path.rsplit("/", 1)[-1].lower()
    for compressed in _COMPRESSED:
        name = name.removesuffix(compressed)
    stem, dot, suffix = name.rpartition(".")
    return f".{suffix}" if dot and stem else ""


@contextmanager
def _readable(location: Location) -> Iterator[None]:
    """Turn what file systems raise into a sentence."""
    field, shown = location.field, location.shown
    try:
        yield
    except FileNotFoundError as error:
        raise UserError(
            f"{field}: there is no file {shown}; relative paths start at the manifest's directory."
        ) from error
    except IsADirectoryError as error:
        raise UserError(f"{field}: {shown} is a directory; name the file in it.") from error
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(location, error) from error
    except UserError:
        raise
    # Drivers raise errors of their own (botocore's, aiohttp's, …); behind a remote scheme they mean: not reachable.
    except Exception as error:
        if scheme_of(location.uri) == "file":
            raise
        raise _unreadable(location, error) from error


def _unreadable(location: Location, error: Exception) -> UserError:
    return UserError(
        f"{location.field}: {location.shown} cannot be read ({error}); check the file and your access to it."
    )


def _broken(location: Location, line: int, problem: str) -> UserError:
    return UserError(f"{location.field}: {location.uri}, line {line}: {problem}")


def _open(location: Location) -> IO[bytes]:
    opened: IO[bytes] = location.filesystem.open(location.path, "rb", compression="infer")
    return opened


def _decoded(location: Location) -> Iterator[tuple[int, str]]:
    """Numbered lines with their ends."""
    with _open(location) as file:
        for number, raw in enumerate(file, start=1):
            try:
                yield number, raw.decode("utf-8-sig" if number == 1 else "utf-8")
            except UnicodeDecodeError as error:
                raise _broken(
                    location, number, f"not UTF-8 ({error.reason}); save the file as UTF-8."
                ) from error


def _lines(location: Location) -> Iterator[tuple[int, str]]:
    """Numbered lines without the space around them; blank ones are left out."""
    stripped = ((number, line.strip()) for number, line in _decoded(location))
    return ((number, line) for number, line in stripped if line)


def _text_lines(location: Location) -> Iterator[Row]:
    return (Row(number, {TEXT_COLUMN: line}) for number, line in _lines(location))


def _documents(location: Location) -> Iterator[Row]:
    parts: list[list[str]] = [[]]
    for _, line in _decoded(location):
        if line.strip() == END_OF_DOCUMENT:
            parts.append([])
        else:
            parts[-1].append(line)
    if len(parts) == 1:
        yield from _text_lines(location)
        return
    place = 0
    for lines in parts:
        place += len(lines) + 1
        text = "".join(lines).strip()
        if text:
            yield Row(place - 1, {TEXT_COLUMN: text})


def _json_lines(location: Location) -> Iterator[Row]:
    for number, line in _lines(location):
        try:
            values = json.loads(line)
        except json.JSONDecodeError as error:
            hint = (
                f"not valid JSON ({error.msg} at column {error.colno}); every line must hold one JSON object."
            )
            raise _broken(location, number, hint) from error
        if not isinstance(values, dict):
            kind = "array" if isinstance(values, list) else type(values).__name__
            raise _broken(location, number, f"a JSON {kind}; every line must hold one JSON object.")
        yield Row(number, values)


def _csv(location: Location) -> Iterator[Row]:
    delimiter = "\t" if _suffix(location.path) == ".tsv" else ","
    reader = csv.reader((line for _, line in _decoded(location)), delimiter=delimiter, strict=True)
    try:
        columns = next(reader, [])
        for fields in reader:
            if fields:
                yield Row(reader.line_num, _record(location, reader.line_num, columns, fields))
    except csv.Error as error:
        raise _broken(location, reader.line_num, f"broken CSV ({error}); check the quotes.") from error


def _record(location: Location, line: int, columns: list[str], fields: list[str]) -> dict[str, object]:
    if len(fields) != len(columns):
        counts = f"{len(fields)} fields where the header has {len(columns)}"
        raise _broken(location, line, f"{counts}; quote texts that contain the delimiter.")
    # CSV knows no null: an empty cell is a missing value.
    return {column: field or None for column, field in zip(columns, fields, strict=True)}


def _parquet(location: Location) -> Iterator[Row]:
    import datasets  # takes seconds to import, and only this format needs it

    if not location.filesystem.exists(location.path):
        raise FileNotFoundError(location.path)
    url = location.filesystem.unstrip_protocol(location.path)
    # Streaming keeps no copy of the data; what is left in the cache are lock files.
    with tempfile.TemporaryDirectory(prefix="ireko-datasets-") as cache:
        try:
            table = datasets.load_dataset(
                "parquet",
                data_files=url,
                split="train",
                streaming=True,
                cache_dir=cache,
                batch_size=_PARQUET_BATCH,
            )
            for number, values in enumerate(table, start=1):
                yield Row(number, values)
        except ValueError as error:  # pyarrow's ArrowInvalid is one
            raise UserError(
                f"{location.field}: {location.uri} is not a readable Parquet file ({error}); check format "
                "and file."
            ) from error
