"""The terms that an estimate adds up, and the words for them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

Process = Literal["worker", "trainer"]
"""A training worker, or the trainer's own process, which quantizes and ships."""


@dataclass(frozen=True, kw_only=True)
class Term:
    """One of the things that a stage holds."""

    what: str
    how: str
    """The arithmetic."""
    bytes: int
    mapped: bool = False
    """From a file, unchanged: the system can drop it and read it again."""


@dataclass(frozen=True, kw_only=True)
class Stage:
    """The peak of one stage in one process."""

    name: str
    process: Process
    terms: tuple[Term, ...]

    @property
    def total(self) -> int:
        """Bytes with everything in memory."""
        return sum(term.bytes for term in self.terms)

    @property
    def needed(self) -> int:
        """Bytes that cannot be dropped."""
        return sum(term.bytes for term in self.terms if not term.mapped)


def size(count: int) -> str:
    """Bytes for people: `28.4 GiB`, `90 MiB`."""
    return f"{count / 2**30:.1f} GiB" if count >= 2**30 else f"{count / 2**20:.0f} MiB"


def table(stages: Sequence[Stage]) -> str:
    """One line per stage: where it runs, its peak, how much of it is mapped, and its largest terms."""
    lines = [
        (
            stage.name,
            stage.process,
            size(stage.total),
            size(stage.total - stage.needed),
            ", ".join(f"{term.what} {size(term.bytes)}" for term in largest(stage)[:3]),
        )
        for stage in stages
    ]
    heading: tuple[str, ...] = ("stage", "process", "peak", "mapped", "most of it")
    rows: list[tuple[str, ...]] = [heading, *lines]
    widths = [max(len(row[column]) for row in rows) for column in range(4)]
    return "\n".join(
        "  ".join([*(text.ljust(width) for text, width in zip(row, widths, strict=False)), row[4]])
        for row in rows
    )


def largest(stage: Stage) -> list[Term]:
    """Its terms, the largest first."""
    return sorted(stage.terms, key=lambda term: -term.bytes)


def arithmetic(stage: Stage) -> str:
    """All terms of a stage as a sum."""
    return " + ".join(
        f"{size(term.bytes)} {term.what} ({term.how}{', mapped' if term.mapped else ''})"
        for term in largest(stage)
    )
