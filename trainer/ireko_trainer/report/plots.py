"""The four pictures of a report: sizes against quality, training, importance of blocks, bits of matrices."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import BoundaryNorm, ListedColormap
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, MaxNLocator, NullLocator

from ireko_trainer.report.content import Curve, Importance, MemberEntry, ReportContent
from ireko_trainer.report.fronts import pareto_front
from ireko_trainer.report.naming import block_label, matrix_label
from ireko_trainer.report.style import (
    Canvas,
    Theme,
    as_png,
    colour,
    marker,
    panels,
    place_labels,
    text_colour,
    themed,
)

MEBIBYTE = 1 << 20

_LOG_FROM_RATIO = 8.0
_NOT_DRAWN = ("learning_rate", "gradient_norm")
_SMOOTHED_POINTS = 60
# Viridis, dark for few bits; float16 counts as 16.
_BIT_COLOURS = {
    1: "#440154",
    2: "#46327e",
    3: "#365c8d",
    4: "#277f8e",
    5: "#1fa187",
    6: "#4ac16d",
    8: "#a0da39",
    16: "#fde725",
}
_DARK_BITS = 4
_FLOAT_BITS = 16
_LONGEST_LABEL = 24
_MOST_LABELLED_BASELINES = 3


def pareto_picture(content: ReportContent, canvas: Canvas) -> bytes:
    """Size against quality: candidates, their front, members, size limits of the targets, teacher, baselines."""
    with themed(canvas.theme):
        figure, (axes,) = panels(canvas, count=1, columns=1, height=4.3 if canvas.narrow else 4.6)
        _draw_candidates(axes, content, canvas.theme)
        for index, member in enumerate(content.members):
            axes.axvline(
                member.max_size_bytes / MEBIBYTE,
                color=colour(index, canvas.theme),
                linewidth=1.1,
                linestyle=(0, (4, 3)),
                zorder=1,
            )
            axes.plot(
                *_at(member.size_bytes, member.quality),
                marker=marker(index),
                markersize=9,
                color=colour(index, canvas.theme),
                markeredgecolor=canvas.theme.ground,
                linestyle="none",
                zorder=5,
            )
        teacher = content.teacher
        axes.plot(
            *_at(teacher.size_bytes, teacher.quality), marker="*", markersize=14, color=canvas.theme.ink,
            markeredgecolor=canvas.theme.ground, linestyle="none", zorder=5,
        )  # fmt: skip
        _scale_sizes(axes, content)
        axes.set_xlabel("size in MiB")
        axes.set_ylabel(content.metric)
        axes.margins(y=0.12)
        figure.legend(
            handles=_pareto_legend(content, canvas.theme),
            loc="outside lower center",
            ncols=2 if canvas.narrow else 5,
        )
        place_labels(figure, axes, _pareto_labels(content, canvas.theme), theme=canvas.theme)
        return as_png(figure)


def _at(size_bytes: int, quality: float) -> tuple[list[float], list[float]]:
    return [size_bytes / MEBIBYTE], [quality]


def _draw_candidates(axes: Axes, content: ReportContent, theme: Theme) -> None:
    points = [(c.size_bytes / MEBIBYTE, c.quality) for c in content.candidates]
    if points:
        sizes, qualities = zip(*points, strict=True)
        axes.scatter(sizes, qualities, s=18, color=theme.faint, alpha=0.75, linewidth=0, zorder=2)
    everything = points + [(m.size_bytes / MEBIBYTE, m.quality) for m in content.members]
    front = [everything[index] for index in pareto_front(everything)]
    if len(front) > 1:
        axes.plot(
            *zip(*front, strict=True), drawstyle="steps-post", color=theme.faint, linewidth=1.4, zorder=3
        )
    baselines = [(b.size_bytes / MEBIBYTE, b.quality) for b in content.baselines]
    if baselines:
        sizes, qualities = zip(*baselines, strict=True)
        axes.scatter(sizes, qualities, s=34, marker="x", color=theme.ink, linewidth=1.3, zorder=4)


def _pareto_labels(content: ReportContent, theme: Theme) -> list[tuple[str, float, float, str]]:
    members = [
        (
            shortened(member.target),
            member.size_bytes / MEBIBYTE,
            member.quality,
            text_colour(index, theme),
        )
        for index, member in enumerate(content.members)
    ]
    teacher = content.teacher
    # More would hide the members; the table lists them all.
    named = content.baselines if len(content.baselines) <= _MOST_LABELLED_BASELINES else ()
    baselines = [(shortened(b.label), b.size_bytes / MEBIBYTE, b.quality, theme.faint) for b in named]
    return [*members, (teacher.label, teacher.size_bytes / MEBIBYTE, teacher.quality, theme.ink), *baselines]


def _pareto_legend(content: ReportContent, theme: Theme) -> list[Line2D]:
    entries = [
        Line2D([], [], marker="o", linestyle="none", color=colour(0, theme), label="member"),
        Line2D([], [], linestyle=(0, (4, 3)), color=colour(0, theme), label="its size limit"),
    ]
    if content.candidates:
        entries.append(
            Line2D([], [], marker="o", markersize=4, linestyle="none", color=theme.faint, label="candidate")
        )
        entries.append(Line2D([], [], color=theme.faint, label="best for its size"))
    if content.baselines:
        entries.append(Line2D([], [], marker="x", linestyle="none", color=theme.ink, label="baseline"))
    return entries


def _scale_sizes(axes: Axes, content: ReportContent) -> None:
    sizes = [content.teacher.size_bytes, *(m.size_bytes for m in content.members)]
    sizes += [*(m.max_size_bytes for m in content.members), *(c.size_bytes for c in content.candidates)]
    sizes += [b.size_bytes for b in content.baselines]
    low, high = min(sizes) / MEBIBYTE, max(sizes) / MEBIBYTE
    if high / low < _LOG_FROM_RATIO:
        axes.set_xlim(
            left=max(0.0, low - 0.15 * (high - low)), right=high + 0.15 * max(high - low, 0.1 * high)
        )
        return
    axes.set_xscale("log")
    axes.set_xlim(low / 1.35, high * 1.35)
    axes.xaxis.set_major_locator(FixedLocator(round_numbers(low / 1.35, high * 1.35)))
    axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _position: f"{value:g}"))
    axes.xaxis.set_minor_locator(NullLocator())


def round_numbers(low: float, high: float) -> list[float]:
    """1, 2 and 5 times powers of ten between two positive numbers."""
    exponents = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    ticks = [step * 10.0**exponent for exponent in exponents for step in (1, 2, 5)]
    return [tick for tick in ticks if low <= tick <= high]


def curves_picture(content: ReportContent, canvas: Canvas) -> bytes:
    """The losses of each training stage over its steps, raw and smoothed."""
    with themed(canvas.theme):
        figure, axes = panels(canvas, count=len(content.curves), columns=3, height=2.5)
        for index, (panel, curve) in enumerate(zip(axes, content.curves, strict=True)):
            _draw_curve(panel, curve, line=colour(index, canvas.theme), theme=canvas.theme)
        return as_png(figure)


def _draw_curve(axes: Axes, curve: Curve, *, line: str, theme: Theme) -> None:
    axes.set_title(curve.stage)
    axes.set_xlabel("step")
    series = series_of(curve)
    for name, (steps, values) in sorted(series.items(), key=lambda item: item[0] == "loss"):
        main = name == "loss" or len(series) == 1
        if main:
            axes.plot(steps, values, color=line, alpha=0.25, linewidth=0.7)
        axes.plot(
            steps,
            smoothed(values),
            color=line if main else theme.faint,
            linewidth=1.8 if main else 0.7,
            alpha=1.0 if main else 0.6,
        )
    axes.set_ylabel("loss")
    axes.xaxis.set_major_locator(MaxNLocator(nbins=4, integer=True))
    positive = [value for _, values in series.values() for value in values if value > 0]
    if positive and max(positive) / min(positive) > 100:
        axes.set_yscale("log")


def series_of(curve: Curve) -> dict[str, tuple[list[int], list[float]]]:
    """The series that are drawn, as steps and finite values; rates and norms are not."""
    series: dict[str, tuple[list[int], list[float]]] = {}
    for step, values in curve.points:
        for name, value in values.items():
            if name not in _NOT_DRAWN and math.isfinite(value):
                steps, numbers = series.setdefault(name, ([], []))
                steps.append(step)
                numbers.append(value)
    return series


def smoothed(values: Sequence[float]) -> list[float]:
    """The centred mean over a window that leaves about sixty independent points; ends use what there is."""
    reach = len(values) // (2 * _SMOOTHED_POINTS)
    totals = np.concatenate([[0.0], np.cumsum(np.asarray(values, dtype=np.float64))])
    starts = np.maximum(np.arange(len(values)) - reach, 0)
    ends = np.minimum(np.arange(len(values)) + reach + 1, len(values))
    return [float(mean) for mean in (totals[ends] - totals[starts]) / (ends - starts)]


def importance_picture(content: ReportContent, canvas: Canvas) -> bytes:
    """The score of each block, a panel per method and a line per model."""
    methods = list(dict.fromkeys(entry.method for entry in content.importance))
    models = list(dict.fromkeys(entry.model for entry in content.importance))
    targets = [member.target for member in content.members]
    order = {model: targets.index(model) if model in targets else len(targets) for model in models}
    with themed(canvas.theme):
        figure, axes = panels(canvas, count=len(methods), columns=2, height=2.9)
        for panel, method in zip(axes, methods, strict=True):
            entries = [entry for entry in content.importance if entry.method == method]
            _draw_importance(panel, entries, order=order, title=method, theme=canvas.theme)
        handles = [
            Line2D(
                [],
                [],
                color=colour(order[model], canvas.theme),
                marker=marker(order[model]),
                label=shortened(model),
            )
            for model in models
        ]
        figure.legend(handles=handles, loc="outside lower center", ncols=2 if canvas.narrow else 4)
        return as_png(figure)


def _draw_importance(
    axes: Axes, entries: Sequence[Importance], *, order: Mapping[str, int], title: str, theme: Theme
) -> None:
    blocks = list(dict.fromkeys(block_label(name) for entry in entries for name in entry.scores))
    blocks.sort(key=lambda label: int(label.removeprefix("layer ")) if label.startswith("layer ") else -1)
    for entry in entries:
        scores = {block_label(name): score for name, score in entry.scores.items()}
        present = [block for block in blocks if block in scores]
        index = order[entry.model]
        axes.plot(
            [blocks.index(block) for block in present],
            [scores[block] for block in present],
            color=colour(index, theme),
            marker=marker(index),
            markersize=5,
            linewidth=1.3,
        )
    axes.set_title(title)
    axes.set_ylabel("importance")
    every = max(1, math.ceil(len(blocks) / 14))
    axes.set_xticks(range(0, len(blocks), every), [b.removeprefix("layer ") for b in blocks[::every]])
    axes.set_xlabel("layer")


def bits_picture(content: ReportContent, canvas: Canvas) -> bytes:
    """The width of every matrix of every member: blocks down, kinds of matrices across."""
    members = [member for member in content.members if member.bits]
    rows = max(len(_rows(member)) for member in members)
    with themed(canvas.theme):
        figure, axes = panels(canvas, count=len(members), columns=3, height=1.6 + 0.2 * rows)
        for panel, member in zip(axes, members, strict=True):
            _draw_bits(panel, member, rows=rows, theme=canvas.theme)
        return as_png(figure)


def _rows(member: MemberEntry) -> list[str]:
    return list(dict.fromkeys(entry.block for entry in member.bits))


def _draw_bits(axes: Axes, member: MemberEntry, *, rows: int, theme: Theme) -> None:
    blocks = _rows(member)
    matrices = list(dict.fromkeys(entry.matrix for entry in member.bits))
    widths = np.full((len(blocks), len(matrices)), np.nan)
    for entry in member.bits:
        bits = _FLOAT_BITS if entry.bits is None else entry.bits
        widths[blocks.index(entry.block), matrices.index(entry.matrix)] = bits
    levels = sorted(_BIT_COLOURS)
    colours = ListedColormap([_BIT_COLOURS[level] for level in levels])
    edges = [0.5, *(level + 0.5 for level in levels)]
    axes.pcolormesh(
        widths, cmap=colours, norm=BoundaryNorm(edges, colours.N), edgecolors=theme.ground, linewidth=1.5
    )
    for (row, column), bits in np.ndenumerate(widths):
        if not math.isnan(bits):
            ink = "#ffffff" if bits <= _DARK_BITS else "#1d2129"
            text = "–" if bits == _FLOAT_BITS else f"{bits:.0f}"
            axes.text(column + 0.5, row + 0.5, text, ha="center", va="center", color=ink, fontsize=7.5)
    axes.set_xlim(0, len(matrices))
    axes.set_ylim(rows, 0)  # the same height for all members
    axes.grid(visible=False)
    axes.tick_params(length=0)
    axes.spines[["left", "bottom"]].set_visible(False)
    axes.set_title(f"{shortened(member.target)} · {member.average_bits:.2f} bits", loc="left", x=0.0)
    axes.set_yticks([index + 0.5 for index in range(len(blocks))], blocks)
    ticks = [index + 0.5 for index in range(len(matrices))]
    labels = [matrix_label(matrix) for matrix in matrices]
    axes.set_xticks(ticks, labels, rotation=60, ha="right", rotation_mode="anchor", fontsize=7.5)


def shortened(label: str) -> str:
    """A label that fits into a picture: a target's name may have 63 characters."""
    return label if len(label) <= _LONGEST_LABEL else label[: _LONGEST_LABEL - 1] + "…"
