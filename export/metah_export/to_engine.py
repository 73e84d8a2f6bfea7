"""ONNX -> TensorRT engine, with NVIDIA TensorRT or TensorRT for RTX.

The graph fixes the precision; nothing here changes it. TensorRT for RTX builds without a GPU.
"""

import hashlib
import json
import os
import re
import stat
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metah_export.onnx_rules import INPUT, MAX_BATCH
from metah_runtime import files
from metah_runtime.cuda import driver
from metah_runtime.cuda.fatbin import cache_folder
from metah_runtime.errors import BackendUnavailable, ConfigError, EngineError
from metah_runtime.model.manifest import ENGINE_KINDS, Engine
from metah_runtime.model.runners.tensorrt_library import (
    PORTABLE,
    import_trt,
    make_logger,
    this_platform,
)
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning

_NUMBER = re.compile(r"[0-9]{1,9}")
_TARGET = re.compile(r"\d{1,2}\.\d")


@dataclass(frozen=True, kw_only=True)
class EngineConfig:
    """How an engine is built.

    kind: 'tensorrt' or 'tensorrt-rtx'; batch: (min, opt, max) images; targets: compute capabilities
    such as '8.9', () for the default: portable with tensorrt-rtx, this machine's GPU with tensorrt;
    tf32: allow TF32, which flips bits of an fp32 model.
    """

    kind: str = "tensorrt-rtx"
    batch: tuple[int, int, int] = (1, 8, 64)
    targets: tuple[str, ...] = ()
    tf32: bool = False

    def __post_init__(self) -> None:
        if self.kind not in ENGINE_KINDS:
            raise ConfigError(f"engine must be one of {', '.join(ENGINE_KINDS)}, got {self.kind!r}")
        low, best, high = self.batch
        if not 1 <= low <= best <= high <= MAX_BATCH:
            raise ConfigError(
                f"batch must be MIN:OPT:MAX with 1 <= MIN <= OPT <= MAX <= {MAX_BATCH}, "
                f"got {low}:{best}:{high}"
            )
        if self.kind == "tensorrt" and self.targets:
            raise ConfigError("targets are for tensorrt-rtx: tensorrt builds for this GPU alone")
        for target in self.targets:
            if not _TARGET.fullmatch(target):
                raise ConfigError(f"target must be a compute capability like 8.9, got {target!r}")
        if len(set(self.targets)) != len(self.targets):
            raise ConfigError(f"targets must differ, got {', '.join(self.targets)}")

    @property
    def flags(self) -> tuple[str, ...]:
        """Builder flags as the manifest names them."""
        return ("tf32",) if self.tf32 else ()


def parse_batch(text: str) -> tuple[int, int, int]:
    """Parse MIN:OPT:MAX or MIN,OPT,MAX (or one number for all three); raise ConfigError."""
    parts = text.replace(",", ":").split(":")
    if len(parts) not in (1, 3) or not all(map(_NUMBER.fullmatch, parts)):
        raise ConfigError(f"batch must be MIN:OPT:MAX, three whole numbers, got {text!r}")
    low, best, high = (int(part) for part in (parts if len(parts) == 3 else parts * 3))
    return low, best, high


def choose_kind(asked: str) -> str:
    """Resolve 'auto': tensorrt if it and a GPU are here, else tensorrt-rtx if it is installed."""
    if asked != "auto":
        return asked
    reasons = []
    for kind in ENGINE_KINDS:
        try:
            if kind == "tensorrt":
                _require_gpu(kind)
            import_trt(kind)
        except BackendUnavailable as error:
            reasons.append(str(error))
        else:
            return kind
    raise BackendUnavailable(f"no engine can be built here: {'; '.join(reasons)}")


