"""What runs here: `metah-search doctor` looks at driver, GPUs and libraries, and says what to fix.

Foreign libraries are probed in processes of their own, with a time limit: some end the interpreter
on a machine without a driver.
"""

import importlib.metadata
import json
import platform
import shutil
import signal
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import click

from metah_runtime.cli import console, doctor_probes
from metah_runtime.errors import BackendUnavailable

DEVICES = ("cpu", "cuda", "tensorrt")
TIMEOUT_S = 60.0
_NO_DEVICE = "cuInit gives error 100"
_MARK = "metah-probe:"
_FRAME = "import json, sys\nfound = {{}}\n{code}\nprint('{mark}' + json.dumps(found), flush=True)\n"
_TRT = (
    ("tensorrt", "tensorrt"),
    ("tensorrt-rtx", "tensorrt_rtx"),
    ("tensorrt-lean", "tensorrt_lean"),
)
_CUDA = (("pycuda", "pycuda.driver"), ("cuda-bindings", "cuda.bindings.driver"))


@dataclass(frozen=True, kw_only=True)
class Probe:
    """One thing that was looked at.

    ok: True works, False does not, None is not here (no package, no GPU); detail: versions, or why
    not.
    """

    name: str
    ok: bool | None
    detail: str


@dataclass(frozen=True, kw_only=True)
class Diagnosis:
    """All probes, and for each device why it cannot be used (None: it can)."""

    probes: tuple[Probe, ...]
    devices: Mapping[str, str | None]


def run_probe(code: str, timeout: float | None = None) -> dict[str, Any]:
    """Run a probe in a fresh interpreter and return what it found.

    On failure the dictionary holds ``error``: the last line of the traceback, the signal that ended
    the process, or the time limit; ``missing`` is true if a module is not installed.
    """
    limit = TIMEOUT_S if timeout is None else timeout
    program = _FRAME.format(code=code, mark=_MARK)
    try:
        done = subprocess.run(
            [sys.executable, "-P", "-c", program],
            capture_output=True,
            text=True,
            errors="replace",
            timeout=limit,
            check=False,
            stdin=subprocess.DEVNULL,
        )
    except subprocess.TimeoutExpired:
        return {"error": f"did not answer within {limit:g} s"}
    for line in done.stdout.splitlines():
        if line.startswith(_MARK):
            found: dict[str, Any] = json.loads(line.removeprefix(_MARK))
            return found
    if done.returncode < 0:
        name = signal.Signals(-done.returncode).name
        return {"error": f"crashes the interpreter ({name})"}
    last = (done.stderr.strip().splitlines() or [f"exit code {done.returncode}"])[-1]
    return {"error": last[:300], "missing": last.startswith("ModuleNotFoundError")}


def diagnose() -> Diagnosis:
    """Look at everything that the devices cpu, cuda and tensorrt need."""
    driver, gpus = _driver(run_probe(doctor_probes.DRIVER))
    ort, loads = _onnxruntime(run_probe(doctor_probes.ONNXRUNTIME))
    clash = _clash()
    trt = [_library(name, module) for name, module in _TRT]
    cuda = [_library(name, module, driver) for name, module in _CUDA]
    devices = {
        "cpu": _first(ort, loads("CPUExecutionProvider")),
        "cuda": _first(driver, gpus, ort, clash, loads("CUDAExecutionProvider")),
        "tensorrt": _first(
            driver,
            gpus,
            _any(trt[:2], "no TensorRT library", "tensorrt-rtx"),
            _any(cuda, "no Python library for the CUDA driver", "cuda"),
        ),
    }
    sandbox = _sandbox(run_probe(doctor_probes.SANDBOX))
    found = (driver, gpus, ort, clash, *trt, *cuda, _nvcc(), sandbox)
    return Diagnosis(probes=found, devices=devices)


def _driver(found: Mapping[str, Any]) -> tuple[Probe, Probe]:
    """Return the probes of the driver and of the GPUs; found: of ``cuda.probe.query_driver``."""
    reason = found.get("error") or found["reason"] or ""
    starts = bool(found.get("starts"))
    no_gpu = "error" not in found and (found["cuda"] is None or _NO_DEVICE in reason)
    cards = [
        f"{g['name']} (sm {g['sm']}, {g['bytes'] / 2**30:.0f} GiB)" for g in found.get("gpus", ())
    ]
    return (
        Probe(
            name="NVIDIA driver",
            ok=starts or (None if no_gpu else False),
            detail=f"for CUDA {found['cuda']}" if starts else reason,
        ),
        Probe(
            name="GPUs", ok=True if cards else None, detail=", ".join(cards) or f"none: {reason}"
        ),
    )


