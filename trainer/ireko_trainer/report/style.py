"""Colours, sizes and label placement that every picture of the report shares.

Pictures come in two themes, for pages on white and on dark ground, and in two widths, since text that is shrunk
to a telephone cannot be read.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from matplotlib.patheffects import withStroke
from matplotlib.transforms import Bbox
from PIL import Image

DOTS_PER_INCH = 160
_PALETTE_SIZE = 256
# In pixels: half of what a line, a candidate and a member take up.
_LINE_REACH = 2.0
_POINT_REACH = 5.0
_MARKER_REACH = 12.0
# Okabe & Ito (2008), distinguishable with every common kind of colour blindness; shapes repeat what colours say.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7A68A6")
MARKERS = ("o", "s", "D", "^", "v", "P", "X", "p")


@dataclass(frozen=True, kw_only=True)
class Theme:
    """One ground and what is drawn on it."""

    name: str
    ground: str
    ink: str
    faint: str
    grid: str


LIGHT = Theme(name="light", ground="#ffffff", ink="#1d2129", faint="#8a919e", grid="#e3e6eb")
DARK = Theme(name="dark", ground="#161a20", ink="#e4e7ec", faint="#8d95a3", grid="#2c323c")
THEMES = (LIGHT, DARK)


@dataclass(frozen=True, kw_only=True)
class Canvas:
    """The width and theme of a picture."""

    narrow: bool
    theme: Theme

    @property
    def inches(self) -> float:
        """Width; at CSS size a narrow picture fills a telephone and a wide one a column of text."""
        return 3.9 if self.narrow else 8.6


CANVASES = tuple(Canvas(narrow=narrow, theme=theme) for narrow in (False, True) for theme in THEMES)


def colour(index: int, theme: Theme) -> str:
    """The colour of the member at a position, lightened on dark ground."""
    return _towards(theme.ink, COLOURS[index % len(COLOURS)], share=0.22 if theme is DARK else 0.0)


def text_colour(index: int, theme: Theme) -> str:
    """The same colour for text, which needs more contrast than a marker."""
    return _towards(theme.ink, COLOURS[index % len(COLOURS)], share=0.4 if theme is DARK else 0.25)


def _towards(target: str, start: str, *, share: float) -> str:
    ends = [[int(code[i : i + 2], 16) for i in (1, 3, 5)] for code in (start, target)]
    mixed = [round(a + (b - a) * share) for a, b in zip(*ends, strict=True)]
    return "#" + "".join(f"{channel:02x}" for channel in mixed)


def marker(index: int) -> str:
    """The marker of the member at a position; differs where colours repeat."""
    return MARKERS[(index + index // len(COLOURS)) % len(MARKERS)]


@contextmanager
def themed(theme: Theme) -> Iterator[None]:
    """Matplotlib's settings for a theme, for the figures made inside."""
    settings: Any = {
        "figure.facecolor": theme.ground,
        "savefig.facecolor": theme.ground,
        "axes.facecolor": theme.ground,
        "axes.edgecolor": theme.faint,
        "axes.labelcolor": theme.ink,
        "axes.titlecolor": theme.ink,
        "axes.titlesize": 9.5,
        "axes.titleweight": "bold",
        "axes.titlelocation": "left",
        "axes.labelsize": 9,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.color": theme.grid,
        "grid.linewidth": 0.7,
        "text.color": theme.ink,
        "xtick.color": theme.ink,
        "ytick.color": theme.ink,
        "xtick.labelsize": 8.5,
        "ytick.labelsize": 8.5,
        "legend.fontsize": 8.5,
        "legend.frameon": False,
        "font.family": "DejaVu Sans",
        "font.size": 9,
    }
    with mpl.rc_context(settings):
        yield


