"""What building and running TensorRT engines share: the library, its messages, platforms.

`tensorrt` (NVIDIA TensorRT) and `tensorrt_rtx` (TensorRT for RTX) have one Python interface here.
Both are imported only when asked for; touching TensorRT without a driver ends the interpreter.
"""

import platform
import sys
from importlib import import_module
from typing import Any

from metah_runtime.errors import BackendUnavailable, EngineError, MissingExtra
from metah_runtime.model.manifest import Engine

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
PORTABLE = "portable"
"""The target of an engine that runs on every architecture its builder knows (8.0 and later)."""


def import_trt(kind: str) -> Any:
    """Import the library of an engine kind; raise MissingExtra or BackendUnavailable."""
    name = MODULES[kind]
    try:
        return import_module(name)
    except ModuleNotFoundError:
        raise MissingExtra(name, kind) from None
    except (ImportError, OSError, RuntimeError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise BackendUnavailable(
            f"{name} is installed but cannot be imported: {reason}; fix: metah-search doctor"
        ) from error


def make_logger(trt: Any) -> Any:
    """Return an ILogger that keeps errors and warnings as (severity, text) in ``messages``."""

    class Logger(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, text: str) -> None:
            name = str(severity).rsplit(".", 1)[-1].lower()
            if name in ("internal_error", "error", "warning"):
                self.messages.append((name, " ".join(text.split())))

        def errors(self) -> list[str]:
            return [text for name, text in self.messages if name != "warning"]

    return Logger()


def this_platform() -> str:
    """Return the platform that an engine is tied to, such as 'linux-x86_64'."""
    return f"{sys.platform}-{platform.machine().lower()}"


def check_engine(engine: Engine, *, builder: str, arch: str) -> None:
    """Raise EngineError unless an engine may be loaded here: an engine is code.

    builder: version of the library that would load it; arch: compute capability of the GPU, '8.9'.
    """
    here = this_platform()
    fix = "fix: metah-export engine BUNDLE on this machine"
    if engine.platform != here:
        raise EngineError(
            f"engine {engine.file} was built for {engine.platform}, this is {here}; {fix}"
        )
    if engine.builder != builder:
        raise EngineError(
            f"engine {engine.file} was built by {engine.kind} {engine.builder}, installed is "
            f"{builder}; {fix}"
        )
    if PORTABLE not in engine.targets and arch not in engine.targets:
        raise EngineError(
            f"engine {engine.file} was built for compute capability {', '.join(engine.targets)}, "
            f"this GPU has {arch}; {fix}"
        )
