"""Fit a method to a split: seeded, resumable, without reading any target label.

Nothing random lives from one step to the next: the batches and the noise of step t follow from
(seed, t) alone, so an interrupted run goes on exactly where an uninterrupted one would be.
"""

import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from metah_runtime import files
from metah_runtime.errors import BackendUnavailable, ConfigError, DataError, RunError
from metah_runtime.reporting import Warn, python_warning
from metah_train.config import Config
from metah_train.data import Split
from metah_train.data.record import check_images, record_images
from metah_train.methods import method_class
from metah_train.methods.base import (
    Batch,
    DeepMethod,
    Method,
    ShallowMethod,
    Task,
    TrainingProgress,
)
from metah_train.methods.sampling import batch_rows, labels_of, seed_step
from metah_train.tensor_cache import TensorCache
from metah_train.training import checkpoint, distributed, schedule
from metah_train.training.checkpoint import Run, load_state, save_run, save_state
from metah_train.training.projections import add_projections
from metah_train.training.shallow import SourceClassifier, fit_shallow, train_backbone
from metah_train.training.target import set_statistics, target_statistics

StepReport = Callable[[int, int, Mapping[str, float]], None]
"""Called after each step with (steps done, steps in all, loss terms)."""


def fit(
    config: Config,
    split: Split,
    out: str | Path,
    *,
    resume: bool = False,
    overwrite: bool = False,
    begin: Callable[[], None] | None = None,
    report: StepReport | None = None,
    cache: TensorCache | None = None,
    warn: Warn = python_warning,
) -> Run:
    """Train ``config.method`` on a split, write the run into the folder ``out`` and open it.

    ``out`` must not exist, unless ``resume`` (go on with an interrupted run of the same settings;
    a finished one is returned as it is) or ``overwrite`` (remove the run that is there).
    begin is called when all checks are passed, before the first step; cache: of backbones and
    features that shallow methods share. A run that ends before its first saved state leaves no
    folder behind; one that goes on does so with the images that it was started with.
    Raises ConfigError, DataError, RunError or BackendUnavailable.
    """
    out = Path(out)
    task = task_of(split)
    device = _device(config)
    with _threads(config.threads):
        method, trained = _build(config, task, device)
        check_sizes(trained, split)
        held = check_folder(out, resume=resume, overwrite=overwrite)
        if held and resume and (out / checkpoint.CONFIG).exists():
            return _finished(out, config)
        images = record_images(split)
        if held and resume and (before := checkpoint.images_of(out)) is not None:
            changed = check_images(before, split, f"run {out}")
            if changed:
                warn(changed)
        if begin is not None:
            begin()
        if held and overwrite:
            shutil.rmtree(out)
        out.mkdir(parents=True, exist_ok=True)

        def run() -> int:
            with (
                distributed.ranks(config, _assist, (config, split, out, resume)) as rank,
                distributed.joined(trained, rank),
            ):
                return train(trained, split, out, resume=resume, report=report)

        with nullcontext() if held and resume else _no_empty_run(out):
            if not (out / checkpoint.STARTED).exists():
                checkpoint.save_start(out, config, images)
            (out / checkpoint.METRICS).touch()
            if isinstance(method, ShallowMethod):
                steps = train_backbone(method, split, run, cache)
                fit_shallow(method, split, cache)
            else:
                steps = run()
        if isinstance(method, DeepMethod):
            set_statistics(method, split.source_train, split.target_train)
        if config.detail or config.head == "itq":
            add_projections(method.model, config, split)
        save_run(
            out,
            config=config,
            task=task,
            model=method.model,
            class_names=split.class_names[: task.classes],
            preprocess=split.preprocess,
            data=split.name,
            direction=split.direction,
            steps=steps,
        )
    files.unlink(out / checkpoint.STATE)
    return Run.open(out)


