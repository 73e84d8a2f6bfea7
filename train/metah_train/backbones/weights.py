"""Weights of a backbone from a local file, such as those trained on ImageNet."""

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch

from metah_runtime.errors import ConfigError
from metah_train.backbones.base import Backbone


def load_weights(backbone: Backbone, path: str | Path) -> None:
    """Load a .safetensors file, or a PyTorch file of tensors alone, into a backbone.

    Names may begin with ``module.``; the last classifier of the file is left out; every other
    tensor must be there, of the same shape. No code of the file is run. Raises ConfigError.
    """
    path = Path(path)
    given = {name.removeprefix("module."): tensor for name, tensor in _read(path).items()}
    network = backbone.pretrained_part()
    wanted = network.state_dict()
    counter = "num_batches_tracked"  # of batch norm: no weight
    for name, tensor in wanted.items():
        if name not in given:
            if name.endswith(counter):
                continue
            raise ConfigError(f"weights {path}: tensor {name} is missing")
        if given[name].shape != tensor.shape:
            raise ConfigError(
                f"weights {path}: {name} has shape {tuple(given[name].shape)}, the backbone "
                f"{tuple(tensor.shape)}; fix: the image size and the features of these weights"
            )
    extra = [
        name
        for name in given
        if name not in wanted
        and not name.startswith(backbone.unused)
        and not name.endswith(counter)
    ]
    if extra:
        raise ConfigError(f"weights {path}: the backbone has no tensor {extra[0]}")
    network.load_state_dict({name: given[name] for name in wanted if name in given}, strict=False)


def _read(path: Path) -> Mapping[str, torch.Tensor]:
    try:
        if path.suffix == ".safetensors":
            return safetensors.torch.load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except FileNotFoundError:
        raise ConfigError(f"weights {path}: no such file") from None
    except (OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(f"weights {path}: cannot be read ({reason})") from None
    except safetensors.SafetensorError as error:
        raise ConfigError(f"weights {path}: cannot be read ({error})") from None
    for key in ("state_dict", "model"):
        if isinstance(found, Mapping) and isinstance(found.get(key), Mapping):
            found = found[key]
    if not isinstance(found, Mapping) or not all(
        isinstance(value, torch.Tensor) for value in found.values()
    ):
        raise ConfigError(f"weights {path}: not a file of named tensors")
    return found
