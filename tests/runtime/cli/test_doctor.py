"""`metah-search doctor`: every finding, real processes for what crashes, and the exit code."""

import json
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest

from metah_runtime.cli import console, doctor, doctor_probes
from metah_runtime.cli.doctor import diagnose, run_probe
from metah_runtime.cli.main import cli

DRIVER = {
    "cuda": "13.0",
    "starts": True,
    "reason": None,
    "gpus": [{"name": "NVIDIA H100", "sm": "9.0", "bytes": 80 * 2**30}],
}
ORT = {
    "version": "1.31.1",
    "compiled_in": ["CUDAExecutionProvider", "CPUExecutionProvider"],
    "loads": ["CUDAExecutionProvider", "CPUExecutionProvider"],
}
NO_DRIVER = {
    "cuda": None,
    "starts": False,
    "reason": "the NVIDIA driver is not installed (libcuda.so.1 not found)",
    "gpus": [],
}
SANDBOX = {"active": ["resource limits", "seccomp"], "missing_defences": []}
MISSING = {"error": "ModuleNotFoundError: No module named 'x'", "missing": True}
Play = Callable[..., None]


@pytest.fixture
def play(monkeypatch: pytest.MonkeyPatch) -> Play:
    """Play a machine: what each probe finds (by 'driver', 'ort' or module), which packages are."""

    def set_up(packages: tuple[str, ...] = ("onnxruntime-gpu",), **answers: Any) -> None:
        known = {"driver": DRIVER, "ort": ORT, "tensorrt": {"version": "11.4"}}
        known |= {"sandbox": SANDBOX} | answers

        def answer(code: str, timeout: float | None = None) -> dict[str, Any]:
            if code == doctor_probes.DRIVER:
                return dict(known["driver"])
            if code == doctor_probes.ONNXRUNTIME:
                return dict(known["ort"])
            if code == doctor_probes.SANDBOX:
                return dict(known["sandbox"])
            module = code.split("import ", 1)[1].split(" as ")[0]
            default = {"version": "2026.1"} if module == "pycuda.driver" else MISSING
            return dict(known.get(module, default))

        monkeypatch.setattr(doctor, "run_probe", answer)
        monkeypatch.setattr(doctor, "_installed", lambda name: name in packages)
        monkeypatch.setattr("shutil.which", lambda name: None)

    return set_up


def run(capsys: pytest.CaptureFixture[str], *args: str) -> tuple[Any, str, str]:
    with pytest.raises(SystemExit) as stop:
        console.run(cli, "metah-search", ["doctor", *args])
    return (stop.value.code, *capsys.readouterr())


