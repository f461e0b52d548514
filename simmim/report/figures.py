"""Curves, matrices and maps as SVG text that sits on a light and on a dark page alike.

Lines and letters take the colour of the page around them (the CSS variable ``--figure-ink``, mid
grey where there is none); the background is transparent.
"""

import io
import re
import warnings
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from itertools import combinations

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure
from matplotlib.ticker import FuncFormatter, MaxNLocator, NullFormatter

from simmim.report.words import number, percent
from simmim.runs.record import Row, column

COLOURS = (
    "#3f7fbf",
    "#e0752d",
    "#3d9a6c",
    "#b5569b",
    "#c9a227",
    "#6f6bc4",
    "#d0524f",
    "#3ba3a8",
    "#8c6d4f",
    "#8a9a3b",
)
"""Colours of series and classes, readable on white and on near-black."""

_INK, _STRONG = "#808080", "#7f8081"
"""Stand-ins for the page's ``--figure-ink`` and its stronger ``--figure-strong``."""
_styled = mpl.rc_context(
    {
        "svg.fonttype": "none",
        "text.parse_math": False,
        "svg.hashsalt": "simmim",
        "font.family": "sans-serif",
        "font.size": 10,
        "text.color": _INK,
        "axes.edgecolor": _INK,
        "axes.labelcolor": _INK,
        "xtick.color": _INK,
        "ytick.color": _INK,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "axes.linewidth": 0.8,
        "grid.color": _INK,
        "grid.alpha": 0.22,
        "grid.linewidth": 0.7,
        "legend.frameon": False,
        "lines.linewidth": 1.8,
        "lines.solid_capstyle": "round",
    }
)
_ASTRAY = 1000.0
"""So many times the lowest, a loss is far off."""
_POINTS = 300
"""Points of a curve that are drawn; more cannot be told apart at this width."""


@dataclass(frozen=True, kw_only=True)
class Series:
    """One line of ``label_curve``: a way to start, over the number of labels."""

    name: str
    labels: Sequence[int]
    """Labelled images used."""
    mean: Sequence[float]
    """Accuracy, as a share, averaged over the draws."""
    error: Sequence[float]
    """Standard error of that mean; not a number where there was one draw."""
    dashed: bool = False
    """Whether it is a baseline, drawn dashed in the colour of the line before it."""


@_styled
def loss_curve(rows: Sequence[Row]) -> str:
    """The loss over steps: of training, and of the fixed images that progress is measured on."""
    figure, axes = _axes("step", "loss")
    steps, values = column(rows, "loss")
    if len(values) and values.max() > _ASTRAY * values.min() > 0:
        axes.set_yscale("log")  # a few absurd values would press the rest flat
        axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 2)))
        axes.yaxis.set_minor_formatter(NullFormatter())
    if len(values) > 40:
        axes.plot(*_thin(steps, values), color=COLOURS[0], alpha=0.28, linewidth=0.8)
        values = _smooth(values)
    axes.plot(*_thin(steps, values), color=COLOURS[0], label="training")
    held = column(rows, "holdout_loss")
    if len(held[0]):
        axes.plot(*held, "o-", color=COLOURS[1], markersize=3.5, label="fixed images and masks")
        axes.legend()
    return _svg(figure, "Loss over training steps")


@_styled
def explained_curve(rows: Sequence[Row]) -> str:
    """Explained detail over steps, against both baselines."""
    figure, axes = _axes("step", "explained detail")
    axes.axhline(0, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    names = {"explained": "against the mean colour", "explained_blur": "against interpolation"}
    drawn = [np.zeros(1)]
    for colour, (key, name) in zip(COLOURS, names.items(), strict=False):
        steps, values = _thin(*column(rows, key))
        values = np.maximum(values, -10)  # far below what is shown
        axes.plot(steps, values, "o-", markersize=3, color=colour, label=name)
        drawn.append(values)
    every = np.concatenate(drawn)
    # An untrained model may be far below zero, which would press the rest flat.
    axes.set_ylim(max(every.min(), -0.5) - 0.04, min(1.02, every.max() + 0.08))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.legend(loc="best")
    return _svg(figure, "Explained detail over training steps")


@_styled
def rate_curve(rows: Sequence[Row]) -> str:
    """The learning rate over steps."""
    figure, axes = _axes("step", "learning rate", small=True)
    axes.plot(*_thin(*column(rows, "lr")), color=COLOURS[2])
    axes.set_ylim(bottom=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: number(value, 2)))
    return _svg(figure, "Learning rate over training steps")


@_styled
def knn_curve(rows: Sequence[Row]) -> str:
    """Accuracy of nearest neighbours on frozen features over steps."""
    figure, axes = _axes("step", "k-NN accuracy", small=True)
    axes.plot(*column(rows, "knn"), "o-", markersize=3, color=COLOURS[4])
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    return _svg(figure, "Accuracy of nearest neighbours over training steps")


def accuracy_curve(rows: Sequence[Row]) -> str:
    """Accuracy of a classifier over steps, on the images that it is measured on."""
    names = {"accuracy": "accuracy", "balanced_accuracy": "balanced accuracy"}
    return measure_curve(rows, names, "accuracy")


