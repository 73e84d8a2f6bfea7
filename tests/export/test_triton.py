"""The Triton model repository: its text, its refusals, and, where installed, the real server."""

import json
import os
import shutil
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

from metah_export.cli import main as cli
from metah_export.triton import TritonConfig, triton
from metah_runtime.cli import console
from metah_runtime.errors import BundleError, ConfigError, EngineError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import Engine

Make = Callable[..., Bundle]
ROOT = Path(__file__).resolve().parents[2]
SITE = ROOT / ".venv-triton" / "lib" / f"python3.{sys.version_info.minor}" / "site-packages"
SERVER = SITE / "pytriton" / "tritonserver"
server_installed = pytest.mark.skipif(
    not (SERVER / "bin" / "tritonserver").is_file(),
    reason="tritonserver is not installed; `make test-triton` installs it and runs these tests",
)

GOLDEN = """\
name: "metah"
platform: "onnxruntime_onnx"
max_batch_size: 64
input [ { name: "images" data_type: TYPE_UINT8 dims: [ 4, 5, 3 ] } ]
output [
  { name: "codes" data_type: TYPE_UINT8 dims: [ 2 ] },
  { name: "logits" data_type: TYPE_FP32 dims: [ 16 ] }
]
instance_group [ { count: 1 kind: KIND_GPU } ]
dynamic_batching {
  preferred_batch_size: [ 8, 64 ]
  max_queue_delay_microseconds: 500
}
version_policy { latest { num_versions: 1 } }
model_warmup [ {
  name: "one image" batch_size: 1
  inputs { key: "images" value { data_type: TYPE_UINT8 dims: [ 4, 5, 3 ] zero_data: true } }
} ]
parameters { key: "metah.fingerprint" value { string_value: "FINGERPRINT" } }
parameters { key: "metah.bits" value { string_value: "16" } }
parameters { key: "metah.bit_order" value { string_value: "big" } }
parameters { key: "metah.precision" value { string_value: "fp32" } }
"""

STAND_IN = f"""\
import os
import sys

sys.path.insert(0, {str(SITE)!r})
import numpy as np
import onnxruntime
import triton_python_backend_utils as pb


class TritonPythonModel:
    def initialize(self, args):
        folder = os.path.join(args["model_repository"], args["model_version"])
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "model.onnx"), options, providers=["CPUExecutionProvider"]
        )

    def execute(self, requests):
        answers = []
        for request in requests:
            images = pb.get_input_tensor_by_name(request, "images").as_numpy()
            codes, logits = self.session.run(["codes", "logits"], {{"images": images}})
            answers.append(
                pb.InferenceResponse([pb.Tensor("codes", codes), pb.Tensor("logits", logits)])
            )
        return answers
"""


def with_engines(bundle: Bundle, *targets: str, **changes: Any) -> Bundle:
    for target in targets:
        entry = Engine(
            **{
                "kind": "tensorrt",
                "file": f"engines/{target}.plan",
                "builder": "11.4",
                "targets": (target,),
                "platform": "linux-x86_64",
                "batch": (1, 8, 64),
                "flags": (),
                "model_sha256": bundle.manifest.files["model.onnx"].sha256,
                "parity": None,
            }
            | changes
        )
        bundle = add_engine(bundle, entry, f"plan for {target}".encode())
    return bundle


