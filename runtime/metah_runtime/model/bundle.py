"""The model bundle: a folder with one ONNX model, its manifest and, if built, engines.

    BUNDLE/manifest.json   what the model is and the SHA-256 and size of every other file
    BUNDLE/model.onnx      images uint8 (n, H, W, C) -> codes uint8 (n, bits/8), logits (n, bits),
                           and details uint8 (n, detail_bits/8) where there is a detail code
    BUNDLE/source.onnx     the same for images of the source domain, where they are encoded apart
    BUNDLE/MODEL_CARD.md   the same facts for people (``card``)
    BUNDLE/truth.npz       images and the trained model's logits, to repeat the comparison
    BUNDLE/engines/*.plan  TensorRT engines, added later by `metah-export engine`

manifest.json holds a digest of itself too, so that a changed byte anywhere is found. Nothing is
read but manifest.json and the files it lists, and no byte of a listed file is handed on before its
digest is checked. Files that the manifest does not list are ignored.
"""

import hashlib
import os
import stat
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from metah_runtime import files, schema
from metah_runtime.codes import BIT_ORDER, BIT_RULE, CodeFormat, check_bits
from metah_runtime.domain import DOMAINS, TARGET, Domain, check_domain
from metah_runtime.errors import BundleError
from metah_runtime.images.preprocess import Preprocess
from metah_runtime.model import card
from metah_runtime.model.manifest import (
    FORMATS,
    MANIFEST,
    MAX_MANIFEST_BYTES,
    MODEL,
    MODELS,
    BundleManifest,
    Engine,
    ListedFile,
    damaged,
    fingerprint,
    manifest_from_dict,
    manifest_to_dict,
    seal,
)


@dataclass(frozen=True, slots=True)
class Bundle:
    """A checked bundle on disk; ``Bundle.open`` is the way in."""

    path: Path
    manifest: BundleManifest

    @classmethod
    def open(cls, path: str | os.PathLike[str], *, verify: bool = True) -> "Bundle":
        """Open a bundle and check it; ``verify=False`` skips only the digests of the files.

        Raises BundleError, naming the file, the rule and the fix, for a missing, damaged or foreign
        file, a name or a link that leads out of the folder, and an unknown format version.
        """
        folder = Path(path)
        if not folder.is_dir():
            what = "is not a folder" if folder.exists() else "does not exist"
            raise BundleError(f"bundle {folder} {what}; fix: metah-export build RUN --out {folder}")
        manifest = _read_manifest(folder)
        bundle = cls(folder, manifest)
        for name, entry in manifest.files.items():
            size = _stat(folder, name).st_size
            if size != entry.size:
                raise damaged(folder / name, f"{size} bytes, the manifest says {entry.size}")
            if verify and files.sha256(folder / name) != entry.sha256:
                raise damaged(folder / name, "its SHA-256 is not the manifest's")
        expected = _fingerprint(manifest)
        if manifest.fingerprint != expected:
            raise damaged(
                folder / MANIFEST,
                f"fingerprint {manifest.fingerprint[:12]} does not belong to this model, "
                f"which has {expected[:12]}",
            )
        return bundle

    @property
    def bits(self) -> int:
        """Length of the hash code in bits."""
        return self.manifest.bits

    @property
    def code_format(self) -> CodeFormat:
        """What a row of codes holds: hash code, then detail code."""
        return self.manifest.code_format

    @property
    def domains(self) -> tuple[Domain, ...]:
        """Whose images the bundle encodes: the target's, and perhaps the source's."""
        return self.manifest.domains

    @property
    def preprocess(self) -> Preprocess:
        """How an image becomes the model's uint8 input; its ``shape`` is (H, W, C)."""
        return self.manifest.preprocess

    @property
    def fingerprint(self) -> str:
        """SHA-256 over all that determines codes; an index refuses codes of another one."""
        return self.manifest.fingerprint

    @property
    def model_path(self) -> Path:
        """The ONNX file for images of the target."""
        return self.path / MODEL

    def model_file(self, domain: Domain = TARGET) -> str:
        """Return the name of the ONNX file for images of a domain.

        Raises ConfigError for no domain, BundleError for one that the bundle does not encode.
        """
        if check_domain(domain) not in self.domains:
            raise BundleError(
                f"{self.path} encodes images of the {' and '.join(self.domains)} alone, not of the "
                f"{domain}: its model is one for both; fix: leave the domain out"
            )
        return MODELS[domain]

    def engines(self, domain: Domain = TARGET) -> tuple[Engine, ...]:
        """Return the engines for images of a domain; raises as ``model_file``."""
        model = self.manifest.files[self.model_file(domain)].sha256
        return tuple(e for e in self.manifest.engines if e.model_sha256 == model)

    def read(self, name: str = MODEL) -> bytes:
        """Return the bytes of a listed file; they are exactly those whose digest was checked.

        Raises BundleError if the file is not listed, not a regular file, or changed.
        """
        entry = self.manifest.files.get(name)
        if entry is None:
            raise BundleError(f"{self.path / MANIFEST} lists no file {name!r}")
        data = _read(self.path, name, entry.size)
        if hashlib.sha256(data).hexdigest() != entry.sha256:
            raise damaged(self.path / name, "its SHA-256 is not the manifest's")
        return data


