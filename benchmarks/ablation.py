"""What each part of METAH+ gives: one change at a time, through ``metah-train compare``.

    python benchmarks/ablation.py --direction syn2real --bits 48 --seeds 1 --out ablation-48
    python benchmarks/ablation.py --report ablation-48      # only read what is finished

Prints one JSON line a row: the score that decides nothing (MAP@H2 on the target), and what may
decide: source validation and the unsupervised criteria of
``metah_train.evaluation.criteria``, with the mean rank of each row over them
(1 is best) and whether the rule of docs/decisions/0012 allows it; beside them what images tell that
no training has seen (``unseen``).
"""

import argparse
import json
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file

COMPARE = (sys.executable, "-c", "from metah_train.cli.main import main; main()", "compare")

ROWS = {
    "MCC, h x p": "plus.judge=h x p",
    "MCC, domain norm": "plus.norm=domain",
    "MCC, codewords": "plus.codeword=0.3",
    "MCC, bits": "plus.bit_balance=0.1,plus.bit_correlation=0.1",
    "MCC, average": "plus.average=0.99",
    "MCC, pseudo-labels": "plus.pseudo=0.5",
    "MCC, consistency": "plus.consistency=1",
}
"""Name of a row -> what it changes in METAH+ with minimum class confusion alone."""

PLAIN = (
    "plus.confusion=1",
    "plus.judge=h",
    "plus.norm=shared",
    "plus.codeword=0",
    "plus.bit_balance=0",
    "plus.bit_correlation=0",
    "plus.average=0",
    "plus.pseudo=0",
    "plus.consistency=0",
    "plus.neighbours=0",
    "plus.pooled_dropout=0",
)
CRITERIA = {
    "source_map_h2": 1,
    "entropy": -1,
    "diversity": 1,
    "rank": 1,
    "snd": 1,
    "density": 1,
    "purity": 1,
}
"""Name -> +1 where more is better, -1 where less is."""

LOSABLE = {"source_map_h2": 0.01, "diversity": 0.02}
"""Criterion -> how much of METAH's a row may lose and still be chosen."""


def command(args: argparse.Namespace) -> list[str]:
    """Return the call of ``metah-train compare``."""
    call = [*COMPARE, "--data", args.data, "--recipe", args.recipe, "--direction", args.direction]
    call += ["--methods", "metah-e,metah,metah-plus", "--bits", args.bits, "--seeds", args.seeds]
    call += ["--workers", str(args.workers), "--out", str(args.out)]
    for setting in PLAIN:
        call += ["--set", f"metah-plus:{setting}"]
    rows = {name: changes for name, changes in ROWS.items() if name not in args.skip}
    rows.update(row.split("=", 1) for row in args.row)
    for name, changes in rows.items():
        call += ["--row", f"{name.replace(',', ' +')}=metah-plus,{changes}"]
    for setting in args.set:
        call += ["--set", setting]
    return call


def unseen(
    folder: Path, records: Sequence[Mapping[str, Any]]
) -> dict[tuple[str, int], dict[str, float]]:
    """Return what images tell that no training has seen, by row and length, from the cells' codes.

    among_held_out: MAP@H2 of the held-out source images among themselves, mean over seeds;
    agreement: of two seeds or more on the classes of the database, whose labels are not read.
    """
    from metah_runtime.codes import unpack
    from metah_train.data import split_of
    from metah_train.evaluation.criteria import agreement, predictions
    from metah_train.training.checkpoint import Run

    labels: Any = None
    runs: dict[tuple[str, int], list[tuple[float, Any]]] = {}
    for record in records:
        (cell,) = folder.glob(f"cells/*-{record['key'][:12]}")
        if labels is None:
            labels = split_of(Run.open(cell / "run").config).source_valid.labels
        codes = load_file(cell / "codes.safetensors")
        source, target = (unpack(codes[name]) * 2.0 - 1 for name in ("source_valid", "database"))
        found = among(codes["source_valid"], labels), predictions(source, labels, target)
        runs.setdefault((record["method"], record["bits"]), []).append(found)
    return {
        key: {"among_held_out": float(np.mean([score for score, _ in found]))}
        | ({"agreement": agreement([p for _, p in found])} if len(found) > 1 else {})
        for key, found in runs.items()
    }


