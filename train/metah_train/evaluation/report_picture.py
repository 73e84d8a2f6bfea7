"""The report's picture: queries, and per method their nearest images in coloured frames."""

import io
from typing import TYPE_CHECKING, Any

from metah_train.evaluation.report import Report
from metah_train.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

RIGHT, WRONG, QUERY = "#1f9d55", "#d64545", "#2f6fde"
INK, SOFT, LINE = "#16191f", "#666d7a", "#d9dde3"
_CELL, _GAP, _BLOCK = 0.62, 0.09, 0.30
_QUERY, _METHOD, _SCORE = 1.35, 1.15, 0.7
_MARGIN, _LINE = 0.3, 0.27


def draw(report: Report, *, queries: int = 3, dpi: int = 150) -> bytes:
    """Return a PNG of the table of scores and of the first ``queries`` queries.

    A green frame marks an image of the query's class, a red frame with a cross any other; the
    number in the corner is the Hamming distance. Raises MissingExtra without matplotlib.
    """
    count, methods = min(queries, len(report.shown)), len(report.answers)
    block = methods * (_CELL + _GAP) - _GAP
    left = _MARGIN + _QUERY + _METHOD
    width = left + report.k * (_CELL + _GAP) + _SCORE + _MARGIN
    head = 0.55 + (methods + 1) * _LINE + 0.65
    height = head + count * (block + _BLOCK) + 0.1
    figure = new_figure(figsize=(width, height))
    axes: Axes = figure.add_axes((0, 0, 1, 1))
    axes.set_xlim(0, width)
    axes.set_ylim(height, 0)
    axes.set_axis_off()
    axes.text(_MARGIN, 0.38, report.title, size=13, weight="bold", color=INK)
    _table(axes, report, width)
    right = left + report.k * (_CELL + _GAP) - _GAP
    small: dict[str, Any] = {"size": 8, "color": SOFT}
    axes.text(_MARGIN, head - 0.17, "query", **small)
    axes.text(left, head - 0.17, f"the {report.k} nearest in the database, by distance", **small)
    axes.text(right + _SCORE, head - 0.17, f"P@{report.k}", ha="right", **small)
    for place in range(count):
        _block(axes, report, place, head + place * (block + _BLOCK), block, left)
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=dpi, metadata={"Software": None})
    return buffer.getvalue()


def _table(axes: "Axes", report: Report, width: float) -> None:
    columns, rows = report.table()
    edges = [_MARGIN + 2.3 + 1.35 * place for place in range(len(columns) - 1)]
    for line, row in enumerate((columns, *rows)):
        y = 0.78 + line * _LINE
        style: dict[str, Any] = {"size": 9, "color": INK if line else SOFT, "va": "center"}
        axes.text(_MARGIN, y, row[0], weight="bold" if line else "normal", **style)
        for x, text in zip(edges, row[1:], strict=True):
            axes.text(x, y, text, ha="right", **style)
    y = 0.78 + _LINE / 2
    axes.plot([_MARGIN, min(edges[-1], width - _MARGIN)], [y, y], color=LINE, linewidth=0.8)


def _block(
    axes: "Axes", report: Report, place: int, top: float, height: float, left: float
) -> None:
    """Draw one query and what each method finds for it."""
    row = int(report.shown[place])
    size = min(1.05, max(height - 0.2, _CELL))
    middle = top + height / 2
    shown = report.query.load([row])[0]
    _image(axes, shown, _MARGIN, middle - size / 2 - 0.08, size, QUERY)
    label = report.label(report.query, row)
    below = middle + size / 2 + 0.08
    axes.text(_MARGIN + size / 2, below, label, ha="center", va="center", size=9, color=INK)
    for line, answer in enumerate(report.answers):
        y = top + line * (_CELL + _GAP)
        centre = y + _CELL / 2
        axes.text(left - 0.18, centre, answer.method, ha="right", va="center", size=9.5, color=INK)
        found = report.database.load(answer.ids[place])
        for rank in range(report.k):
            x = left + rank * (_CELL + _GAP)
            right = bool(answer.right[place, rank])
            _image(axes, found[rank], x, y, _CELL, RIGHT if right else WRONG)
            _badge(axes, x, y + _CELL, str(answer.distances[place, rank]), "left", "bottom")
            if not right:
                _badge(axes, x + _CELL, y, "✗", "right", "top", WRONG)
        score = f"{answer.right[place].mean():.1f}"
        x = left + report.k * (_CELL + _GAP) - _GAP + _SCORE
        axes.text(x, centre, score, ha="right", va="center", size=10, color=INK)


def _image(axes: "Axes", image: Any, x: float, y: float, size: float, colour: str) -> None:
    from matplotlib.patches import Rectangle

    pixels = image[:, :, 0] if image.shape[2] == 1 else image
    axes.imshow(
        pixels,
        cmap="gray",
        vmin=0,
        vmax=255,
        extent=(x, x + size, y + size, y),
        interpolation="nearest" if max(image.shape) <= 64 else "antialiased",
        aspect="auto",
    )
    axes.add_patch(
        Rectangle((x, y), size, size, fill=False, edgecolor=colour, linewidth=2.2, zorder=3)
    )


def _badge(
    axes: "Axes", x: float, y: float, text: str, ha: str, va: str, colour: str = "#000000a0"
) -> None:
    inset = 0.035
    axes.text(
        x + (inset if ha == "left" else -inset),
        y + (inset if va == "top" else -inset),
        text,
        ha=ha,
        va=va,
        size=6,
        color="white",
        zorder=4,
        bbox={"boxstyle": "square,pad=0.15", "facecolor": colour, "edgecolor": "none"},
    )
