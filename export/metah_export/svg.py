"""Small charts as SVG text. Not matplotlib: a host that runs engines has no training extra.

``STYLE`` gives the colours (classes ``a``, ``b``, ``c0`` .. ``c7``); each mark has a tooltip.
"""

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from metah_runtime.html.page import text

WIDTH, HEIGHT = 400, 220
LEFT, RIGHT, TOP, BOTTOM = 52, 10, 12, 40
_HUES = ("#3b75b4", "#d9822b", "#3a9a5b", "#9d56b0", "#c2453d", "#2b9aa0", "#94762a", "#77808a")
COLOURS = len(_HUES)

STYLE = """
h2 { font-size: 1.15rem; margin: 2.2rem 0 .4rem; }
.charts { display: flex; flex-wrap: wrap; gap: 1rem; }
.card { max-width: 100%; padding: .8rem; background: var(--card); border-radius: 8px; }
.card { border: 1px solid var(--line); }
.card h3 { margin: 0 0 .3rem; }
svg { display: block; max-width: 100%; height: auto; }
svg text { font-size: 10.5px; fill: var(--soft); }
.grid { stroke: var(--line); stroke-width: 1; }
.a { fill: var(--accent); } .b { fill: var(--wrong); }
.line { fill: none; stroke-width: 2; }
.key {
  display: inline-block; width: .8em; height: .8em; margin: 0 .35em 0 .9em; border-radius: 2px;
}
""" + "".join(
    f".c{i} {{ fill: {hue}; stroke: {hue}; }} .line.c{i} {{ fill: none; }} "
    f".k{i} {{ background: {hue}; }}\n"
    for i, hue in enumerate(_HUES)
)
"""CSS of a page with charts."""


@dataclass(frozen=True, kw_only=True)
class Line:
    """One curve: name, colour, points (x, y) and the upper end of a thin bar at each point."""

    name: str
    colour: int
    points: Sequence[tuple[float, float]]
    upper: Sequence[float]


def card(title: str, chart: str) -> str:
    """Return a chart in a box with a title."""
    return f'<div class="card"><h3>{text(title)}</h3>{chart}</div>'


def keys(names: Iterable[tuple[int, str]]) -> str:
    """Return the legend of (colour, name) pairs."""
    return "".join(
        f'<span class="key k{colour % COLOURS}"></span>{text(name)}' for colour, name in names
    )


def columns(
    values: Sequence[float],
    labels: Sequence[str],
    *,
    x: str,
    y: str,
    marked: Sequence[float] | None = None,
    log: bool = False,
) -> str:
    """Draw upright columns; ``marked`` values are drawn over them in the warning colour."""
    top = max(values, default=0) or 1
    scale = _log_scale(top) if log else _linear_scale(top)
    step = (WIDTH - LEFT - RIGHT) / max(len(values), 1)
    parts = [_y_axis(scale.ticks, scale.place, y)]
    every = math.ceil(len(labels) / 10)
    for i, value in enumerate(values):
        left = LEFT + i * step
        parts.append(_box("a", left, scale.place(value), step, f"{labels[i]}: {value:g}"))
        if marked is not None and marked[i]:
            tip = f"{labels[i]}: {marked[i]:g} of {value:g}"
            parts.append(_box("b", left, scale.place(marked[i]), step, tip))
        if i % every == 0:
            parts.append(_label(left + step / 2, HEIGHT - BOTTOM + 14, labels[i], "middle"))
    parts.append(_label((LEFT + WIDTH) / 2, HEIGHT - 6, x, "middle"))
    return _svg(parts, HEIGHT)


def rows(values: Sequence[float | None], labels: Sequence[str], *, unit: str, digits: int) -> str:
    """Draw one horizontal bar a value with its number; None is shown as not measured."""
    top = max([value for value in values if value is not None] + [1e-12])
    parts, left = [], 190
    for i, (value, label) in enumerate(zip(values, labels, strict=True)):
        y = TOP + 24 * i
        parts.append(_label(left - 8, y + 13, label[:34], "end"))
        if value is None:
            parts.append(_label(left, y + 13, "not measured", "start"))
            continue
        width = (WIDTH - left - 90) * value / top
        number = f"{value:,.{digits}f}"
        parts.append(
            f'<rect class="c{i % COLOURS}" x="{left}" y="{y}" width="{max(width, 1):.1f}" '
            f'height="17"><title>{text(label)}: {number} {unit}</title></rect>'
        )
        parts.append(_label(left + max(width, 1) + 5, y + 13, f"{number} {unit}", "start"))
    return _svg(parts, TOP + 24 * len(values) + 8)


