"""Metrics in a file of the stage's directory: the truth that MLflow gets a copy of.

A metric is written once per name and step. A resumed stage repeats the steps after its last checkpoint; those
are already here, so the journal drops them, and the curve in MLflow has no second value for a step.
"""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from types import TracebackType
from typing import NamedTuple

JOURNAL_FILE = "metrics.jsonl"


class Reading(NamedTuple):
    """One value of one metric."""

    name: str
    step: int
    value: float
    timestamp_ms: int


def _now_ms() -> int:
    return int(time.time() * 1000)


class MetricsJournal:
    """The one writer of a stage's `metrics.jsonl`.

    What a process that died left as a part of a line is cut off when the journal is opened.
    """

    def __init__(self, directory: Path, *, clock_ms: Callable[[], int] = _now_ms) -> None:
        path = directory / JOURNAL_FILE
        path.touch()
        os.truncate(path, _complete_length(path.read_bytes()))
        self._last_step: dict[str, int] = {}
        for reading in readings(directory):
            self._last_step[reading.name] = max(reading.step, self._last_step.get(reading.name, reading.step))
        self._file = path.open("a", encoding="utf-8")
        self._clock_ms = clock_ms

    def append(self, *, step: int, metrics: Mapping[str, float]) -> None:
        """Write the metrics of a step, without those that have a value for it or for a later step."""
        fresh = {
            name: float(value) for name, value in metrics.items() if step > self._last_step.get(name, -1)
        }
        if not fresh:
            return
        line = {"step": step, "timestamp": self._clock_ms(), "metrics": fresh}
        self._file.write(json.dumps(line, separators=(",", ":")) + "\n")
        self._file.flush()
        self._last_step.update(dict.fromkeys(fresh, step))

    def close(self) -> None:
        """Close the file; every appended line is in it already."""
        self._file.close()

    def __enter__(self) -> MetricsJournal:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()


def read_from(directory: Path, *, offset: int, end: int | None = None) -> tuple[list[Reading], int]:
    """The readings in the complete lines from a byte offset to another, and the offset behind them.

    What is returned is durable: a host that goes down cannot lose a line that MLflow was sent.
    """
    path = directory / JOURNAL_FILE
    if not path.is_file():
        return [], offset
    with path.open("rb") as file:
        file.seek(offset)
        content = file.read() if end is None else file.read(max(0, end - offset))
        content = content[: _complete_length(content)]
        if content:
            os.fsync(file.fileno())
    return list(_parse(content)), offset + len(content)


def readings(directory: Path) -> list[Reading]:
    """Every reading of a stage, in the order of writing."""
    return read_from(directory, offset=0)[0]


def curves(directory: Path) -> list[tuple[int, dict[str, float]]]:
    """The metrics of a stage by step, ascending: what the report draws."""
    by_step: dict[int, dict[str, float]] = {}
    for reading in readings(directory):
        by_step.setdefault(reading.step, {})[reading.name] = reading.value
    return sorted(by_step.items())


def _complete_length(content: bytes) -> int:
    return content.rfind(b"\n") + 1


def _parse(content: bytes) -> Iterator[Reading]:
    for line in content.splitlines():
        entry = json.loads(line)
        for name, value in entry["metrics"].items():
            yield Reading(name=name, step=entry["step"], value=value, timestamp_ms=entry["timestamp"])