@_styled
def measure_curve(rows: Sequence[Row], names: Mapping[str, str], title: str) -> str:
    """Shares over steps, such as F1, by their names in the rows; on what is measured on."""
    figure, axes = _axes("step", title)
    for colour, (key, name) in zip(COLOURS, names.items(), strict=False):
        axes.plot(*column(rows, key), "o-", markersize=3, color=colour, label=name)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    axes.legend(loc="best")
    return _svg(figure, f"{title} over training steps")


@_styled
def told_numbers(truth: np.ndarray, told: np.ndarray) -> str:
    """What was told over what is true, and the line on which both are the same."""
    figure, axes = _axes("true", "told", size=(4.6, 4.2))
    ends = [min(truth.min(), told.min()), max(truth.max(), told.max())]
    axes.plot(ends, ends, color=_INK, linewidth=1, linestyle=(0, (4, 3)))
    axes.plot(truth, told, "o", markersize=3, alpha=0.6, color=COLOURS[0])
    return _svg(figure, "Numbers that were told over the true ones")


def miou_curve(rows: Sequence[Row]) -> str:
    """Mean IoU and pixel accuracy over steps, on the images that are measured on."""
    return measure_curve(rows, {"miou": "mean IoU", "pixel_accuracy": "pixel accuracy"}, "share")


def precision_curve(rows: Sequence[Row]) -> str:
    """Average precision of a detector over steps, on the images that it is measured on."""
    return measure_curve(rows, {"ap50": "AP50", "ap": "AP"}, "average precision")


@_styled
def speed_curve(rows: Sequence[Row]) -> str:
    """Images per second over steps."""
    figure, axes = _axes("step", "images per second", small=True)
    axes.plot(*_thin(*column(rows, "images_per_s")), color=COLOURS[3])
    axes.set_ylim(bottom=0)
    return _svg(figure, "Images per second over training steps")


@_styled
def label_curve(series: Sequence[Series], measure: str = "accuracy") -> str:
    """Accuracy over the number of labels, one line per way to start, ± one standard error."""
    figure, axes = _axes("labelled images", measure, size=(4.6, 2.9 + 0.2 * len(series)))
    counts = sorted({labels for line in series for labels in line.labels})
    colours = iter(COLOURS * len(series))
    colour = COLOURS[0]
    for line in series:
        colour = colour if line.dashed else next(colours)
        axes.errorbar(
            line.labels,
            line.mean,
            np.nan_to_num(np.asarray(line.error, dtype=float)),
            fmt="o--" if line.dashed else "o-",
            markerfacecolor="none" if line.dashed else colour,
            color=colour,
            capsize=3,
            label=line.name,
        )
    axes.set_xscale("log")
    axes.set_xticks(counts, [f"{labels:,}" for labels in counts])
    axes.xaxis.set_minor_formatter(NullFormatter())
    axes.tick_params(axis="x", which="minor", length=0)
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: percent(value)))
    longest = max((len(line.name) for line in series), default=0)
    figure.legend(loc="outside upper left", ncols=2 if longest < 24 else 1, fontsize=9)
    return _svg(figure, f"{measure} over the number of labelled images".capitalize())


@_styled
def confusion_matrix(counts: np.ndarray, classes: Sequence[str]) -> str:
    """A confusion matrix: rows are true classes, shaded by share of the row, counts written in.

    Args:
        counts: (classes, classes) images of true class [row] that were given class [column].
        classes: Names of the classes.
    """
    size = len(classes)
    share = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.42 * size + 1.6, 3.2), 9.0)
    figure, axes = _axes("predicted", "true", size=(side + 0.6, side), grid=False)
    blue = to_rgb(COLOURS[0])
    axes.imshow(np.dstack([np.full((size, size, 3), blue), 0.04 + 0.9 * share]))
    if size <= 25:
        for row, column_ in np.argwhere(counts > 0):
            axes.text(
                column_,
                row,
                f"{counts[row, column_]:.0f}",
                ha="center",
                va="center",
                fontsize=8.5,
                color=_STRONG,
                fontweight="bold" if row == column_ else "normal",
            )
    axes.set_xticks(range(size), [_short(name) for name in classes], rotation=45, ha="right")
    axes.set_yticks(range(size), [_short(name) for name in classes])
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    return _svg(figure, "Confusion matrix")