def write_bundle(
    path: str | os.PathLike[str],
    *,
    model: bytes,
    bits: int,
    detail_bits: int = 0,
    code_weight: int = 1,
    preprocess: Preprocess,
    precision: str,
    opset: int,
    versions: Mapping[str, str],
    training: Mapping[str, Any],
    parity: Mapping[str, Any],
    source_model: bytes | None = None,
    source_parity: Mapping[str, Any] | None = None,
    extra: Mapping[str, bytes] | None = None,
    engines: Sequence[tuple[Engine, bytes]] = (),
) -> Bundle:
    """Write a new bundle: built beside, fsynced, renamed to ``path``; on error nothing is left.

    source_model: of images of the source domain, None if ``model`` encodes both alike; extra:
    further files of the bundle's folder, by name; engines: with their plans. Raises BundleError if
    ``path`` exists: a bundle is never overwritten; StorageError if the disk refuses.
    """
    folder = check_new(path)
    contents = {MODEL: model, **(extra or {}), **{e.file: plan for e, plan in engines}}
    if source_model is not None:
        contents[MODELS["source"]] = source_model
    listed = {name: _entry(data) for name, data in contents.items()}
    manifest = BundleManifest(
        format=FORMATS[-1],
        bits=check_bits(bits),
        detail_bits=detail_bits,
        code_weight=code_weight,
        domains=DOMAINS[: 1 if source_model is None else 2],
        bit_rule=BIT_RULE,
        bit_order=BIT_ORDER,
        preprocess=preprocess,
        precision=precision,
        opset=opset,
        fingerprint="",
        files=listed,
        engines=tuple(engine for engine, _ in engines),
        versions=versions,
        training=training,
        parity=parity,
        source_parity=source_parity or {},
    )
    manifest = replace(manifest, fingerprint=_fingerprint(manifest))
    manifest = manifest_from_dict(manifest_to_dict(manifest), folder / MANIFEST)
    contents[card.FILE] = card.render(manifest).encode()
    manifest = replace(manifest, files={**listed, card.FILE: _entry(contents[card.FILE])})
    with files.new_folder(folder) as staging:
        for name, data in contents.items():
            (staging / name).parent.mkdir(exist_ok=True)
            files.write_bytes(staging / name, data)
        files.write_json(staging / MANIFEST, manifest_to_dict(manifest))
        Bundle.open(staging)
    return Bundle(folder, manifest)


