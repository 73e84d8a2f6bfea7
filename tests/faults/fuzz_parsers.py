"""Coverage-guided fuzzing of everything that parses foreign bytes; run with -max_total_time=S.

The first byte picks the parser. Checksums are put right before parsing, as a hostile writer
would, so that the fuzzer gets past them. Anything but the typed error of the parser is a finding.
"""

import struct
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

import atheris

with atheris.instrument_imports(
    include=["metah_runtime.interop", "metah_runtime.index", "metah_runtime.schema"]
):
    from metah_runtime import _checksum
    from metah_runtime.errors import DataError, IndexCorrupt
    from metah_runtime.index.format import HEADER, FormatError, Header
    from metah_runtime.index.manifest import Manifest
    from metah_runtime.index.segment import RemovedRows, Segment
    from metah_runtime.interop import faiss_file, npy_file

FOLDER = Path(tempfile.mkdtemp(prefix="metah-fuzz-"))
FILE = FOLDER / "segment-00000001.metah"


def _header(data: bytes) -> None:
    body = data[: HEADER - 4].ljust(HEADER - 4, b"\0")
    try:
        header = Header.parse(body + struct.pack("<I", _checksum.crc32c(body)), len(data) * 97)
    except FormatError:
        return
    assert header.layout().length == len(data) * 97


def _manifest(data: bytes) -> None:
    with suppress(IndexCorrupt):
        Manifest.decode(data + b"crc32c:%08x\n" % _checksum.crc32c(data), FOLDER / "MANIFEST")


def _segment(data: bytes) -> None:
    if len(data) >= HEADER:
        data = data[: HEADER - 4] + struct.pack("<I", _checksum.crc32c(data[:252])) + data[HEADER:]
    FILE.unlink(missing_ok=True)
    FILE.write_bytes(data)
    for kind in (Segment, RemovedRows):
        try:
            file = kind(FILE)
            file.verify()
        except IndexCorrupt:
            continue
        if isinstance(file, Segment):
            file.path_bytes(file.rows_of(file.all_ids()))


def _foreign(data: bytes) -> None:
    FILE.unlink(missing_ok=True)
    FILE.write_bytes(data)
    for module in (faiss_file, npy_file):
        with suppress(DataError):
            for codes, _, _ in module.read(FILE).batches():
                codes.sum()


PARSERS = [_header, _manifest, _segment, _foreign]


def one(data: bytes) -> None:
    if data:
        PARSERS[data[0] % len(PARSERS)](data[1:])


def seeds(folder: Path) -> None:
    """Begin from true files."""
    golden = Path(__file__).resolve().parents[1] / "runtime" / "index" / "golden-v1"
    for file in golden.iterdir():
        data = file.read_bytes()
        for kind in range(len(PARSERS)):
            (folder / f"{kind}-{file.name}").write_bytes(bytes([kind]) + data)
    (folder / "faiss").write_bytes(
        b"\3" + struct.pack("<4siiq?iQ", b"IBxF", 8, 1, 2, True, 1, 2) + b"ab"
    )


if __name__ == "__main__":
    corpus = Path(tempfile.mkdtemp(prefix="metah-corpus-"))
    seeds(corpus)
    atheris.Setup([*sys.argv, str(corpus)], one)
    atheris.Fuzz()
