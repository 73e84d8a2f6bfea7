"""Indexes of both versions open for ever; a reader written from docs/index-format.md agrees."""

import hashlib
import json
import os
import re
import shutil
import struct
from itertools import pairwise
from pathlib import Path

import numpy as np

from metah_runtime.codes import CodeFormat
from metah_runtime.index import Index

GOLDEN = Path(__file__).parent / "golden-v1"
CODES = (np.arange(72, dtype=np.uint32) * 37 % 251).astype(np.uint8).reshape(12, 6)
CONTENT = {
    0: (CODES[0], "a.png"),
    2: (CODES[2], os.fsdecode(b"\xff/\n")),
    3: (CODES[3], "d"),
    4: (CODES[4], "é.jpg"),
    5: (CODES[5], "f"),
    100: (CODES[0] ^ 255, None),
    2**62: (CODES[6], None),
    2**62 + 1: (CODES[10], None),
    2**62 + 2: (CODES[11], None),
}


GOLDEN_2 = GOLDEN.with_name("golden-v2")
CODES_2 = (np.arange(40, dtype=np.uint32) * 53 % 241).astype(np.uint8).reshape(8, 5)
CONTENT_2 = {
    0: (CODES_2[0], "a.png", "target", "cat", 1),
    2: (CODES_2[2], None, "target", None, 3),
    3: (CODES_2[3], "/d", "target", "cat", None),
    4: (CODES_2[4], "/e", "source", None, None),
    5: (CODES_2[5], "/f", "source", None, None),
    2**62 + 5: (CODES_2[7], None, "source", None, None),
}
"""Rows, paths as stored, domains and the attributes label and size."""


def test_the_golden_index_opens() -> None:
    with Index.open(GOLDEN, expect="golden", check="open") as index:
        assert (index.bits, index.model, index.generation) == (48, "a model, é", 5)
        assert index.metadata == {"bundle": "x", "n": [1, None]}
        ids = list(CONTENT)
        assert index.ids().tolist() == ids
        assert np.array_equal(index.codes(ids), [code for code, _ in CONTENT.values()])
        assert index.paths(ids) == [path for _, path in CONTENT.values()]
        assert index.search(CODES[10:11], 1).ids.tolist() == [[2**62 + 1]]


def test_a_copy_of_it_can_be_written(tmp_path: Path) -> None:
    shutil.copytree(GOLDEN, tmp_path / "copy")
    index = Index.open(tmp_path / "copy")
    assert index.add(CODES[:1]).tolist() == [2**62 + 3]
    index.compact()
    assert index.ids().tolist() == [*CONTENT, 2**62 + 3]
    assert index.verify() == 1


def crc32c(data: bytes) -> int:
    crc = 0xFFFFFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82F63B78 if crc & 1 else 0)
    return crc ^ 0xFFFFFFFF


