"""manifest.json of a model bundle: what it may hold, its digest, and the model's fingerprint."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from metah_runtime import schema
from metah_runtime.codes import BIT_ORDER, BIT_RULE, CodeFormat
from metah_runtime.domain import DOMAINS, TARGET, Domain
from metah_runtime.errors import BundleError
from metah_runtime.images.preprocess import Preprocess

FORMATS = (1, 2)
"""Versions of the file that are read; 2 added the keys of _ADDED, and is written where needed."""

MANIFEST = "manifest.json"
MODEL = "model.onnx"
MODELS: Mapping[Domain, str] = {"target": MODEL, "source": "source.onnx"}
"""The file that encodes the images of a domain."""

DIGEST = "digest"
PRECISIONS = ("fp32", "fp16", "bf16", "int8", "fp8")
ENGINE_KINDS = ("tensorrt", "tensorrt-rtx")
MAX_MANIFEST_BYTES = 16 * 1024 * 1024
_NAME = re.compile(r"(?:engines/)?[A-Za-z0-9][A-Za-z0-9._-]{0,127}")
_SHA256 = re.compile(r"[0-9a-f]{64}")
_ADDED: Mapping[str, Any] = {
    "detail_bits": 0,
    "code_weight": 1,
    "domains": [TARGET],
    "source_parity": {},
}


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
    batch: (min, opt, max) images; flags: builder flags; model_sha256: the ONNX it was built from,
    and so the domain; parity: its comparison with the truth, None if it was built where it cannot
    run.
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

    bits, detail_bits, code_weight: see ``CodeFormat``; domains: whose images the bundle encodes;
    precision: of the weights and activations inside the model; opset: ONNX operator set; parity,
    source_parity: how the codes of the target's model and of the source's compare with the trained
    model's; training: the run's settings.
    """

    format: int
    bits: int
    detail_bits: int = 0
    code_weight: int = 1
    domains: tuple[Domain, ...] = (TARGET,)
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
    source_parity: Mapping[str, Any] = field(default_factory=dict)

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds."""
        return CodeFormat(
            bits=self.bits, detail_bits=self.detail_bits, code_weight=self.code_weight
        )

    @property
    def models(self) -> dict[Domain, str]:
        """The file that encodes the images of each of ``domains``."""
        return {domain: MODELS[domain] for domain in DOMAINS if domain in self.domains}


def fingerprint(
    *,
    model_sha256: str,
    preprocess: Preprocess,
    bits: int,
    detail_bits: int = 0,
    code_weight: int = 1,
    source_sha256: str | None = None,
) -> str:
    """Return SHA-256 over all that determines codes and their order.

    It is that of (model graph and weights, preprocessing, bits, bit rule, bit order) and, where
    there are such, of the detail code's (detail_bits, code_weight) and the source's model.
    """
    code = CodeFormat(bits=bits, detail_bits=detail_bits, code_weight=code_weight)
    parts: dict[str, Any] = {
        "bit_order": BIT_ORDER,
        "bit_rule": BIT_RULE,
        "bits": code.bits,
        "model": model_sha256,
        "preprocess": preprocess.to_dict(),
    }
    if code.detail_bits:
        parts |= {"detail_bits": code.detail_bits, "code_weight": code.code_weight}
    if source_sha256 is not None:
        parts["source"] = source_sha256
    return _sha256_of(parts)


def seal(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return a manifest's JSON object with ``digest``: SHA-256 of all else, keys sorted."""
    rest = {key: value for key, value in manifest.items() if key != DIGEST}
    return {**rest, DIGEST: _sha256_of(rest)}


def _sha256_of(value: Mapping[str, Any]) -> str:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(text.encode()).hexdigest()


def manifest_to_dict(manifest: BundleManifest) -> dict[str, Any]:
    """Return the JSON object of a manifest, in the first format that can say it, sealed."""
    value: dict[str, Any] = schema.to_json(manifest)
    value["format"] = 2
    if all(value[key] == default for key, default in _ADDED.items()):
        value = {key: item for key, item in value.items() if key not in _ADDED} | {"format": 1}
    return seal(value)


def manifest_from_dict(value: Any, path: Path) -> BundleManifest:
    """Check the object that ``path`` holds; raise BundleError."""
    if not isinstance(value, dict):
        raise damaged(path, f"must hold a JSON object, got {type(value).__name__}")
    if value.get("format") not in FORMATS or isinstance(value.get("format"), bool):
        raise BundleError(
            f"{path}: format version {value.get('format')!r}, this program reads "
            f"{', '.join(map(str, FORMATS))}; "
            "fix: export again with this program, or install the version that wrote it"
        )
    try:
        given = {key: item for key, item in value.items() if key != DIGEST}
        if value["format"] == 1:
            given = _from_format_1(given)
        manifest = schema.from_json(BundleManifest, given)
        _ = manifest.code_format  # raises ConfigError
    except ValueError as error:
        raise damaged(path, str(error)) from error
    problem = _problem(manifest)
    if problem:
        raise damaged(path, problem)
    return manifest


def _from_format_1(value: dict[str, Any]) -> dict[str, Any]:
    """Add the keys of format 2; raise ValueError if one is there."""
    for key in _ADDED:
        if key in value:
            raise ValueError(f"unknown key {key}")
    return {**value, **_ADDED}


def _problem(manifest: BundleManifest) -> str | None:
    """Return the first broken rule of a manifest's values, or None."""
    if manifest.bit_rule != BIT_RULE or manifest.bit_order != BIT_ORDER:
        return (
            f"bit rule {manifest.bit_rule!r} and order {manifest.bit_order!r}, "
            f"this program knows {BIT_RULE!r} and {BIT_ORDER!r}"
        )
    if manifest.precision not in PRECISIONS:
        return f"precision must be one of {', '.join(PRECISIONS)}, got {manifest.precision!r}"
    if manifest.domains not in (DOMAINS[:1], DOMAINS):
        return f"domains must be {TARGET}, or {', '.join(DOMAINS)}, got {manifest.domains!r:.60}"
    for model in manifest.models.values():
        if model not in manifest.files:
            return f"files must list {model}"
    for name, entry in manifest.files.items():
        if not _NAME.fullmatch(name) or name == MANIFEST:
            return (
                f"file name {name!r} is not allowed: letters, digits, '.', '_' and '-', in the "
                "bundle's folder or its folder 'engines'"
            )
        if not _SHA256.fullmatch(entry.sha256) or entry.size < 0:
            return f"file {name!r} needs a SHA-256 of 64 hex digits and a size >= 0"
    models = {manifest.files[model].sha256 for model in manifest.models.values()}
    seen = set(manifest.models.values())
    for engine in manifest.engines:
        if engine.file not in manifest.files or engine.file in seen:
            return f"engine file {engine.file!r} must be listed once among files"
        seen.add(engine.file)
        if engine.kind not in ENGINE_KINDS:
            return f"engine kind must be one of {', '.join(ENGINE_KINDS)}, got {engine.kind!r}"
        low, best, high = engine.batch
        if not 1 <= low <= best <= high:
            return f"engine {engine.file!r}: batch must hold 1 <= min <= opt <= max"
        if engine.model_sha256 not in models:
            return f"engine {engine.file!r} was built from another model"
    return None


def damaged(path: Path, reason: str) -> BundleError:
    """Return the error of a damaged file of a bundle."""
    return BundleError(f"{path} is damaged: {reason}; fix: copy the bundle again or export again")
