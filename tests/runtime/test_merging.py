"""Answers of disjoint parts merge to the answer over the whole."""

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.codes import CodeFormat
from metah_runtime.results import merge_matches, merge_ranges, nearest_within
from metah_runtime.search import CodeIndex


@pytest.mark.parametrize("parts", [1, 2, 5])
@pytest.mark.parametrize("k", [1, 10, 500])
def test_merge_equals_whole(parts, k):
    rng = np.random.default_rng(parts * 1000 + k)
    codes = rng.integers(0, 256, (300, 1), dtype=np.uint8)
    ids = rng.permutation(300).astype(np.int64)
    queries = rng.integers(0, 256, (7, 1), dtype=np.uint8)
    starts = [0, 40, 41, 41, 200][:parts]
    split = [slice(a, b) for a, b in zip(starts, [*starts[1:], 300], strict=True)]
    found = [reference.search(queries, codes[s], k, ids[s]) for s in split]
    ranges = [reference.range_search(queries, codes[s], 2, ids[s]) for s in split]
    whole = reference.search(queries, codes, k, ids)
    merged = merge_matches(found, k)
    np.testing.assert_array_equal(merged.ids, whole.ids)
    np.testing.assert_array_equal(merged.distances, whole.distances)
    whole_range = reference.range_search(queries, codes, 2, ids)
    merged_range = merge_ranges(ranges)
    for name in ("lims", "ids", "distances"):
        np.testing.assert_array_equal(getattr(merged_range, name), getattr(whole_range, name))


def test_nothing_to_merge():
    with pytest.raises(ValueError, match="at least one part"):
        merge_matches([], 1)
    with pytest.raises(ValueError, match="at least one part"):
        merge_ranges([])


@pytest.mark.parametrize("detail_bits", [0, 16])
def test_the_first_within_a_radius(detail_bits):
    rng = np.random.default_rng(3)
    form = CodeFormat(bits=8, detail_bits=detail_bits)
    codes = rng.integers(0, 256, (400, form.width), dtype=np.uint8)
    codes[:, 0] = rng.choice([0, 1, 255], 400, p=[0.1, 0.8, 0.1])
    index = CodeIndex(codes, code_format=form)
    for query in codes[[0, 7]][:, None]:
        for radius in (0, 1, 7, 8):
            ball = reference.range_search(query, codes, radius, code_format=form)
            for count in (0, 1, 5, 60, len(ball.ids)):
                found = nearest_within(
                    index, query, radius, min(count, len(ball.ids)), len(ball.ids)
                )
                assert found.ids.tolist() == [ball.ids[:count].tolist()]
                assert found.distances.tolist() == [ball.distances[:count].tolist()]
                if ball.code_distances is not None:
                    assert found.code_distances.tolist() == [ball.code_distances[:count].tolist()]
