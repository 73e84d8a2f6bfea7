"""What becomes of damaged index files: METAH, FAISS and usearch under the same damage.

Each system writes 2,000 codes of 64 bits. Then, for each damage, a process of its own opens the
damaged file and searches; the answers are compared with those of the intact file. Prints one JSON
line a system and kind of damage; --table FILE prints them as the table of docs/robustness.md.

    python benchmarks/robustness.py > benchmarks/results/robustness.jsonl
"""

import argparse
import json
import os
import pickle
import resource
import signal
import struct
import tempfile
from collections import Counter
from collections.abc import Callable, Iterator
from importlib.metadata import version
from pathlib import Path

import numpy as np

N, QUERIES, K = 2000, 50, 10
LIMIT_S = 20
MEMORY = 8 << 30
OUTCOMES = ["detected", "harmless", "wrong", "crashed", "hung"]


class Metah:
    package = "metah"

    def build(self, path: Path, codes: np.ndarray) -> list[Path]:
        from metah_runtime.index import Index

        with Index.create(path, bits=64) as index:
            index.add(codes)
            index.add(codes[:10], paths=["x"] * 10)
            index.remove(range(N, N + 10, 2))
        return sorted(file for file in path.iterdir() if file.name != "LOCK")

    def answers(self, path: Path, queries: np.ndarray) -> list[np.ndarray]:
        from metah_runtime.index import Index

        with Index.open(path) as index:
            found = index.search(queries, K)
        return [found.ids, found.distances]


class Faiss:
    package = "faiss-cpu"

    def build(self, path: Path, codes: np.ndarray) -> list[Path]:
        import faiss

        index = faiss.IndexBinaryFlat(64)
        index.add(codes)
        faiss.write_index_binary(index, str(path))
        return [path]

    def answers(self, path: Path, queries: np.ndarray) -> list[np.ndarray]:
        import faiss

        distances, ids = faiss.read_index_binary(str(path)).search(queries, K)
        return [ids, distances]


class Usearch:
    package = "usearch"

    def build(self, path: Path, codes: np.ndarray) -> list[Path]:
        from usearch.index import Index

        index = Index(ndim=64, metric="hamming", dtype="b1")
        index.add(np.arange(len(codes)), codes)
        index.save(str(path))
        return [path]

    def answers(self, path: Path, queries: np.ndarray) -> list[np.ndarray]:
        from usearch.index import Index

        index = Index.restore(str(path))
        if index is None:
            raise ValueError("not an index")
        found = index.search(queries, K)
        return [np.asarray(found.keys), np.asarray(found.distances)]