def lines(curves: Sequence[Line], *, x: str, y: str) -> str:
    """Draw curves on two logarithmic axes, with a thin bar up to ``upper`` at each point."""
    xs = [px for curve in curves for px, _ in curve.points]
    ys = [v for curve in curves for v in (*(py for _, py in curve.points), *curve.upper)]
    low_x, high_x = math.log10(min(xs)), math.log10(max(xs))
    low_y, high_y = math.floor(math.log10(min(ys))), math.ceil(math.log10(max(ys)))
    high_y = max(high_y, low_y + 1)
    wide = max(high_x - low_x, 1e-9)

    def at_x(value: float) -> float:
        return LEFT + 8 + (WIDTH - LEFT - RIGHT - 16) * (math.log10(value) - low_x) / wide

    def at_y(value: float) -> float:
        share = (math.log10(value) - low_y) / (high_y - low_y)
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share

    parts = [_y_axis([10.0**p for p in range(low_y, high_y + 1)], at_y, y)]
    parts += [
        _label(at_x(value), HEIGHT - BOTTOM + 14, f"{value:g}", "middle")
        for value in sorted(set(xs))
    ]
    for curve in curves:
        colour = f"c{curve.colour % COLOURS}"
        path = " ".join(f"{at_x(px):.1f},{at_y(py):.1f}" for px, py in curve.points)
        parts.append(f'<polyline class="line {colour}" points="{path}"/>')
        for (px, py), top in zip(curve.points, curve.upper, strict=True):
            tip = f"{text(curve.name)}, {x} {px:g}: {py:.4g}, p99 {top:.4g}"
            parts.append(
                f'<line class="line {colour}" x1="{at_x(px):.1f}" x2="{at_x(px):.1f}" '
                f'y1="{at_y(py):.1f}" y2="{at_y(top):.1f}"/>'
                f'<circle class="{colour}" cx="{at_x(px):.1f}" cy="{at_y(py):.1f}" r="4">'
                f"<title>{tip}</title></circle>"
            )
    parts.append(_label((LEFT + WIDTH) / 2, HEIGHT - 6, x, "middle"))
    return _svg(parts, HEIGHT)


@dataclass(frozen=True)
class _Scale:
    ticks: list[float]
    top: float
    log: bool

    def place(self, value: float) -> float:
        """Return the height in the picture."""
        share = math.log10(1 + value) / math.log10(1 + self.top) if self.log else value / self.top
        return HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * share


def _linear_scale(top: float) -> _Scale:
    step = 10.0 ** math.floor(math.log10(top))
    step *= 0.5 if top / step < 2.5 else 1.0 if top / step < 5 else 2.0
    count = math.ceil(top / step)
    return _Scale([step * i for i in range(count + 1)], step * count, log=False)


def _log_scale(top: float) -> _Scale:
    powers = range(math.floor(math.log10(max(top, 1))) + 1)
    return _Scale([0.0, *(10.0**p for p in powers)], max(top, 1.0), log=True)


def _y_axis(ticks: Sequence[float], place: Callable[[float], float], title: str) -> str:
    parts = []
    for tick in ticks:
        y = place(tick)
        parts.append(
            f'<line class="grid" x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}"/>'
        )
        parts.append(_label(LEFT - 5, y + 4, f"{tick:g}", "end"))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(
        f'<text transform="translate(11 {middle:.0f}) rotate(-90)" text-anchor="middle">'
        f"{text(title)}</text>"
    )
    return "".join(parts)


def _box(kind: str, left: float, top: float, step: float, tip: str) -> str:
    width = max(step * 0.86, 0.6)
    height = max(HEIGHT - BOTTOM - top, 0)
    return (
        f'<rect class="{kind}" x="{left + step * 0.07:.2f}" y="{top:.2f}" width="{width:.2f}" '
        f'height="{height:.2f}"><title>{text(tip)}</title></rect>'
    )


def _label(x: float, y: float, words: str, anchor: str) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{text(words)}</text>'


def _svg(parts: Sequence[str], height: float) -> str:
    return (
        f'<svg viewBox="0 0 {WIDTH} {height:.0f}" width="{WIDTH}" height="{height:.0f}" '
        f'xmlns="http://www.w3.org/2000/svg" role="img">{"".join(parts)}</svg>'
    )
