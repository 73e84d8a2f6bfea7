"""Check a finished bundle on this machine, without PyTorch."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from metah_export import parity, reference_set
from metah_export.onnx_rules import check_model, load_model
from metah_export.parity import LIMITS, Parity
from metah_export.precision import forms
from metah_export.reference_set import ReferenceSet
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BundleError, ParityError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.runners.interface import Runner
from metah_runtime.reporting import Progress, no_progress


@dataclass(frozen=True, kw_only=True)
class Verified:
    """What was checked.

    parity, source_parity: of the models for images of the target and of the source, on this
    machine; None for a bundle without truth.npz, or without a model for the source.
    """

    bundle: Bundle
    opset: int
    device: str
    parity: Parity | None
    source_parity: Parity | None


def verify(
    path: str | Path,
    *,
    device: str = "cpu",
    threads: int | None = None,
    progress: Progress = no_progress,
) -> Verified:
    """Check digests, the ONNX rules, one batch, and parity with the reference set of the bundle.

    Raises BundleError, ParityError or BackendUnavailable.
    """
    with progress("checking digests and ONNX rules"):
        bundle = Bundle.open(path)
        opset = check_rules(bundle)
    reports: dict[Domain, Parity] = {}
    for domain in bundle.domains:
        found = onnx_runners(bundle, device, threads, domain)
        reference = load_reference_set(bundle, domain)
        for label, runner in found:
            _check_batch(runner, str(bundle.path / bundle.model_file(domain)))
            if reference is None:
                continue
            report = parity.measure(
                runner,
                reference,
                precision=bundle.manifest.precision,
                limits=limits_of(bundle),
                label=label,
                progress=progress,
            ).check()
            if domain not in reports or report.flips > reports[domain].flips:
                reports[domain] = report
    return Verified(
        bundle=bundle,
        opset=opset,
        device=found[0][1].device,
        parity=reports.get("target"),
        source_parity=reports.get("source"),
    )


def onnx_runners(
    bundle: Bundle, device: str, threads: int | None, domain: Domain = TARGET
) -> list[tuple[str, Runner]]:
    """Return (label, runner) of each way to run a bundle's ONNX file on a device; see ``forms``."""
    if device != "cpu":
        runner = runners.open(bundle, device, domain=domain, threads=threads)
        return [(runner.device, runner)]
    file = bundle.model_file(domain)
    return list(
        forms(
            bundle.read(file),
            bundle.manifest.precision,
            bits=bundle.bits,
            detail_bits=bundle.code_format.detail_bits,
            image_shape=bundle.preprocess.shape,
            threads=threads,
            name=str(bundle.path / file),
        )
    )


def check_rules(bundle: Bundle) -> int:
    """Check a bundle's ONNX files (``onnx_rules``) before any runtime sees them; return the opset.

    Raises BundleError, also if it is not what the manifest says.
    """
    for file in bundle.manifest.models.values():
        name = str(bundle.path / file)
        opset = check_model(
            load_model(bundle.read(file), name),
            bits=bundle.bits,
            detail_bits=bundle.code_format.detail_bits,
            image_shape=bundle.preprocess.shape,
            name=name,
        )
        if opset != bundle.manifest.opset:
            raise BundleError(
                f"{name} has operator set {opset}, the manifest says {bundle.manifest.opset}"
            )
    return bundle.manifest.opset


def load_reference_set(bundle: Bundle, domain: Domain = TARGET) -> ReferenceSet | None:
    """Return the reference set of a bundle's model for images of a domain, None if it has none.

    It holds images of both domains where the bundle has one model for both.
    """
    if reference_set.FILE not in bundle.manifest.files:
        return None
    known = ReferenceSet.from_bytes(
        bundle.read(reference_set.FILE),
        bits=bundle.bits,
        detail_bits=bundle.code_format.detail_bits,
        code_weight=bundle.code_format.code_weight,
        image_shape=bundle.preprocess.shape,
    )
    return known.of(domain) if len(bundle.domains) > 1 else known


def limits_of(bundle: Bundle) -> parity.Limits:
    """Return the limits that the bundle was built with, else those of its precision."""
    if not bundle.manifest.parity:
        return LIMITS[bundle.manifest.precision]
    return stored_parity(bundle, bundle.manifest.parity).limits


def stored_parity(bundle: Bundle, value: Mapping[str, Any]) -> Parity:
    """Return a parity report of a bundle's manifest; raise BundleError if it is none."""
    try:
        return parity.stored(value)
    except ValueError as error:
        raise BundleError(f"{bundle.path}: the manifest's parity: {error}") from error


def _check_batch(runner: Runner, name: str) -> None:
    """Run all-black, all-white and random images; equal images must get equal codes."""
    rng = np.random.default_rng(0)
    noise = rng.integers(0, 256, (2, *runner.image_shape), dtype=np.uint8)
    flat = np.stack([np.full(runner.image_shape, v, np.uint8) for v in (0, 255, 255)])
    packed, logits = runner.run(np.concatenate([flat, noise]))
    if not np.isfinite(logits).all():
        raise ParityError(f"{name}: logits of a black, white or random image are not finite")
    if (packed[1] != packed[2]).any():
        raise ParityError(f"{name}: one image twice in a batch gets two codes")