def read_file(folder: Path, entry: dict, manifest: dict, kind: int) -> tuple:
    """Return (codes, ids, paths, header fields) of one file, by the letter of the document."""
    data = (folder / entry["file"]).read_bytes()
    head = struct.unpack_from("<8s6I16s32s2Q3q2Q2I", data)
    magic, version, order, is_kind, bits, block, width, index_id, fingerprint = head[:9]
    number, rows, first, last, path_bytes, subject, length, table_crc, _ = head[9:]
    assert (magic, version, order, is_kind, block) == (b"METAHSEG", 1, 0x0A0B0C0D, kind, 1048576)
    assert data[140:252] == bytes(112)
    assert struct.unpack_from("<I", data, 252)[0] == crc32c(data[:252])
    assert f"{crc32c(data[:252]):08x}" == entry["header_crc32c"]
    assert index_id.hex() == manifest["index_id"]
    assert fingerprint == hashlib.sha256(manifest["fingerprint"].encode()).digest()
    assert (rows, length) == (entry["rows"], entry["bytes"])
    assert bits == manifest["bits"] + manifest.get("detail_bits", 0)
    assert number == int(re.findall(r"\d+", entry["file"])[0])

    def up64(x: int) -> int:
        return (x + 63) // 64 * 64

    end = 256 + (rows * bits // 8 if kind == 1 else 0)
    codes, at = data[256:end], up64(end)
    if kind == 3:
        ids = [*range(rows)]
    elif width == 0:
        ids = [*range(first, last + 1)]
    else:
        ids = list(struct.unpack_from(f"<{rows}q", data, at))
        at = up64(at + 8 * rows)
    assert len(ids) == rows
    assert ids == sorted(set(ids))
    assert (ids[0], ids[-1]) == (first, last)
    paths = [b""] * rows
    if kind == 3:
        paths, at = read_attributes(data, at, path_bytes, rows), up64(at + path_bytes)
    elif path_bytes >= 0:
        ends = [0, *struct.unpack_from(f"<{rows}Q", data, at)]
        at = up64(at + 8 * rows)
        paths = [data[at + a : at + b] for a, b in pairwise(ends)]
        at = up64(at + path_bytes)
    blocks = -(-(at - 256) // block)
    table = data[at:]
    assert len(table) == 4 * blocks
    assert crc32c(table) == table_crc
    for i, due in enumerate(struct.unpack(f"<{blocks}I", table)):
        assert crc32c(data[256 + i * block : min(256 + (i + 1) * block, at)]) == due
    return codes, ids, paths, subject, number


def read_attributes(data: bytes, start: int, length: int, rows: int) -> list:
    """Return the attributes of each row as a dictionary without those that have no value."""
    size = struct.unpack_from("<Q", data, start)[0]
    found: list[dict] = [{} for _ in range(rows)]
    at = start + 8 + size
    for column in json.loads(data[start + 8 : at]):
        at = (at + 63) // 64 * 64
        form = {"text": "I", "int": "q"}[column["type"]]
        values = struct.unpack_from(f"<{rows}{form}", data, at)
        at += struct.calcsize(f"<{rows}{form}")
        for row, value in zip(found, values, strict=True):
            if column["type"] == "text" and value:
                row[column["name"]] = column["values"][value - 1]
            elif column["type"] == "int" and value != -(2**63):
                row[column["name"]] = value
    assert at == start + length
    return found


def test_the_golden_index_of_version_2_opens() -> None:
    with Index.open(GOLDEN_2, expect="golden 2", check="open") as index:
        assert index.code_format == CodeFormat(bits=16, detail_bits=24, code_weight=2)
        assert (index.info()["version"], index.model, index.generation) == (2, "two parts", 4)
        ids = list(CONTENT_2)
        assert index.ids().tolist() == ids
        rows = list(CONTENT_2.values())
        assert np.array_equal(index.codes(ids), [row[0] for row in rows])
        base = str(GOLDEN_2.resolve().parent / "photos")
        due = [row[1] and f"{base}/{row[1]}".replace(f"{base}//", "/") for row in rows]
        assert index.paths(ids) == due
        assert index.domains(ids) == [row[2] for row in rows]
        kept = {"label": [row[3] for row in rows], "size": [row[4] for row in rows]}
        assert index.attributes(ids) == kept
        found = index.search(CODES_2[4:5], 1)
        assert (found.ids.tolist(), found.distances.tolist()) == ([[4]], [[0]])


def test_the_reader_of_the_document_reads_version_2() -> None:
    data = (GOLDEN_2 / "MANIFEST").read_bytes()
    assert data[-16:] == b"crc32c:%08x\n" % crc32c(data[:-16])
    manifest = json.loads(data[:-16])
    assert (manifest["version"], manifest["base"]) == (2, "../photos")
    width = (manifest["bits"] + manifest["detail_bits"]) // 8
    found = {}
    for segment in manifest["segments"]:
        codes, ids, paths, _, number = read_file(GOLDEN_2, segment["codes"], manifest, 1)
        gone, values = [], [{}] * len(ids)
        if segment["removed"]:
            _, gone, _, subject, _ = read_file(GOLDEN_2, segment["removed"], manifest, 2)
            assert subject == number
        if segment["attributes"]:
            _, _, values, subject, _ = read_file(GOLDEN_2, segment["attributes"], manifest, 3)
            assert subject == number
        for row, key in enumerate(ids):
            if row not in gone:
                code, path = codes[width * row : width * (row + 1)], os.fsdecode(paths[row])
                some = values[row]
                label, size = some.get("label"), some.get("size")
                found[key] = code, path or None, segment["domain"], label, size
    assert found == {key: (bytes(code), *rest) for key, (code, *rest) in CONTENT_2.items()}


def test_a_reader_written_from_the_document_agrees() -> None:
    data = (GOLDEN / "MANIFEST").read_bytes()
    assert data[-16:] == b"crc32c:%08x\n" % crc32c(data[:-16])
    manifest = json.loads(data[:-16])
    assert (manifest["format"], manifest["version"]) == ("metah-index", 1)
    found = {}
    for segment in manifest["segments"]:
        codes, ids, paths, _, number = read_file(GOLDEN, segment["codes"], manifest, 1)
        gone = []
        if segment["removed"]:
            _, gone, _, subject, _ = read_file(GOLDEN, segment["removed"], manifest, 2)
            assert subject == number
        for row, key in enumerate(ids):
            if row not in gone:
                assert key not in found
                found[key] = codes[6 * row : 6 * row + 6], os.fsdecode(paths[row]) or None
    assert found == {key: (bytes(code), path) for key, (code, path) in CONTENT.items()}