def _build(config: Config, task: Task, device: torch.device) -> tuple[Method[Any], DeepMethod[Any]]:
    """Return the method with its first weights, and what gradient descent trains of it."""
    seed_step(config.seed, "initial", 0)
    method = method_class(config.method)(config.in_training(), task).to(device)
    return method, method if isinstance(method, DeepMethod) else SourceClassifier(method)


def _assist(
    rank: distributed.FabricRank, config: Config, split: Split, out: Path, resume: bool
) -> None:
    """Do another process's part of ``train``."""
    _, trained = _build(config, task_of(split), rank.fabric.device)
    with distributed.joined(trained, rank):
        train(trained, split, out, resume=resume)


def _finished(out: Path, config: Config) -> Run:
    """Return the finished run in ``out``; raise ConfigError if its settings are others."""
    run = Run.open(out)
    if run.config != config:
        changed = checkpoint.changes(run.config.to_dict(), config.to_dict())
        raise ConfigError(f"run {out} is finished, with other settings: {changed}")
    return run


def check_folder(out: Path, *, resume: bool = False, overwrite: bool = False) -> bool:
    """Return whether ``out`` holds a run that may be resumed or overwritten.

    An absent or empty folder holds none. Raises RunError if what is there must be left alone.
    """
    if resume and overwrite:
        raise ConfigError("--resume and --overwrite exclude each other")
    if not out.exists() or (out.is_dir() and not any(out.iterdir())):
        return False
    if not checkpoint.is_run(out):
        raise RunError(
            f"{out} exists and is not a run of metah-train: it is left as it is; fix: another --out"
        )
    if not (resume or overwrite):
        raise RunError(
            f"{out} exists; fix: --resume to go on with it, --overwrite to replace it, "
            "or another --out"
        )
    return True


@contextmanager
def _no_empty_run(out: Path) -> Iterator[None]:
    """Remove ``out`` if the block fails before a state to go on from was saved."""
    try:
        yield
    except BaseException:
        if {path.name for path in out.iterdir()} <= {checkpoint.METRICS, checkpoint.STARTED}:
            shutil.rmtree(out)
        raise


def check_sizes(method: DeepMethod[Any], split: Split) -> None:
    """Raise DataError if a training set that the method reads does not fill one batch."""
    batch = method.config.batch
    for name in ("source", "target") if method.uses_target else ("source",):
        size = len(getattr(split, f"{name}_train"))
        if size < batch:
            raise DataError(
                f"the {name} training set has {size} images, a batch takes {batch}; "
                f"fix: --set batch={max(2, size // 2)}"
            )


def train(
    method: DeepMethod[Any],
    split: Split,
    out: Path,
    *,
    resume: bool = False,
    report: StepReport | None = None,
) -> int:
    """Minimise the method's weighted terms; return the number of steps in all.

    State and metrics are written after each pass over the source (each epoch), by the first
    process alone if there are several (``method.rank``).
    """
    config, rank = method.config, method.rank
    source, target = split.source_train, split.target_train
    labels = labels_of(source, method.task)
    epoch = len(source) // config.batch
    total = config.steps or config.epochs * epoch
    method.prepare(source, target)
    method.train()
    optimizer = schedule.build_optimizer(method, config)
    step = 0
    if resume and (out / checkpoint.STATE).exists():
        step, tensors = load_state(out, config)
        restore(method, optimizer, tensors)
    log = _truncated_log(out / checkpoint.METRICS, step)
    weights = method.weights
    sums: dict[str, float] = {}
    count = 0
    device = method.model.mean.device
    while step < total:
        rows = batch_rows(len(source), config.batch, step, config.seed, "source")
        images = rank.load(source, rows, device)
        target_images = target_indices = None
        if method.uses_target:
            target_rows = batch_rows(len(target), config.batch, step, config.seed, "target")
            target_images = rank.load(target, target_rows, device)
            target_indices = torch.from_numpy(target_rows).to(device)
        batch = Batch(
            source=images,
            labels=labels[rows].to(device),
            indices=torch.from_numpy(rows).to(device),
            target=target_images,
            target_indices=target_indices,
        )
        seed_step(config.seed, "step", step)
        schedule.set_learning_rate(optimizer, config, step, total)
        terms = method.terms(batch, TrainingProgress(step=step, total=total))
        loss = torch.stack([weights[name] * term for name, term in terms.items()]).sum()
        optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        rank.average(method.parameters())
        optimizer.step()
        step += 1
        method.stepped(TrainingProgress(step=step, total=total))
        count += 1
        values = {name: float(term.detach()) for name, term in terms.items()}
        values["loss"] = float(loss.detach())
        if not np.isfinite(values["loss"]):
            raise RunError(
                f"the loss is {values['loss']} after {step} steps "
                f"({', '.join(f'{k} {v:.3g}' for k, v in values.items())}); fix: a smaller lr"
            )
        if rank.number:
            continue
        for name, value in values.items():
            sums[name] = sums.get(name, 0.0) + value
        if report is not None:
            report(step, total, values)
        if step % epoch == 0 or step == total:
            line = {"step": step, **{name: value / count for name, value in sums.items()}}
            line.update(target_statistics(method, target, config.batch))
            log.append(json.dumps(line))
            files.write_bytes(out / checkpoint.METRICS, ("\n".join(log) + "\n").encode())
            save_state(out, collect(method, optimizer), step=step, config=config)
            sums, count = {}, 0
    return total