def test_the_repository_of_an_onnx_bundle(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    target = triton(bundle, tmp_path / "repo", TritonConfig())
    assert target == tmp_path / "repo" / "metah"
    found = sorted(str(p.relative_to(target)) for p in target.rglob("*") if p.is_file())
    assert found == ["1/model.onnx", "config.pbtxt"]
    assert (target / "1/model.onnx").read_bytes() == bundle.read()
    text = (target / "config.pbtxt").read_text()
    assert text == GOLDEN.replace("FINGERPRINT", bundle.fingerprint)


def test_the_command_says_in_json_what_it_wrote(make_bundle: Make, tmp_path: Path) -> None:
    bundle, repo = make_bundle(), tmp_path / "repo"
    args = ["triton", str(bundle.path), "--repo", str(repo), "--instances", "cpu"]
    found = json.loads(CliRunner().invoke(cli.cli, [*args, "--json"]).stdout)
    assert found.pop("files") == [
        str(repo / "metah" / name) for name in ("1/model.onnx", "config.pbtxt")
    ]
    assert found == {
        "bundle": str(bundle.path),
        "name": "metah",
        "backend": "onnxruntime",
        "domain": "target",
        "instances": "cpu",
        "count": 1,
        "max_batch": 64,
        "preferred": [8, 64],
        "delay_us": 500,
    }


def test_the_repository_of_engines_has_one_plan_a_capability(
    make_bundle: Make, tmp_path: Path
) -> None:
    bundle = with_engines(make_bundle(), "8.9", "9.0")
    config = TritonConfig(backend="tensorrt", name="gpu", max_batch=32, preferred=(32,), count=2)
    target = triton(bundle, tmp_path, config)
    text = (target / "config.pbtxt").read_text()
    assert 'platform: "tensorrt_plan"' in text
    assert 'cc_model_filenames { key: "8.9" value: "model_sm89.plan" }' in text
    assert 'cc_model_filenames { key: "9.0" value: "model_sm90.plan" }' in text
    assert "count: 2 kind: KIND_GPU" in text
    assert (target / "1/model_sm90.plan").read_bytes() == b"plan for 9.0"
    assert sorted(p.name for p in (target / "1").iterdir()) == [
        "model_sm89.plan",
        "model_sm90.plan",
    ]


def test_what_triton_cannot_serve_is_refused(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    config = TritonConfig(backend="tensorrt")
    with pytest.raises(EngineError, match=r"no engine of kind tensorrt \(it has: none\)"):
        triton(bundle, tmp_path / "repo", config)
    rtx = with_engines(bundle, "8.9", kind="tensorrt-rtx")
    with pytest.raises(EngineError, match=r"it has: tensorrt-rtx\); Triton loads no others"):
        triton(rtx, tmp_path / "repo", config)
    small = with_engines(make_bundle("small"), "8.9", batch=(1, 8, 16))
    with pytest.raises(ConfigError, match=r"batches of 1\.\.16, the server would send 1\.\.64"):
        triton(small, tmp_path / "repo", config)
    twice = with_engines(make_bundle("twice"), "8.9")
    twice = with_engines(twice, "8.9", file="engines/other.plan")
    with pytest.raises(EngineError, match=r"several tensorrt engines for compute capability 8\.9"):
        triton(twice, tmp_path / "repo", config)
    for precision in ("int8", "fp8", "bf16"):
        with pytest.raises(ConfigError, match=f"cannot be told to keep {precision} codes exact"):
            triton(
                make_bundle(precision, precision=precision),
                tmp_path / "repo",
                TritonConfig(instances="cpu"),
            )
    assert not (tmp_path / "repo").exists()


def test_an_entry_is_never_overwritten(make_bundle: Make, tmp_path: Path) -> None:
    bundle = make_bundle()
    triton(bundle, tmp_path / "repo", TritonConfig())
    with pytest.raises(BundleError, match="metah exists; fix: remove it or give another --name"):
        triton(bundle, tmp_path / "repo", TritonConfig())
    triton(bundle, tmp_path / "repo", TritonConfig(name="other"))
    assert sorted(p.name for p in (tmp_path / "repo").iterdir()) == ["metah", "other"]


@pytest.mark.parametrize(
    ("changes", "match"),
    [
        ({"name": "../x"}, "name must be letters"),
        ({"name": 'a"b'}, "name must be letters"),
        ({"name": ""}, "name must be letters"),
        ({"backend": "openvino"}, "backend must be one of onnxruntime, tensorrt"),
        ({"backend": "tensorrt", "instances": "cpu"}, "runs on instances 'gpu' alone"),
        ({"instances": "tpu"}, "instances must be one of cpu, gpu"),
        ({"count": 0}, "count must be at least 1"),
        ({"max_batch": 0}, "max_batch must be at least 1"),
        ({"delay_us": -1}, "delay_us must be at least 0"),
        ({"preferred": (65,)}, r"preferred batch sizes must be in 1\.\.64, got 65"),
    ],
)
def test_config_rules(changes: dict[str, Any], match: str) -> None:
    with pytest.raises(ConfigError, match=match):
        TritonConfig(**changes)


def test_command(make_bundle: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make_bundle()

    def command(*args: str) -> tuple[Any, str, str]:
        with pytest.raises(SystemExit) as stop:
            console.run(
                cli.cli,
                "metah-export",
                ["triton", str(bundle.path), "--repo", str(tmp_path / "repo"), *args],
            )
        return (stop.value.code, *capsys.readouterr())

    code, out, err = command("--name", "m", "--max-batch", "16", "--preferred", "4, 16")
    assert (code, err) == (0, "")
    assert Path(out.strip()) == tmp_path / "repo" / "m"
    assert "preferred_batch_size: [ 4, 16 ]" in (tmp_path / "repo/m/config.pbtxt").read_text()
    for args, status, text in (
        (("--name", "m"), 1, "exists"),
        (("--preferred", "many"), 2, "preferred must be whole numbers"),
        (("--backend", "tensorrt", "--instances", "cpu"), 2, "gpu"),
        (("--backend", "tensorrt"), 1, "no engine of kind tensorrt"),
    ):
        code, out, err = command(*args)
        assert (code, out) == (status, "")
        assert text in err
        assert err.count("\n") == 1


def test_triton_imports_no_torch(make_bundle: Make, tmp_path: Path) -> None:
    program = (
        "import sys\n"
        "from metah_export.triton import TritonConfig, triton\n"
        "triton(sys.argv[1], sys.argv[2], TritonConfig())\n"
        "bad = {'torch', 'onnxruntime'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    arguments = [str(make_bundle().path), str(tmp_path / "repo")]
    subprocess.run([sys.executable, "-c", program, *arguments], check=True, timeout=120)


def serve(repo: Path, backends: Path, log: Path) -> tuple[subprocess.Popen[bytes], str]:
    """Start tritonserver on a free port of 127.0.0.1; return it and its address."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    with log.open("wb") as out:
        process = subprocess.Popen(
            [
                str(SERVER / "bin" / "tritonserver"),
                "--model-repository", str(repo),
                "--backend-directory", str(backends),
                "--http-address", "127.0.0.1",
                "--http-port", str(port),
                "--allow-grpc=false",
                "--allow-metrics=false",
                "--exit-on-error=false",
            ],
            stdout=out,
            stderr=subprocess.STDOUT,
            env={
                **os.environ,
                "LD_LIBRARY_PATH": str(SITE / "nvidia_pytriton.libs"),
            },
        )  # fmt: skip
    return process, f"http://127.0.0.1:{port}"


def wait(process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + 60
    while time.monotonic() < end and process.poll() is None:
        try:
            with urllib.request.urlopen(f"{url}/v2/health/live", timeout=2):
                return
        except OSError:
            time.sleep(0.2)
    pytest.fail(f"tritonserver does not start: {log.read_text()[-2000:]}")


@pytest.fixture
def backends(tmp_path: Path) -> Path:
    """Copy the server's Python back end with its stub made executable."""
    folder = shutil.copytree(SERVER / "backends", tmp_path / "backends")
    version = f"3.{sys.version_info.minor}"
    stub = folder / "python" / "triton_python_backend_stub"
    shutil.copy(SERVER / "python_backend_stubs" / version / stub.name, stub)
    stub.chmod(0o755)
    (SERVER / "bin" / "tritonserver").chmod(0o755)
    return Path(folder)


@pytest.fixture
def stop() -> Iterator[list[subprocess.Popen[bytes]]]:
    started: list[subprocess.Popen[bytes]] = []
    yield started
    for process in started:
        process.terminate()
        process.wait(timeout=60)


@server_installed
def test_the_server_reads_the_repository_and_lacks_only_the_back_end(
    make_bundle: Make, tmp_path: Path, backends: Path, stop: list[Any]
) -> None:
    repo, log = tmp_path / "repo", tmp_path / "log"
    triton(make_bundle(), repo, TritonConfig(name="onnx", instances="cpu"))
    engines = with_engines(make_bundle("engines"), "8.9")
    triton(engines, repo, TritonConfig(name="plan", backend="tensorrt"))
    broken = triton(make_bundle("broken"), repo, TritonConfig(name="broken", instances="cpu"))
    text = (broken / "config.pbtxt").read_text()
    (broken / "config.pbtxt").write_text(text.replace("max_batch_size", "max_batch_sise"))
    process, url = serve(repo, backends, log)
    stop.append(process)
    wait(process, url, log)
    found = log.read_text()
    for name, back_end in (("onnx", "onnxruntime"), ("plan", "tensorrt")):
        assert f"failed to load '{name}' version 1: Invalid argument: unable to find" in found
        assert f"backend library for backend '{back_end}'" in found
    assert "max_batch_sise" in found


@server_installed
def test_the_server_gives_the_codes_of_the_bundle(
    make_bundle: Make, tmp_path: Path, backends: Path, stop: list[Any]
) -> None:
    bundle = make_bundle(bits=48)
    repo, log = tmp_path / "repo", tmp_path / "log"
    entry = triton(bundle, repo, TritonConfig(instances="cpu"))
    config = entry / "config.pbtxt"
    text = config.read_text().replace('platform: "onnxruntime_onnx"', 'backend: "python"')
    config.write_text(text)
    (entry / "1" / "model.py").write_text(STAND_IN)
    process, url = serve(repo, backends, log)
    stop.append(process)
    wait(process, url, log)
    ready(url, log)
    with urllib.request.urlopen(f"{url}/v2/models/metah/config", timeout=10) as answer:
        said = json.load(answer)
    assert said["max_batch_size"] == 64
    assert said["dynamic_batching"]["preferred_batch_size"] == [8, 64]
    assert said["parameters"]["metah.fingerprint"]["string_value"] == bundle.fingerprint
    images = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), dtype=np.uint8)
    request = {
        "inputs": [
            {
                "name": "images",
                "datatype": "UINT8",
                "shape": list(images.shape),
                "data": images.ravel().tolist(),
            }
        ]
    }
    query = urllib.request.Request(
        f"{url}/v2/models/metah/infer", json.dumps(request).encode(), method="POST"
    )
    with urllib.request.urlopen(query, timeout=30) as answer:
        outputs = {part["name"]: part for part in json.load(answer)["outputs"]}
    got = np.array(outputs["codes"]["data"], np.uint8).reshape(outputs["codes"]["shape"])
    want, logits = runners.open(bundle, threads=1).run(images)
    np.testing.assert_array_equal(got, want)
    values = np.array(outputs["logits"]["data"], np.float32).reshape(logits.shape)
    np.testing.assert_allclose(values, logits, rtol=1e-5, atol=1e-3)


def ready(url: str, log: Path) -> None:
    """Wait until the model has loaded and answered its warm-up."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        try:
            with urllib.request.urlopen(f"{url}/v2/models/metah/ready", timeout=2):
                return
        except OSError:
            time.sleep(0.3)
    pytest.fail(f"the model does not load: {log.read_text()[-3000:]}")
