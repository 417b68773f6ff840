"""What people see: progress while a run is under way, the family as a table, sentences for what is wrong.

Progress and sentences go to standard error, so that standard output holds the result and nothing else.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Protocol, Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    Progress,
    SpinnerColumn,
    TaskID,
    TaskProgressColumn,
    TextColumn,
    TimeElapsedColumn,
)
from rich.table import Table

from ireko_api import handoff

MIB = 1024 * 1024
_PERCENT_STEP = 10
_TABLE_WIDTH = 160


def error_console() -> Console:
    """Standard error, without wrapping or markup: sentences hold paths and brackets."""
    return Console(stderr=True, highlight=False, markup=False, emoji=False, soft_wrap=True)


def table_console(*, stderr: bool = False) -> Console:
    """A console for tables: as wide as the terminal, wide enough for every column where there is none."""
    console = Console(stderr=stderr, soft_wrap=True)
    if not console.is_terminal:
        console.width = max(console.width, _TABLE_WIDTH)
    return console


class View(Protocol):
    """Shows a run that is under way."""

    def progress(self, progress: handoff.Progress) -> None:
        """How far the trainer is; called every second, mostly with what was said before."""

    def say(self, sentence: str) -> None:
        """Something that happened."""

    def __enter__(self) -> Self: ...

    def __exit__(self, *exception: object) -> None: ...


def view_for(console: Console) -> View:
    """A moving bar on a terminal, lines elsewhere."""
    return BarView(console) if console.is_terminal else LineView(console)


class _Fresh:
    """Lets only progress through that was reported since the view was opened, not an earlier attempt's."""

    def __init__(self) -> None:
        self._opened = datetime.now(UTC)

    def __call__(self, progress: handoff.Progress) -> bool:
        at = progress.updated_at
        return (at if at.tzinfo else at.replace(tzinfo=UTC)) >= self._opened


class LineView:
    """A line when a stage begins and whenever the run is another tenth further: for logs."""

    def __init__(self, console: Console) -> None:
        self._console = console
        self._fresh = _Fresh()
        self._shown: tuple[str, int] | None = None

    def progress(self, progress: handoff.Progress) -> None:
        """A line, if it says something new."""
        key = (progress.stage, progress.percent // _PERCENT_STEP)
        if self._fresh(progress) and key != self._shown:
            self._shown = key
            self._console.print(f"{progress.percent:3d} %  {_describe(progress)}")

    def say(self, sentence: str) -> None:
        """A line."""
        self._console.print(sentence)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exception: object) -> None:
        """Nothing to put away."""


class BarView:
    """A bar over the whole run with the current stage beside it."""

    def __init__(self, console: Console) -> None:
        self._fresh = _Fresh()
        self._bars = Progress(
            SpinnerColumn(),
            BarColumn(bar_width=30),
            TaskProgressColumn(),
            TimeElapsedColumn(),
            TextColumn("{task.description}", markup=False),
            console=console,
            transient=True,
        )
        self._task: TaskID | None = None

    def progress(self, progress: handoff.Progress) -> None:
        """Move the bar."""
        if self._fresh(progress) and self._task is not None:
            self._bars.update(self._task, completed=progress.percent, description=_describe(progress))

    def say(self, sentence: str) -> None:
        """A line above the bar."""
        self._bars.console.print(sentence)

    def __enter__(self) -> Self:
        self._task = self._bars.add_task("starting", total=100)
        self._bars.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self._bars.stop()


def _describe(progress: handoff.Progress) -> str:
    parts = [f"{progress.stage} ({progress.stage_index + 1}/{progress.stage_count})"]
    if progress.total_steps:
        parts.append(f"step {progress.step}/{progress.total_steps}")
    if progress.eta_seconds is not None:
        parts.append(f"about {duration(progress.eta_seconds)} left")
    if progress.message:
        parts.append(progress.message)
    return ", ".join(parts)


def duration(seconds: int) -> str:
    """Seconds as people say them: 40 s, 3 min, 2 h 5 min."""
    if seconds < 60:
        return f"{seconds} s"
    minutes = round(timedelta(seconds=seconds) / timedelta(minutes=1))
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


@dataclass(frozen=True, kw_only=True)
class Row:
    """One member as the table shows it."""

    target: str
    version: str
    model_uri: str
    size_bytes: int
    parameters: int
    average_bits: float
    metric: str
    quality: float | None
    teacher_quality: float | None


def family_table(rows: Sequence[Row], *, name: str, teacher_size_bytes: int) -> Table:
    """The members of a family, largest first."""
    table = Table(title=f"Family {name}", title_justify="left")
    for column in (
        "target",
        "size",
        "of teacher",
        "parameters",
        "bits",
        "quality",
        "of teacher",
        "version",
        "alias",
    ):
        table.add_column(column, justify="left" if column in ("target", "quality", "alias") else "right")
    for row in sorted(rows, key=lambda row: -row.size_bytes):
        table.add_row(
            row.target,
            f"{row.size_bytes / MIB:.2f} MiB",
            _ratio(row.size_bytes, teacher_size_bytes),
            f"{row.parameters:,}",
            f"{row.average_bits:.2f}",
            "–" if row.quality is None else f"{row.metric} {row.quality:.4f}",
            _ratio(row.quality, row.teacher_quality),
            row.version,
            row.model_uri,
        )
    return table


def _ratio(part: float | None, whole: float | None) -> str:
    return "–" if part is None or not whole else f"{part / whole:.1%}"
