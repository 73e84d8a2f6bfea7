"""Plans cover everything, fit the memory, and pick the kernel that the architecture has."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from metah_runtime.cuda import planner

CODES = {1: 4096, 2: 2048, 4: 2048, 8: 1024}  # a block of 256 threads; 512 for the other widths
TILES = {2: 8, 4: 4, 8: 4}


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
    tensor = name.startswith("mma")
    block = 128 * TILES.get(words, 2) if tensor else CODES.get(words, 512)
    across, down = plan.grid
    assert (across - 1) * block < rows <= across * block
    assert across * block <= planner.padded_rows(rows), "a load of the scan leaves the buffer"
    assert (down - 1) * plan.group < queries <= down * plan.group
    assert down <= 65535
    assert plan.group % (128 if tensor else 64) == 0
    if tensor:
        assert 80 <= arch < 100
    assert name.endswith("count") == count


@pytest.mark.parametrize(
    ("bits", "queries", "arch", "kernel"),
    [
        (64, 1, 90, "scan_w2"),
        (64, 3, 90, "scan_w2"),
        (64, 4, 90, "mma_w2"),
        (128, 4, 80, "scan_w4"),
        (128, 5, 80, "mma_w4"),
        (1024, 6, 90, "scan_w32"),
        (1024, 7, 90, "mma_w32"),
        (64, 1024, 90, "mma_w2"),
        (48, 1024, 80, "mma_w2"),
        (64, 1024, 100, "scan_w2"),
        (64, 1024, 120, "scan_w2"),
        (32, 1024, 90, "scan_w1"),
        (128, 64, 89, "mma_w4"),
        (136, 16, 90, "mma_w8"),
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
    """1e7 x 64 bits, the 100 nearest: about 1200 keys pass the sample's bound; by a second one, 76
    of the first part and 336 of the rest."""
    sample = planner.plan_sample(rows=10**7, queries=1024, k=100)
    assert sample == planner.SamplePlan(runs=2048, step=4882, rank=8, blocks=8)
    assert planner.plan_room(rows=10**7, k=100, sample=sample) == 3760
    assert planner.plan_parts(rows=10**7, queries=1, sample=sample) == 1
    assert planner.plan_parts(rows=10**7, queries=1024, sample=sample) == 16
    assert planner.plan_room(rows=10**7, k=100, sample=sample, every=16) == 2048
    assert planner.plan_queries(room=2048, budget=1 << 30) == 16384


def test_a_thousand_queries_of_1e9_codes_are_one_scan():
    """76,000 keys would pass the sample's bound."""
    sample = planner.plan_sample(rows=10**9, queries=1024, k=100)
    assert sample.rank * 10**9 // (32 * sample.runs) > 76000
    for queries in (1, 16, 1024):
        assert planner.plan_parts(rows=10**9, queries=queries, sample=sample) == 64
    room = planner.plan_room(rows=10**9, k=100, sample=sample, every=64)
    assert room < 10_000
    assert planner.plan_queries(room=room, budget=1 << 30) >= 1024


@given(rows=st.integers(1, planner.MAX_ROWS), every=st.integers(2, 100), words=st.sampled_from(
    planner.WIDTHS))  # fmt: skip
def test_the_parts_of_a_scan_are_all_its_blocks(rows, every, words):
    plans = [
        planner.plan_scan(
            bits=32 * words, rows=rows, queries=100, arch=90, processors=132, part=part, every=every
        ).grid[0]
        for part in (planner.ALL, planner.FIRST, planner.REST)
    ]
    assert plans[0] == plans[1] + plans[2]
    assert plans[1] == -(-plans[0] // every)
