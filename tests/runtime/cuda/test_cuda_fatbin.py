"""The compiled kernels: where they come from, and what their machine code must look like."""

import shutil
import subprocess
import sys
from collections import Counter
from pathlib import Path

import pytest
from tests.runtime.cuda import sass

from metah_runtime.cuda import fatbin
from metah_runtime.cuda.planner import WIDTHS
from metah_runtime.errors import BackendUnavailable

# POPC instructions for the codes of a thread: W < 4 one a word, then 3 of 4 words, 4 of 8.
POPC = {1: 16, 2: 16, 4: 24, 8: 16, 12: 14, 16: 16, 20: 22, 24: 24, 28: 30, 32: 32}
LOADS = {1: 4, 2: 4, 4: 8, 8: 8}  # uint4 loads of a thread; 2 W / 4 for the other widths
TENSOR = (80, 90)
SETTINGS = fatbin.read_settings(fatbin.source_folder())


@pytest.fixture(scope="module")
def kernel_image(cache):
    """The image that searches load: shipped with the installation, else compiled and kept."""
    if sass.find_tools() is None:
        pytest.skip("cuobjdump and nvdisasm are not installed")
    try:
        return fatbin.load_image()
    except BackendUnavailable as error:
        if shutil.which("nvcc"):
            raise
        pytest.skip(f"nvcc is not installed: {error}")


@pytest.fixture(scope="module", params=SETTINGS.archs)
def code(request, kernel_image):
    """Architecture and {kernel: instructions}."""
    return request.param, sass.disassemble(kernel_image, request.param)


def test_no_register_is_spilled(code):
    _, kernels = code
    local = {
        name: one.opcode
        for name, body in kernels.items()
        for one in body
        if one.opcode.startswith(("LDL", "STL"))
    }
    assert local == {}


