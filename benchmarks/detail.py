"""What a detail code gives: fit it anew on finished runs, by features, length and weight.

    metah-train fit --recipe emoji --data emoji:FOLDER --method metah-plus --out runs/emoji
    python benchmarks/detail.py runs/emoji --features trained,pooled,both --bits 64,192

The network is not trained again: what is fitted takes seconds. Prints a JSON line a run and
setting: scores of hash codes alone (bits 0) and of whole codes, on the target, on held-out source
images, and of pairs where the data set has such (docs/decisions/0013).
"""

import argparse
import copy
import dataclasses
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any


def rows(path: Path, features: list[str], lengths: list[int], weights: list[int]) -> Iterator[Any]:
    """Yield the scores of a run with each setting."""
    from metah_train.data import split_of
    from metah_train.evaluation.evaluate import scores, validate
    from metah_train.evaluation.pairs import find_pairs, score_pairs
    from metah_train.training.checkpoint import Run
    from metah_train.training.projections import add_projections

    run = Run.open(path)
    split = split_of(run.config)
    split.check_labelled()
    bare = {
        name: tensor for name, tensor in run.model.source_tensors().items() if name != "detail.bias"
    }
    twins = find_pairs(split)
    for kind in features:
        for bits in lengths:
            for weight in weights if bits else [1]:
                config = run.config.stage(
                    detail=bits, detail_features=kind, code_weight=weight, head="trained"
                )
                model = copy.deepcopy(run.model)
                model.detail = None
                model.set_source(bare)
                if bits:
                    add_projections(model, config, split)
                changed = dataclasses.replace(run, config=config, model=model)
                found = {
                    "target": scores(changed, split.query, split.database),
                    "source": validate(changed, split),
                }
                line = {name: list(part.values())[-1].to_dict() for name, part in found.items()}
                if twins is not None:
                    line["pairs"] = list(score_pairs(changed, twins).values())[-1]
                about = {"run": str(path), "features": kind, "detail": bits, "code_weight": weight}
                yield {**about, **line}


def main() -> None:
    """Print the scores of all runs."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("runs", nargs="+", type=Path)
    parser.add_argument("--features", default="both", help="trained, pooled, both")
    parser.add_argument("--bits", default="0,64", help="lengths of the detail code")
    parser.add_argument("--weights", default="1", help="of a bit of the hash code")
    args = parser.parse_args()
    numbers = ([int(part) for part in text.split(",")] for text in (args.bits, args.weights))
    lengths, weights = numbers
    for path in args.runs:
        for line in rows(path, args.features.split(","), lengths, weights):
            print(json.dumps(line), flush=True)


if __name__ == "__main__":
    main()
