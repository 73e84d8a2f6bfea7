"""The server under load: requests a second and latency, at several numbers of connections.

Starts `metah-search serve` on an index, then asks it from one process, each connection sending its
next request when its last answer is there (a closed loop). Every answer is compared with that of
the index itself. Prints one JSON line for the machine and one for each kind and number of
connections; the client's own work is on the same machine and counted in.

    python benchmarks/serve.py > benchmarks/results/serve.jsonl
    python benchmarks/serve.py --quick --index demo/index --images demo/digits/real
"""

import argparse
import asyncio
import json
import os
import platform
import random
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np

from metah_export.compare import machine
from metah_runtime.checks import usable_cores
from metah_runtime.images.find import find_images
from metah_runtime.index import Index
from metah_runtime.model.encoder import Encoder

K = 10
SAMPLE = 200
"""Different queries of each kind."""


class Query:
    """One request and the neighbours that must come back."""

    def __init__(self, kind: str, media: str, body: bytes, due: list[tuple[int, int]]) -> None:
        self.kind = kind
        self.due = due
        head = f"POST /v1/search?k={K} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {media}\r\n"
        self.request = f"{head}Content-Length: {len(body)}\r\n\r\n".encode() + body


def queries(index: Path, images: Path | None, rng: random.Random) -> dict[str, list[Query]]:
    """Return the requests of each kind: images as their files are, and codes."""
    with Index.open(index) as store:
        encoder = Encoder.open(Path(store.metadata["bundle"]), threads=1)
        files = [str(path) for path in (store.paths(store.ids()) if images is None else
                                        find_images([images])) if path is not None]  # fmt: skip
        data = [Path(path).read_bytes() for path in rng.sample(files, min(SAMPLE, len(files)))]
        codes = encoder.encode(data)
        found = store.search(codes, K)
        due = [
            list(zip(ids, distances, strict=True))
            for ids, distances in zip(found.ids.tolist(), found.distances.tolist(), strict=True)
        ]
    by_code = [json.dumps({"code": code.tobytes().hex()}).encode() for code in codes]
    return {
        "image": [Query("image", "image/png", *row) for row in zip(data, due, strict=True)],
        "code": [Query("code", "application/json", *row) for row in zip(by_code, due, strict=True)],
    }


async def connection(
    port: int, asked: list[Query], start: int, until: float, warm: float
) -> tuple[list[float], Counter[str]]:
    """Ask one query after the other; return seconds of each right answer after ``warm``."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    seconds: list[float] = []
    outcomes: Counter[str] = Counter()
    at = start
    while (began := time.perf_counter()) < until:
        query = asked[at % len(asked)]
        at += 1
        writer.write(query.request)
        head = await reader.readuntil(b"\r\n\r\n")
        length = int(re.search(rb"content-length: (\d+)", head)[1])  # type: ignore[index]
        body = await reader.readexactly(length)
        took = time.perf_counter() - began
        if began < warm:
            continue
        status = head.split(b" ", 2)[1].decode()
        if status == "200":
            got = [(item["id"], item["distance"]) for item in json.loads(body)["neighbours"]]
            outcomes["right" if got == query.due else "wrong"] += 1
            seconds.append(took)
        else:
            outcomes[status] += 1
    writer.close()
    return seconds, outcomes


async def load(
    port: int, asked: list[Query], connections: int, seconds: float, warm: float
) -> dict[str, Any]:
    """Return what ``connections`` clients measured in ``seconds`` after a warm-up."""
    begin = time.perf_counter() + warm
    parts = await asyncio.gather(
        *(
            connection(port, asked, 17 * number, begin + seconds, begin)
            for number in range(connections)
        )
    )
    took = np.array([value for part, _ in parts for value in part])
    outcomes = sum((counts for _, counts in parts), Counter())
    row: dict[str, Any] = {
        "kind": asked[0].kind,
        "connections": connections,
        "seconds": seconds,
        "requests": int(sum(outcomes.values())),
        "requests_per_s": round(sum(outcomes.values()) / seconds, 1),
        "outcomes": dict(outcomes),
    }
    if len(took):
        for name, share in (("p50", 50), ("p90", 90), ("p99", 99)):
            row[f"{name}_ms"] = round(1000 * float(np.percentile(took, share)), 3)
    return row


async def metrics(port: int) -> dict[str, float]:
    """Return the server's own sums: seconds by stage, model runs, images in them."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")
    text = (await reader.read()).decode()
    writer.close()
    pattern = r'^metah_(?:(stage)_seconds|(batch)_images)_(sum|count)(?:\{stage="(\w+)"\})? (\S+)$'
    return {
        f"{stage or 'batch'}_{what}": float(value)
        for _, _, what, stage, value in re.findall(pattern, text, re.MULTILINE)
    }


def difference(before: dict[str, float], after: dict[str, float]) -> dict[str, float]:
    """Return mean milliseconds of each stage and mean images of a model run, in between."""
    row = {}
    for stage in ("decode", "encode", "search", "batch"):
        count = after.get(f"{stage}_count", 0) - before.get(f"{stage}_count", 0)
        total = after.get(f"{stage}_sum", 0) - before.get(f"{stage}_sum", 0)
        if count:
            name = "images_a_run" if stage == "batch" else f"{stage}_mean_ms"
            row[name] = round(total / count * (1 if stage == "batch" else 1000), 3)
    return row


def measure(options: argparse.Namespace) -> Iterator[dict[str, Any]]:
    """Start the server, yield the rows, stop the server."""
    asked = queries(options.index, options.images, random.Random(0))
    command = [sys.executable, "-c", "from metah_runtime.cli.main import main; main()", "serve"]
    command += [str(options.index), "--port", "0", "--json", "--log-level", "error"]
    if options.threads:
        command += ["--threads", str(options.threads)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
        try:
            assert server.stdout
            facts = json.loads("".join(server.stdout.readline() for _ in range(5)))
            port = int(facts["url"].rpartition(":")[2])
            yield {
                "machine": machine(),
                "cores": usable_cores(),
                "codes": facts["codes"],
                "k": K,
                "load_before": round(os.getloadavg()[0], 2),
                "versions": {name: version(name) for name in ("metah", "fastapi", "uvicorn")},
                "python": platform.python_version(),
            }
            for kind in ("code", "image"):
                for connections in options.connections:
                    before = asyncio.run(metrics(port))
                    row = asyncio.run(
                        load(port, asked[kind], connections, options.seconds, options.warm)
                    )
                    yield row | difference(before, asyncio.run(metrics(port)))
        finally:
            server.send_signal(signal.SIGTERM)
            server.wait(30)


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--index", type=Path, default=Path("demo/index"), help="[demo/index]")
    parser.add_argument("--images", type=Path, help="folder of the query images [the indexed ones]")
    parser.add_argument("--connections", type=int, nargs="+", default=[1, 8, 32, 64])
    parser.add_argument("--seconds", type=float, default=10.0, help="of each measurement")
    parser.add_argument("--warm", type=float, default=2.0, help="seconds before it")
    parser.add_argument("--threads", type=int, help="CPU threads of the model [all cores]")
    parser.add_argument("--quick", action="store_true", help="one second, 1 and 8 connections")
    options = parser.parse_args()
    if options.quick:
        options.seconds, options.warm, options.connections = 1.0, 0.3, [1, 8]
    wrong = 0
    for row in measure(options):
        print(json.dumps(row), flush=True)
        wrong += row.get("outcomes", {}).get("wrong", 0)
    if wrong:
        sys.exit(f"{wrong} answers were wrong")


if __name__ == "__main__":
    main()
