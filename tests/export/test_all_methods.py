"""Every method exports to the one bundle graph, and ONNX Runtime gives the bits of PyTorch."""

from typing import Any

import numpy as np
import pytest
import torch

from metah_export.to_onnx import to_onnx
from metah_runtime.model.runners.onnxruntime_runner import OrtRunner
from metah_train.config import Config
from metah_train.methods import METHODS, method_class
from metah_train.methods.base import ShallowMethod, Task
from metah_train.methods.model import HashModel

SHAPE, CLASSES, BITS = (16, 16, 1), 4, 48
EXPORTED = ("lsh", "sh", "ksh", "sdh", "dnnh", "metah")
"""One method for each kind of head; the others have the same layers with other weights."""

OPTIONS: dict[str, dict[str, Any]] = {"ksh": {"anchors": 100}, "sdh": {"anchors": 150}}


def images(n: int, seed: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Noisy images of bars, (n, 16, 16, 1) uint8, and their classes."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % CLASSES
    pixels = rng.integers(0, 120, (n, *SHAPE)).astype(np.uint8)
    for image, label in zip(pixels, labels, strict=True):
        image[4 * label : 4 * label + 4] += 130
    return torch.from_numpy(pixels), torch.from_numpy(labels)


def fitted(name: str) -> HashModel:
    """The network of a method; a shallow head is fitted to the features of 300 images."""
    torch.manual_seed(0)
    chosen = method_class(name)
    config = Config(
        method=name,
        bits=BITS,
        features=64,
        threads=1,
        options=chosen.options_type(**chosen.preset(OPTIONS.get(name, {}))),
    )
    task = Task(height=16, width=16, channels=1, classes=CLASSES)
    method = chosen(config, task)
    pixels, labels = images(300, seed=1)
    with torch.no_grad():
        method.model(pixels)  # batch norm gets the statistics of these images
        if isinstance(method, ShallowMethod):
            model = method.model.eval()
            method.fit(model.features(model.pixels(pixels)), labels)
    return method.model.eval()


def test_every_network_has_the_layers_of_one_that_is_exported() -> None:
    layers = {name: str(fitted(name)) for name in METHODS}
    assert set(layers.values()) == {layers[name] for name in EXPORTED}


@pytest.mark.parametrize("name", EXPORTED)
def test_onnx_runtime_gives_the_bits_of_pytorch(name: str) -> None:
    torch.set_num_threads(1)
    model = fitted(name)
    runner = OrtRunner(
        to_onnx(model, bits=BITS, image_shape=SHAPE), bits=BITS, image_shape=SHAPE, threads=1
    )
    for n in (1, 500):
        pixels = images(n, seed=2)[0]
        with torch.inference_mode():
            want = model(pixels).numpy()
        packed, logits = runner.run(pixels.numpy())
        size = float(np.sqrt(np.square(want).mean()))
        assert np.abs(logits - want).max() < 1e-3 * size
        clear = np.abs(want) > 1e-3 * size
        bits = np.unpackbits(packed, axis=1).astype(bool)
        assert (bits == (logits > 0)).all()
        assert (bits == (want > 0))[clear].all()
    assert 0 < (want > 0).mean() < 1
    assert len(np.unique(packed, axis=0)) > 1
