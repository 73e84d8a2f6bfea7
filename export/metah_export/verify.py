"""Check a finished bundle on this machine, without PyTorch."""

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metah_export import parity, truth
from metah_export.onnx_rules import check_model, load_model
from metah_export.parity import LIMITS, Parity
from metah_export.precision import forms
from metah_export.truth import Truth
from metah_runtime.cli.console import step
from metah_runtime.errors import BundleError, ParityError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked. parity: on this machine, None for a bundle without truth.npz."""

    bundle: Bundle
    opset: int
    device: str
    parity: Parity | None


def verify(path: str | Path, *, device: str = "cpu", threads: int | None = None) -> Verified:
    """Check digests, the ONNX rules, one batch, and parity with the truth stored in the bundle.

    Raises BundleError, ParityError or BackendUnavailable.
    """
    with step("checking digests and ONNX rules"):
        bundle = Bundle.open(path)
        opset = check_rules(bundle)
    if opset != bundle.manifest.opset:
        raise BundleError(
            f"{bundle.model_path} has operator set {opset}, the manifest says "
            f"{bundle.manifest.opset}"
        )
    name, shape, bits = str(bundle.model_path), bundle.preprocess.shape, bundle.bits
    precision, known = bundle.manifest.precision, load_truth(bundle)
    if device == "cpu":
        found = list(
            forms(
                bundle.read(), precision, bits=bits, image_shape=shape, threads=threads, name=name
            )
        )
    else:
        runner = runners.open(bundle, device, threads=threads)
        found = [(runner.device, runner)]
    reports = []
    for label, runner in found:
        _check_batch(runner, name)
        if known is not None:
            limits = limits_of(bundle)
            reports.append(
                parity.measure(
                    runner, known, precision=precision, limits=limits, label=label
                ).check()
            )
    worst = max(reports, key=lambda report: report.flips) if reports else None
    return Verified(bundle=bundle, opset=opset, device=found[0][1].device, parity=worst)


def check_rules(bundle: Bundle) -> int:
    """Check a bundle's ONNX file (``onnx_rules``) before any runtime sees it; return its opset."""
    name = str(bundle.model_path)
    model = load_model(bundle.read(), name)
    return check_model(model, bits=bundle.bits, image_shape=bundle.preprocess.shape, name=name)


def load_truth(bundle: Bundle) -> Truth | None:
    """Return the truth stored in a bundle, None if it has none."""
    if truth.FILE not in bundle.manifest.files:
        return None
    return Truth.from_bytes(
        bundle.read(truth.FILE), bits=bundle.bits, image_shape=bundle.preprocess.shape
    )


def limits_of(bundle: Bundle) -> parity.Limits:
    """Return the limits that the bundle was built with, else those of its precision."""
    if not bundle.manifest.parity:
        return LIMITS[bundle.manifest.precision]
    try:
        return Parity.from_dict(bundle.manifest.parity).limits
    except ValueError as error:
        raise BundleError(f"{bundle.path}: the manifest's parity: {error}") from error


def _check_batch(runner: runners.Runner, name: str) -> None:
    """Run all-black, all-white and random images; equal images must get equal codes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, *runner.image_shape), dtype=np.uint8)
    flat = np.stack([np.full(runner.image_shape, v, np.uint8) for v in (0, 255, 255)])
    packed, logits = runner.run(np.concatenate([flat, noise]))
    if not np.isfinite(logits).all():
        raise ParityError(f"{name}: logits of a black, white or random image are not finite")
    if (packed[1] != packed[2]).any():
        raise ParityError(f"{name}: one image twice in a batch gets two codes")
