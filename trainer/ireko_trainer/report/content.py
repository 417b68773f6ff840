"""What a report shows, as plain numbers: whoever fills it in needs neither MLflow nor a model."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date


@dataclass(frozen=True, kw_only=True)
class TeacherEntry:
    """The model that everything is measured against."""

    quality: float
    """The value of the report's metric."""
    size_bytes: int
    parameters: int
    label: str = "teacher"


@dataclass(frozen=True, kw_only=True)
class CandidateEntry:
    """A model that selection looked at."""

    label: str
    size_bytes: int
    quality: float
    average_bits: float | None = None
    """Stored bits per weight; None where it was not quantized."""
    chosen: bool = False


@dataclass(frozen=True, kw_only=True)
class BaselineEntry:
    """A model made in a simpler way, to compare with."""

    label: str
    size_bytes: int
    quality: float


@dataclass(frozen=True, kw_only=True)
class MatrixBits:
    """The stored width of one weight matrix."""

    block: str
    """As `embeddings`, `layer 0`, `head`: the row of the bit map, in the order of first appearance."""
    matrix: str
    """As `attention.self.query`: the column of the bit map, in the order of first appearance."""
    bits: int | None
    """None: not quantized."""


@dataclass(frozen=True, kw_only=True)
class MemberEntry:
    """One finished member and what its device target asks for."""

    target: str
    quality: float
    size_bytes: int
    parameters: int
    average_bits: float
    hidden: int
    heads: int
    intermediate: int
    layers: tuple[int, ...]
    """Indices of the teacher's layers that it keeps."""
    max_size_bytes: int
    min_quality: float | None = None
    """The stricter of the target's limits, in units of the metric."""
    alias: str | None = None
    """Of the registered model; None: `target`."""
    metrics: Mapping[str, float] = field(default_factory=dict)
    bits: tuple[MatrixBits, ...] = ()


@dataclass(frozen=True, kw_only=True)
class Curve:
    """The metrics of one training stage."""

    stage: str
    points: tuple[tuple[int, Mapping[str, float]], ...]
    """(step, series → value), ascending by step."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """The score of every block of one model by one method; blocks with more importance got more bits."""

    method: str
    """As `LIM`, `ZD`; methods have different units and get a panel each."""
    model: str
    """The member (its target) or whatever else was scored."""
    scores: Mapping[str, float]
    """Block → score, in the order of the blocks."""


@dataclass(frozen=True, kw_only=True)
class ReportContent:
    """Everything on the page."""

    name: str
    """Of the run."""
    model_name: str
    """Of the registered model whose aliases are the targets."""
    metric: str
    teacher: TeacherEntry
    members: tuple[MemberEntry, ...]
    candidates: tuple[CandidateEntry, ...] = ()
    baselines: tuple[BaselineEntry, ...] = ()
    curves: tuple[Curve, ...] = ()
    importance: tuple[Importance, ...] = ()
    lineage: tuple[tuple[str, str], ...] = ()
    """What → value: digests, seed, versions, identifiers."""
    notes: tuple[str, ...] = ()
    """What has to be known about a method's outcome, in sentences."""
    tracking_uri: str | None = None
    """For the lines that show how to load a member."""
    task: str = "text-classification"
    created: date | None = None
