"""A cache of tensors on disk: safetensors files named by a digest of all that decides them."""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path

import safetensors
import safetensors.torch
import torch

from metah_runtime import files
from metah_runtime.errors import RunError


class TensorCache:
    """Entries below a folder; ``seconds`` adds up what the entries that were used had cost."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.seconds = 0.0

    def get(self, key: str) -> dict[str, torch.Tensor] | None:
        """Return an entry's tensors, None if there is no such entry; raises RunError if damaged."""
        path = self._path(key)
        if not path.exists():
            return None
        try:
            with safetensors.safe_open(path, framework="pt") as file:
                about = json.loads((file.metadata() or {})["metah"])
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
            seconds, digest = float(about["seconds"]), about["sha256"]
        except (OSError, KeyError, TypeError, ValueError, safetensors.SafetensorError) as error:
            raise RunError(f"cache {path} cannot be read ({error}); fix: delete it") from None
        if digest != tensors_digest(tensors):
            raise RunError(f"cache {path} is damaged; fix: delete it")
        self.seconds += seconds
        return tensors

    def put(self, key: str, tensors: Mapping[str, torch.Tensor], *, seconds: float) -> None:
        """Write an entry, atomically; seconds: what it took to make."""
        self.folder.mkdir(parents=True, exist_ok=True)
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
        about = {"seconds": seconds, "sha256": tensors_digest(plain)}
        metadata = {"metah": json.dumps(about, sort_keys=True)}
        files.write_bytes(self._path(key), safetensors.torch.save(plain, metadata))

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.safetensors"


def tensors_digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """Return the SHA-256 of named tensors: names, types, shapes, values."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.cpu().numpy().tobytes())
    return digest.hexdigest()
