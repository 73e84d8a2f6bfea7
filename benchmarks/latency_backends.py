"""What runs a hash model in benchmarks/latency.py: PyTorch, ONNX Runtime, TensorRT.

Every backend maps images uint8 (n, H, W, C) in the CPU's memory to (codes, logits) there, with the
bits packed, and says on which device it really ran: that comes from the tensors or the session,
never from what was asked for.
"""

import itertools
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from export_speed import Network
from torch import nn

from metah_export.precision import lower
from metah_export.to_engine import EngineConfig, build_engine
from metah_export.to_onnx import CodeModel, to_onnx
from metah_runtime.cuda.driver import open_devices
from metah_runtime.errors import MetahError
from metah_runtime.model.runners.interface import CODES, INPUT, LOGITS
from metah_runtime.model.runners.onnxruntime_runner import PROVIDERS, OrtRunner
from metah_runtime.model.runners.tensorrt_library import import_trt
from metah_train.backbones.small_cnn import SmallCNN
from metah_train.methods.model import HashModel


class WrongDeviceError(Exception):
    """A backend ran on another device than the row would have said."""


@dataclass(frozen=True)
class Model:
    """A network with random weights; times do not depend on them. shape: (H, W, C)."""

    name: str
    bits: int
    shape: tuple[int, int, int]
    network: nn.Module


def models() -> dict[str, Callable[[], Model]]:
    return {"digits": _digits, "resnet50": _resnet50}


def _digits() -> Model:
    torch.manual_seed(0)
    backbone = SmallCNN(1, 32, 32, 256)
    head = nn.Sequential(nn.Dropout(0.3), nn.Linear(256, 48))
    network = HashModel(backbone, head, channels=1, bits=48)
    return Model("digits", 48, (32, 32, 1), network.eval())


def _resnet50() -> Model:
    torch.manual_seed(0)
    return Model("resnet50", 64, (224, 224, 3), Network(64).eval())


def images_for(shape: tuple[int, int, int], count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (count, *shape), dtype=np.uint8)


class TorchBackend:
    """PyTorch in inference mode, eager or compiled for each batch size."""

    def __init__(self, model: Model, device: str, *, compiled: bool) -> None:
        self.name = "torch.compile" if compiled else "torch eager"
        self._module = CodeModel(model.network, model.bits).eval().to(device)
        self._call = torch.compile(self._module, dynamic=False) if compiled else self._module

    @property
    def device(self) -> str:
        return self._module.weights.device.type

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        with torch.inference_mode():
            codes, logits = self._call(torch.from_numpy(images).to(self._module.weights.device))
        return codes.cpu().numpy(), logits.cpu().numpy()

    def split(self, images: np.ndarray) -> dict[str, float] | None:
        """Milliseconds of copy in, compute and copy out, by events of the GPU."""
        if self.device != "cuda":
            return None
        marks = [torch.cuda.Event(enable_timing=True) for _ in range(4)]
        host = torch.from_numpy(images)
        torch.cuda.synchronize()
        with torch.inference_mode():
            marks[0].record()
            there = host.to("cuda")
            marks[1].record()
            codes, logits = self._call(there)
            marks[2].record()
            codes.cpu(), logits.cpu()
            marks[3].record()
        torch.cuda.synchronize()
        times = [a.elapsed_time(b) for a, b in itertools.pairwise(marks)]
        return dict(zip(("h2d", "compute", "d2h"), times, strict=True))


class OrtBackend:
    """The runner that ships, on the CPU or on CUDA."""

    def __init__(
        self, name: str, model: Model, data: bytes, device: str, precision: str, threads: int
    ) -> None:
        self.name = name
        self._runner = OrtRunner(
            data,
            bits=model.bits,
            image_shape=model.shape,
            device=device,
            precision=precision,
            threads=threads,
        )

    @property
    def device(self) -> str:
        provider = self._runner._session.get_providers()[0]
        return {name: device for device, name in PROVIDERS.items()}.get(provider, provider)

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._runner.run(images)

    def split(self, images: np.ndarray) -> dict[str, float] | None:
        """Milliseconds of copy in, compute and copy out; each step waits for the GPU."""
        if self.device != "cuda":
            return None
        import onnxruntime as ort

        binding = self._runner._session.io_binding()
        for name in (CODES, LOGITS):
            binding.bind_output(name, "cuda")
        start = time.perf_counter()
        binding.bind_ortvalue_input(INPUT, ort.OrtValue.ortvalue_from_numpy(images, "cuda", 0))
        binding.synchronize_inputs()
        copied = time.perf_counter()
        self._runner._session.run_with_iobinding(binding)
        binding.synchronize_outputs()
        done = time.perf_counter()
        binding.copy_outputs_to_cpu()
        end = time.perf_counter()
        return {
            "h2d": (copied - start) * 1e3,
            "compute": (done - copied) * 1e3,
            "d2h": (end - done) * 1e3,
        }


