"""Build a bundle from a training run: trace, check, compare in bits, write."""

import importlib.metadata
import platform
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray

from metah_export import reference_set
from metah_export.calibrate import Calibration
from metah_export.config import MIN_IMAGES, BuildConfig
from metah_export.engine import make_engine
from metah_export.exclusion import lower_within_limits
from metah_export.onnx_rules import load_model, opset_of
from metah_export.parity import LIMITS, Parity
from metah_export.precision import CALIBRATED, Lowering, gate, ort_version
from metah_export.reference_set import DATABASE, QUERY, SOURCE, ReferenceSet
from metah_export.to_engine import EngineConfig
from metah_export.to_onnx import to_onnx
from metah_runtime import schema
from metah_runtime.codes import BIT_ORDER, BIT_RULE
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import ConfigError, DataError, require
from metah_runtime.model.bundle import Bundle, check_new, write_bundle
from metah_runtime.reporting import Progress, Warn, no_progress, python_warning
from metah_train.data import split_of
from metah_train.evaluation.encode import all_logits
from metah_train.evaluation.evaluate import stored_evaluation
from metah_train.training.checkpoint import Run, warn_if_changed

if TYPE_CHECKING:
    from metah_train.data import ImageSet, Split

REFERENCE_BYTES = 96 * 2**20
"""Bytes of pixels kept in truth.npz, before compression, unless MIN_IMAGES need more."""


