"""TensorRT: runs an engine of the bundle on the GPU it was built for.

Name-based tensors, one stream, the primary context of the GPU; batches beyond the engine's largest
are run in chunks. Everything that the manifest says is checked before the engine is deserialized.
"""

import weakref
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from metah_runtime.codes import Codes
from metah_runtime.cuda.driver import Device, shared_devices
from metah_runtime.cuda.queries import DeviceCodes
from metah_runtime.domain import TARGET, Domain
from metah_runtime.errors import BackendUnavailable, ConfigError, EngineError
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners.interface import (
    CODES,
    INPUT,
    LOGITS,
    Images,
    Logits,
    check_images,
    check_resident,
    outputs,
)
from metah_runtime.model.runners.tensorrt_library import check_engine, import_trt, make_logger


class TrtRunner:
    """An engine on one GPU.

    plan: bytes of the engine; trt: the library's module; cuda_graph: replay captured launches
    (TensorRT for RTX alone). Raises EngineError if the engine cannot be loaded or has other
    tensors, ConfigError for an option that the library does not have.
    """

    device = "tensorrt"

    def __init__(
        self,
        plan: bytes,
        engine: Engine,
        *,
        bits: int,
        detail_bits: int = 0,
        image_shape: tuple[int, int, int],
        trt: Any,
        gpu: Device,
        cuda_graph: bool = False,
    ) -> None:
        self.bits, self.detail_bits, self.image_shape = bits, detail_bits, image_shape
        self._outputs = outputs(bits, detail_bits)
        self.engine = engine
        self._gpu = gpu
        self._logger = make_logger(trt)
        with gpu:
            self._runtime = trt.Runtime(self._logger)
            self._engine = self._runtime.deserialize_cuda_engine(plan)
            if self._engine is None:
                reasons = self._logger.errors() or ["no reason given"]
                raise EngineError(
                    f"engine {engine.file} cannot be loaded: {'; '.join(reasons[:2])[:400]}; "
                    "fix: metah-export engine BUNDLE on this machine"
                )
            self._check_tensors(trt)
            self._context = self._make_context(trt, cuda_graph)
            self._buffers = self._allocate()
        self._finalizer = weakref.finalize(self, _free, gpu, list(self._buffers.values()))

    @property
    def max_batch(self) -> int:
        """Largest batch of one launch; larger ones run in chunks."""
        return self.engine.batch[2]

    def close(self) -> None:
        """Free the memory of the GPU."""
        self._finalizer()

    def run(self, images: Images) -> tuple[Codes, Logits]:
        """Encode a batch of any size, (n, H, W, C) uint8; see ``Runner.run``."""
        batch = check_images(images, self.image_shape)
        codes = np.empty((len(batch), (self.bits + self.detail_bits) // 8), np.uint8)
        logits = np.empty((len(batch), self.bits), np.float32)
        low, _, high = self.engine.batch
        with self._gpu:
            for start in range(0, len(batch), high):
                part = batch[start : start + high]
                rows = slice(start, start + len(part))
                codes[rows], logits[rows] = self._launch(part, low)
        return codes, logits

    @property
    def gpu(self) -> Device:
        """The GPU that it runs on."""
        return self._gpu

    def resident(self, images: Images) -> Iterator[DeviceCodes]:
        """Encode a batch and leave codes and logits on the GPU, chunk by chunk.

        A chunk must have been used, or work that uses it sent to the GPU's stream, before the next
        one is asked for: they share their memory.
        """
        check_resident(self.bits, self.detail_bits)
        batch = check_images(images, self.image_shape)
        low, _, high = self.engine.batch
        for start in range(0, len(batch), high):
            part = batch[start : start + high]
            with self._gpu:
                self._start(part, low)
            yield DeviceCodes(
                self._buffers[CODES],
                len(part),
                self.bits // 8,
                stream=self._gpu.stream,
                logits=self._buffers[LOGITS],
                owner=self,
            )

    def _launch(self, part: Images, low: int) -> tuple[Codes, Logits]:
        """Run one chunk and copy its outputs to the CPU."""
        self._start(part, low)
        found = [np.empty((len(part), width), kind) for kind, width in self._outputs.values()]
        for name, values in zip(self._outputs, found, strict=True):
            self._gpu.read(self._buffers[name], values)
        *codes, logits = found
        return codes[0] if len(codes) == 1 else np.concatenate(codes, axis=1), logits

    def _start(self, part: Images, low: int) -> None:
        """Send one chunk; one below the least batch is padded with its last image."""
        n = len(part)
        if n < low:
            part = np.concatenate([part, np.repeat(part[-1:], low - n, axis=0)])
        self._gpu.write(self._buffers[INPUT], np.ascontiguousarray(part))
        if not self._context.set_input_shape(INPUT, part.shape):
            raise EngineError(f"engine {self.engine.file} refuses a batch of {len(part)}")
        if not self._context.execute_async_v3(self._gpu.stream):
            reasons = self._logger.errors() or ["no reason given"]
            raise EngineError(f"engine {self.engine.file} failed: {'; '.join(reasons[-2:])[:400]}")

    def _make_context(self, trt: Any, cuda_graph: bool) -> Any:
        if not cuda_graph:
            context = self._engine.create_execution_context()
        elif not hasattr(trt, "CudaGraphStrategy"):
            raise ConfigError("cuda_graph needs an engine of tensorrt-rtx")
        else:
            settings = self._engine.create_runtime_config()
            settings.cuda_graph_strategy = trt.CudaGraphStrategy.WHOLE_GRAPH_CAPTURE
            context = self._engine.create_execution_context(settings)
        if context is None:
            reasons = self._logger.errors() or ["no reason given"]
            raise EngineError(f"engine {self.engine.file} cannot run: {'; '.join(reasons[:2])}")
        return context

    def _check_tensors(self, trt: Any) -> None:
        """Compare names, directions, types and shapes with the bundle's."""
        want: dict[str, tuple[Any, Any, tuple[int, ...]]] = {
            INPUT: (trt.TensorIOMode.INPUT, trt.DataType.UINT8, self.image_shape),
        }
        types: dict[type[np.generic], Any] = {
            np.uint8: trt.DataType.UINT8,
            np.float32: trt.DataType.FLOAT,
        }
        for name, (element, width) in self._outputs.items():
            want[name] = (trt.TensorIOMode.OUTPUT, types[element], (width,))
        engine = self._engine
        have = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
        if set(have) != set(want):
            raise EngineError(
                f"engine {self.engine.file} has tensors {', '.join(sorted(have))}, expected "
                f"{', '.join(sorted(want))}"
            )
        for name, (mode, kind, shape) in want.items():
            found = (
                engine.get_tensor_mode(name),
                engine.get_tensor_dtype(name),
                tuple(engine.get_tensor_shape(name))[1:],
            )
            if found != (mode, kind, shape):
                raise EngineError(f"engine {self.engine.file}: tensor {name} is {found}")
        shapes = engine.get_tensor_profile_shape(INPUT, 0)
        batch = tuple(int(shape[0]) for shape in shapes)
        if batch != self.engine.batch:
            raise EngineError(
                f"engine {self.engine.file} takes batches {batch}, its manifest says "
                f"{self.engine.batch}"
            )

    def _allocate(self) -> dict[str, int]:
        """Allocate buffers for the largest batch and give the context their addresses."""
        size = {INPUT: int(np.prod(self.image_shape))}
        for name, (element, width) in self._outputs.items():
            size[name] = np.dtype(element).itemsize * width
        buffers = {name: self._gpu.alloc(self.max_batch * item) for name, item in size.items()}
        for name, address in buffers.items():
            self._context.set_tensor_address(name, address)
        return buffers


def open_trt(
    bundle: Bundle,
    *,
    domain: Domain = TARGET,
    only: Engine | None = None,
    cuda_graph: bool = False,
) -> TrtRunner:
    """Load the first of a domain's engines that fits this machine, or ``only`` the one given.

    Raises EngineError if it has none or none may be loaded here, and says why for each;
    BackendUnavailable without a GPU, a driver or the library.
    """
    engines = bundle.engines(domain) if only is None else (only,)
    if not engines:
        which = "no engine" if domain == TARGET else f"no engine for images of the {domain}"
        option = "" if domain == TARGET else f" --domain {domain}"
        raise EngineError(
            f"{bundle.path} has {which}; fix: metah-export engine {bundle.path}{option} on this "
            "machine"
        )
    try:
        gpu = shared_devices()[0]
    except BackendUnavailable as error:
        raise BackendUnavailable(f"device 'tensorrt': {error}") from error
    reasons = []
    for engine in engines:
        try:
            trt = import_trt(engine.kind)
            check_engine(
                engine, builder=str(trt.__version__), arch=f"{gpu.arch // 10}.{gpu.arch % 10}"
            )
        except (BackendUnavailable, EngineError) as error:
            reasons.append(error)
            continue
        return TrtRunner(
            bundle.read(engine.file),
            engine,
            bits=bundle.bits,
            detail_bits=bundle.code_format.detail_bits,
            image_shape=bundle.preprocess.shape,
            trt=trt,
            gpu=gpu,
            cuda_graph=cuda_graph,
        )
    raise _no_engine(bundle, reasons)


def _no_engine(bundle: Bundle, reasons: Sequence[Exception]) -> Exception:
    if len(reasons) == 1:
        return reasons[0]
    return EngineError(f"no engine of {bundle.path} fits: {'; '.join(map(str, reasons))}")


def _free(gpu: Device, addresses: list[int]) -> None:
    with gpu:
        for address in addresses:
            gpu.free(address)
