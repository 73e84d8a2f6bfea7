from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import DataError, ImageError
from metah_runtime.images.preprocess import Preprocess
from metah_train.data import ArrayImages, FileImages, ImageSet, base

SPEC = Preprocess(height=4, width=5, channels=3)
PIXELS = np.random.default_rng(0).integers(0, 256, (7, 4, 5, 3), np.uint8)
LABELS = np.array([3, 1, 2, 0, 1, 2, 3])
NAMES = [f"{row}.png" for row in range(7)]


@pytest.fixture(params=["array", "file"])
def images(request: pytest.FixtureRequest, tmp_path: Path) -> ImageSet:
    if request.param == "array":
        return ArrayImages(PIXELS, LABELS, NAMES)
    paths = [tmp_path / name for name in NAMES]
    for path, pixels in zip(paths, PIXELS, strict=True):
        Image.fromarray(pixels).save(path)
    return FileImages(paths, LABELS, NAMES, SPEC)


def test_load(images: ImageSet) -> None:
    assert len(images) == 7
    np.testing.assert_array_equal(images.load(range(7)), PIXELS)
    np.testing.assert_array_equal(images.load(np.array([5, 0, 5])), PIXELS[[5, 0, 5]])
    assert images.load([]).shape == (0, 4, 5, 3)
    assert images.load([0]).dtype == np.uint8


def test_what_is_loaded_can_be_changed_without_harm(images: ImageSet) -> None:
    for _ in range(2):
        loaded = images.load([1, 2])
        np.testing.assert_array_equal(loaded, PIXELS[[1, 2]])
        loaded[:] = 0


def test_subset_of_a_subset(images: ImageSet) -> None:
    part = images.subset([6, 2, 4]).subset(np.array([2, 0]))
    assert len(part) == 2
    assert list(part.names) == ["4.png", "6.png"]
    assert part.labels is not None
    assert part.labels.tolist() == [1, 3]
    np.testing.assert_array_equal(part.load([0, 1]), PIXELS[[4, 6]])
    assert len(images.subset([])) == 0


def test_unlabelled(images: ImageSet) -> None:
    bare = images.unlabelled()
    assert bare.labels is None
    assert bare.subset([1]).labels is None
    assert images.labels is not None
    np.testing.assert_array_equal(bare.load([3]), PIXELS[[3]])


@pytest.mark.parametrize("rows", [[7], [-1], [0.0], [[0]], [True]])
def test_refused_indices(images: ImageSet, rows: list[object]) -> None:
    with pytest.raises(DataError, match="indices must be"):
        images.load(rows)
    with pytest.raises(DataError, match="indices must be"):
        images.subset(rows)


def test_multi_hot_labels() -> None:
    hot = np.eye(4, dtype=np.int64)[LABELS]
    part = ArrayImages(PIXELS, hot, NAMES).subset([1, 0])
    assert part.labels is not None
    assert part.labels.dtype == np.uint8
    assert part.labels.tolist() == [[0, 1, 0, 0], [0, 0, 0, 1]]


def test_refused_arrays() -> None:
    with pytest.raises(DataError, match=r"images must be uint8 \(n, H, W, C\), got float64"):
        ArrayImages(PIXELS / 255, LABELS, NAMES)
    with pytest.raises(DataError, match=r"labels must be \(7,\) int64 or \(7, C\) uint8, got"):
        ArrayImages(PIXELS, LABELS[:6], NAMES)
    with pytest.raises(DataError, match="got float64"):
        ArrayImages(PIXELS, LABELS.astype(float), NAMES)
    with pytest.raises(DataError, match="7 images need as many names, got 1"):
        ArrayImages(PIXELS, LABELS, ["a"])
    with pytest.raises(DataError, match="1 images need as many names, got 0"):
        FileImages([Path("a")], None, [], SPEC)


def test_files_are_read_when_needed_and_then_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Path] = []

    def load(path: Path, spec: Preprocess) -> np.ndarray:
        calls.append(path)
        return np.full(spec.shape, len(path.name), np.uint8)

    monkeypatch.setattr(base, "load_image", load)
    monkeypatch.setattr(base, "CACHE_BYTES", 2 * 4 * 5 * 3)  # two images
    images = FileImages([Path("a"), Path("bb"), Path("ccc")], None, NAMES[:3], SPEC)
    assert calls == []
    for _ in range(2):
        assert images.load([0])[0, 0, 0, 0] == 1
        assert images.subset([1]).load([0])[0, 0, 0, 0] == 2
    assert calls == [Path("a"), Path("bb")]
    for _ in range(2):
        assert images.load([2])[0, 0, 0, 0] == 3
    assert calls[2:] == [Path("ccc"), Path("ccc")]


def test_a_bad_file_is_named(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.png", tmp_path / "bad.png"
    Image.fromarray(PIXELS[0]).save(good)
    bad.write_bytes(good.read_bytes()[:40])
    images = FileImages([good, bad], None, ["g", "b"], SPEC)
    images.load([0])
    with pytest.raises(ImageError, match=r"bad\.png: "):
        images.load([0, 1])