def build(
    run: Run | str | Path,
    out: str | Path,
    config: BuildConfig | None = None,
    *,
    split: "Split | None" = None,
    engine: EngineConfig | None = None,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> tuple[Bundle, Parity]:
    """Export a run to a new bundle if its codes are those of the trained model.

    split: the run's data, loaded again if None; engine: build one too. Raises ParityError, and
    leaves nothing behind, if a limit is broken; BundleError if ``out`` exists; RunError, DataError,
    EngineError and BackendUnavailable for what cannot be used. The scores that ``evaluate`` left in
    the run go into the manifest and the model card.
    """
    config = BuildConfig() if config is None else config
    require("onnxruntime", "onnxscript")
    check_new(out)
    target = config.target or ("cpu" if engine is None else "tensorrt")
    if engine is not None and config.precision == "int8" and target == "cpu":
        raise ConfigError(
            "TensorRT does not take int8 for the CPU; fix: --target tensorrt, or no --engine"
        )
    if not isinstance(run, Run):
        run = Run.open(run)
    evaluation = stored_evaluation(run)
    if split is None:
        with progress("loading the data"):
            split = split_of(run.config)
        warn_if_changed(run, split, warn)
    if split.preprocess != run.preprocess:
        raise DataError(f"the data's preprocessing {split.preprocess} is not the run's")
    if config.threads is not None:
        torch.set_num_threads(config.threads)
    reference = collect_reference_set(
        run, split, images=config.images, seed=config.seed, progress=progress, warn=warn
    )
    models: dict[Domain, bytes] = {}
    results: dict[Domain, Parity] = {}
    excluded: list[str] = []
    known: dict[Domain, ReferenceSet] = {TARGET: reference}
    if len(run.model.domains) > 1:
        known = {domain: reference.of(domain) for domain in run.model.domains}
    for domain, images in known.items():
        models[domain], results[domain], left = _export(
            run, domain, images, split, config, target, progress, warn
        )
        excluded += [layer for layer in left if layer not in excluded]
    model, result = models[TARGET], results[TARGET]
    engines = []
    if engine is not None:
        entry, plan, reason = make_engine(
            model,
            preprocess=run.preprocess,
            precision=config.precision,
            config=engine,
            reference=known[TARGET],
            limits=config.allowed,
            progress=progress,
            warn=warn,
        )
        engines.append((entry, plan))
        if reason:
            warn(f"parity of engine {entry.file} is not measured: {reason}")
    bundle = write_bundle(
        out,
        model=model,
        source_model=models.get("source"),
        bits=run.model.bits,
        detail_bits=run.model.detail_bits,
        code_weight=run.config.code_weight,
        preprocess=run.preprocess,
        precision=config.precision,
        opset=opset_of(load_model(model)),
        versions=versions(),
        training=_training(run, config, evaluation, target, tuple(excluded)),
        parity=result.to_dict(),
        source_parity=results["source"].to_dict() if "source" in results else None,
        extra={reference_set.FILE: reference.to_bytes()},
        engines=engines,
    )
    return bundle, result


def _export(
    run: Run,
    domain: Domain,
    reference: ReferenceSet,
    split: "Split",
    config: BuildConfig,
    target: str,
    progress: Progress,
    warn: Warn,
) -> tuple[bytes, Parity, tuple[str, ...]]:
    """Return the ONNX file of the network for images of a domain, its parity, and layers in fp32.

    The layers are those that a lower precision leaves as they are.
    """
    network, shape = run.model.in_domain(domain), run.preprocess.shape
    bits, detail_bits = network.bits, network.detail_bits
    check = partial(gate, reference=reference, threads=config.threads, progress=progress)
    with progress("exporting to ONNX"):
        model = to_onnx(
            network,
            bits=bits,
            detail_bits=detail_bits,
            image_shape=shape,
            metadata=_metadata(run, domain),
        )
    if config.precision == "fp32":
        return model, check(model, "fp32", limits=config.allowed), ()
    check(model, "fp32", limits=LIMITS["fp32"])
    lowering = Lowering(
        model,
        config.precision,
        bits=bits,
        detail_bits=detail_bits,
        image_shape=shape,
        images=calibration_images(split, config.calibration),
        calibration=config.calibration,
        target=target,
        progress=progress,
    )
    return lower_within_limits(
        lowering,
        reference,
        partial(check, precision=config.precision, limits=config.allowed),
        exclude=config.exclude,
        auto=config.auto,
        threads=config.threads,
        progress=progress,
        warn=warn,
    )


def collect_reference_set(
    run: Run,
    split: "Split",
    *,
    images: int,
    seed: int,
    progress: Progress = no_progress,
    warn: Warn = python_warning,
) -> ReferenceSet:
    """Choose images of both domains by seed and encode them with the trained model in PyTorch.

    Each image is encoded by the network of its domain, where the run has two. A quarter comes from
    the source domain, up to a quarter are queries, the rest database. Fewer are taken where the
    pixels would pass REFERENCE_BYTES or the sets are small.
    """
    pixels = int(np.prod(run.preprocess.shape))
    images = min(images, max(MIN_IMAGES, REFERENCE_BYTES // pixels))
    rng = np.random.default_rng(seed)
    source = _choose(rng, split.source_train, images // 4)
    query = _choose(rng, split.query, min(images // 4, len(split.query)))
    database = _choose(rng, split.database, images - len(source) - len(query))
    parts = [
        (SOURCE, split.source_train.subset(source)),
        (QUERY, split.query.subset(query)),
        (DATABASE, split.database.subset(database)),
    ]
    total = sum(len(part) for _, part in parts)
    if total < MIN_IMAGES:
        warn(f"parity is measured on all {total} images; {MIN_IMAGES} would be the rule")
    with progress("encoding with PyTorch", total, "images") as advance:
        found = []
        for role, part in parts:
            network = run.model.in_domain("source" if role == SOURCE else TARGET)
            found.append(all_logits(network, part, done=advance))
    labels = [part.labels for _, part in parts]
    known = [label for label in labels if label is not None]
    return ReferenceSet(
        images=np.concatenate([part.load(np.arange(len(part))) for _, part in parts]),
        logits=np.concatenate([logits for logits, _ in found]),
        roles=np.repeat(
            np.array([role for role, _ in parts], np.uint8), [len(p) for _, p in parts]
        ),
        names=np.array([name for _, part in parts for name in part.names]),
        labels=np.concatenate(known) if len(known) == len(labels) else None,
        detail_logits=np.concatenate([x for _, x in found]) if run.model.detail_bits else None,
        code_weight=run.config.code_weight,
    )


def versions() -> dict[str, str]:
    """Return the versions of the packages that an export uses."""
    names = ("metah", "torch", "onnx", "onnxscript", "numpy", "pillow")
    found = {name: importlib.metadata.version(name) for name in names}
    return found | {"onnxruntime": ort_version(), "python": platform.python_version()}


def _choose(rng: np.random.Generator, images: "ImageSet", count: int) -> NDArray[np.int64]:
    rows = rng.permutation(len(images))[:count]
    return np.sort(rows).astype(np.int64)


def _metadata(run: Run, domain: Domain) -> dict[str, str]:
    """Return the metadata of an ONNX file; it depends on the run alone, not on place or time."""
    further = {}
    if run.model.detail_bits:
        further["metah.detail_bits"] = str(run.model.detail_bits)
        further["metah.code_weight"] = str(run.config.code_weight)
    if len(run.model.domains) > 1:
        further["metah.domain"] = domain
    return further | {
        "metah.bit_order": BIT_ORDER,
        "metah.bit_rule": BIT_RULE,
        "metah.bits": str(run.config.bits),
        "metah.method": run.config.method,
        "metah.precision": "fp32",
        "metah.run": run.digest,
    }


def calibration_images(split: "Split", calibration: Calibration) -> NDArray[np.uint8]:
    """Choose images to calibrate on, half of each domain, from the training sets alone."""
    rng = np.random.default_rng(calibration.seed)
    half = calibration.images // 2
    source = _choose(rng, split.source_train, half)
    target = _choose(rng, split.target_train, calibration.images - half)
    return np.concatenate([split.source_train.load(source), split.target_train.load(target)])


def _training(
    run: Run,
    config: BuildConfig,
    evaluation: dict[str, object] | None,
    target: str,
    excluded: tuple[str, ...],
) -> dict[str, object]:
    """Return the run's settings and scores, and the settings of the export, for the manifest."""
    calibration: dict[str, Any] | None = None
    if config.precision in CALIBRATED:
        calibration = schema.to_json(config.calibration)
        calibration |= {"target": target} if config.precision == "int8" else {}
    return {
        "calibration": calibration,
        "class_names": list(run.class_names),
        "config": run.config.to_dict(),
        "data": run.data,
        "direction": run.direction,
        "evaluation": evaluation,
        **({"excluded": list(excluded)} if excluded else {}),
        "licence": config.licence,
        "pretrained": run.model.backbone.pretrained or None,
        "run": run.digest,
    }
