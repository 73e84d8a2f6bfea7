"""Runners: what executes a bundle's model on a device.

images uint8 (n, H, W, C) -> codes uint8 (n, width), logits float32 (n, bits)
"""

import warnings
from collections.abc import Callable

from metah_runtime.checks import affine_cores, check_threads, usable_cores
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BackendUnavailable, ConfigError, EngineError
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.runners.interface import Runner

DEVICES = ("cpu", "cuda", "tensorrt", "auto")


def open(  # noqa: A001
    bundle: Bundle,
    device: str = "cpu",
    *,
    domain: Domain = TARGET,
    threads: int | None = None,
    spin: bool = True,
    warn: Callable[[str], object] = warnings.warn,
) -> Runner:
    """Load a bundle's model on a device; what was asked for is what runs, or an error says why.

    device: 'cpu' or 'cuda' (ONNX Runtime), 'tensorrt' (an engine of the bundle), or 'auto': the
    first of tensorrt, cuda, cpu that works; ``warn`` is told why the others do not. domain: whose
    images are encoded.
    threads: CPU threads, None = all cores; spin: whether they wait for work by spinning. Raises
    BackendUnavailable (MissingExtra if a package is absent), EngineError for a foreign engine and
    BundleError for a bad model or a domain that the bundle does not encode.
    """
    if device not in DEVICES:
        raise ConfigError(f"device must be one of {', '.join(DEVICES)}, got {device!r}")
    file = bundle.model_file(domain)
    if threads is not None:
        threads = check_threads(threads)
    elif usable_cores() < affine_cores():  # ONNX Runtime knows nothing of a container's quota
        threads = usable_cores()
    if device == "auto":
        return _open_any(bundle, domain, threads, spin, warn)
    if device == "tensorrt":
        from metah_runtime.model.runners.tensorrt_runner import open_trt

        return open_trt(bundle, domain=domain)
    if device == "cpu" and bundle.manifest.precision == "bf16":
        raise BackendUnavailable(
            f"{bundle.path}: ONNX Runtime has no bf16 kernels for the CPU; fix: device 'cuda' or "
            "'tensorrt', or a bundle of another precision"
        )
    from metah_runtime.model.runners.onnxruntime_runner import OrtRunner

    return OrtRunner(
        bundle.read(file),
        bits=bundle.bits,
        detail_bits=bundle.code_format.detail_bits,
        image_shape=bundle.preprocess.shape,
        device=device,
        precision=bundle.manifest.precision,
        threads=threads,
        spin=spin,
        name=str(bundle.path / file),
    )


def _open_any(
    bundle: Bundle,
    domain: Domain,
    threads: int | None,
    spin: bool,
    warn: Callable[[str], object],
) -> Runner:
    """Open the first device that works; tell ``warn`` once why those before it do not."""
    order = ["cuda", "cpu"]
    if bundle.engines(domain):
        order.insert(0, "tensorrt")
    reasons = []
    for device in order:
        try:
            runner = open(bundle, device, domain=domain, threads=threads, spin=spin)
        except (BackendUnavailable, EngineError) as error:
            reasons.append(f"{device}: {error}")
            continue
        if reasons:
            warn(f"device 'auto' runs on {device} ({'; '.join(reasons)})")
        return runner
    raise BackendUnavailable(f"no device can run {bundle.path}: {'; '.join(reasons)}")