def check_new(path: str | os.PathLike[str]) -> Path:
    """Return ``path`` if a new bundle may be written there; else raise BundleError."""
    folder = Path(path)
    if folder.exists() or folder.is_symlink():
        raise BundleError(
            f"{folder} exists and a bundle is never overwritten; fix: remove it or name another"
        )
    return folder


def add_engine(bundle: Bundle, engine: Engine, plan: bytes) -> Bundle:
    """Add an engine to a bundle: the plan first, then the manifest, each replaced atomically.

    An engine of the same file name is replaced. Raises BundleError if it was built from another
    model.
    """
    models = [bundle.manifest.files[name].sha256 for name in bundle.manifest.models.values()]
    if engine.model_sha256 not in models:
        raise BundleError(f"engine {engine.file} was built from another model than {bundle.path}")
    others = tuple(e for e in bundle.manifest.engines if e.file != engine.file)
    manifest = replace(
        bundle.manifest,
        files={**bundle.manifest.files, engine.file: _entry(plan)},
        engines=(*others, engine),
    )
    manifest_from_dict(manifest_to_dict(manifest), bundle.path / MANIFEST)
    target = bundle.path / engine.file
    target.parent.mkdir(exist_ok=True)
    files.write_bytes(target, plan)
    files.write_json(bundle.path / MANIFEST, manifest_to_dict(manifest))
    return Bundle(bundle.path, manifest)


def _fingerprint(manifest: BundleManifest) -> str:
    digests = {domain: manifest.files[name].sha256 for domain, name in manifest.models.items()}
    return fingerprint(
        model_sha256=digests[TARGET],
        preprocess=manifest.preprocess,
        bits=manifest.bits,
        detail_bits=manifest.detail_bits,
        code_weight=manifest.code_weight,
        source_sha256=digests.get("source"),
    )


def _entry(data: bytes) -> ListedFile:
    return ListedFile(sha256=hashlib.sha256(data).hexdigest(), size=len(data))


def _read_manifest(folder: Path) -> BundleManifest:
    path = folder / MANIFEST
    if not os.path.lexists(path):
        raise BundleError(
            f"{path} is missing: {folder} is no bundle; fix: metah-export build RUN --out BUNDLE"
        )
    data = _read(folder, MANIFEST, None)
    try:
        value = schema.parse_json(data)
    except ValueError as error:
        raise damaged(path, f"not valid JSON ({error})") from error
    if isinstance(value, dict) and value.get("format") in FORMATS and seal(value) != value:
        raise damaged(path, "its digest is not that of its contents")
    return manifest_from_dict(value, path)


def _stat(folder: Path, name: str) -> os.stat_result:
    """Stat a listed file without following links; raise BundleError unless it is a regular one."""
    path = folder
    for part in Path(name).parts:
        path = path / part
        try:
            status = path.lstat()
        except FileNotFoundError:
            raise BundleError(
                f"{path} is missing though the manifest lists it; fix: export again"
            ) from None
        except OSError as error:
            raise BundleError(f"{path} cannot be read: {error.strerror}") from error
        if stat.S_ISLNK(status.st_mode):
            raise BundleError(f"{path} is a symbolic link: not allowed in a bundle; fix: copy it")
    if not stat.S_ISREG(status.st_mode):
        raise BundleError(f"{path} is not a regular file")
    return status


def _read(folder: Path, name: str, size: int | None) -> bytes:
    """Read a regular file of a known size (None: at most MAX_MANIFEST_BYTES), never a link."""
    path = folder / name
    found = _stat(folder, name).st_size
    if size is not None and found != size:
        raise damaged(path, f"{found} bytes, the manifest says {size}")
    if size is None and found > MAX_MANIFEST_BYTES:
        raise damaged(path, f"{found} bytes, a manifest has at most {MAX_MANIFEST_BYTES}")
    try:
        return files.read_regular(path, found)
    except OSError as error:
        raise BundleError(f"{path} cannot be read: {error.strerror}") from error