def among(codes: Any, labels: Any) -> float:
    """Return MAP@H2 of each item as a query of all others."""
    return float(np.mean([found.map_h2 for found in among_others(codes, labels)]))


def among_others(codes: Any, labels: Any) -> Iterator[Any]:
    """Yield the metrics of each item as a query of all others."""
    from metah_runtime.metrics import evaluate

    for row in range(len(codes)):
        others = np.arange(len(codes)) != row
        own = slice(row, row + 1)
        yield evaluate(codes[own], labels[own], codes[others], labels[others])


def summary(
    records: Sequence[Mapping[str, Any]],
    more: Mapping[tuple[str, int], Mapping[str, float]] | None = None,
) -> list[dict[str, Any]]:
    """Return one dictionary a row and length: means over seeds, and mean ranks of the criteria.

    more: as ``unseen`` returns it, stated beside them.
    """
    keys = list(dict.fromkeys((record["method"], record["bits"]) for record in records))
    found = []
    for method, bits in keys:
        own = [r for r in records if (r["method"], r["bits"]) == (method, bits)]
        values = {
            "map_h2": np.mean([r["metrics"]["map_h2"] for r in own]),
            "recall_h2": np.mean([r["metrics"]["recall_h2"] for r in own]),
            "map_full": np.mean([r["metrics"]["map_full"] for r in own]),
            "source_map_h2": np.mean([r["source_metrics"]["map_h2"] for r in own]),
        }
        for name in list(CRITERIA)[1:]:
            values[name] = np.mean([r["criteria"][name] for r in own])
        values.update((more or {}).get((method, bits), {}))
        rounded = {name: round(float(value), 4) for name, value in values.items()}
        found.append({"row": method, "bits": bits, "seeds": len(own), **rounded})
    for bits in {row["bits"] for row in found}:
        judge([row for row in found if row["bits"] == bits])
    return found


def judge(rows: Sequence[dict[str, Any]]) -> None:
    """Write into each row its mean rank over the criteria, and whether it may be chosen."""
    ranks = np.zeros(len(rows))
    for name, sign in CRITERIA.items():
        score = sign * np.array([row[name] for row in rows])
        ties = (score[:, None] == score).sum(1) - 1
        ranks += 1 + (score[:, None] < score).sum(1) + ties / 2
    plain = next((row for row in rows if row["row"] == "metah"), None)
    for row, rank in zip(rows, ranks, strict=True):
        row["mean_rank"] = round(float(rank) / len(CRITERIA), 2)
        if plain is not None:
            row["allowed"] = all(row[name] >= plain[name] - by for name, by in LOSABLE.items())


def main() -> int:
    """Run the comparison, print its summary."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--data", default="digits")
    parser.add_argument("--recipe", default="digits")
    parser.add_argument("--direction", default="syn2real")
    parser.add_argument("--bits", default="48")
    parser.add_argument("--seeds", default="1")
    parser.add_argument("--workers", type=int, default=1)
    parser.add_argument("--set", action="append", default=[], metavar="KEY=VALUE")
    parser.add_argument("--skip", action="append", default=[], choices=ROWS, help="leave it out")
    parser.add_argument(
        "--row", action="append", default=[], metavar="NAME=CHANGES", help="one more, as in ROWS"
    )
    parser.add_argument("--quick", action="store_true", help="30 steps: does it run?")
    parser.add_argument("--out", type=Path, help="folder of the comparison")
    parser.add_argument("--report", type=Path, help="only summarise this folder")
    args = parser.parse_args()
    if (args.out is None) == (args.report is None):
        parser.error("one of --out and --report is needed")
    status = 0
    if args.report is None:
        if args.quick:
            args.set += ["steps=30", "split.synthetic=1000"]
        status = subprocess.run(command(args), check=False).returncode
    results = (args.report or args.out) / "results.jsonl"
    lines = results.read_text().splitlines() if results.exists() else []
    records = [json.loads(line) for line in lines]
    for row in summary(records, unseen(args.report or args.out, records)):
        print(json.dumps(row))
    return status


if __name__ == "__main__":
    sys.exit(main())