def panels(
    canvas: Canvas, *, count: int, columns: int, height: float, **options: Any
) -> tuple[Figure, list[Axes]]:
    """A figure with `count` panels, each `height` inches high, in at most `columns` columns."""
    columns = 1 if canvas.narrow else max(1, min(columns, count))
    rows = -(-count // columns)
    figure = Figure(figsize=(canvas.inches, rows * height), dpi=DOTS_PER_INCH, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False, **options).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def as_png(figure: Figure) -> bytes:
    """The figure as a PNG file with a palette, a third of the size of full colours; equal figures, equal bytes."""
    canvas = FigureCanvasAgg(figure)
    canvas.draw()
    image = Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB")
    target = io.BytesIO()
    image.quantize(_PALETTE_SIZE, dither=Image.Dither.NONE).save(target, format="PNG", optimize=True)
    return target.getvalue()


def place_labels(
    figure: Figure, axes: Axes, labels: Sequence[tuple[str, float, float, str]], *, theme: Theme
) -> None:
    """Write labels (text, x, y, colour) beside their points, away from each other, from lines and from the edge.

    Each label takes the place around its point that covers least of what is drawn already.
    """
    figure.draw_without_rendering()  # settles the layout, so that extents are final
    taken = [*_segments(axes), *_points(axes)]
    frame = axes.get_window_extent()
    for text, x, y, ink in labels:
        note = axes.annotate(
            text,
            (x, y),
            xytext=(0, 0),
            textcoords="offset points",
            color=ink,
            fontsize=9,
            weight="bold",
            zorder=6,
        )
        note.set_path_effects([withStroke(linewidth=2.5, foreground=theme.ground)])
        costs = []
        for dx, dy, side in _PLACES:
            note.set(position=(dx, dy), ha=side, va="center")
            extent = note.get_window_extent()
            covered = sum(_overlap(extent, other) for other in taken)
            costs.append(covered + 4 * (extent.width * extent.height - _overlap(extent, frame)))
        dx, dy, side = _PLACES[costs.index(min(costs))]
        note.set(position=(dx, dy), ha=side)
        taken.append(note.get_window_extent())


def _segments(axes: Axes) -> Iterator[Bbox]:
    """The straight pieces of the lines of a plot, as thin boxes in pixels; a step goes along, then up."""
    for line in axes.lines:
        corners = line.get_transform().transform(np.column_stack(line.get_data()))
        if line.get_drawstyle() == "steps-post":
            corners = np.repeat(corners, 2, axis=0)[:-1]
            corners[1::2, 0] = corners[2::2, 0]
        for (x0, y0), (x1, y1) in pairwise(corners):
            yield _box(min(x0, x1), min(y0, y1), max(x0, x1), max(y0, y1), reach=_LINE_REACH)


def _points(axes: Axes) -> Iterator[Bbox]:
    for line in axes.lines:
        if np.size(line.get_xdata()) == 1:
            ((x, y),) = line.get_transform().transform(np.column_stack(line.get_data()))
            yield _box(x, y, x, y, reach=_MARKER_REACH)
    for collection in axes.collections:
        for x, y in axes.transData.transform(collection.get_offsets()):
            yield _box(x, y, x, y, reach=_POINT_REACH)


def _box(x0: float, y0: float, x1: float, y1: float, *, reach: float) -> Bbox:
    return Bbox.from_extents(x0 - reach, y0 - reach, x1 + reach, y1 + reach)


_PLACES = (
    (9, 0, "left"),
    (-9, 0, "right"),
    (0, 12, "center"),
    (0, -12, "center"),
    (7, 10, "left"),
    (7, -10, "left"),
    (-7, 10, "right"),
    (-7, -10, "right"),
    (0, 24, "center"),
    (0, -24, "center"),
    (16, 20, "left"),
    (16, -20, "left"),
    (-16, 20, "right"),
    (-16, -20, "right"),
    (0, 36, "center"),
    (0, -36, "center"),
)


def _overlap(a: Bbox, b: Bbox) -> float:
    width = min(a.x1, b.x1) - max(a.x0, b.x0)
    height = min(a.y1, b.y1) - max(a.y0, b.y0)
    return float(max(0.0, width) * max(0.0, height))
