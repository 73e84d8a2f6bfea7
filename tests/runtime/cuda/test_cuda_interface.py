"""Kernels and host share one header: another number in it changes both, or nothing compiles."""

import re
import shutil

import numpy as np
import pytest
from tests.runtime.cuda.searches import POPC, TENSOR, make
from tests.runtime.cuda.simulator import SimulatedDevice, build, kernel_sources

from metah_runtime import reference
from metah_runtime.cuda import interface, planner
from metah_runtime.cuda.search import CudaSearch
from metah_runtime.errors import BackendUnavailable

needs_compiler = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def header(popc="X(2, 8)", mma="X(2, 8)", **numbers):
    """interface.h for 64 bits alone, with other tiles and numbers."""
    text = kernel_sources()["interface.h"]
    text = re.sub(r"(#define POPC_WIDTHS\(X\)).*", rf"\1 {popc}", text)
    text = re.sub(r"(#define MMA_WIDTHS\(X\)).*", rf"\1 {mma}", text)
    for name, value in numbers.items():
        text, found = re.subn(rf"(#define {name}) \d+", rf"\1 {value}", text)
        assert found == 1, name
    return text


@needs_compiler
@pytest.mark.parametrize("arch", [POPC, TENSOR])
def test_other_tiles_are_followed_by_the_planner(cache, monkeypatch, arch):
    """Fewer codes a block need more blocks; a planner of other numbers leaves rows unscanned."""
    text = header("X(2, 4)", "X(2, 2)", QUERY_TILE=32, MMA_QUERY_TILE=64)
    device = SimulatedDevice(build({"interface.h": text}), arch=arch, processors=0)
    rng = np.random.default_rng(arch)
    codes, queries = make(rng, 3000, 8, "uniform"), make(rng, 90, 8, "uniform")
    truth = reference.search(queries, codes, 20)
    index = CudaSearch(codes, devices=[device])
    wrong = index.search(queries, 20)
    assert not np.array_equal(wrong.ids, truth.ids), "the numbers do not matter"
    monkeypatch.setattr(planner, "_KERNELS", interface.parse(text))
    found = index.search(queries, 20)
    np.testing.assert_array_equal(found.ids, truth.ids)
    np.testing.assert_array_equal(found.distances, truth.distances)


@needs_compiler
def test_a_block_cannot_read_beyond_the_padded_rows(cache):
    with pytest.raises(BackendUnavailable, match="must not read beyond the padded rows"):
        build({"interface.h": header(ROW_STEP=1024)})


@needs_compiler
def test_a_struct_that_the_host_packs_in_another_way_does_not_compile(cache, monkeypatch):
    monkeypatch.setitem(interface._FORMATS, "uint32_t", "Q")
    with pytest.raises(BackendUnavailable, match=r"does not compile: .*static assertion failed"):
        build({"interface.h": header()})


def test_every_field_is_packed_in_its_place():
    packed = interface.parameters("NotFiniteParams", bits=64, bad=2, logits=1)
    assert packed == np.array([1, 2, 64], np.uint64).tobytes()
    with pytest.raises(TypeError, match=r"NotFiniteParams has the fields .*'bits'.* got"):
        interface.parameters("NotFiniteParams", logits=1, bad=2)
    with pytest.raises(TypeError, match="NotFiniteParams has the fields"):
        interface.parameters("NotFiniteParams", logits=1, bad=2, bits=3, width=4)


@pytest.mark.parametrize("field", ["float ratio;", "uint32_t both[2];", "uint32_t a, b;"])
def test_a_header_that_is_not_understood_is_an_error(field):
    with pytest.raises((ValueError, KeyError)):
        interface.parse("struct Params {\n  uint64_t first;\n  " + field + "\n};\n")


def test_the_header_is_read_in_full():
    found = interface.load()
    text = kernel_sources()["interface.h"]
    assert len(found.parameters) == text.count("\nstruct ") == 6
    assert len(found.popc_codes) == 10
    assert set(found.mma_tiles) == set(found.popc_codes) - {1}
    assert set(found.numbers) == set(re.findall(r"#define (\w+) \d", text))
