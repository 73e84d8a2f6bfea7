"""Averaged curves, maps of codes, and that the pictures hold what they are given."""

import io
from typing import Any

import numpy as np
from PIL import Image

from metah_train.compare import curves
from metah_train.compare.curves import MeanCurves

METHODS = [("lsh", "LSH"), ("metah", "METAH")]


def size(data: bytes) -> tuple[int, int]:
    return Image.open(io.BytesIO(data)).size


def line(value: float) -> MeanCurves:
    return MeanCurves(
        precision=np.linspace(1, value, 17),
        recall=np.linspace(0, 1, 17),
        n=np.array([100.0, 200.0]),
        precision_at_n=np.array([value, value / 2]),
    )


def test_curves_are_averaged_point_by_point() -> None:
    seeds: list[dict[str, Any]] = [
        {name: np.array(v) for name, v in part.items()}
        for part in (
            {"precision": [1.0, 0.5], "recall": [0.0, 1.0], "n": [10.0], "precision_at_n": [0.2]},
            {"precision": [0.0, 0.1], "recall": [0.2, 1.0], "n": [10.0], "precision_at_n": [0.4]},
        )
    ]
    found = MeanCurves.mean(seeds)
    np.testing.assert_allclose(found.precision, [0.5, 0.3])
    np.testing.assert_allclose(found.recall, [0.1, 1.0])
    np.testing.assert_allclose(found.precision_at_n, [0.3])


def test_pictures_have_a_panel_for_each_length_and_change_with_the_data() -> None:
    lines = {(name, bits): line(0.3) for name, _ in METHODS for bits in (16, 24)}
    for draw in (curves.pr_curves, curves.precision_at_n):
        one, two = draw(lines, METHODS, [16]), draw(lines, METHODS, [16, 24])
        assert size(two)[0] > size(one)[0]
        assert draw(lines, METHODS, [16]) == one
        assert draw({**lines, ("metah", 16): line(0.6)}, METHODS, [16]) != one
        assert draw({("lsh", 16): line(0.3)}, METHODS, [16]) != one  # a cell may be missing
    records = [
        {"method": "lsh", "bits": 16, "metrics": {"map_h2": v, "recall_h2": v}} for v in (0.2, 0.4)
    ]
    assert curves.map_recall(records, METHODS, [16]) != curves.map_recall(
        records[:1], METHODS, [16]
    )


def test_t_sne_keeps_clusters_of_codes_apart() -> None:
    rng = np.random.default_rng(0)
    centres = rng.integers(0, 256, (2, 4), dtype=np.uint8)
    codes = np.repeat(centres, 20, axis=0)
    codes[:, 0] ^= (1 << rng.integers(0, 8, 40)).astype(np.uint8)
    points = curves.embed(codes)
    assert points.shape == (40, 2)
    middle = points.reshape(2, 20, 2).mean(1)
    spread = np.linalg.norm(points.reshape(2, 20, 2) - middle[:, None], axis=2).max()
    assert np.linalg.norm(middle[0] - middle[1]) > spread
    np.testing.assert_array_equal(points, curves.embed(codes))


def test_code_maps_have_a_row_for_each_method() -> None:
    rng = np.random.default_rng(0)
    points = rng.standard_normal((30, 2))
    labels, domain = np.arange(30) % 12, np.repeat([0, 1], 15)
    names = [f"class {i}" for i in range(12)]
    one = curves.code_maps([("A", points)], labels, domain, names)
    two = curves.code_maps([("A", points), ("B", points)], labels, domain, names)
    assert size(two)[1] > size(one)[1]
    assert curves.code_maps([("A", points)], labels, 1 - domain, names) != one
