"""Plans cover everything, fit the memory, and pick the kernel that the architecture has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime.cuda import planner

CODES = {1: 4096, 2: 2048, 4: 2048, 8: 1024}  # a block of 256 threads; 512 for the other widths
TILES = {2: 8, 4: 8, 8: 4, 12: 2, 16: 2}


@given(
    bits=st.integers(1, 128).map(lambda b: 8 * b),
    rows=st.integers(1, planner.MAX_ROWS),
    queries=st.integers(1, planner.MAX_QUERIES),
    arch=st.sampled_from([75, 80, 86, 89, 90, 100, 103, 120]),
    processors=st.sampled_from([1, 20, 132]),
    count=st.booleans(),
)
def test_a_scan_meets_every_pair_once(bits, rows, queries, arch, processors, count):
    plan = planner.plan_scan(
        bits=bits, rows=rows, queries=queries, arch=arch, processors=processors, count=count
    )
    words = planner.padded_words(bits)
    name, _, suffix = plan.kernel.partition("_w")
    assert int(suffix) == words
    assert words * 32 >= bits
    tensor = name == "mma"
    block = 128 * TILES.get(words, 1) if tensor else CODES.get(words, 512)
    across, down = plan.grid
    assert (across - 1) * block < rows <= across * block
    assert across * block <= planner.padded_rows(rows), "a load of the scan leaves the buffer"
    assert (down - 1) * plan.group < queries <= down * plan.group
    assert down <= 65535
    assert plan.group % (128 if tensor else 64) == 0
    if tensor:
        assert 80 <= arch < 100
        assert not count
    assert (name == "count") == count


@pytest.mark.parametrize(
    ("bits", "queries", "arch", "kernel"),
    [
        (64, 1, 90, "scan_w2"),
        (64, 1024, 90, "mma_w2"),
        (48, 1024, 80, "mma_w2"),
        (64, 1024, 100, "scan_w2"),
        (64, 1024, 120, "scan_w2"),
        (32, 1024, 90, "scan_w1"),
        (128, 64, 89, "mma_w4"),
        (136, 16, 90, "scan_w8"),
        (1024, 1024, 90, "mma_w32"),
    ],
)
def test_the_kernel_is_picked_by_bits_batch_and_architecture(bits, queries, arch, kernel):
    plan = planner.plan_scan(bits=bits, rows=10**7, queries=queries, arch=arch, processors=132)
    assert plan.kernel == kernel


@given(
    rows=st.integers(1, planner.MAX_ROWS),
    queries=st.integers(1, 1024),
    k=st.integers(1, 10**6),
    rank=st.one_of(st.none(), st.integers(1, 1 << 40)),
)
def test_a_sample_lies_in_the_rows(rows, queries, k, rank):
    k = min(k, rows)
    sample = planner.plan_sample(rows=rows, queries=queries, k=k, rank=rank)
    assert sample.runs >= 1
    assert sample.step >= 32 or sample.runs == 1
    assert (sample.runs - 1) * sample.step < rows
    assert 1 <= sample.rank < 1 << 32
    assert sample.blocks >= 1
    room = planner.plan_room(rows=rows, k=k, sample=sample)
    assert k <= room <= rows


@given(
    rows=st.integers(1, 10**11),
    bits=st.integers(1, 128).map(lambda b: 8 * b),
    budget=st.integers(1 << 20, 80 << 30),
)
def test_chunks_fit(rows, bits, budget):
    resident, step = planner.plan_chunks(rows=rows, bits=bits, budget=budget)
    assert 1 <= step <= planner.MAX_ROWS
    if resident:
        assert step == rows
        assert planner.code_bytes(rows, bits) <= 0.75 * budget
    else:
        assert step % planner.ROW_STEP == 0
        assert planner.code_bytes(step, bits) <= budget / 2


def test_room_for_the_common_case():
    """1e7 x 64 bits, the 100 nearest: about 1200 keys come through, three times that is held."""
    sample = planner.plan_sample(rows=10**7, queries=1024, k=100)
    assert sample == planner.SamplePlan(runs=2048, step=4882, rank=8, blocks=1)
    assert planner.plan_room(rows=10**7, k=100, sample=sample) == 3760
    assert planner.plan_queries(room=3760, budget=1 << 30) == 16384
