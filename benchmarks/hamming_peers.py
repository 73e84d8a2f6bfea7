"""What METAH's search is measured against: each peer answers top-k or radius over packed codes."""

import importlib.util
import time

import numpy as np


def best_time(run, repeats=1):
    """Median seconds and the last answer."""
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        answer = run()
        seconds.append(time.perf_counter() - start)
    return sorted(seconds)[len(seconds) // 2], answer


def available(module):
    return importlib.util.find_spec(module) is not None


class FaissFlat:
    name = "faiss flat"

    def __init__(self, codes, threads):
        import faiss

        self.faiss = faiss
        faiss.omp_set_num_threads(threads)
        self.index = faiss.IndexBinaryFlat(codes.shape[1] * 8)
        self.index.add(codes)

    def topk(self, queries, k):
        distances, ids = self.index.search(queries, k)
        return ids, distances

    def radius(self, queries, r):
        lims, distances, ids = self.index.range_search(queries, r + 1)  # strict <
        return lims, ids, distances


class FaissMultiHash(FaissFlat):
    """Three tables of substrings: exact for radius 2."""

    name = "faiss multihash"

    def __init__(self, codes, threads):
        import faiss

        faiss.omp_set_num_threads(threads)
        bits = codes.shape[1] * 8
        self.index = faiss.IndexBinaryMultiHash(bits, 3, bits // 3)  # type: ignore[assignment]
        self.index.nflip = 0  # type: ignore[attr-defined]
        self.index.add(codes)


class Numpy:
    name = "numpy"

    def __init__(self, codes, _threads):
        self.codes = codes

    def topk(self, queries, k):
        ids = np.empty((len(queries), k), np.int64)
        distances = np.empty((len(queries), k), np.int32)
        words = self.codes.view(np.uint64) if self.codes.shape[1] % 8 == 0 else self.codes
        for row, query in enumerate(queries.view(words.dtype)):
            d = np.bitwise_count(words ^ query).sum(axis=1, dtype=np.int32)
            near = np.argpartition(d, k - 1)[:k]
            near = np.flatnonzero(d <= d[near].max())
            near = near[np.lexsort((near, d[near]))[:k]]
            ids[row], distances[row] = near, d[near]
        return ids, distances


class Torch:
    """Codes as +1 and -1 floats, one matrix product, topk: ids of ties are arbitrary."""

    name = "torch matmul"

    def __init__(self, codes, threads):
        import torch

        self.torch = torch
        torch.set_num_threads(threads)
        self.bits = codes.shape[1] * 8
        self.matrix = self.signs(codes)

    def signs(self, codes):
        return self.torch.from_numpy(np.unpackbits(codes, axis=1)).float() * 2 - 1

    def topk(self, queries, k):
        ids, distances = [], []
        for query in self.signs(queries).split(16):
            found = self.torch.topk(query @ self.matrix.T, k)
            ids.append(found.indices.numpy())
            distances.append(((self.bits - found.values) / 2).round().int().numpy())
        return np.concatenate(ids), np.concatenate(distances)


class Usearch:
    name = "usearch exact"

    def __init__(self, codes, threads):
        from usearch.index import MetricKind, search  # type: ignore[attr-defined]

        self.codes, self.threads, self.search, self.metric = (
            codes,
            threads,
            search,
            MetricKind.Hamming,
        )

    def topk(self, queries, k):
        from usearch.index import ScalarKind  # type: ignore[attr-defined]

        found = self.search(
            self.codes, queries, k, self.metric, exact=True, threads=self.threads,
            dtype=ScalarKind.B1,
        )  # fmt: skip
        return found.keys.astype(np.int64), found.distances.astype(np.int32)
