"""Write what a comparison found: results, tables, curves, galleries and maps of codes."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from metah_runtime import files
from metah_runtime.codes import Codes
from metah_train.compare import curves
from metah_train.compare.comparison import TrialStore
from metah_train.compare.formats import csv_text, latex
from metah_train.compare.grid import Trial
from metah_train.compare.table import Document, markdown, page
from metah_train.data import Split
from metah_train.data.base import spread
from metah_train.evaluation import report, report_page
from metah_train.methods import method_class
from metah_train.methods.base import DeepMethod

GALLERY = ("tah", "metah-e", "metah", "metah-plus")
"""The rows of Fig. 2 and 3 of Zhuo et al. 2020, and METAH+ where it was run."""

MAP_POINTS = 600
"""Codes of each domain in a map."""


def document(trials: Sequence[Trial], comparison: TrialStore, split: Split) -> Document:
    """Rebuild results.jsonl and collect what the tables show."""
    records = comparison.write_results(trials)
    done = {record["key"] for record in records}
    titles = {trial.row: trial.title for trial in trials}
    first = trials[0].config
    facts = [
        ("data", f"{split.name} {split.direction}, data seed {first.data_seed}"),
        ("source training", f"{len(split.source_train):,} labelled images"),
        ("target training", f"{len(split.target_train):,} images without labels"),
        ("queries", f"{len(split.query):,} of the target"),
        *(
            ("database", f"{len(images):,} images of the {name}")
            for name, images in split.scored.items()
        ),
        ("backbone", f"{first.backbone}, {first.features} features"),
        ("batch norm", batch_norm(trials)),
        ("trials", f"{len(records)} of {len(trials)} finished"),
    ]
    return Document(
        title=f"{split.name} {split.direction}: {len(titles)} methods",
        records=records,
        methods=list(titles.items()),
        bits=sorted({trial.config.bits for trial in trials}),
        facts=facts,
        missing=[
            (trial.label, comparison.error(trial) or "not run yet")
            for trial in trials
            if trial.key not in done
        ],
    )


def batch_norm(trials: Sequence[Trial]) -> str:
    """Say which methods' codes are made with batch statistics of the target domain.

    The setting ``statistics`` belongs to the protocol, not to a method; shallow methods use their
    backbone as it was trained on the source.
    """
    target: list[str] = []
    source: list[str] = []
    for trial in trials:
        kind = method_class(trial.config.method)
        adapted = issubclass(kind, DeepMethod) and trial.config.statistics == "target"
        names = target if adapted else source
        if trial.title not in names:
            names.append(trial.title)
    parts = []
    if target:
        parts.append(
            "statistics re-estimated at the end on the unlabelled target training images for "
            f"{', '.join(target)}, also for those whose loss reads source images alone"
        )
    if source:
        parts.append(f"statistics as trained for {', '.join(source)}")
    return "; ".join(parts)


def publish(
    trials: Sequence[Trial], comparison: TrialStore, split: Split, found: Document
) -> list[Path]:
    """Write tables and pictures of the finished trials into OUT; return the paths."""
    out = comparison.out
    done = [trial for trial in trials if comparison.result(trial) is not None]
    pictures: list[tuple[str, str, bytes]] = []
    links: list[tuple[str, str]] = []
    paths = []  # tables first: the pictures take a while
    for ending, text in (("md", markdown), ("csv", csv_text), ("tex", latex)):
        paths.append(out / f"table.{ending}")
        files.write_bytes(paths[-1], text(found).encode())
    if done:
        lines = mean_curves(done, comparison)
        titles, bits = found.methods, found.bits
        pictures += [
            ("map_recall.png", "MAP@H≤2 against recall@H≤2", b""),
            ("pr_curve.png", "Precision and recall by Hamming radius", b""),
            ("precision_at_n.png", "Precision among the first N", b""),
        ]
        drawn = (
            curves.map_recall(found.records, titles, bits),
            curves.pr_curves(lines, titles, bits),
            curves.precision_at_n(lines, titles, bits),
        )
        pictures = [(a, b, data) for (a, b, _), data in zip(pictures, drawn, strict=True)]
    for width in found.bits:
        shown = gallery_trials(done, width)
        if not shown:
            continue
        seed = shown[0].config.seed
        title = f"{split.name} {split.direction}, {width} bits, seed {seed}"
        codes = {c.title: (comparison.codes(c), c.config.code_format) for c in shown}
        folder = out / f"gallery-{width}"
        paths += report_page.write(
            report.compare(
                {
                    name: report.MethodCodes(
                        query=part["query"],
                        database=part.get("searched", part["database"]),
                        code_format=form,
                    )
                    for name, (part, form) in codes.items()
                },
                split.query,
                next(iter(split.scored.values())),
                title=title,
                class_names=split.class_names,
            ),
            folder,
        )
        links.append((f"{width} bits, seed {seed}", f"{folder.name}/report.html"))
        hashes = {
            name: {key: form.code_part(rows) for key, rows in part.items()}
            for name, (part, form) in codes.items()
        }
        data = draw_maps(hashes, split)
        pictures.append(
            (f"codes-{width}.png", f"Codes in the plane (t-SNE), {width} bits, seed {seed}", data)
        )
    for name, _, data in pictures:
        files.write_bytes(out / name, data)
        paths.append(out / name)
    html = page(found, [(caption, data) for _, caption, data in pictures], links)
    files.write_bytes(out / "table.html", html.encode())
    paths.append(out / "table.html")
    return paths


def mean_curves(
    trials: Sequence[Trial], comparison: TrialStore
) -> dict[tuple[str, int], curves.MeanCurves]:
    """Average the curves of finished trials over seeds."""
    seeds: dict[tuple[str, int], list[Mapping[str, Any]]] = {}
    for trial in trials:
        seeds.setdefault((trial.row, trial.config.bits), []).append(comparison.curves(trial))
    return {key: curves.MeanCurves.mean(found) for key, found in seeds.items()}


def gallery_trials(done: Sequence[Trial], bits: int) -> list[Trial]:
    """Return one finished trial a method, of one seed: TAH, METAH-e, METAH, or else the last three.

    The seed is the first that most of these methods have.
    """
    of_length = [trial for trial in done if trial.config.bits == bits]
    present = list(dict.fromkeys(trial.row for trial in of_length))
    wanted = [name for name in GALLERY if name in present] or present[-3:]
    chosen = [trial for trial in of_length if trial.row in wanted]
    if not chosen:
        return []
    seeds = [trial.config.seed for trial in chosen]
    seed = max(dict.fromkeys(seeds), key=seeds.count)
    by_method = {trial.row: trial for trial in chosen if trial.config.seed == seed}
    return [by_method[name] for name in wanted if name in by_method]


def draw_maps(codes: Mapping[str, Mapping[str, Codes]], split: Split) -> bytes:
    """Draw a t-SNE map of held-out source and labelled target codes for each method."""
    target = "query" if split.database.labels is None else "database"
    sets = (split.source_valid, getattr(split, target))
    rows = [spread(len(images), MAP_POINTS) for images in sets]
    labels = np.concatenate(
        [_one_label(images.labels, part) for images, part in zip(sets, rows, strict=True)]
    )
    domain = np.repeat([0, 1], [len(part) for part in rows])
    maps = [
        (
            title,
            curves.embed(np.concatenate([part["source_valid"][rows[0]], part[target][rows[1]]])),
        )
        for title, part in codes.items()
    ]
    return curves.code_maps(maps, labels, domain, split.class_names)


def _one_label(labels: NDArray[Any] | None, rows: NDArray[np.int64]) -> NDArray[np.int64]:
    """Return the class of each row; of several labels the first, -1 for none."""
    assert labels is not None
    chosen = labels[rows]
    if chosen.ndim == 1:
        return chosen.astype(np.int64)
    return np.where(chosen.any(1), chosen.argmax(1), -1)
