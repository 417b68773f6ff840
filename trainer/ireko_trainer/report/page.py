"""The page: everything in one HTML file that asks no server for anything.

Pictures are inlined; each comes for light and dark ground and for wide and narrow screens, and the browser takes
the one that fits. All texts pass the template's escaping, since names come from manifests.
"""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jinja2

from ireko_trainer.report.content import MemberEntry, ReportContent
from ireko_trainer.report.plots import (
    MEBIBYTE,
    bits_picture,
    curves_picture,
    importance_picture,
    pareto_picture,
)
from ireko_trainer.report.style import CANVASES, LIGHT, Canvas

REPORT_FILE = "report.html"
TEMPLATE_FILE = "report.html.j2"


@dataclass(frozen=True, kw_only=True)
class ReportFiles:
    """What was written."""

    page: Path
    pictures: tuple[Path, ...]
    """As PNG files for light ground and wide screens, beside the page."""


@dataclass(frozen=True, kw_only=True)
class _Picture:
    name: str
    title: str
    caption: str
    alt: str
    draw: Callable[[ReportContent, Canvas], bytes]


def write_report(*, content: ReportContent, directory: Path) -> ReportFiles:
    """Write `report.html` and its pictures into a directory, which is created."""
    directory.mkdir(parents=True, exist_ok=True)
    figures, files = [], []
    for picture in _pictures(content):
        drawn = {canvas: picture.draw(content, canvas) for canvas in CANVASES}
        figures.append(
            {
                "name": picture.name,
                "title": picture.title,
                "caption": picture.caption,
                "alt": picture.alt,
                "sources": {_key(canvas): _data_uri(png) for canvas, png in drawn.items()},
            }
        )
        path = directory / f"{picture.name}.png"
        path.write_bytes(drawn[Canvas(narrow=False, theme=LIGHT)])
        files.append(path)
    page = directory / REPORT_FILE
    page.write_text(_render(content, figures), encoding="utf-8")
    return ReportFiles(page=page, pictures=tuple(files))


def _render(content: ReportContent, figures: list[dict[str, Any]]) -> str:
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters["mib"] = mebibytes
    environment.filters["count"] = count
    environment.filters["quality"] = lambda value: f"{value:.4f}"
    return environment.get_template(TEMPLATE_FILE).render(
        content=content,
        summary=summary(content),
        figures={figure["name"]: figure for figure in figures},
        members=[_row(content, member) for member in content.members],
        metrics=_other_metrics(content),
    )


def summary(content: ReportContent) -> str:
    """The outcome in one or two sentences."""
    teacher = content.teacher
    opening = (
        f"From a teacher of {mebibytes(teacher.size_bytes)} with {content.metric} {teacher.quality:.3f} came "
        f"{_members_in_words(len(content.members))}."
    )
    smallest = min(content.members, key=lambda member: member.size_bytes)
    share = smallest.size_bytes / teacher.size_bytes
    return (
        f"{opening} The smallest, {smallest.target}, takes {mebibytes(smallest.size_bytes)} ({share:.1%} of the "
        f"teacher) and has {content.metric} {smallest.quality:.3f}{_kept(smallest, content)}."
    )


def _members_in_words(number: int) -> str:
    return "one member" if number == 1 else f"{number} members"


def _kept(member: MemberEntry, content: ReportContent) -> str:
    """The share of the teacher's quality, where a share means anything: a correlation may be zero or negative."""
    if content.teacher.quality <= 0 or member.quality < 0:
        return ""
    return f", {member.quality / content.teacher.quality:.1%} of the teacher's"


def mebibytes(size_bytes: int) -> str:
    """Bytes in MiB with three significant digits, as limits in manifests are written."""
    size = size_bytes / MEBIBYTE
    digits = 0 if size >= 100 else 1 if size >= 10 else 2
    return f"{size:.{digits}f} MiB"


def count(number: int) -> str:
    """A number of parameters in millions or thousands."""
    if number >= 1_000_000:
        return f"{number / 1e6:.1f} M"
    return f"{number / 1e3:.1f} k" if number >= 1_000 else str(number)


def _row(content: ReportContent, member: MemberEntry) -> dict[str, Any]:
    return {
        "entry": member,
        "alias": member.alias or member.target,
        "kept": member.quality / content.teacher.quality if content.teacher.quality > 0 else None,
        "share": member.size_bytes / content.teacher.size_bytes,
        "fits_size": member.size_bytes <= member.max_size_bytes,
        "fits_quality": member.min_quality is None or member.quality >= member.min_quality,
        "layers": ranges(member.layers),
    }


def ranges(numbers: Sequence[int]) -> str:
    """Ascending numbers with runs drawn together: `0–3, 5`."""
    runs: list[list[int]] = []
    for number in numbers:
        if runs and number == runs[-1][-1] + 1:
            runs[-1].append(number)
        else:
            runs.append([number])
    return ", ".join(f"{run[0]}–{run[-1]}" if len(run) > 1 else str(run[0]) for run in runs)


def _other_metrics(content: ReportContent) -> list[str]:
    names = {name for member in content.members for name in member.metrics}
    return sorted(names - {content.metric})


def _pictures(content: ReportContent) -> list[_Picture]:
    """The pictures that the content has numbers for."""
    pictures = [
        _Picture(
            name="pareto",
            title="Size and quality",
            caption="Every point is one model; further up and further left is better. Dashed lines are the "
            "size limits of the device targets, in the colours of their members.",
            alt=_pareto_in_words(content),
            draw=pareto_picture,
        )
    ]
    if any(member.bits for member in content.members):
        pictures.append(
            _Picture(
                name="bits",
                title="Bits",
                caption="Stored width of every weight matrix: rows are blocks, columns are matrices. A dash "
                "is a matrix that stays float16. The mean is over all weights, scales included.",
                alt="Bit widths of the weight matrices of "
                + ", ".join(f"{m.target} ({m.average_bits:.2f} on average)" for m in content.members),
                draw=bits_picture,
            )
        )
    if content.importance:
        methods = ", ".join(dict.fromkeys(entry.method for entry in content.importance))
        pictures.append(
            _Picture(
                name="importance",
                title="Importance of layers",
                caption="The scores by which layers are ranked when bits are given out.",
                alt=f"Importance of each layer by {methods}",
                draw=importance_picture,
            )
        )
    if content.curves:
        stages = ", ".join(curve.stage for curve in content.curves)
        pictures.append(
            _Picture(
                name="curves",
                title="Training",
                caption="Loss of each stage, raw and smoothed; thin lines are single subnets.",
                alt=f"Loss over steps in the stages {stages}",
                draw=curves_picture,
            )
        )
    return pictures


def _pareto_in_words(content: ReportContent) -> str:
    members = "; ".join(
        f"{m.target}: {mebibytes(m.size_bytes)}, {content.metric} {m.quality:.3f}" for m in content.members
    )
    teacher = content.teacher
    return (
        f"Size against {content.metric}. {members}; teacher: {mebibytes(teacher.size_bytes)}, "
        f"{content.metric} {teacher.quality:.3f}"
    )


def _key(canvas: Canvas) -> str:
    return f"{'narrow' if canvas.narrow else 'wide'}_{canvas.theme.name}"


def _data_uri(png: bytes) -> str:
    return "data:image/png;base64," + base64.b64encode(png).decode("ascii")