def build_engine(
    model: bytes,
    *,
    image_shape: tuple[int, int, int],
    config: EngineConfig,
    cache: bool = True,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> tuple[Engine, bytes]:
    """Build an engine of a checked ONNX model, or take it from the cache.

    Returns its manifest entry (parity None) and its bytes. Raises EngineError naming every node
    that the parser refuses, MissingExtra or BackendUnavailable.
    """
    if config.kind == "tensorrt":
        _require_gpu(config.kind)
    trt = import_trt(config.kind)
    targets = config.targets or _default_targets(config.kind)
    digest = hashlib.sha256(model).hexdigest()
    entry: dict[str, Any] = {
        "kind": config.kind,
        "builder": str(trt.__version__),
        "targets": list(targets),
        "platform": this_platform(),
        "batch": list(config.batch),
        "flags": list(config.flags),
        "model_sha256": digest,
    }
    key = hashlib.sha256(json.dumps(entry, sort_keys=True).encode()).hexdigest()
    folder = cache_folder() / "engines" if cache else None
    plan = None if folder is None else _cached(folder, key, warn)
    if plan is None:
        with progress(f"building the {config.kind} engine"):
            plan = _build(trt, model, image_shape, config)
        if folder is not None:
            _keep(folder, key, plan)
    engine = Engine(
        kind=config.kind,
        file=f"engines/{config.kind}-{key[:16]}.plan",
        builder=entry["builder"],
        targets=targets,
        platform=entry["platform"],
        batch=config.batch,
        flags=config.flags,
        model_sha256=digest,
        parity=None,
    )
    return engine, plan


def _build(
    trt: Any, model: bytes, image_shape: tuple[int, int, int], config: EngineConfig
) -> bytes:
    logger = make_logger(trt)
    builder = trt.Builder(logger)
    network = builder.create_network(_network_flags(trt))
    parser = trt.OnnxParser(network, logger)
    if not parser.parse(model):
        raise EngineError(f"{config.kind} cannot read the model: {_parser_errors(parser)}")
    inputs = {
        network.get_input(i).name: tuple(network.get_input(i).shape)
        for i in range(network.num_inputs)
    }
    if inputs != {INPUT: (-1, *image_shape)}:  # a profile of another name is ignored in silence
        raise EngineError(
            f"{config.kind} must see one input {INPUT} {(-1, *image_shape)}, got {inputs}"
        )
    settings = builder.create_builder_config()
    if config.tf32:
        settings.set_flag(trt.BuilderFlag.TF32)
    else:
        settings.clear_flag(trt.BuilderFlag.TF32)
    _set_targets(trt, settings, config.targets)
    optimization = builder.create_optimization_profile()
    optimization.set_shape(INPUT, *((size, *image_shape) for size in config.batch))
    if settings.add_optimization_profile(optimization) < 0:
        raise EngineError(f"{config.kind} refuses batches of {config.batch} images {image_shape}")
    plan = builder.build_serialized_network(network, settings)
    if plan is None:
        reasons = logger.errors() or ["no reason given"]
        raise EngineError(f"{config.kind} cannot build the engine: {'; '.join(reasons[:3])[:600]}")
    return bytes(plan)


def _network_flags(trt: Any) -> int:
    """Ask TensorRT 10 for strong typing; 11 and RTX know nothing else."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    major = int(str(trt.__version__).split(".")[0])
    return 1 << int(flag) if flag is not None and major == 10 and trt.__name__ == "tensorrt" else 0


def _set_targets(trt: Any, settings: Any, targets: tuple[str, ...]) -> None:
    if not targets:
        return
    known = {
        f"{name[2:-1]}.{name[-1]}": getattr(trt.ComputeCapability, name)
        for name in dir(trt.ComputeCapability)
        if name.startswith("SM")
    }
    settings.num_compute_capabilities = len(targets)
    for place, target in enumerate(targets):
        if target not in known:
            options = ", ".join(sorted(known, key=lambda text: float(text)))
            raise ConfigError(f"target must be one of {options}, got {target!r}")
        if not settings.set_compute_capability(known[target], place):
            raise EngineError(f"tensorrt-rtx refuses target {target}")


def _parser_errors(parser: Any) -> str:
    """Return every error of the parser with the node that it is about."""
    found = []
    for place in range(parser.num_errors):
        error = parser.get_error(place)
        text = " ".join(error.desc().split())[:300]
        operator = error.node_operator() or "?"
        found.append(f"node {error.node()} ({operator}): {text}")
    return "; ".join(found) or "no reason given"


def _default_targets(kind: str) -> tuple[str, ...]:
    if kind == "tensorrt-rtx":
        return (PORTABLE,)
    arch = driver.open_devices()[0].arch
    return (f"{arch // 10}.{arch % 10}",)


def _require_gpu(kind: str) -> None:
    reason = driver.probe()
    if reason:
        raise BackendUnavailable(
            f"{kind} builds engines on the GPU that will run them, and {reason}; "
            "fix: build there, or use --engine tensorrt-rtx"
        )


def _cached(folder: Path, key: str, warn: Warn) -> bytes | None:
    """Return a plan from the cache; warn of a damaged one and return None."""
    path = folder / f"{key}.plan"
    if not path.exists():
        return None
    _check_owner(folder)
    try:
        data = files.read_regular(path, 1 << 34)
        wanted = files.read_regular(folder / f"{key}.sha256", 64).decode()
    except (OSError, UnicodeDecodeError):
        wanted, data = "", b""
    if hashlib.sha256(data).hexdigest() != wanted:
        warn(f"{path} is damaged; the engine is built again")
        return None
    return data


def _keep(folder: Path, key: str, plan: bytes) -> None:
    folder.mkdir(parents=True, exist_ok=True, mode=0o700)
    _check_owner(folder)
    files.write_bytes(folder / f"{key}.sha256", hashlib.sha256(plan).hexdigest().encode())
    files.write_bytes(folder / f"{key}.plan", plan)


def _check_owner(folder: Path) -> None:
    """Raise EngineError if someone else could have put an engine there: engines are code."""
    status = folder.stat()
    if status.st_uid != os.getuid() or status.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
        raise EngineError(
            f"engine cache {folder} must belong to you and be writable by you alone; "
            "fix: chmod go-w, or set METAH_CACHE to a folder of yours"
        )
