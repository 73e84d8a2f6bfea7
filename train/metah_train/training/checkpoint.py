"""Runs on disk: the finished model, and the state that lets an interrupted training go on.

    RUN/started.json         settings and a record of the images, before the first step
    RUN/config.json          settings, task, classes, preprocessing, digests
    RUN/model.safetensors    tensors of the HashModel
    RUN/metrics.jsonl        loss terms and unlabelled statistics while training
    RUN/state.safetensors    while training only: everything needed to go on

config.json is written last: a folder without it is not a finished run. No file holds code.
"""

import hashlib
import importlib.metadata
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self

import safetensors
import safetensors.torch
import torch

from metah_runtime import files, schema
from metah_runtime.errors import ConfigError, DataError, RunError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.reporting import Warn
from metah_train.config import Config
from metah_train.data import Split
from metah_train.data.record import ImageRecord, check_images
from metah_train.methods import method_class
from metah_train.methods.base import Task
from metah_train.methods.model import HashModel, source_tensors
from metah_train.settings import Settings
from metah_train.tensor_cache import tensors_digest

FORMAT = 1
CONFIG = "config.json"
MODEL = "model.safetensors"
METRICS = "metrics.jsonl"
STATE = "state.safetensors"
STARTED = "started.json"
RUN_FILES = (STARTED, CONFIG, MODEL, METRICS, STATE, "evaluation.json")
MAX_CONFIG_BYTES = 16 << 20
MAX_MODEL_BYTES = 8 << 30


@dataclass(frozen=True, kw_only=True)
class RunManifest:
    """What config.json says; ``digest`` is the SHA-256 of the rest as canonical JSON."""

    format: int
    config: Mapping[str, Any]
    task: Task
    class_names: tuple[str, ...]
    preprocess: Preprocess
    data: str
    direction: str
    steps: int
    versions: Mapping[str, str]
    model_sha256: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Run:
    """A finished training run: its folder, its settings and the trained network.

    model: in eval mode, images (n, H, W, C) uint8 -> logits (n, bits) float32, of the target's
    domain, ``model.in_domain`` for the source's; task: the shapes it
    was built for; data, direction: names of the training set; digest: of config.json.
    """

    path: Path
    config: Config
    task: Task
    model: HashModel
    class_names: tuple[str, ...]
    preprocess: Preprocess
    data: str
    direction: str
    digest: str

    @classmethod
    def open(cls, path: str | Path) -> Self:
        """Open a finished run; raises RunError if it is missing, unfinished or damaged."""
        path = Path(path)
        manifest = _read_manifest(path)
        try:
            config = Config.from_dict(manifest.config)
        except (ConfigError, TypeError) as error:
            raise RunError(f"run {path}: {CONFIG} holds unusable settings: {error}") from None
        data = _read(path, MODEL, MAX_MODEL_BYTES)
        digest = hashlib.sha256(data).hexdigest()
        if digest != manifest.model_sha256:
            raise RunError(
                f"run {path}: {MODEL} is damaged: SHA-256 {digest[:12]}..., "
                f"{CONFIG} says {manifest.model_sha256[:12]}...; fix: train again"
            )
        try:
            model = method_class(config.method).build_model(config, manifest.task)
            tensors = safetensors.torch.load(data)
            model.set_source(source_tensors(tensors))
            model.load_state_dict(tensors)
        except (RuntimeError, ValueError, safetensors.SafetensorError) as error:
            raise RunError(f"run {path}: {MODEL} does not fit its settings: {error}") from None
        return cls(
            path=path,
            config=config,
            task=manifest.task,
            model=model.eval(),
            class_names=manifest.class_names,
            preprocess=manifest.preprocess,
            data=manifest.data,
            direction=manifest.direction,
            digest=manifest.digest,
        )


def save_run(
    path: Path,
    *,
    config: Config,
    task: Task,
    model: HashModel,
    class_names: tuple[str, ...],
    preprocess: Preprocess,
    data: str,
    direction: str,
    steps: int,
) -> None:
    """Write model.safetensors, then config.json, into the folder ``path``."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    blob = safetensors.torch.save(tensors)
    files.write_bytes(path / MODEL, blob)
    manifest = {
        "format": FORMAT,
        "config": config.to_dict(),
        "task": schema.to_json(task),
        "class_names": list(class_names),
        "preprocess": schema.to_json(preprocess),
        "data": data,
        "direction": direction,
        "steps": steps,
        "versions": {name: importlib.metadata.version(name) for name in ("metah", "torch")},
        "model_sha256": hashlib.sha256(blob).hexdigest(),
    }
    files.write_json(path / CONFIG, {**manifest, "digest": _digest(manifest)})


def save_state(
    path: Path, tensors: Mapping[str, torch.Tensor], *, step: int, config: Settings
) -> None:
    """Replace RUN/state.safetensors by the state after ``step`` steps, atomically."""
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    about = {"step": step, "config": config.to_dict(), "sha256": tensors_digest(plain)}
    metadata = {"metah": json.dumps(about, sort_keys=True)}
    files.write_bytes(path / STATE, safetensors.torch.save(plain, metadata))


def load_state(path: Path, config: Settings) -> tuple[int, dict[str, torch.Tensor]]:
    """Return (steps done, tensors) of an interrupted run.

    Raises RunError if the state is damaged, ConfigError if it belongs to other settings.
    """
    about, tensors = _read_state(path)
    if about["sha256"] != tensors_digest(tensors):
        raise RunError(f"run {path}: {STATE} is damaged; fix: start again with --overwrite")
    settings, asked = about["config"], json.loads(json.dumps(config.to_dict()))
    if settings != asked:
        raise ConfigError(f"run {path} was started with other settings: {changes(settings, asked)}")
    return about["step"], tensors


def _read_state(path: Path) -> tuple[dict[str, Any], dict[str, torch.Tensor]]:
    """Return (step, config and sha256, tensors) of RUN/state.safetensors."""
    try:
        with safetensors.safe_open(path / STATE, framework="pt") as file:
            about = json.loads((file.metadata() or {})["metah"])
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
        return {key: about[key] for key in ("step", "sha256", "config")}, tensors
    except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
        raise RunError(
            f"run {path}: {STATE} cannot be read ({error}); fix: start again with --overwrite"
        ) from None


def is_run(path: Path) -> bool:
    """Whether a folder holds a run, finished or not, and nothing that a run would not hold."""
    if not path.is_dir():
        return False
    names = {entry.name for entry in path.iterdir() if not entry.name.endswith(".tmp")}
    return bool(names & {METRICS, STARTED}) and names <= set(RUN_FILES)


def save_start(path: Path, config: Settings, images: ImageRecord) -> None:
    """Write started.json: what the run is to be, and of which images."""
    about = {"format": FORMAT, "config": config.to_dict(), "images": images}
    files.write_json(path / STARTED, about)


def images_of(path: Path) -> Mapping[str, Any] | None:
    """Return the record of the images that a run was started with, None for an early version's."""
    return _started(path).get("images")


