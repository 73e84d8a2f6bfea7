"""Add an engine to a finished bundle, on a machine without PyTorch."""

import dataclasses
from pathlib import Path

from metah_export import parity
from metah_export.onnx_rules import load_model
from metah_export.parity import Limits, Parity
from metah_export.quantize import target_of
from metah_export.reference_set import ReferenceSet
from metah_export.to_engine import EngineConfig, build_engine
from metah_export.verify import check_rules, limits_of, load_reference_set
from metah_runtime.cuda import driver
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BackendUnavailable, EngineError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners.tensorrt_library import check_engine, import_trt
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning


def make_engine(
    model: bytes,
    *,
    preprocess: Preprocess,
    precision: str,
    config: EngineConfig,
    reference: ReferenceSet | None,
    limits: Limits,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> tuple[Engine, bytes, str | None]:
    """Build an engine and, if this machine can run it, compare its codes with the reference set.

    Returns (manifest entry, plan, why parity was not measured or None). Raises ParityError if the
    engine breaks a limit, EngineError for a model that TensorRT does not take.
    """
    if target_of(load_model(model)) == "cpu":
        raise EngineError(
            f"{config.kind} does not take int8 made for the CPU (activations with zero points); "
            "fix: metah-export build RUN --precision int8 --target tensorrt --out BUNDLE"
        )
    entry, plan = build_engine(
        model, image_shape=preprocess.shape, config=config, progress=progress, warn=warn
    )
    if reference is None:
        return entry, plan, "the bundle holds no truth.npz"
    try:
        found = _run_here(entry, plan, preprocess, precision, reference, limits, progress)
    except BackendUnavailable as error:
        return entry, plan, str(error)
    return dataclasses.replace(entry, parity=found.check().to_dict()), plan, None


def engine(
    path: str | Path,
    config: EngineConfig,
    *,
    domain: Domain = TARGET,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> tuple[Bundle, Engine, str | None]:
    """Add an engine for images of a domain to the bundle at ``path``; see ``make_engine``.

    Raises BundleError for a damaged bundle, EngineError, ParityError or BackendUnavailable; the
    bundle is then unchanged.
    """
    bundle = Bundle.open(path)
    check_rules(bundle)
    file = bundle.model_file(domain)
    entry, plan, reason = make_engine(
        bundle.read(file),
        preprocess=bundle.preprocess,
        precision=bundle.manifest.precision,
        config=config,
        reference=load_reference_set(bundle, domain),
        limits=limits_of(bundle),
        progress=progress,
        warn=warn,
    )
    return add_engine(bundle, entry, plan), entry, reason


def _run_here(
    entry: Engine,
    plan: bytes,
    preprocess: Preprocess,
    precision: str,
    reference: ReferenceSet,
    limits: Limits,
    progress: Progress,
) -> Parity:
    """Run the engine on this machine's GPU; raise BackendUnavailable if there is none."""
    gpu = driver.open_devices()[0]
    trt = import_trt(entry.kind)
    arch = f"{gpu.arch // 10}.{gpu.arch % 10}"
    if entry.targets and entry.targets[0][0].isdigit() and arch not in entry.targets:
        raise BackendUnavailable(f"the engine is for {', '.join(entry.targets)}, this is {arch}")
    check_engine(entry, builder=str(trt.__version__), arch=arch)
    from metah_runtime.model.runners.tensorrt_runner import TrtRunner

    runner = TrtRunner(
        plan,
        entry,
        bits=reference.bits,
        detail_bits=reference.code_format.detail_bits,
        image_shape=preprocess.shape,
        trt=trt,
        gpu=gpu,
    )
    label = f"{entry.kind} {entry.builder}, {gpu.name}"
    return parity.measure(
        runner, reference, precision=precision, limits=limits, label=label, progress=progress
    )