def _onnxruntime(found: Mapping[str, Any]) -> tuple[Probe, Any]:
    """Return the probe, and a function that gives the probe of one provider."""
    loaded: list[str] = found.get("loads", [])
    if "error" in found:
        missing = found.get("missing", False)
        fix = "; fix: pip install 'metah[cpu]' or 'metah[gpu]'" if missing else ""
        probe = Probe(
            name="ONNX Runtime",
            ok=None if missing else False,
            detail=("not installed" if missing else found["error"]) + fix,
        )
    else:
        rest = [name for name in found["compiled_in"] if name not in loaded]
        silent = f"; compiled in but not loading: {', '.join(rest)}" if rest else ""
        probe = Probe(
            name="ONNX Runtime",
            ok=bool(loaded),
            detail=f"{found['version']}, loads {', '.join(loaded) or 'nothing'}{silent}",
        )

    def provider(name: str) -> Probe:
        return Probe(name=name, ok=name in loaded, detail=f"ONNX Runtime does not load {name}")

    return probe, provider


def _clash() -> Probe:
    """Tell whether the two ONNX Runtime packages, which share a folder, are both installed."""
    both = [name for name in ("onnxruntime", "onnxruntime-gpu") if _installed(name)]
    if len(both) == 2:
        return Probe(
            name="ONNX Runtime packages",
            ok=False,
            detail="onnxruntime and onnxruntime-gpu overwrite each other; fix: uninstall both, "
            "then install one",
        )
    return Probe(
        name="ONNX Runtime packages", ok=True if both else None, detail=", ".join(both) or "none"
    )


def _sandbox(found: Mapping[str, Any]) -> Probe:
    """Return which defences are active in a process that decodes images."""
    active = ", ".join(found.get("active", ())) or "none"
    missing = ", ".join(f"{name} ({why})" for name, why in found.get("missing_defences", ()))
    detail = found.get("error") or (f"missing: {missing}; active: {active}" if missing else active)
    return Probe(name="sandbox of decoders", ok=detail == active, detail=detail)


def _library(name: str, module: str, driver: Probe | None = None) -> Probe:
    found = run_probe(doctor_probes.LIBRARY.replace("MODULE", module))
    if "error" not in found:
        return Probe(name=name, ok=True, detail=found["version"] or "importable")
    if found.get("missing"):
        return Probe(name=name, ok=None, detail="not installed")
    no_driver = driver is not None and driver.ok is None and "libcuda" in found["error"]
    return Probe(name=name, ok=None if no_driver else False, detail=found["error"])


def _nvcc() -> Probe:
    path = shutil.which("nvcc")
    if path is None:
        return Probe(name="nvcc", ok=None, detail="not on PATH (only compiling kernels needs it)")
    try:
        done = subprocess.run(
            [path, "--version"], capture_output=True, text=True, timeout=TIMEOUT_S, check=False
        )
    except (OSError, subprocess.TimeoutExpired) as error:
        return Probe(name="nvcc", ok=False, detail=str(error))
    release = [line for line in done.stdout.splitlines() if "release" in line]
    detail = release[0].strip() if release else f"exit code {done.returncode}"
    return Probe(name="nvcc", ok=bool(release), detail=detail)


def _installed(name: str) -> bool:
    try:
        importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def _any(found: list[Probe], reason: str, extra: str) -> Probe:
    """Join several libraries, any of which will do."""
    if any(probe.ok for probe in found):
        return Probe(name="", ok=True, detail="")
    broken = "; ".join(f"{probe.name}: {probe.detail}" for probe in found if probe.ok is False)
    detail = f"{reason} works ({broken})" if broken else f"{reason} is installed"
    return Probe(name="", ok=False, detail=f"{detail}; fix: pip install 'metah[{extra}]'")


def _first(*needed: Probe) -> str | None:
    """Return the reason of the first probe that is not ok."""
    for probe in needed:
        if not probe.ok:
            return f"{probe.name}: {probe.detail}" if probe.name else probe.detail
    return None


@click.command()
@click.option(
    "--device",
    type=click.Choice((*DEVICES, "auto")),
    default="auto",
    show_default=True,
    help="The exit code says whether it works; auto: whether any does.",
)
@console.json_option
def doctor(device: str, as_json: bool) -> None:
    """Show what runs on this machine: driver, GPUs, ONNX Runtime, TensorRT, and what to fix.

    \b
    Examples:
      metah-search doctor
      metah-search doctor --device cuda --json
    """
    found = diagnose()
    if as_json:
        console.print_json(
            {
                "metah": importlib.metadata.version("metah"),
                "python": platform.python_version(),
                "platform": f"{sys.platform}-{platform.machine().lower()}",
                "devices": {
                    name: {"works": reason is None, "reason": reason}
                    for name, reason in found.devices.items()
                },
                "probes": [
                    {"name": probe.name, "ok": probe.ok, "detail": probe.detail}
                    for probe in found.probes
                ],
            }
        )
    else:
        words = {True: "ok", False: "FAILS", None: "-"}
        console.print_table(
            ("part", "state", "detail"),
            [(probe.name, words[probe.ok], probe.detail) for probe in found.probes],
        )
        console.print_table(
            ("device", "works", "why not"),
            [
                (name, "no" if reason else "yes", reason or "")
                for name, reason in found.devices.items()
            ],
        )
    if device == "auto":
        if all(found.devices.values()):
            reasons = "; ".join(f"{name}: {why}" for name, why in found.devices.items())
            raise BackendUnavailable(f"no device works here: {reasons}")
    elif found.devices[device]:
        raise BackendUnavailable(f"device {device!r} does not work here: {found.devices[device]}")
