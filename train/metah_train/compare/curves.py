"""Pictures of a comparison: precision-recall, precision@N, MAP against recall, maps of codes."""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime.codes import Codes, unpack
from metah_runtime.errors import MissingExtra
from metah_train.plotting import new_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_DOMAINS = np.array(["#2f6fde", "#f0803c"])
INK, SOFT, GRID = "#16191f", "#666d7a", "#e4e7ec"
_COLOURS = {
    "lsh": "#9aa1ad",
    "sh": "#6b7280",
    "itq": "#3b4250",
    "ksh": "#c9b08c",
    "sdh": "#a5824f",
    "cnnh": "#8fc7b5",
    "dnnh": "#4fa88d",
    "dhn": "#9cc3e6",
    "hashnet": "#4a90c9",
    "thn": "#b79ad9",
    "source": "#c78fb2",
    "tah": "#f0a03c",
    "metah-e": "#8a4fd0",
    "metah": "#d6303f",
    "metah-plus": "#111111",
}
_SHALLOW, _OURS = ("lsh", "sh", "itq", "ksh", "sdh"), ("tah", "metah-e", "metah", "metah-plus")


@dataclass(frozen=True, kw_only=True)
class MeanCurves:
    """The curves of one method at one length, each a mean over seeds.

    precision, recall: by radius (bits + 1,); n, precision_at_n: (m,).
    """

    precision: NDArray[np.float64]
    recall: NDArray[np.float64]
    n: NDArray[np.float64]
    precision_at_n: NDArray[np.float64]

    @classmethod
    def mean(cls, seeds: Sequence[Mapping[str, NDArray[np.float64]]]) -> "MeanCurves":
        """Average the curves of several seeds point by point (same radius, same N)."""
        return cls(
            **{
                name: np.mean([seed[name] for seed in seeds], axis=0)
                for name in ("precision", "recall", "n", "precision_at_n")
            }
        )


Lines = Mapping[tuple[str, int], MeanCurves]
"""(method, bits) -> MeanCurves."""


def pr_curves(lines: Lines, methods: Sequence[tuple[str, str]], bits: Sequence[int]) -> bytes:
    """Return a PNG of precision against recall by Hamming radius, one panel per length."""
    figure, panels = _panels(len(bits))
    for axes, width in zip(panels, bits, strict=True):
        for name, title in methods:
            if (name, width) in lines:
                line = lines[name, width]
                axes.plot(line.recall, line.precision, label=title, **_style(name))
        _frame(axes, f"{width} bits", "recall", "precision")
        axes.set_xlim(0, 1)
        axes.set_ylim(0, 1)
    return _png(figure, panels)


def precision_at_n(lines: Lines, methods: Sequence[tuple[str, str]], bits: Sequence[int]) -> bytes:
    """Return a PNG of the precision among the first N of the ranking, one panel per length."""
    figure, panels = _panels(len(bits))
    for axes, width in zip(panels, bits, strict=True):
        for name, title in methods:
            if (name, width) in lines:
                line = lines[name, width]
                marker = "o" if len(line.n) == 1 else ""
                axes.plot(line.n, line.precision_at_n, label=title, marker=marker, **_style(name))
        _frame(axes, f"{width} bits", "N", "precision@N")
        axes.set_ylim(0, 1)
    return _png(figure, panels)


def map_recall(
    records: Sequence[Mapping[str, Any]],
    methods: Sequence[tuple[str, str]],
    bits: Sequence[int],
) -> bytes:
    """Return a PNG of MAP@H2 against recall@H2: a small dot per seed, a large one a mean."""
    figure, panels = _panels(len(bits))
    for axes, width in zip(panels, bits, strict=True):
        for name, title in methods:
            points = np.array(
                [
                    (r["metrics"]["recall_h2"], r["metrics"]["map_h2"])
                    for r in records
                    if (r["method"], r["bits"]) == (name, width)
                ]
            )
            if not len(points):
                continue
            colour, marker = _style(name)["color"], "s" if name in _SHALLOW else "o"
            if len(points) > 1:
                axes.scatter(
                    points[:, 0],
                    points[:, 1],
                    s=12,
                    color=colour,
                    marker=marker,
                    alpha=0.5,
                    linewidth=0,
                )
            axes.scatter(
                points[:, 0].mean(),
                points[:, 1].mean(),
                s=70,
                color=colour,
                marker=marker,
                label=title,
                edgecolor="white",
                zorder=3,
            )
        _frame(axes, f"{width} bits", "recall@H≤2", "MAP@H≤2")
        axes.set_xlim(-0.03, 1.03)
        axes.set_ylim(-0.03, 1.03)
    return _png(figure, panels)