def warn_if_changed(run: Run, split: Split, warn: Warn) -> None:
    """Warn if a run's images are not those that it was trained with."""
    before = images_of(run.path)
    try:
        changed = None if before is None else check_images(before, split, f"run {run.path}")
    except DataError as error:
        changed = str(error).partition("; fix:")[0]
    if changed:
        warn(changed)


def settings_of(path: Path) -> Config:
    """Return the settings of a run, finished or not.

    Raises RunError if there is no run to go on with, or its settings cannot be used.
    """
    if (path / CONFIG).exists():
        return Run.open(path).config
    about = _started(path)
    if not about and (path / STATE).exists():
        about = _read_state(path)[0]  # a run that an early version began
    if not about:
        raise RunError(f"{path} holds no run to go on with; fix: leave out --resume to begin it")
    try:
        return Config.from_dict(about["config"])
    except (ConfigError, TypeError, KeyError) as error:
        raise RunError(
            f"run {path}: its settings cannot be used ({error}); fix: begin again with --overwrite"
        ) from None


def _started(path: Path) -> Mapping[str, Any]:
    """Return what started.json says, nothing if there is none."""
    if not (path / STARTED).exists():
        return {}
    try:
        found = schema.parse_json(_read(path, STARTED, MAX_CONFIG_BYTES))
        if not isinstance(found, dict) or found.get("format") != FORMAT:
            raise ValueError(f"not of format {FORMAT}")
        if not all(isinstance(found.get(key), dict) for key in ("config", "images")):
            raise ValueError("it has no config or no images")
    except ValueError as error:
        raise RunError(
            f"run {path}: {STARTED} cannot be used: {error}; fix: begin again with --overwrite"
        ) from None
    return found


def _read_manifest(path: Path) -> RunManifest:
    if not path.is_dir():
        raise RunError(f"run {path} is not a folder; fix: train one with metah-train fit")
    if not (path / CONFIG).exists():
        if any((path / name).exists() for name in (STATE, METRICS, STARTED)):
            raise RunError(f"run {path} is not finished; fix: metah-train fit ... --resume")
        raise RunError(f"run {path} has no {CONFIG}: it is not a run of metah-train")
    try:
        value = schema.parse_json(_read(path, CONFIG, MAX_CONFIG_BYTES))
        found = value.get("format") if isinstance(value, dict) else None
        if found != FORMAT:
            raise ValueError(f"format must be {FORMAT}, got {found!r}")
        manifest = schema.from_json(RunManifest, value)
    except (ValueError, ConfigError) as error:
        raise RunError(f"run {path}: {CONFIG} cannot be used: {error}") from None
    del value["digest"]
    if _digest(value) != manifest.digest:
        raise RunError(f"run {path}: {CONFIG} was changed after training; fix: train again")
    return manifest


def _read(path: Path, name: str, limit: int) -> bytes:
    try:
        return files.read_regular(path / name, limit)
    except OSError as error:
        raise RunError(f"run {path}: {name} cannot be read ({error.strerror or error})") from None


def _digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def changes(old: Mapping[str, Any], new: Mapping[str, Any]) -> str:
    """Name the first settings that differ, for an error message."""
    flat_old, flat_new = _flatten(old), _flatten(new)
    keys = sorted(
        k for k in flat_old.keys() | flat_new.keys() if flat_old.get(k) != flat_new.get(k)
    )
    shown = [f"{k} was {flat_old.get(k)!r}, is {flat_new.get(k)!r}" for k in keys[:3]]
    more = f" and {len(keys) - 3} more" if len(keys) > 3 else ""
    return "; ".join(shown) + more


def _flatten(settings: Mapping[str, Any]) -> dict[str, Any]:
    options = settings.get("options", {})
    return {**settings, **{f"options.{k}": v for k, v in options.items()}, "options": None}
