"""Time one training step of METAH by part, on digits-sized images. JSON lines.

    python benchmarks/training_step.py --batch 64 --bits 48 --threads 1

Parts, medians in milliseconds over the steps: ``forward`` the backbone on both domains with
augmentation, ``loss`` heads, discriminator and the five terms, ``backward``, ``optimizer``;
``pairwise`` the pairwise term alone, forward and backward, on codes of the batch.
"""

import argparse
import json
import platform
import statistics
import time
from collections.abc import Callable
from typing import Any

import torch

from metah_train.config import Config, load
from metah_train.losses import pairwise
from metah_train.methods import method_class
from metah_train.methods.base import Batch, DeepMethod, Task, TrainingProgress
from metah_train.training import schedule

SIDE, CLASSES, TOTAL = 32, 10, 1000


class Stopwatch:
    """Adds up the time spent in a wrapped function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *args: Any) -> Any:
        start = time.perf_counter()
        result = self.function(*args)
        self.seconds += time.perf_counter() - start
        return result


def one_step(
    method: DeepMethod[Any], optimizer: torch.optim.Optimizer, batch: Batch, step: int
) -> dict[str, float]:
    """Make a step and return the seconds of each part."""
    forward = Stopwatch(type(method).features.__get__(method))
    method.features = forward  # type: ignore[method-assign, assignment]
    start = time.perf_counter()
    terms = method.terms(batch, TrainingProgress(step=step, total=TOTAL))
    loss = torch.stack([method.weights[name] * term for name, term in terms.items()]).sum()
    ends = [time.perf_counter()]
    optimizer.zero_grad(set_to_none=True)
    loss.backward()  # type: ignore[no-untyped-call]
    ends.append(time.perf_counter())
    optimizer.step()
    ends.append(time.perf_counter())
    return {
        "forward": forward.seconds,
        "loss": ends[0] - start - forward.seconds,
        "backward": ends[1] - ends[0],
        "optimizer": ends[2] - ends[1],
        "step": ends[2] - start,
    }


def pairwise_alone(config: Config, labels: torch.Tensor) -> float:
    """Return the seconds of the pairwise term, forward and backward."""
    h = torch.rand(len(labels), config.bits).mul(2).sub(1).requires_grad_()
    options: Any = config.options
    start = time.perf_counter()
    loss = pairwise.pairwise_loss(
        h, pairwise.shared_label(labels), form=options.form, balance=options.balance
    )
    loss.backward()  # type: ignore[no-untyped-call]
    return time.perf_counter() - start


def main() -> None:
    """Print one JSON line a method."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--methods", default="tah,metah-e,metah")
    parser.add_argument("--batch", type=int, default=64)
    parser.add_argument("--bits", type=int, default=48)
    parser.add_argument("--steps", type=int, default=30)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    task = Task(height=SIDE, width=SIDE, channels=1, classes=CLASSES)
    for name in arguments.methods.split(","):
        config = load(
            "digits",
            {"method": name, "bits": arguments.bits, "batch": arguments.batch},
        )
        torch.manual_seed(0)
        method = method_class(name)(config, task).train()
        assert isinstance(method, DeepMethod)
        optimizer = schedule.build_optimizer(method, config)
        source, target = torch.randint(
            0, 256, (2, arguments.batch, SIDE, SIDE, 1), dtype=torch.uint8
        )
        labels = torch.arange(arguments.batch) % CLASSES
        batch = Batch(
            source=source, labels=labels, indices=torch.arange(len(labels)), target=target
        )
        rows = [
            {**one_step(method, optimizer, batch, step), "pairwise": pairwise_alone(config, labels)}
            for step in range(arguments.steps + 5)
        ][5:]
        parts = {
            part: round(1000 * statistics.median(row[part] for row in rows), 3) for part in rows[0]
        }
        about = {
            "method": name,
            "batch": arguments.batch,
            "bits": arguments.bits,
            "threads": arguments.threads,
            "steps": arguments.steps,
            "torch": torch.__version__,
            "machine": platform.machine(),
        }
        print(json.dumps({**about, "milliseconds": parts}))


if __name__ == "__main__":
    main()