def code_maps(
    maps: Sequence[tuple[str, NDArray[np.float64]]],
    labels: NDArray[np.int64],
    domain: NDArray[np.int64],
    class_names: Sequence[str],
) -> bytes:
    """Return a PNG of plane maps of codes: one row per method, coloured by class and by domain.

    maps: (title, points (n, 2)); labels: (n,), -1 for none; domain: (n,), 0 source, 1 target.
    """
    figure, panels = _panels(2 * len(maps), columns=2, size=3.6)
    shuffled = np.random.default_rng(0).permutation(len(labels))  # so that no domain hides another
    colours = _class_colours(len(class_names))
    for place, (title, points) in enumerate(maps):
        left, right = panels[2 * place : 2 * place + 2]
        for label, name in enumerate(class_names):
            chosen = points[labels == label]
            left.scatter(
                chosen[:, 0], chosen[:, 1], s=7, color=colours[label], linewidth=0, label=name
            )
        mixed, own = points[shuffled], domain[shuffled]
        right.scatter(mixed[:, 0], mixed[:, 1], s=7, c=_DOMAINS[own], linewidth=0)
        for name, colour in zip(("source", "target"), _DOMAINS, strict=True):
            right.scatter([], [], s=7, color=colour, linewidth=0, label=name)
        for axes, what in ((left, "by class"), (right, "by domain")):
            _frame(axes, f"{title}, {what}", "", "")
            axes.set_xticks([])
            axes.set_yticks([])
            axes.legend(
                loc="center left",
                bbox_to_anchor=(1, 0.5),
                frameon=False,
                fontsize=7,
                markerscale=2,
                handletextpad=0.1,
            )
    return _png(figure, [])


def embed(codes: Codes, *, seed: int = 0) -> NDArray[np.float64]:
    """Place codes in the plane by t-SNE of their Hamming distances, (n, 2) float64.

    Van der Maaten and Hinton, JMLR 9, 2008; perplexity 30, or less for few codes. The squared
    Euclidean distance of 0/1 vectors is the Hamming distance. Raises MissingExtra.
    """
    try:
        from sklearn.manifold import TSNE
    except ImportError as error:
        raise MissingExtra("scikit-learn", "train") from error
    perplexity = min(30.0, max(1.0, (len(codes) - 1) / 3))
    tsne = TSNE(perplexity=perplexity, init="random", random_state=seed)
    points: NDArray[np.float64] = tsne.fit_transform(unpack(codes).astype(np.float32))
    return points.astype(np.float64)


def _style(name: str) -> dict[str, Any]:
    return {
        "color": _COLOURS.get(name, INK),
        "linewidth": 2.2 if name in _OURS else 1.4,
        "linestyle": ":" if name in _SHALLOW else "-" if name in (*_OURS, "source") else "--",
        "zorder": 3 if name in _OURS else 2,
    }


def _class_colours(count: int) -> NDArray[np.float64]:
    from matplotlib import colormaps

    if count <= 10:
        return np.asarray(colormaps["tab10"].colors)  # type: ignore[attr-defined]
    return np.asarray(colormaps["turbo"](np.linspace(0.03, 0.97, count)))


def _panels(
    count: int, *, columns: int | None = None, size: float = 3.9
) -> "tuple[Figure, list[Axes]]":
    columns = columns or min(count, 3)
    rows = -(-count // columns)
    figure = new_figure(figsize=(size * columns + 1.6, size * rows + 0.2), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False).ravel().tolist()
    for spare in axes[count:]:
        spare.set_axis_off()
    return figure, axes[:count]


def _frame(axes: "Axes", title: str, x: str, y: str) -> None:
    axes.set_title(title, size=10, color=INK, loc="left")
    axes.set_xlabel(x, size=9, color=SOFT)
    axes.set_ylabel(y, size=9, color=SOFT)
    axes.tick_params(labelsize=8, colors=SOFT, length=0)
    axes.grid(color=GRID, linewidth=0.7)
    axes.set_axisbelow(True)
    for side in axes.spines.values():
        side.set_visible(False)


def _png(figure: "Figure", panels: "Sequence[Axes]") -> bytes:
    """Draw the figure, with one legend for the panels to their right."""
    seen: dict[str, Any] = {}
    for axes in panels:
        handles, names = axes.get_legend_handles_labels()
        seen |= dict(zip(names, handles, strict=True))
    if seen:
        figure.legend(
            list(seen.values()), list(seen), loc="outside right upper", frameon=False, fontsize=8
        )
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=130, metadata={"Software": None})
    return buffer.getvalue()