class TrtBackend:
    """The runner that ships, over an engine built here for batches up to ``most``."""

    def __init__(self, kind: str, precision: str, model: Model, data: bytes, most: int) -> None:
        from metah_runtime.model.runners.tensorrt_runner import TrtRunner

        self.name = f"{kind} {precision}"
        self._gpu, trt = open_devices()[0], import_trt(kind)
        config = EngineConfig(kind=kind, batch=(1, min(32, most), most))
        entry, plan = build_engine(data, image_shape=model.shape, config=config)
        self._bytes_out = model.bits // 8 + 4 * model.bits
        self._runner = TrtRunner(
            plan, entry, bits=model.bits, image_shape=model.shape, trt=trt, gpu=self._gpu
        )

    @property
    def device(self) -> str:
        return "cuda"  # an engine runs on a GPU or cannot be loaded

    def run(self, images: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return self._runner.run(images)

    def split(self, images: np.ndarray) -> dict[str, float] | None:
        """Copies timed on their own; compute is the rest of a run."""
        out = np.empty(len(images) * self._bytes_out, np.uint8)
        with self._gpu as gpu:
            addresses = gpu.alloc(images.nbytes), gpu.alloc(out.nbytes)
            try:
                gpu.synchronize()
                start = time.perf_counter()
                gpu.write(addresses[0], np.ascontiguousarray(images))
                gpu.synchronize()
                copied = time.perf_counter()
                gpu.read(addresses[1], out)
                read = time.perf_counter()
            finally:
                for address in addresses:
                    gpu.free(address)
        begin = time.perf_counter()
        self._runner.run(images)
        total = time.perf_counter() - begin
        h2d, d2h = copied - start, read - copied
        return {"h2d": h2d * 1e3, "compute": (total - h2d - d2h) * 1e3, "d2h": d2h * 1e3}


def backends(model: Model, device: str, threads: int, most: int) -> Iterator[tuple[str, Any | str]]:
    """Yield (name, backend), or (name, why not), for all that ``device`` should have."""
    torch.set_num_threads(threads)
    fp32 = to_onnx(model.network, bits=model.bits, image_shape=model.shape)
    sizes: dict[str, Any] = {"bits": model.bits, "image_shape": model.shape}

    def lowered(precision: str) -> bytes:
        return lower(fp32, precision, images=images_for(model.shape, 64), **sizes)

    makers: dict[str, Callable[[], Any]] = {
        "torch eager": lambda: TorchBackend(model, device, compiled=False),
        "torch.compile": lambda: TorchBackend(model, device, compiled=True),
        "onnxruntime": lambda: OrtBackend("onnxruntime", model, fp32, device, "fp32", threads),
    }
    if device == "cpu":
        makers["onnxruntime int8"] = lambda: OrtBackend(
            "onnxruntime int8", model, lowered("int8"), device, "int8", threads
        )
    else:
        for kind in ("tensorrt", "tensorrt-rtx"):
            for precision in ("fp32", "fp16"):
                makers[f"{kind} {precision}"] = lambda kind=kind, precision=precision: TrtBackend(
                    kind, precision, model, lowered(precision), most
                )
    for name, make in makers.items():
        try:
            backend = make()
        except (MetahError, RuntimeError, AssertionError) as error:
            yield name, (str(error).splitlines() or [type(error).__name__])[0]
            continue
        yield name, on_device(backend, device)


def on_device(backend: Any, device: str) -> Any:
    """Return a backend that runs on ``device``; a run on the CPU is never called one on CUDA."""
    if backend.device != device:
        raise WrongDeviceError(
            f"{backend.name} was to run on {device}, but runs on {backend.device}"
        )
    return backend
