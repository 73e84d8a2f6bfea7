"""A row remembers the domain of its image; an index of the target alone stays version 1."""

import json
from pathlib import Path

import numpy as np
import pytest

from metah_runtime import _checksum
from metah_runtime.errors import ConfigError, IndexCorrupt
from metah_runtime.index import Index

NEW_KEYS = {"version": 2, "detail_bits": 0, "code_weight": 1, "base": None}


def manifest_of(index: Index) -> dict:
    value: dict = json.loads((index.path / "MANIFEST").read_bytes()[:-16])
    return value


def write_manifest(index: Index, value: dict) -> None:
    body = json.dumps(value).encode() + b"\n"
    (index.path / "MANIFEST").write_bytes(body + b"crc32c:%08x\n" % _checksum.crc32c(body))


def test_rows_remember_their_domain(index: Index, make_codes) -> None:
    photos = index.add(make_codes(5))
    renders = index.add(make_codes(3), paths=["a", "b", "c"], domain="source")
    ids = [*renders.tolist(), *photos.tolist()]
    assert index.domains(ids) == ["source"] * 3 + ["target"] * 5
    assert index.info()["domains"] == {"target": 5, "source": 3}
    index.add(make_codes(1), ids=renders[:1], on_duplicate="upsert")
    index.remove(photos[:1])
    index = Index.open(index.path, check="open")
    assert index.domains(renders) == ["target", "source", "source"]
    assert index.info()["domains"] == {"target": 5, "source": 2}


def test_a_stream_may_hold_both(index: Index, make_codes) -> None:
    codes = make_codes(6)
    given = np.array([7, 9])
    index.add_batches(
        [
            codes[:1],
            (codes[1:2], None, None, "source"),
            (codes[2:3], None, None, "source"),
            (codes[3:4],),
            (codes[4:6], given, None, "source"),
        ]
    )
    due = ["target", "source", "source", "target", "source", "source"]
    assert index.domains(index.ids()) == due
    assert np.array_equal(index.codes(index.ids()), codes)


def test_small_segments_merge_within_their_domain(index: Index, make_codes) -> None:
    codes = make_codes(40)
    for row in range(40):
        index.add(codes[row : row + 1], domain="source" if row % 3 else "target")
    assert len(index.info()["segments"]) < 16
    due = ["source" if row % 3 else "target" for row in range(40)]
    assert index.domains(np.arange(40)) == due
    index.compact()
    assert [s["domain"] for s in index.info()["segments"]] == ["target", "source"]
    assert index.domains(np.arange(40)) == due
    assert np.array_equal(index.codes(np.arange(40)), codes)
    generation = index.generation
    index.compact()
    assert index.generation == generation


def test_the_version_is_the_first_that_can_say_it(index: Index, make_codes) -> None:
    index.add(make_codes(2))
    assert manifest_of(index)["version"] == index.info()["version"] == 1
    assert "domain" not in manifest_of(index)["segments"][0]
    assert "detail_bits" not in manifest_of(index)
    ids = index.add(make_codes(2), domain="source")
    assert manifest_of(index)["version"] == index.info()["version"] == 2
    assert [s["domain"] for s in manifest_of(index)["segments"]] == ["target", "source"]
    index.remove(ids)
    assert manifest_of(index)["version"] == 1


def test_version_2_of_an_index_of_the_target_is_read(index: Index, make_codes) -> None:
    index.add(make_codes(2))
    value = manifest_of(index)
    value |= NEW_KEYS
    value["segments"][0] |= {"domain": "target", "attributes": None}
    write_manifest(index, value)
    assert len(Index.open(index.path)) == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"version": 3}, r"version 3, this software reads 1 and 2; fix: pip install --upgrade"),
        ({"version": True}, "version True, this"),
        ({"version": 2}, "key base is missing"),
        ({"detail_bits": 0}, "unknown key detail_bits"),
        (NEW_KEYS | {"detail_bits": 4}, "detail_bits must be a multiple of 8"),
        (NEW_KEYS | {"detail_bits": 8, "code_weight": 0}, "code_weight must be 1"),
        (NEW_KEYS | {"detail_bits": True}, "must be int"),
    ],
)
def test_other_keys_are_refused(index: Index, change: dict, message: str) -> None:
    write_manifest(index, manifest_of(index) | change)
    with pytest.raises(IndexCorrupt, match=message):
        Index.open(index.path)


@pytest.mark.parametrize("domain", [None, 3, "photos", "Target", ["target"]])
def test_other_domains_are_refused(index: Index, make_codes, domain, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="domain must be one of target, source"):
        index.add(make_codes(2), domain=domain)
    index.add(make_codes(2), domain="source")
    value = manifest_of(index)
    value["segments"][0]["domain"] = domain
    write_manifest(index, value)
    with pytest.raises(IndexCorrupt, match="domain must be one of"):
        Index.open(index.path)