def collect(method: nn.Module, optimizer: torch.optim.Optimizer) -> dict[str, torch.Tensor]:
    """All tensors of a training state: modules and optimizer, by name."""
    tensors = {f"method.{name}": tensor for name, tensor in method.state_dict().items()}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in state.items():
            if value is not None:
                tensors[f"optimizer.{index}.{key}"] = torch.as_tensor(value)
    return tensors


def restore(
    method: nn.Module, optimizer: torch.optim.Optimizer, tensors: Mapping[str, torch.Tensor]
) -> None:
    """Put the tensors of ``collect`` back."""
    method.load_state_dict(
        {name[7:]: tensor for name, tensor in tensors.items() if name.startswith("method.")}
    )
    state: dict[int, dict[str, torch.Tensor]] = {}
    for name, tensor in tensors.items():
        if name.startswith("optimizer."):
            _, index, key = name.split(".")
            state.setdefault(int(index), {})[key] = tensor
    groups = optimizer.state_dict()["param_groups"]
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def task_of(split: Split) -> Task:
    """Return what the network must know of a split; raises DataError if it cannot train."""
    labels = split.source_train.labels
    if labels is None:
        raise DataError(f"{split.name}: the source training images have no labels")
    if split.target_train.labels is not None:
        raise DataError(f"{split.name}: the target training images must come without labels")
    classes = len(split.class_names) - split.target_only
    if classes < 2:
        raise DataError(f"{split.name}: training needs at least 2 classes, got {classes}")
    height, width, channels = split.preprocess.shape
    return Task(
        height=height,
        width=width,
        channels=channels,
        classes=classes,
        multi_label=labels.ndim == 2,
    )


def _truncated_log(path: Path, step: int) -> list[str]:
    """Lines of metrics.jsonl up to ``step``: what a killed run wrote after its state is dropped."""
    if step == 0 or not path.exists():
        return []
    return [line for line in path.read_text().splitlines() if json.loads(line)["step"] <= step]


def _device(config: Config) -> torch.device:
    if config.device == "cuda":
        found = torch.cuda.device_count() if torch.cuda.is_available() else 0
        if not found:
            raise BackendUnavailable("device cuda: torch finds no CUDA GPU; fix: --set device=cpu")
        if found < config.devices:
            raise BackendUnavailable(
                f"devices {config.devices}: torch finds {found} CUDA GPUs; "
                f"fix: --set devices={found}"
            )
    return torch.device(config.device)


@contextmanager
def _threads(count: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)
