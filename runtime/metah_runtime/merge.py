"""Merges the answers of several indexes over disjoint ids into one, in the order (distance, id)."""

from collections.abc import Sequence

import numpy as np

from metah_runtime.results import Matches, RangeMatches


def merge_matches(parts: Sequence[Matches], k: int) -> Matches:
    """Return the min(k, sum of k_i) nearest of each query over all parts.

    parts: answers to the same (q,) queries, each asked for the same k; ids are disjoint.
    """
    if not parts:
        raise ValueError("merge_matches needs at least one part")
    if len(parts) == 1:
        part = parts[0]
        return Matches(part.ids[:, :k], part.distances[:, :k])
    ids = np.concatenate([p.ids for p in parts], axis=1)
    distances = np.concatenate([p.distances for p in parts], axis=1)
    order = np.lexsort((ids, distances), axis=1)[:, :k]
    return Matches(
        np.take_along_axis(ids, order, axis=1), np.take_along_axis(distances, order, axis=1)
    )


def merge_ranges(parts: Sequence[RangeMatches]) -> RangeMatches:
    """Return all hits of all parts; parts: answers to the same queries, ids are disjoint."""
    if not parts:
        raise ValueError("merge_ranges needs at least one part")
    if len(parts) == 1:
        return parts[0]
    ids = np.concatenate([p.ids for p in parts])
    distances = np.concatenate([p.distances for p in parts])
    queries = np.concatenate([np.repeat(np.arange(len(p)), p.counts) for p in parts])
    order = np.lexsort((ids, distances, queries))
    lims = np.stack([p.lims for p in parts]).sum(axis=0, dtype=np.int64)
    return RangeMatches(lims, ids[order], distances[order])
