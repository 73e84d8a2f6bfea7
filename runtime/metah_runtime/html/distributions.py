"""A plot of two distribution functions, as SVG in a page."""

from collections.abc import Sequence

from metah_runtime.html.page import text

WIDTH, HEIGHT, LEFT, BOTTOM = 480, 200, 36, 24

STYLE = """
.distributions svg { width: 100%; max-width: 40rem; height: auto; display: block; }
.distributions path { fill: none; stroke-width: 2; }
.distributions .own { stroke: var(--soft); }
.distributions .new { stroke: var(--accent); stroke-dasharray: 6 3; }
.distributions line { stroke: var(--line); }
.distributions text { fill: var(--soft); font-size: 11px; }
"""


def distributions(title: str, own: Sequence[float], new: Sequence[float]) -> str:
    """Return a section with the share of images up to each value, of two sorted sets."""
    low, high = min(own[0], new[0]), max(own[-1], new[-1])
    high = high if high > low else low + 1

    def x(value: float) -> float:
        return LEFT + (value - low) / (high - low) * (WIDTH - LEFT - 12)

    def y(share: float) -> float:
        return (HEIGHT - BOTTOM) - share * (HEIGHT - BOTTOM - 10)

    def steps(values: Sequence[float]) -> str:
        points = [f"M{x(low):.1f} {y(0):.1f}"]
        for at, value in enumerate(values, 1):
            if at == len(values) or values[at] != value:
                points.append(f"H{x(value):.1f}V{y(at / len(values)):.1f}")
        return "".join([*points, f"H{x(high):.1f}"])

    grid = "".join(
        f'<line x1="{LEFT}" x2="{WIDTH - 12}" y1="{y(share):.1f}" y2="{y(share):.1f}"/>'
        f'<text x="{LEFT - 6}" y="{y(share) + 4:.1f}" text-anchor="end">{share:.0%}</text>'
        for share in (0, 0.5, 1)
    )
    ends = "".join(
        f'<text x="{x(value):.1f}" y="{HEIGHT - 6}" text-anchor="middle">{value:.3g}</text>'
        for value in (low, (low + high) / 2, high)
    )
    return (
        f'<section class="distributions"><h2>{text(title)}</h2>'
        "<p>Share of images up to a value: solid the index, dashed the new images.</p>"
        f'<svg viewBox="0 0 {WIDTH} {HEIGHT}" role="img" aria-label="{text(title)}">{grid}{ends}'
        f'<path class="own" d="{steps(own)}"/><path class="new" d="{steps(new)}"/></svg></section>'
    )