def test_codes_come_in_128_bit_loads(code):
    _, kernels = code
    for width in WIDTHS:
        for name in (f"scan_w{width}", f"count_w{width}"):
            wide = [o for o in kernels[name] if o.opcode.startswith("LDG") and ".128" in o.opcode]
            assert len(wide) == LOADS.get(width, width // 2), name


def test_popc_of_the_inner_loop(code):
    _, kernels = code
    for width in WIDTHS:
        for name in (f"scan_w{width}", f"count_w{width}"):
            counts = sass.opcode_counts(sass.hot_loop(kernels[name]))
            assert counts["POPC"] == POPC[width], name
            assert counts["LDG"] == counts["STG"] == counts["BAR"] == counts["ATOMG"] == 0, name


def test_tensor_cores_where_they_are(code):
    arch, kernels = code
    for width in WIDTHS[1:]:
        for name in (f"mma_w{width}", f"mma_count_w{width}"):
            if arch not in TENSOR:
                assert name not in kernels, "emulated there, slower than POPC"
                continue
            hot = sass.hot_loop(kernels[name])
            tiles = {2: 8, 4: 4, 8: 4}.get(width, 2)
            planes = 1 if width == 2 else width // 4  # products of 128 bits, two in one of 256
            shapes = Counter(o.opcode for o in hot if o.opcode.startswith("BMMA"))
            wanted = {"168256": tiles * (planes // 2), "168128": tiles * (planes % 2)}
            assert shapes == {f"BMMA.{s}.AND.POPC": n for s, n in wanted.items() if n}, name
            assert sass.opcode_counts(hot)["POPC"] == 0, name


def test_all_kernels_are_there(code):
    arch, kernels = code
    assert len(kernels) == 3 * 10 + 4 + (18 if arch in TENSOR else 0)


def test_hot_loop_leaves_out_the_rare_path():
    text = """
		Function : toy
        /*0000*/                   MOV R1, c[0x0][0x28] ;
        /*0010*/                   LDS.64 R4, [UR6] ;
        /*0020*/                   POPC R3, R3 ;
        /*0030*/                   VOTE.ANY P0, !P0 ;
        /*0040*/              @!P0 BRA 0x70 ;
        /*0050*/                   POPC R4, R4 ;
        /*0060*/               @P1 STG.E.64 desc[UR10][R2.64], R34 ;
        /*0070*/                   UIADD3 UR5, UR5, 0x1, URZ ;
        /*0080*/              @!P0 BRA 0x10 ;
        /*0090*/                   EXIT ;
"""
    kernels = sass.parse(text)
    assert len(kernels["toy"]) == 10
    assert dict(sass.opcode_counts(sass.hot_loop(kernels["toy"]))) == {
        "LDS": 1, "POPC": 1, "VOTE": 1, "BRA": 2, "UIADD3": 1,
    }  # fmt: skip


def test_the_shipped_image_is_used_only_for_its_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(fatbin, "_INSTALLED", tmp_path)
    monkeypatch.setattr(fatbin, "fatbin_flags", lambda settings: ())
    monkeypatch.setattr(fatbin, "compile_image", lambda folder, flags: b"compiled")
    assert fatbin.load_image() == b"compiled", "nothing is shipped"
    (tmp_path / "hamming.fatbin").write_bytes(b"shipped")
    (tmp_path / "hamming.sha256").write_text("0" * 64)
    assert fatbin.load_image() == b"compiled", "shipped for other sources"
    digest = fatbin.source_hash(fatbin.source_folder())
    (tmp_path / "hamming.sha256").write_text(digest + "\n")
    assert fatbin.load_image() == b"shipped"


def test_cmake_builds_the_same_image(tmp_path):
    """Flags and hash of the shipped fatbin are those of the one that is compiled at first use."""
    cmake, python = shutil.which("cmake"), sys.executable
    if cmake is None:
        cmake = shutil.which("cmake", path=Path(python).parent)
    if cmake is None:
        pytest.skip("cmake is not installed")
    fake_nvcc(tmp_path, "echo sm_80; echo sm_90; echo sm_90a")
    kernels = fatbin.source_folder()
    script = tmp_path / "CMakeLists.txt"
    script.write_text(
        "cmake_minimum_required(VERSION 3.20)\nproject(kernels LANGUAGES NONE)\n"
        f"set(METAH_NVCC {tmp_path}/nvcc)\nset(METAH_KERNELS {kernels})\n"
        f"include({kernels}/build.cmake)\n"
        'file(WRITE flags "${METAH_CUDA_FLAGS}")\nfile(WRITE sources "${METAH_CUDA_SOURCES}")\n'
        'file(WRITE hash "${METAH_CUDA_HASH}")\n'
    )
    subprocess.run([cmake, "-S", tmp_path, "-B", tmp_path], check=True, capture_output=True)
    known = [f"-gencode=arch=compute_{a},code=sm_{a}" for a in (80, 90)]
    ptx = f"-gencode=arch=compute_{SETTINGS.ptx},code=compute_{SETTINGS.ptx}"
    flags = (tmp_path / "flags").read_text().split(";")
    assert flags == [*SETTINGS.options, *known, ptx]
    sources = [Path(name).name for name in (tmp_path / "sources").read_text().split(";")]
    assert sources == ["build.json", *SETTINGS.sources]
    assert (tmp_path / "hash").read_text() == fatbin.source_hash(kernels)


def test_code_for_the_architectures_that_nvcc_knows(tmp_path, monkeypatch):
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_nvcc(tmp_path, "echo sm_80; echo sm_90; echo sm_90a")
    assert fatbin.fatbin_flags(SETTINGS) == (
        "-std=c++17", "-O3", "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90,code=sm_90", "-gencode=arch=compute_80,code=compute_80",
    )  # fmt: skip


def test_without_a_compiler(tmp_path, monkeypatch):
    monkeypatch.setattr(fatbin, "_INSTALLED", tmp_path)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BackendUnavailable, match="nvcc is not on PATH; fix: install a wheel"):
        fatbin.load_image()


def test_without_sources(tmp_path, monkeypatch):
    monkeypatch.setattr(fatbin, "_INSTALLED", tmp_path)
    monkeypatch.setattr(fatbin, "_TREE", tmp_path)
    with pytest.raises(BackendUnavailable, match="the installation is incomplete"):
        fatbin.load_image()


def fake_nvcc(folder, body):
    path = folder / "nvcc"
    path.write_text(f"#!/bin/sh\n{body}\n")
    path.chmod(0o755)


def test_compiled_once_and_kept_by_hash(tmp_path, monkeypatch):
    monkeypatch.setenv("METAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_nvcc(
        tmp_path,
        f'echo "$1" >> {tmp_path}/log\n[ "$1" = --version ] && echo 1.0 && exit\n'
        'while [ "$1" != -o ]; do shift; done; echo image > "$2"',
    )
    folder = fatbin.source_folder()
    for _ in range(2):
        assert fatbin.compile_image(folder, ("-a",)) == b"image\n"
    assert (tmp_path / "log").read_text().split().count("-fatbin") == 1
    fatbin.compile_image(folder, ("-b",))
    assert (tmp_path / "log").read_text().split().count("-fatbin") == 2
    assert len(list((tmp_path / "cache" / "cuda").iterdir())) == 2


def test_a_failing_compiler(tmp_path, monkeypatch):
    monkeypatch.setenv("METAH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    fake_nvcc(tmp_path, '[ "$1" = --version ] && exit 0\necho "no sm_80 here" >&2; exit 1')
    with pytest.raises(BackendUnavailable, match="nvcc failed on the CUDA kernels: no sm_80 here"):
        fatbin.compile_image(fatbin.source_folder(), ("-a",))
    assert not (tmp_path / "cache" / "cuda").exists()