def embedding_map(
    points: np.ndarray,
    labels: Sequence[int],
    classes: Sequence[str],
    titles: Sequence[str] | None = None,
) -> str:
    """A map of images by their features, coloured by class, names at the classes' middles.

    Each point carries its number as ``data-i`` and its title, which a browser shows on hover.

    Args:
        points: (n, 2) places, in any unit.
        labels: (n,) class of each point, an index into ``classes``.
        classes: Names of the classes.
        titles: What is said of each point; default: its class.
    """
    low, high = np.percentile(points, (0, 100), axis=0)
    places = (points - low) / np.maximum(high - low, 1e-12)
    places = np.stack([20 + 680 * places[:, 0], 460 - 440 * places[:, 1]], axis=1)
    names = titles or [classes[label] for label in labels]
    dots = [
        f'<circle data-i="{i}" cx="{x:.1f}" cy="{y:.1f}" r="4.5" fill="{_colour(labels[i])}">'
        f"<title>{escape(names[i])}</title></circle>"
        for i, (x, y) in enumerate(places)
    ]
    of = np.asarray(labels)
    present = [index for index in range(len(classes)) if (of == index).any()]
    middles = _apart(np.array([np.median(places[of == index], axis=0) for index in present]))
    marks = [
        f'<text x="{x:.0f}" y="{y:.0f}" fill="{_colour(index)}">{escape(classes[index])}</text>'
        for index, (x, y) in zip(present, middles, strict=True)
    ]
    return (
        '<svg viewBox="0 0 720 480" role="img" aria-label="Map of the images by their features" '
        'xmlns="http://www.w3.org/2000/svg" class="map">'
        '<g fill-opacity="0.75">' + "".join(dots) + "</g>"
        '<g class="names" text-anchor="middle" font-family="sans-serif" font-size="15" '
        'font-weight="600" pointer-events="none">' + "".join(marks) + "</g></svg>"
    )


def _apart(places: np.ndarray, width: float = 90, height: float = 18) -> np.ndarray:
    """``places`` (n, 2) of names, moved up and down until none covers another."""
    moved = places.copy()
    for _ in range(100):
        for one, other in combinations(range(len(moved)), 2):
            gap = moved[other] - moved[one]
            if abs(gap[0]) < width and abs(gap[1]) < height:
                push = (height - abs(gap[1])) / 2 + 0.1
                moved[one, 1] -= push if gap[1] >= 0 else -push
                moved[other, 1] += push if gap[1] >= 0 else -push
    return moved


def _colour(index: int) -> str:
    return COLOURS[index % len(COLOURS)]


def _short(name: str, length: int = 18) -> str:
    return name if len(name) <= length else name[: length - 1] + "…"


def _axes(
    across: str,
    up: str,
    *,
    small: bool = False,
    size: tuple[float, float] | None = None,
    grid: bool = True,
) -> tuple[Figure, Axes]:
    """An empty figure, its size in inches, with both axes named."""
    figure = Figure(figsize=size or ((4.6, 2.3) if small else (4.6, 3.1)), layout="constrained")
    axes = figure.add_subplot()
    axes.set(xlabel=across, ylabel=up)
    axes.grid(grid)
    if across == "step":
        axes.xaxis.set_major_locator(MaxNLocator(5, integer=True))
        axes.xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:,.0f}"))
    return figure, axes


def _thin(steps: np.ndarray, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """At most ``_POINTS`` of a curve, evenly spread, the last one among them."""
    if len(steps) <= _POINTS:
        return steps, values
    kept = np.linspace(0, len(steps) - 1, _POINTS).round().astype(int)
    return steps[kept], values[kept]


def _smooth(values: np.ndarray) -> np.ndarray:
    """The running mean over a fortieth of the curve, over what there is of it at the ends."""
    width = max(3, len(values) // 40)
    box = np.ones(width)
    return np.convolve(values, box, "same") / np.convolve(np.ones_like(values), box, "same")


def _svg(figure: Figure, label: str) -> str:
    """``figure`` as an SVG element that may stand in a page among others."""
    text = io.StringIO()
    with warnings.catch_warnings():
        # Only the widths of signs that matplotlib's font lacks are wrong: the browser draws them.
        warnings.filterwarnings("ignore", message="Glyph .* missing", category=UserWarning)
        figure.savefig(text, format="svg", transparent=True, metadata={"Date": None})
    svg = re.sub(r"<metadata>.*?</metadata>", "", text.getvalue(), flags=re.DOTALL)
    svg = svg[svg.index("<svg") :]
    box = re.search(r'viewBox="[^"]+"', svg)
    opening = f'<svg {box[0] if box else ""} role="img" aria-label="{escape(label)}"'
    spaces = 'xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"'
    svg = re.sub(r"<svg[^>]*>", f"{opening} {spaces}>", svg, count=1)
    # Ids must be unique in a page: drop those that nothing points at, name the rest by content.
    key = format(zlib.crc32(svg.encode()), "08x")
    used = set(re.findall(r'(?:url\(#|href="#)([^")]+)', svg))
    svg = re.sub(
        r' id="([^"]+)"', lambda id_: f' id="{id_[1]}-{key}"' if id_[1] in used else "", svg
    )
    svg = re.sub(r'(url\(#|href="#)([^")]+)', rf"\g<1>\g<2>-{key}", svg)
    svg = re.sub(r"(font: [^;\"]*?\d+px )[^;\"]*", r"\1system-ui, sans-serif", svg)
    svg = svg.replace(_INK, f"var(--figure-ink, {_INK})")
    return svg.replace(_STRONG, f"var(--figure-strong, {_STRONG})").strip()
