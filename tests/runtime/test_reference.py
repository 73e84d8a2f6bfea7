"""The reference itself, against values worked out by hand."""

import numpy as np

from metah_runtime import reference

CODES = np.array([[0b00000000], [0b00000001], [0b11111111], [0b00000010], [0b00000000]], np.uint8)
QUERY = np.array([[0b00000000]], np.uint8)


def test_distances_by_hand():
    assert reference.distances(QUERY, CODES).tolist() == [[0, 1, 8, 1, 0]]


def test_search_orders_by_distance_then_id():
    found = reference.search(QUERY, CODES, 4)
    assert found.ids.tolist() == [[0, 4, 1, 3]]
    assert found.distances.tolist() == [[0, 0, 1, 1]]
    found = reference.search(QUERY, CODES, 9, np.array([9, 8, 7, 6, 5]))
    assert found.ids.tolist() == [[5, 9, 6, 8, 7]]


def test_range_and_count_include_the_radius():
    found = reference.range_search(np.repeat(QUERY, 2, axis=0), CODES, 1)
    assert found.lims.tolist() == [0, 4, 8]
    assert found[1][0].tolist() == [0, 4, 1, 3]
    assert reference.count(QUERY, CODES, 7).tolist() == [4]
    assert reference.count(QUERY, CODES, 8).tolist() == [5]