def damages(data: bytes, count: int) -> Iterator[tuple[str, bytes]]:
    """Yield (kind, damaged bytes): the same recipe for every file, scaled to its length."""
    rng = np.random.default_rng(len(data))
    for bit in rng.integers(0, 8 * len(data), count).tolist():
        out = bytearray(data)
        out[bit // 8] ^= 1 << bit % 8
        yield "one bit flipped", bytes(out)
    for length in np.linspace(0, len(data) - 1, count // 4).astype(int).tolist():
        yield "cut short", data[:length]
    for at in rng.integers(0, max(1, len(data) - 512), count // 4).tolist():
        zeros = bytes(len(data[at : at + 512]))
        if data[at : at + 512] != zeros:
            yield "512 bytes lost (zeros)", data[:at] + zeros + data[at + 512 :]
    for offset in range(0, min(96, len(data) - 8), 4):
        for value in (0, 2**31 - 1, 2**63 - 1, 2**64 - 1):
            out = bytearray(data)
            struct.pack_into("<Q", out, offset, value)
            if out != data:
                yield "8 bytes of the head set to an extreme", bytes(out)
    for more in (1, 8, 511, 4096):
        yield "bytes appended", data + rng.integers(0, 256, more, dtype=np.uint8).tobytes()


def in_child(work: Callable[[], list[np.ndarray]]) -> tuple[str, list[np.ndarray] | None]:
    """Run ``work`` in a forked process: (what happened, its result)."""
    receive, send = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(receive)
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, 1)
        os.dup2(null, 2)
        resource.setrlimit(resource.RLIMIT_AS, (MEMORY, MEMORY))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        signal.alarm(LIMIT_S)
        try:
            result: object = [a.copy() for a in work()]
        except Exception:
            result = None
        with os.fdopen(send, "wb") as pipe:
            pickle.dump(result, pipe)
        os._exit(0)
    os.close(send)
    with os.fdopen(receive, "rb") as pipe:
        data = pipe.read()
    _, status = os.waitpid(child, 0)
    if os.WIFSIGNALED(status):
        return ("hung" if os.WTERMSIG(status) == signal.SIGALRM else "crashed"), None
    if os.WEXITSTATUS(status) or not data:
        return "crashed", None
    result = pickle.loads(data)
    return ("detected", None) if result is None else ("answered", result)  # type: ignore[return-value]


def judge(system: Metah | Faiss | Usearch, count: int, folder: Path) -> dict[str, Counter[str]]:
    """Damage every file of an index in turn; count outcomes by kind of damage."""
    rng = np.random.default_rng(0)
    codes = rng.integers(0, 256, (N, 8), dtype=np.uint8)
    queries = rng.integers(0, 256, (QUERIES, 8), dtype=np.uint8)
    path = folder / system.package
    # Forked children search, this process never does: its thread pools stay unborn.
    made, _ = in_child(lambda: [np.array([str(f) for f in system.build(path, codes)])])
    files = [path] if path.is_file() else sorted(f for f in path.iterdir() if f.name != "LOCK")
    assert made == "answered", system.package
    _, truth = in_child(lambda: system.answers(path, queries))
    assert truth is not None, system.package
    found: dict[str, Counter[str]] = {}
    for file in files:
        data = file.read_bytes()
        for kind, damaged in damages(data, count):
            file.unlink()
            file.write_bytes(damaged)
            outcome, result = in_child(lambda: system.answers(path, queries))
            if result is not None:
                same = all(np.array_equal(a, b) for a, b in zip(truth, result, strict=True))
                outcome = "harmless" if same else "wrong"
            found.setdefault(kind, Counter())[outcome] += 1
        file.unlink()
        file.write_bytes(data)
    return found


def table(rows: list[dict[str, object]]) -> str:
    """Return Markdown: each kind of damage for each system, then all kinds together."""
    names = ["tried", *OUTCOMES]
    total: dict[object, Counter[str]] = {}
    for row in rows:
        counts = Counter({name: int(str(row[name])) for name in names})
        total.setdefault(row["system"], Counter()).update(counts)
    lines = [
        "| damage | system | files tried | detected | not noticed, same answers | "
        "**not noticed, wrong answers** | **crashed** |",
        "|---|---|---|---|---|---|---|",
    ]
    order = list(dict.fromkeys(row["damage"] for row in rows))
    rows = sorted(rows, key=lambda row: order.index(row["damage"]))
    rows += [{"damage": "**all**", "system": system, **sums} for system, sums in total.items()]
    for row in rows:
        tried, detected, harmless, wrong, crashed, hung = (int(str(row.get(n, 0))) for n in names)
        lines.append(
            f"| {row['damage']} | {row['system']} | {tried:,} | {detected:,} "
            f"({100 * detected / tried:.0f} %) | {harmless:,} | {wrong:,} | {crashed + hung:,} |"
        )
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=400, help="bit flips a file")
    parser.add_argument("--table", metavar="FILE", help="print the results in FILE as Markdown")
    options = parser.parse_args()
    if options.table:
        lines = Path(options.table).read_text().splitlines()
        print(table([json.loads(line) for line in lines]))
        return
    with tempfile.TemporaryDirectory(prefix="metah-robustness-") as folder:
        for system in (Metah(), Faiss(), Usearch()):
            name = f"{system.package} {version(system.package)}"
            for kind, outcomes in judge(system, options.count, Path(folder)).items():
                row: dict[str, object] = {"damage": kind, "system": name}
                row |= {"tried": outcomes.total()} | {o: outcomes[o] for o in OUTCOMES}
                print(json.dumps(row), flush=True)


if __name__ == "__main__":
    main()
