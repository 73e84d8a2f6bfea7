"""What a row gives for emoji that training has not seen, told by source images alone.

    python benchmarks/emoji_folds.py --data emoji:FOLDER --row METAH=metah --row METAH+=metah-plus \
      --row "dropout .5=metah-plus,plus.pooled_dropout=0.5" --workers 2 --out folds.jsonl
    python benchmarks/emoji_folds.py --report folds.jsonl       # only print what is finished

The labelled source images are divided into five folds by families of emoji, as training and test
are. Each row trains five times; the fold that is left out, and its families in the target, are in
no training. No label of the target is read, and no image that is tested. Scores, means over folds
(and directions and lengths) of the fold's queries: ``among`` its own others, and in what was
trained (``trained``): MAP@H2, recall@H2, full MAP.
"""

import argparse
import json
import multiprocessing
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from functools import cache
from itertools import compress
from pathlib import Path
from typing import Any

import numpy as np

FOLDS = 5
SCORES = ("map_h2", "recall_h2", "map_full")


def configuration(job: dict[str, Any]) -> Any:
    """Return the settings of one training."""
    from metah_train.config import load

    method, *settings = job["changes"].split(",")
    own = {key: job[key] for key in ("data", "direction", "bits")}
    return load(job["recipe"], {**own, "method": method, "seed": job["fold"]}, settings)


@cache
def whole(recipe: str, data: str, direction: str) -> tuple[Any, Any, Any]:
    """Return (split, all labelled source images, fold of each family)."""
    from metah_train.config import load
    from metah_train.data import split_of
    from metah_train.data.base import ArrayImages

    split = split_of(load(recipe, {"data": data, "direction": direction}))
    parts = (split.source_train, split.source_valid)
    images = np.concatenate([part.load(np.arange(len(part))) for part in parts])
    labels = np.concatenate([np.asarray(part.labels) for part in parts])
    source = ArrayImages(images, labels, [name for part in parts for name in part.names])
    sizes = Counter(families(source.names))
    folds, filled = {}, np.zeros(FOLDS)
    for family in sorted(sizes, key=lambda name: (-sizes[name], name)):
        folds[family] = int(filled.argmin())
        filled[folds[family]] += sizes[family]
    return split, source, folds


def families(names: Iterable[str]) -> list[str]:
    """Return the family of each image."""
    from metah_train.data.emoji import family_of

    return [family_of(Path(name).name) for name in names]


def divided(job: dict[str, Any]) -> Any:
    """Return the split of a fold: what it leaves out is source_valid; no query, no database."""
    from metah_train.data.emoji import UNTESTED

    split, source, folds = whole(job["recipe"], job["data"], job["direction"])

    def inside(names: Iterable[str]) -> Any:
        return np.array([folds.get(family) == job["fold"] for family in families(names)])

    held = inside(source.names)
    untested = [split.class_names.index(name) for name in UNTESTED]
    return replace(
        split,
        source_train=source.subset(np.flatnonzero(~held)),
        source_valid=source.subset(np.flatnonzero(held & ~np.isin(source.labels, untested))),
        target_train=split.target_train.subset(np.flatnonzero(~inside(split.target_train.names))),
        query=split.query.subset([]),
        database=split.database.subset([]),
    )


def work(job: dict[str, Any]) -> dict[str, Any]:
    """Train once, score what was left out."""
    from ablation import among_others

    from metah_runtime.metrics import evaluate
    from metah_train.evaluation.encode import encode
    from metah_train.training.loop import fit

    split = divided(job)
    with tempfile.TemporaryDirectory() as folder:
        run = fit(configuration(job), split, Path(folder, "run"))
    asked, trained = split.source_valid, split.source_train
    codes, database = (encode(run.model, part)[0] for part in (asked, trained))
    found = evaluate(codes, asked.labels, database, trained.labels)
    shared = [(asked.labels == label).sum() > 1 for label in asked.labels]
    others = list(compress(among_others(codes, asked.labels), shared))
    scores = {f"trained_{name}": getattr(found, name) for name in SCORES}
    for name in SCORES:
        scores[f"among_{name}"] = float(np.mean([getattr(one, name) for one in others]))
    return {**job, **{name: round(value, 5) for name, value in scores.items()}}


def summary(records: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a dictionary a row: means over all that was run, and over the folds of each place."""
    found = []
    for row in dict.fromkeys(record["row"] for record in records):
        own = [record for record in records if record["row"] == row]
        means = {name: mean(own, name) for name in own[0] if name.startswith(("among", "trained"))}
        places: dict[str, list[Mapping[str, Any]]] = {}
        for record in own:
            places.setdefault(f"{record['direction']} {record['bits']}", []).append(record)
        by = {place: mean(part, "among_map_h2") for place, part in sorted(places.items())}
        found.append({"row": row, "trainings": len(own), **means, "among_map_h2_by": by})
    return found


def mean(records: Sequence[Mapping[str, Any]], name: str) -> float:
    """Return the mean of one score."""
    return round(float(np.mean([record[name] for record in records])), 4)


def main() -> int:
    """Run what is not yet finished, print the means."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="emoji:emoji", help="emoji:FOLDER")
    parser.add_argument("--recipe", default="emoji")
    parser.add_argument("--directions", default="google2twitter,twitter2google")
    parser.add_argument("--bits", default="32,48,64")
    parser.add_argument("--row", action="append", default=[], metavar="NAME=METHOD[,KEY=VALUE...]")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--out", type=Path, help="file of finished trainings")
    parser.add_argument("--report", type=Path, help="only summarise this file")
    args = parser.parse_args()
    out = args.report or args.out
    if out is None or (args.out is not None and not args.row):
        parser.error("--report, or --out with at least one --row, is needed")
    if not args.data.startswith("emoji:"):
        parser.error(f"--data must be emoji:FOLDER, got {args.data!r}")
    lines = out.read_text().splitlines() if out.exists() else []
    records = [json.loads(line) for line in lines]
    if args.report is None:
        jobs = [
            {
                "row": row.partition("=")[0],
                "changes": row.partition("=")[2],
                "recipe": args.recipe,
                "data": args.data,
                "direction": direction,
                "bits": int(bits),
                "fold": fold,
            }
            for row in args.row
            for direction in args.directions.split(",")
            for bits in args.bits.split(",")
            for fold in range(FOLDS)
        ]
        known = [{key: record[key] for key in jobs[0]} for record in records]
        jobs = [job for job in jobs if job not in known]
        context = multiprocessing.get_context("spawn")
        with context.Pool(args.workers) as pool, out.open("a") as file:
            for record in pool.imap_unordered(work, jobs):
                records.append(record)
                print(json.dumps(record), file=file, flush=True)
                print(f"{len(records)} of {len(known) + len(jobs)}", file=sys.stderr)
    for row in summary(records):
        print(json.dumps(row))
    return 0


if __name__ == "__main__":
    sys.exit(main())
