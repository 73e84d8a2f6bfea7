"""manifest.json of a model bundle: what it may hold, its digest, and the model's fingerprint."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from metah_runtime import schema
from metah_runtime.codes import BIT_ORDER, BIT_RULE, check_bits
from metah_runtime.errors import BundleError
from metah_runtime.images.preprocess import Preprocess

FORMAT = 1
MANIFEST = "manifest.json"
MODEL = "model.onnx"
DIGEST = "digest"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
ENGINE_KINDS = ("tensorrt", "tensorrt-rtx")
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"(?:engines/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")


@dataclass(frozen=True, slots=True, kw_only=True)
class ListedFile:
    """One listed file: SHA-256 as 64 hex digits, size in bytes."""

    sha256: str
    size: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Engine:
    """One TensorRT engine of a bundle and everything that decides whether it may be loaded.

    kind: builder family; file: its name in the bundle; builder: exact version of the builder;
    targets: compute capabilities such as '8.9', or ('portable',); platform: such as 'linux-x86_64';
    batch: (min, opt, max) images; flags: builder flags; model_sha256: the ONNX it was built from;
    parity: its comparison with the truth, None if it was built where it cannot run.
    """

    kind: str
    file: str
    builder: str
    targets: tuple[str, ...]
    platform: str
    batch: tuple[int, int, int]
    flags: tuple[str, ...]
    model_sha256: str
    parity: Mapping[str, Any] | None


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleManifest:
    """What manifest.json says, checked.

    precision: of the weights and activations inside the model; opset: ONNX operator set; parity:
    how the codes compare with the trained model's; training: the run's settings.
    """

    format: int
    bits: int
    bit_rule: str
    bit_order: str
    preprocess: Preprocess
    precision: str
    opset: int
    fingerprint: str
    files: Mapping[str, ListedFile]
    engines: tuple[Engine, ...]
    versions: Mapping[str, str]
    training: Mapping[str, Any]
    parity: Mapping[str, Any]


def fingerprint(*, model_sha256: str, preprocess: Preprocess, bits: int) -> str:
    """Return SHA-256 over (model graph and weights, preprocessing, bits, bit rule, bit order)."""
    parts = {
        "bit_order": BIT_ORDER,
        "bit_rule": BIT_RULE,
        "bits": check_bits(bits),
        "model": model_sha256,
        "preprocess": preprocess.to_dict(),
    }
    return _sha256_of(parts)


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's JSON object with ``digest``: SHA-256 of all else, keys sorted."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    return {**rest, DIGEST: _sha256_of(rest)}


def _sha256_of(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_from_dict(value: Any, path: Path) -> BundleManifest:
    """Check the object that ``path`` holds; raise BundleError."""
    if not isinstance(value, dict):
        raise damaged(path, f"must hold a JSON object, got {type(value).__name__}")
    if value.get("format") != FORMAT or isinstance(value.get("format"), bool):
        raise BundleError(
            f"{path}: format version {value.get('format')!r}, this program reads {FORMAT}; "
            "fix: export again with this program, or install the version that wrote it"
        )
    try:
        manifest = schema.from_json(BundleManifest, {k: v for k, v in value.items() if k != DIGEST})
        check_bits(manifest.bits)
    except ValueError as error:
        raise damaged(path, str(error)) from error
    problem = _problem(manifest)
    if problem:
        raise damaged(path, problem)
    return manifest


def _problem(manifest: BundleManifest) -> str | None:
    """Return the first broken rule of a manifest's values, or None."""
    if manifest.bit_rule != BIT_RULE or manifest.bit_order != BIT_ORDER:
        return (
            f"bit rule {manifest.bit_rule!r} and order {manifest.bit_order!r}, "
            f"this program knows {BIT_RULE!r} and {BIT_ORDER!r}"
        )
    if manifest.precision not in PRECISIONS:
        return f"precision must be one of {', '.join(PRECISIONS)}, got {manifest.precision!r}"
    if MODEL not in manifest.files:
        return f"files must list {MODEL}"
    for name, entry in manifest.files.items():
        if not _NAME.fullmatch(name) or name == MANIFEST:
            return (
                f"file name {name!r} is not allowed: letters, digits, '.', '_' and '-', in the "
                "bundle's folder or its folder 'engines'"
            )
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            return f"file {name!r} needs a SHA-256 of 64 hex digits and a size >= 0"
    seen = set()
    for engine in manifest.engines:
        if engine.file not in manifest.files or engine.file == MODEL or engine.file in seen:
            return f"engine file {engine.file!r} must be listed once among files"
        seen.add(engine.file)
        if engine.kind not in ENGINE_KINDS:
            return f"engine kind must be one of {', '.join(ENGINE_KINDS)}, got {engine.kind!r}"
        low, best, high = engine.batch
        if not 1 <= low <= best <= high:
            return f"engine {engine.file!r}: batch must hold 1 <= min <= opt <= max"
        if engine.model_sha256 != manifest.files[MODEL].sha256:
            return f"engine {engine.file!r} was built from another model"
    return None


def damaged(path: Path, reason: str) -> BundleError:
    """Return the error of a damaged file of a bundle."""
    return BundleError(f"{path} is damaged: {reason}; fix: copy the bundle again or export again")
