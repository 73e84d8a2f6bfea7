"""ONNX Runtime: runs the bundle's model on the CPU or on CUDA, never on another than asked for."""

from collections.abc import Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from metah_runtime.checks import usable_cores
from metah_runtime.codes import Codes, check_bits
from metah_runtime.cpu_features import has_vnni
from metah_runtime.errors import BackendUnavailable, BundleError, MissingExtra
from metah_runtime.model.runners.interface import (
    INPUT,
    Images,
    Logits,
    check_images,
    check_resident,
    outputs,
)

if TYPE_CHECKING:
    from metah_runtime.cuda.driver import Device
    from metah_runtime.cuda.queries import DeviceCodes

PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}
CHUNK_PIXELS = 2 * 224 * 224
"""Pixels of one run on the CPU for each thread, two threads at least; a larger batch is cut: its
tensors leave the caches, and its memory grows with it (docs/decisions/0007)."""
_TYPES: Mapping[type[np.generic], str] = {np.uint8: "tensor(uint8)", np.float32: "tensor(float)"}


class OrtRunner:
    """An ONNX Runtime session on one device.

    model: bytes of an ONNX file with input ``images`` uint8 [batch, H, W, C] and outputs ``codes``
    uint8 [batch, bits/8], ``logits`` float32 [batch, bits] and, with detail_bits, ``details`` uint8
    [batch, detail_bits/8]; precision: of the model's weights, or
    'emulated' to keep every rounding that the graph spells out; spin: whether idle threads spin;
    name: how errors call the model.
    Raises MissingExtra without onnxruntime, BackendUnavailable if the device cannot be used, and
    BundleError if the model cannot be loaded or its signature is another.
    """

    def __init__(
        self,
        model: bytes,
        *,
        bits: int,
        detail_bits: int = 0,
        image_shape: tuple[int, int, int],
        device: str = "cpu",
        precision: str = "fp32",
        threads: int | None = None,
        spin: bool = True,
        name: str = "model.onnx",
    ) -> None:
        self.bits = check_bits(bits)
        self.detail_bits = detail_bits
        self._outputs = outputs(bits, detail_bits)
        self.image_shape = image_shape
        self.device = device
        self._name = name
        self._memory = device  # where ``resident`` leaves its outputs, as ONNX Runtime names it
        ort = _onnxruntime(device)
        options = _options(ort, precision, threads, spin)
        pixels = CHUNK_PIXELS * max(2, threads or usable_cores())
        self._chunk = (
            max(1, pixels // (image_shape[0] * image_shape[1])) if device == "cpu" else None
        )
        self._session = _session(ort, model, options, device=device, name=name)
        _check_signature(self._session, image_shape=image_shape, made=self._outputs, name=name)

    def run(self, images: Images) -> tuple[Codes, Logits]:
        """Encode a batch of images, (n, H, W, C) uint8; see ``Runner.run``."""
        batch = check_images(images, self.image_shape)
        if not len(batch):
            return (
                np.zeros((0, (self.bits + self.detail_bits) // 8), np.uint8),
                np.zeros((0, self.bits), np.float32),
            )
        step = self._chunk or len(batch)
        parts = [self._run(batch[start : start + step]) for start in range(0, len(batch), step)]
        if len(parts) == 1:
            return parts[0]
        codes, logits = zip(*parts, strict=True)
        return np.concatenate(codes), np.concatenate(logits)

    def _run(self, batch: Images) -> tuple[Codes, Logits]:
        """Encode one chunk in one run of the session."""
        try:
            found = self._session.run(list(self._outputs), {INPUT: batch})
        except MemoryError:
            raise
        except Exception as error:  # ONNX Runtime has no common base class for its errors
            raise BundleError(f"{self._name} fails when it runs: {_first_line(error)}") from error
        for (name, (_, width)), values in zip(self._outputs.items(), found, strict=True):
            if values.shape != (len(batch), width):
                raise BundleError(
                    f"{self._name} gives {name} of shape {values.shape} for {len(batch)} images, "
                    f"expected {(len(batch), width)}; fix: export again"
                )
        *codes, logits = found
        return codes[0] if len(codes) == 1 else np.concatenate(codes, axis=1), logits

    def close(self) -> None:
        """Free the session."""
        self._session = None

    @property
    def gpu(self) -> "Device":
        """The GPU of device 'cuda'."""
        from metah_runtime.cuda.driver import shared_devices

        return shared_devices()[0]

    def resident(self, images: Images) -> Iterator["DeviceCodes"]:
        """Encode a batch on device 'cuda' and leave codes and logits there.

        ONNX Runtime waits for its own stream at the end of a run, so the codes are there.
        """
        from metah_runtime.cuda.queries import DeviceCodes

        check_resident(self.bits, self.detail_bits)
        batch = check_images(images, self.image_shape)
        if not len(batch):
            return
        binding = self._session.io_binding()
        binding.bind_cpu_input(INPUT, batch)
        for name in self._outputs:
            binding.bind_output(name, self._memory)
        self._session.run_with_iobinding(binding)
        codes, logits = binding.get_outputs()
        yield DeviceCodes(
            codes.data_ptr(),
            len(batch),
            self.bits // 8,
            logits=logits.data_ptr(),
            owner=(codes, logits),
        )


def _onnxruntime(device: str) -> Any:
    extra = "gpu" if device == "cuda" else "cpu"
    try:
        import onnxruntime
    except ModuleNotFoundError:
        raise MissingExtra("onnxruntime" if extra == "cpu" else "onnxruntime-gpu", extra) from None
    except ImportError as error:
        raise BackendUnavailable(
            f"onnxruntime is installed but cannot be imported: {_first_line(error)}; "
            "fix: metah-search doctor"
        ) from error
    if not hasattr(onnxruntime, "InferenceSession"):
        raise BackendUnavailable(
            "onnxruntime is half installed (onnxruntime and onnxruntime-gpu share one folder); "
            f"fix: uninstall both, then pip install 'metah[{extra}]'"
        )
    onnxruntime.disable_telemetry_events()  # the import itself: see metah_runtime/__init__.py
    return onnxruntime


def _options(ort: Any, precision: str, threads: int | None, spin: bool) -> Any:
    """Return session options under which the codes are those of the graph as written."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    # External data is looked for in a place that cannot exist, never in the working folder.
    options.add_session_config_entry(
        "session.model_external_initializers_file_folder_path", "/dev/null/metah"
    )
    if precision == "int8" and not has_vnni():
        # The 8-bit dot product of AVX2 saturates; 2.6 % of bits flipped without this.
        options.add_session_config_entry("session.x64quantprecision", "1")
    if precision == "fp8":
        # ONNX Runtime 1.32 fuses fp8 pairs wrongly on the CPU: a quarter of all bits flipped.
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    if precision == "emulated":
        options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    if not spin:
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    if threads is not None:
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
    return options


def _session(ort: Any, model: bytes, options: Any, *, device: str, name: str) -> Any:
    provider = PROVIDERS[device]
    if provider not in ort.get_available_providers():
        raise BackendUnavailable(
            f"device {device!r} needs {provider}, this onnxruntime has "
            f"{', '.join(ort.get_available_providers())}; fix: pip install 'metah[gpu]' or "
            "choose device 'cpu'"
        )
    try:
        # TF32 is on by default on CUDA; it keeps 10 bits of 23 and flips codes.
        settings = {"use_tf32": "0"} if device == "cuda" else {}
        session = ort.InferenceSession(
            model, sess_options=options, providers=[(provider, settings)]
        )
    except Exception as error:  # ONNX Runtime has no common base class for its errors
        raise BundleError(
            f"{name} cannot be loaded by ONNX Runtime: {_first_line(error)}; fix: export again"
        ) from error
    got = session.get_providers()[0]
    if got != provider:
        raise BackendUnavailable(
            f"device {device!r} was asked for, but ONNX Runtime loaded {got}: {provider} does not "
            "work here; fix: metah-search doctor, or choose device 'cpu'"
        )
    return session


def _check_signature(
    session: Any,
    *,
    image_shape: tuple[int, int, int],
    made: Mapping[str, tuple[type[np.generic], int]],
    name: str,
) -> None:
    """Compare names, types and shapes with the bundle's; the batch axis must be free."""
    inputs = {node.name: (node.type, node.shape) for node in session.get_inputs()}
    outputs = {node.name: (node.type, node.shape) for node in session.get_outputs()}
    want_in = {INPUT: ("tensor(uint8)", list(image_shape))}
    want_out = {key: (_TYPES[kind], [width]) for key, (kind, width) in made.items()}
    for side, have, want in (("input", inputs, want_in), ("output", outputs, want_out)):
        if set(have) != set(want):
            raise BundleError(
                f"{name}: {side}s must be named {', '.join(sorted(want))}, got "
                f"{', '.join(sorted(have)) or 'none'}; fix: export again"
            )
        for key, (kind, shape) in want.items():
            if have[key][0] != kind or list(have[key][1][1:]) != shape:
                raise BundleError(
                    f"{name}: {side} {key} must be {kind} [batch, "
                    f"{', '.join(map(str, shape))}], got {have[key][0]} {have[key][1]}"
                )
            if isinstance(have[key][1][0], int):
                raise BundleError(
                    f"{name}: the batch axis of {key} must be free, got {have[key][1][0]}"
                )


def _first_line(error: Exception) -> str:
    lines = str(error).strip().splitlines()
    return lines[0][:300] if lines else type(error).__name__