def test_a_good_machine(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    assert dict(diagnose().devices) == {"cpu": None, "cuda": None, "tensorrt": None}
    for device in ("auto", "cpu", "cuda", "tensorrt"):
        code, out, err = run(capsys, "--device", device)
        assert (code, err) == (0, "")
        assert "NVIDIA H100 (sm 9.0, 80 GiB)" in out


@pytest.mark.parametrize(
    ("answers", "device", "match"),
    [
        (
            {"driver": NO_DRIVER},
            "cuda",
            "the NVIDIA driver is not installed",
        ),
        ({"driver": NO_DRIVER | {"reason": "cuInit gives error 100"}}, "cuda", "gives error 100"),
        (
            {"driver": DRIVER | {"gpus": [], "reason": "the NVIDIA driver finds no GPU"}},
            "tensorrt",
            "GPUs: none: the NVIDIA driver finds no GPU",
        ),
        ({"driver": {"error": "did not answer within 60 s"}}, "cuda", "did not answer within 60 s"),
        (
            {"ort": ORT | {"loads": ["CPUExecutionProvider"]}},
            "cuda",
            "ONNX Runtime does not load CUDAExecutionProvider",
        ),
        ({"ort": MISSING}, "cpu", r"ONNX Runtime: not installed; fix: pip install 'metah\[cpu\]'"),
        ({"ort": {"error": "crashes the interpreter (SIGSEGV)"}}, "cpu", "SIGSEGV"),
        (
            {"packages": ("onnxruntime", "onnxruntime-gpu")},
            "cuda",
            "overwrite each other; fix: uninstall both",
        ),
        ({"tensorrt": MISSING}, "tensorrt", r"no TensorRT library is installed; .*tensorrt-rtx"),
        (
            {"tensorrt": {"error": "ImportError: libnvinfer.so.11: cannot open"}},
            "tensorrt",
            r"no TensorRT library works \(tensorrt: ImportError: libnvinfer",
        ),
        (
            {"pycuda.driver": MISSING},
            "tensorrt",
            r"no Python library for the CUDA driver is installed; fix: .*metah\[cuda\]",
        ),
    ],
)
def test_what_is_wrong_is_said_and_decides_the_exit_code(
    play: Play,
    capsys: pytest.CaptureFixture[str],
    answers: dict[str, Any],
    device: str,
    match: str,
) -> None:
    import re

    play(**answers)
    code, out, err = run(capsys, "--device", device, "--json")
    assert code == 1
    assert err.count("\n") == 1
    assert re.search(match, err)
    answer = json.loads(out)["devices"][device]
    assert answer["works"] is False
    assert re.search(match, answer["reason"])


@pytest.mark.parametrize(
    "driver",
    [
        NO_DRIVER,
        NO_DRIVER | {"cuda": "13.0", "reason": "does not start (cuInit gives error 100)"},
        DRIVER | {"gpus": [], "reason": "the NVIDIA driver finds no GPU"},
    ],
)
def test_a_machine_without_a_gpu_has_no_fault(
    play: Play, capsys: pytest.CaptureFixture[str], driver: dict[str, Any]
) -> None:
    broken = {"error": "ImportError: libcuda.so.1: cannot open shared object file"}
    play(driver=driver, **({"pycuda.driver": broken} if driver["cuda"] is None else {}))
    code, out, _ = run(capsys)
    assert code == 0
    assert "FAILS" not in out
    assert "GPUs                  │ -" in out
    play(driver=NO_DRIVER | {"cuda": "13.0", "reason": "cuInit gives error 999"})
    assert "FAILS" in run(capsys)[1]


def test_the_sandbox_of_decoders_is_stated(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    assert "resource limits, seccomp" in run(capsys)[1]
    play(sandbox=SANDBOX | {"missing_defences": [["landlock", "not implemented"]]})
    probe = json.loads(run(capsys, "--json")[1])["probes"][-1]
    assert probe == {
        "name": "sandbox of decoders",
        "ok": False,
        "detail": "missing: landlock (not implemented); active: resource limits, seccomp",
    }
    play(sandbox={"error": "no process can be started"})
    assert "no process can be started" in run(capsys)[1]
    found = run_probe(doctor_probes.SANDBOX)
    assert "error" not in found
    assert "resource limits" in found["active"]


def test_auto_fails_only_if_nothing_works(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play(driver=NO_DRIVER)
    assert run(capsys)[0] == 0
    play(driver=NO_DRIVER, ort=MISSING)
    code, _, err = run(capsys)
    assert code == 1
    assert "no device works here: cpu: " in err


def test_json_lists_every_probe(play: Play, capsys: pytest.CaptureFixture[str]) -> None:
    play()
    found = json.loads(run(capsys, "--json")[1])
    assert [probe["name"] for probe in found["probes"]] == [
        "NVIDIA driver",
        "GPUs",
        "ONNX Runtime",
        "ONNX Runtime packages",
        "tensorrt",
        "tensorrt-rtx",
        "tensorrt-lean",
        "pycuda",
        "cuda-bindings",
        "nvcc",
        "sandbox of decoders",
    ]
    assert {"metah", "python", "platform", "devices"} < set(found)


def test_this_machine_is_diagnosed_without_a_crash(capsys: pytest.CaptureFixture[str]) -> None:
    import onnxruntime

    code, out, _ = run(capsys, "--json")
    found = json.loads(out)
    assert code == 0
    assert found["devices"]["cpu"] == {"works": True, "reason": None}
    detail = next(p["detail"] for p in found["probes"] if p["name"] == "ONNX Runtime")
    assert detail.startswith(f"{onnxruntime.__version__}, loads ")
    assert "CPUExecutionProvider" in detail


def test_a_crash_a_hang_and_an_error_are_findings() -> None:
    assert run_probe("found['x'] = 1\nprint('noise')") == {"x": 1}
    crash = run_probe("import os, signal\nos.kill(os.getpid(), signal.SIGSEGV)")
    assert crash == {"error": "crashes the interpreter (SIGSEGV)"}
    assert run_probe("import time\ntime.sleep(60)", timeout=0.3) == {
        "error": "did not answer within 0.3 s"
    }
    assert run_probe("raise OSError('libx.so')") == {"error": "OSError: libx.so", "missing": False}
    assert run_probe("import not_there_at_all")["missing"] is True
    assert run_probe("sys.exit(3)")["error"] == "exit code 3"


def test_doctor_imports_no_foreign_library() -> None:
    program = (
        "import sys, metah_runtime.cli.doctor as d\n"
        "d.diagnose()\n"
        "bad = {'torch', 'onnxruntime', 'tensorrt', 'tensorrt_rtx', 'pycuda'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=120)
