"""Answers of disjoint parts merge to the answer over the whole."""

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.results import merge_matches, merge_ranges


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
