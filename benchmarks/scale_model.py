"""Cost model of exact search on many machines, and a simulation of its tail.

Time of a batch of q queries over n codes on one core, fitted to measurements: a_q + b_q n. A
machine of C cores shares one memory: n codes of w bytes take max(b_q n / C, n w / bandwidth). A
question goes to S shards at once and waits for the slowest; a shard has R replicas, and one that is
silent for h seconds is asked a second time elsewhere (hedging: Dean and Barroso, The Tail at Scale,
CACM 2013).
"""

import heapq
import math
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True, kw_only=True)
class Machine:
    """What a machine is assumed to be; nothing of it was measured here."""

    cores: int = 32
    memory_gib: float = 256
    bandwidth_gb_s: float = 150  # of the 205 that eight channels of DDR4-3200 have on paper
    round_trip_ms: float = 0.5
    price_hour: float = 1.6
    usable: float = 0.8  # of the memory


def fit(points):
    """Least squares of relative errors: points [(n, seconds)] -> (a, b) of a + b n, a >= 0."""
    n, t = (np.array(column, float) for column in zip(*points, strict=True))
    design = np.stack([1 / t, n / t], axis=1)
    (a, b), *_ = np.linalg.lstsq(design, np.ones_like(t), rcond=None)
    if a < 0:
        a, b = 0.0, float(np.sum(n / t) / np.sum((n / t) ** 2))
    return float(a), float(b)


def batch_seconds(law, machine, n, width):
    """Seconds of one batch over n codes of ``width`` bytes on all cores of a machine."""
    a, b = law
    return a + max(b * n / machine.cores, n * width / machine.bandwidth_gb_s / 1e9)


def plan(laws, machine, n, width, budget, replicas, merge):
    """Machines for n codes so that one query is answered within ``budget`` seconds.

    laws: {batch: (a, b)}; merge(shards, queries): seconds. Returns None if no number of machines
    is enough.
    """
    by_memory = math.ceil(n * width / (machine.memory_gib * 2**30 * machine.usable))
    shards = max(1, by_memory)
    while one(laws, machine, n, width, shards, merge) > budget:
        shards = math.ceil(shards * 1.1 + 0.5)
        if shards > 100_000:
            return None
    machines = shards * replicas
    row = {
        "codes": n,
        "gib": n * width / 2**30,
        "least_by_memory": by_memory,
        "one_machine_s": batch_seconds(laws[1], machine, n, width),
        "shards": shards,
        "machines": machines,
        "query_s": one(laws, machine, n, width, shards, merge),
        "dollars_month": machines * machine.price_hour * 730,
    }
    for q, law in laws.items():
        seconds = batch_seconds(law, machine, n / shards, width)
        row[f"queries_s_{q}"] = replicas * q / seconds
    row["dollars_million"] = (
        machines * machine.price_hour / 3600 * 1e6 / max(row[f"queries_s_{q}"] for q in laws)
    )
    return row


def one(laws, machine, n, width, shards, merge):
    """Seconds of one query: the scan of a shard, the way there and back, the merge."""
    away = machine.round_trip_ms / 1e3 + merge(shards, 1) if shards > 1 else 0
    return batch_seconds(laws[1], machine, n / shards, width) + away


def draw_services(sample, seconds, count, rng):
    """Draw ``count`` durations of a scan that takes ``seconds``, disturbed as the sample was.

    A scan m times as long as that of the sample meets m times as many disturbances.
    """
    sample = np.asarray(sample, float)
    pieces = max(1, round(seconds / float(np.median(sample))))
    ratios = sample / np.median(sample)
    total = np.zeros(count)
    for _ in range(min(pieces, 64)):
        total += rng.choice(ratios, count)
    return seconds * total / min(pieces, 64)


def shard_latencies(arrivals, service, replicas, hedge):
    """Latency of every request to one shard, and how many were asked twice.

    The replicas are FIFO, one request at a time each.

    service: (requests, replicas), the duration on each replica. A request goes to the replica
    with the shortest queue; after ``hedge`` seconds without an answer (None: never) to the next
    one as well. A copy that has not begun when the other ends is dropped; one that has, goes on.
    """
    busy = [0] * replicas
    twice = 0
    queues = [[] for _ in range(replicas)]
    done = np.full(len(arrivals), np.inf)
    asked = [None] * len(arrivals)
    events = [(t, 0, 0, i, -1) for i, t in enumerate(arrivals.tolist())]
    heapq.heapify(events)
    number = 0

    def start(replica, now):
        nonlocal number
        while queues[replica]:
            request = queues[replica].pop(0)
            if done[request] <= now:
                continue
            number += 1
            busy[replica] = 1
            end = now + service[request, replica]
            heapq.heappush(events, (end, 1, number, request, replica))
            return

    def ask(request, replica, now):
        queues[replica].append(request)
        if not busy[replica]:
            start(replica, now)

    while events:
        now, kind, _, request, replica = heapq.heappop(events)
        if kind == 0:
            shortest = min(
                range(replicas),
                key=lambda r, turn=request: (len(queues[r]) + busy[r], (turn + r) % replicas),
            )
            asked[request] = shortest
            ask(request, shortest, now)
            if hedge is not None and replicas > 1:
                number += 1
                heapq.heappush(events, (now + hedge, 2, number, request, -1))
        elif kind == 1:
            done[request] = min(done[request], now)
            busy[replica] = 0
            start(replica, now)
        elif done[request] > now:
            twice += 1
            ask(request, (asked[request] + 1) % replicas, now)
    return done - arrivals, twice


def tail(sample, seconds, *, shards, replicas, load, hedge, stall, requests, seed=0):
    """Percentiles in seconds of a question to all shards.

    load: share of the time that a replica is busy without hedging. stall: (probability, seconds)
    of a stop of a request at a replica, on top of the sample.
    """
    rng = np.random.default_rng(seed)
    mean = draw_services(sample, seconds, 20_000, rng).mean() + stall[0] * stall[1]
    arrivals = np.cumsum(rng.exponential(mean / (replicas * load), requests))
    slowest, twice = np.zeros(requests), 0
    for _ in range(shards):
        service = draw_services(sample, seconds, requests * replicas, rng)
        service = service + (rng.random(len(service)) < stall[0]) * stall[1]
        service = service.reshape(requests, replicas)
        latency, second = shard_latencies(arrivals, service, replicas, hedge)
        twice += second
        slowest = np.maximum(slowest, latency)
    slowest = slowest[requests // 10 :]  # without the start
    percentiles = {f"p{p:g}": float(np.percentile(slowest, p)) for p in (50, 99, 99.9)}
    return {**percentiles, "twice": twice / requests / shards}


def check():
    """The simulator against queueing theory: M/M/1 and the slowest of many without queues."""
    rng = np.random.default_rng(1)
    n, load = 200_000, 0.5
    arrivals = np.cumsum(rng.exponential(1 / load, n))
    service = rng.exponential(1.0, (n, 1))
    mean = shard_latencies(arrivals, service, 1, None)[0].mean()
    assert abs(mean - 1 / (1 - load)) < 0.05, mean
    apart = np.arange(1000) * 1e3
    hedged, twice = shard_latencies(apart, np.tile([50.0, 1.0], (1000, 1)), 2, 5.0)
    assert set(hedged.tolist()) == {1.0, 6.0}, set(hedged.tolist())  # the second answers first
    assert twice == 500, twice
