"""Single kernels against numpy: what the search would hide, for it repairs a bad bound."""

import numpy as np
import pytest

from metah_runtime import reference
from metah_runtime.cuda.piece import ALL_ROWS, NO_KEY, Piece


def put(device, array):
    address = device.alloc(max(1, array.nbytes))
    device.write(address, array)
    return np.uint64(address)


def get(device, address, shape, dtype):
    out = np.empty(shape, dtype)
    device.read(int(address), out)
    return out


@pytest.mark.parametrize("width", [4, 6, 8, 16, 40, 128])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_sample_counts_every_distance(simulate, width, seed):
    rng = np.random.default_rng(seed)
    codes = rng.integers(0, 256, (777, width), dtype=np.uint8)
    queries = rng.integers(0, 256, (3, width), dtype=np.uint8)
    runs, step = 7, 123  # the last run ends after the last row
    with simulate(seed=seed) as device:
        piece = Piece(device, 8 * width, 1 << 20)
        piece.load(codes)
        words = piece._words
        bins = 32 * words + 1
        histogram = put(device, np.zeros((3, bins), np.uint32))
        device.launch(
            f"sample_w{words}", (2, 3), 256,
            [np.uint64(piece._codes()), np.uint64(piece._stride), np.uint32(777), np.uint32(runs),
             np.uint32(step), np.uint64(piece._put_queries(queries)), histogram],
        )  # fmt: skip
        found = get(device, histogram, (3, bins), np.uint32)
    rows = (np.arange(runs)[:, None] * step + np.arange(32)).ravel()
    truth = reference.distances(queries, codes[rows[rows < 777]])
    for row in range(3):
        np.testing.assert_array_equal(found[row], np.bincount(truth[row], minlength=bins))


@pytest.mark.parametrize(
    ("rank", "bound"),
    [
        (1, (3, 1000 * 1 // 4)),
        (4, (3, 1000)),
        (5, (40, 1000 * 1 // 10)),
        (14, (40, 1000)),
        (15, None),
    ],
)
def test_first_bound(simulate, rank, bound):
    histogram = np.zeros((2, 65), np.uint32)
    histogram[0, [3, 40]] = 4, 10
    with simulate() as device:
        bounds = put(device, np.zeros(2, np.uint64))
        limits = put(device, np.array([NO_KEY, 77], np.uint64))
        device.launch(
            "first_bound", (2, 1), 32,
            [put(device, histogram), np.uint32(65), np.uint32(rank), np.uint32(1000), limits,
             bounds],
        )  # fmt: skip
        found = get(device, bounds, 2, np.uint64)
    assert found[0] == (NO_KEY if bound is None else bound[0] << 32 | bound[1])
    assert found[1] == 77, "the ceiling"


@pytest.mark.parametrize("n", [0, 1, 31, 257, 2047, 2048, 2049, 5000])
@pytest.mark.parametrize("k", [1, 100, 4999])
@pytest.mark.parametrize("seed", [0, 5])
def test_first_keys(simulate, n, k, seed):
    """Sorts any number of keys, with few and with many equal distances."""
    rng = np.random.default_rng(n + k)
    spread = 1025 if seed else 3
    rows = rng.permutation(1 << 20)[:n].astype(np.uint64)
    keys = rng.integers(0, spread, n).astype(np.uint64) << np.uint64(32) | rows
    room = 5000
    with simulate(seed=seed) as device:
        buffer = put(device, np.concatenate([keys, np.full(room - n, 1, np.uint64)]))
        out = put(device, np.zeros(k, np.uint64))
        kth = put(device, np.zeros(1, np.uint64))
        device.launch(
            "first_keys", (1, 1), 256,
            [buffer, put(device, np.zeros(room, np.uint64)),
             put(device, np.array([0, room], np.uint64)), put(device, np.array([n], np.uint32)),
             np.uint32(k), np.uint32(1025), np.uint32(3), put(device, np.zeros(1, np.uint64)),
             out, kth],
        )  # fmt: skip
        found, bound = get(device, out, k, np.uint64), get(device, kth, 1, np.uint64)
    m = min(n, k)
    np.testing.assert_array_equal(found[:m], np.sort(keys)[:m])
    np.testing.assert_array_equal(found[m:], 0)
    assert bound[0] == (np.sort(keys)[k - 1] if n >= k else 0)


def test_a_full_buffer_still_gives_a_bound(simulate):
    """Counted 10, room for 4: the k-th of the four that were kept."""
    with simulate() as device:
        kth = put(device, np.zeros(1, np.uint64))
        device.launch(
            "first_keys", (1, 1), 256,
            [put(device, np.array([9, 7, 8, 6], np.uint64)), put(device, np.zeros(4, np.uint64)),
             put(device, np.array([0, 4], np.uint64)), put(device, np.array([10], np.uint32)),
             np.uint32(2), np.uint32(65), np.uint32(1), put(device, np.zeros(1, np.uint64)),
             put(device, np.zeros(2, np.uint64)), kth],
        )  # fmt: skip
        assert get(device, kth, 1, np.uint64)[0] == 7


def test_scan_writes_no_more_than_the_room_and_counts_all(simulate):
    codes = np.zeros((500, 8), np.uint8)
    with simulate(arch=90) as device:
        piece = Piece(device, 64, 1 << 20)
        piece.load(codes)
        for kernel in ("scan_w2", "mma_w2"):
            keys = put(device, np.full(30, 5, np.uint64))
            counts = put(device, np.zeros(1, np.uint32))
            device.launch(
                kernel, (1, 1), 256,
                [np.uint64(piece._codes()), np.uint64(piece._stride), np.uint32(500),
                 np.uint64(piece._put_queries(codes[:1])), np.uint32(1), np.uint32(128),
                 put(device, np.array([ALL_ROWS], np.uint64)),
                 put(device, np.array([10, 20], np.uint64)), counts, keys],
            )  # fmt: skip
            found = get(device, keys, 30, np.uint64)
            assert get(device, counts, 1, np.uint32)[0] == 500
            assert (found[:10] == 5).all()
            assert (found[20:] == 5).all()
            assert len(set(found[10:20].tolist())) == 10
            assert (found[10:20] < 500).all()
