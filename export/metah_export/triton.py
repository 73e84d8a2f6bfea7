"""A model repository for NVIDIA Triton Inference Server, from a bundle.

REPO/NAME/config.pbtxt     names, types, shapes, batching, warm-up
REPO/NAME/1/model.onnx     platform onnxruntime_onnx, or
REPO/NAME/1/*.plan         platform tensorrt_plan, one file a compute capability
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from metah_export.onnx_rules import INPUT
from metah_export.verify import check_rules
from metah_runtime import files
from metah_runtime.domain import TARGET, Domain, check_domain
from metah_runtime.errors import BundleError, ConfigError, EngineError
from metah_runtime.model.bundle import Bundle
from metah_runtime.model.manifest import MODEL, Engine
from metah_runtime.model.runners.interface import outputs as outputs_of

BACKENDS = ("onnxruntime", "tensorrt")
INSTANCES = ("cpu", "gpu")
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_WARM_UP = "one image"
_TYPES: Mapping[type[np.generic], str] = {np.uint8: "TYPE_UINT8", np.float32: "TYPE_FP32"}


@dataclass(frozen=True, kw_only=True)
class TritonConfig:
    """How the server runs the model.

    name: of the model; backend: 'onnxruntime' or 'tensorrt' (engines of kind tensorrt);
    domain: whose images are encoded; instances: 'cpu' or 'gpu'; count: of instances; max_batch:
    largest batch of a launch; preferred: batch sizes that the server tries to gather; delay_us: how
    long it waits for them.
    """

    name: str = "metah"
    backend: str = "onnxruntime"
    domain: Domain = TARGET
    instances: str = "gpu"
    count: int = 1
    max_batch: int = 64
    preferred: tuple[int, ...] = (8, 64)
    delay_us: int = 500

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(f"name must be letters, digits, '.', '_' and '-', got {self.name!r}")
        check_domain(self.domain)
        for field, choices in (("backend", BACKENDS), ("instances", INSTANCES)):
            if getattr(self, field) not in choices:
                raise ConfigError(
                    f"{field} must be one of {', '.join(choices)}, got {getattr(self, field)!r}"
                )
        if self.backend == "tensorrt" and self.instances != "gpu":
            raise ConfigError("backend tensorrt runs on instances 'gpu' alone")
        for field, low in (("count", 1), ("max_batch", 1), ("delay_us", 0)):
            if getattr(self, field) < low:
                raise ConfigError(f"{field} must be at least {low}, got {getattr(self, field)}")
        for size in self.preferred:
            if not 1 <= size <= self.max_batch:
                raise ConfigError(
                    f"preferred batch sizes must be in 1..{self.max_batch}, got {size}"
                )


def triton(bundle: Bundle | str | Path, repo: str | Path, config: TritonConfig) -> Path:
    """Write the model repository entry of a bundle; return its folder REPO/NAME.

    Raises BundleError if the entry exists or the bundle is bad, EngineError if there is no engine
    that Triton can serve, ConfigError where the server would not give the bundle's codes.
    """
    opened = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    target = Path(repo) / config.name
    if target.exists() or target.is_symlink():
        raise BundleError(f"{target} exists; fix: remove it or give another --name")
    plans: dict[str, str] = {}
    if config.backend == "onnxruntime":
        contents = _onnx(opened, config)
    else:
        contents, plans = _plans(opened, config)
    text = config_text(opened, config, plans)
    with files.new_folder(target) as folder:
        (folder / "1").mkdir()
        for name, data in contents.items():
            files.write_bytes(folder / "1" / name, data)
        files.write_bytes(folder / "config.pbtxt", text.encode())
    return target


def config_text(bundle: Bundle, config: TritonConfig, plans: Mapping[str, str]) -> str:
    """Return config.pbtxt; plans: compute capability -> file name, for tensorrt."""
    shape, code_format = bundle.preprocess.shape, bundle.code_format
    outputs = [
        _tensor(name, _TYPES[element], (width,))
        for name, (element, width) in outputs_of(code_format.bits, code_format.detail_bits).items()
    ]
    platform = "onnxruntime_onnx" if config.backend == "onnxruntime" else "tensorrt_plan"
    kind = "KIND_GPU" if config.instances == "gpu" else "KIND_CPU"
    parts = [
        f"name: {_text(config.name)}",
        f"platform: {_text(platform)}",
        f"max_batch_size: {config.max_batch}",
        f"input [ {_tensor(INPUT, 'TYPE_UINT8', shape)} ]",
        "output [",
        ",\n".join(f"  {text}" for text in outputs),
        "]",
        f"instance_group [ {{ count: {config.count} kind: {kind} }} ]",
        "dynamic_batching {",
        f"  preferred_batch_size: {_list(config.preferred)}",
        f"  max_queue_delay_microseconds: {config.delay_us}",
        "}",
        "version_policy { latest { num_versions: 1 } }",
        "model_warmup [ {",
        f"  name: {_text(_WARM_UP)} batch_size: 1",
        f"  inputs {{ key: {_text(INPUT)} value {{ data_type: TYPE_UINT8 dims: {_list(shape)} "
        "zero_data: true } }",
        "} ]",
    ]
    for capability, name in plans.items():
        parts.append(f"cc_model_filenames {{ key: {_text(capability)} value: {_text(name)} }}")
    facts = {
        "metah.fingerprint": bundle.fingerprint,
        "metah.bits": str(bundle.bits),
        "metah.bit_order": bundle.manifest.bit_order,
        "metah.precision": bundle.manifest.precision,
    }
    if code_format.detail_bits:
        facts["metah.detail_bits"] = str(code_format.detail_bits)
        facts["metah.code_weight"] = str(code_format.code_weight)
    if len(bundle.domains) > 1:
        facts["metah.domain"] = config.domain
    parts += [
        f"parameters {{ key: {_text(key)} value {{ string_value: {_text(value)} }} }}"
        for key, value in facts.items()
    ]
    return "\n".join(parts) + "\n"


def _onnx(bundle: Bundle, config: TritonConfig) -> dict[str, bytes]:
    precision = bundle.manifest.precision
    if config.instances == "cpu" and precision not in ("fp32", "fp16"):
        raise ConfigError(
            f"Triton's onnxruntime backend on the CPU cannot be told to keep {precision} codes "
            "exact; fix: --instances gpu, or an fp32 or fp16 bundle"
        )
    check_rules(bundle)
    return {MODEL: bundle.read(bundle.model_file(config.domain))}


def _plans(bundle: Bundle, config: TritonConfig) -> tuple[dict[str, bytes], dict[str, str]]:
    """Return the plans by file name, and which file serves which compute capability."""
    engines = bundle.engines(config.domain)
    served = [engine for engine in engines if engine.kind == "tensorrt"]
    if not served:
        kinds = sorted({engine.kind for engine in engines})
        option = "" if config.domain == TARGET else f" --domain {config.domain}"
        raise EngineError(
            f"{bundle.path} has no engine of kind tensorrt (it has: {', '.join(kinds) or 'none'}); "
            f"Triton loads no others; fix: metah-export engine --engine tensorrt{option} on the "
            "server"
        )
    _check_batches(served, config)
    contents: dict[str, bytes] = {}
    plans: dict[str, str] = {}
    for engine in served:
        for capability in engine.targets:
            name = f"model_sm{capability.replace('.', '')}.plan"
            if name in contents:
                raise EngineError(
                    f"{bundle.path} has several tensorrt engines for compute capability "
                    f"{capability}; Triton serves one"
                )
            contents[name] = bundle.read(engine.file)
            plans[capability] = name
    return contents, plans


def _check_batches(served: Sequence[Engine], config: TritonConfig) -> None:
    for engine in served:
        low, _, high = engine.batch
        if low > 1 or high < config.max_batch:
            raise ConfigError(
                f"engine {engine.file} takes batches of {low}..{high}, the server would send "
                f"1..{config.max_batch}; fix: --max-batch {high}, or build it for 1:OPT:MAX"
            )


def _tensor(name: str, kind: str, dims: Sequence[int]) -> str:
    return f"{{ name: {_text(name)} data_type: {kind} dims: {_list(dims)} }}"


def _list(values: Sequence[int]) -> str:
    return f"[ {', '.join(map(str, values))} ]"


def _text(value: str) -> str:
    """Quote a string of protobuf's text format."""
    escaped = value.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n")
    return f'"{escaped}"'
