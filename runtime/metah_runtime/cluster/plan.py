"""How an index is cut into shards: immutable segments and ranges of their rows."""

import dataclasses
import hashlib
import itertools
import json
from dataclasses import dataclass
from functools import cached_property

from metah_runtime import schema
from metah_runtime.errors import ClusterError, ConfigError
from metah_runtime.index.manifest import Manifest, SegmentEntry


@dataclass(frozen=True, slots=True, kw_only=True)
class RowRange:
    """The rows [start, stop) of one segment; ids ascend with rows."""

    segment: int
    start: int
    stop: int


@dataclass(frozen=True, kw_only=True)
class ShardPlan:
    """One state of an index and the row ranges of each shard: every row is in exactly one.

    Two plans of one digest hold the same rows of the same files, byte for byte as far as the
    checksums of the segments tell.
    """

    manifest: Manifest
    shards: tuple[tuple[RowRange, ...], ...]

    @cached_property
    def digest(self) -> str:
        """SHA-256 over files, checksums, model and row ranges, 64 hex digits."""
        return hashlib.sha256(self.encode().encode()).hexdigest()

    def shard_digest(self, shard: int) -> str:
        """Return the digest that every response of a shard's replicas carries."""
        return hashlib.sha256(f"{self.digest}/{shard}".encode()).hexdigest()

    def __len__(self) -> int:
        return sum(entry.alive for entry in self.manifest.segments)

    def rows(self, shard: int) -> int:
        """Return the number of rows of a shard, removed ones included."""
        return sum(rows.stop - rows.start for rows in self.shards[shard])

    def manifest_of(self, shard: int) -> Manifest:
        """Return the manifest of the segments that a shard needs."""
        entries = tuple(self.entry(rows) for rows in self.shards[shard])
        return dataclasses.replace(self.manifest, segments=entries)

    def entry(self, rows: RowRange) -> SegmentEntry:
        """Return the segment that a row range belongs to."""
        return self.manifest.segments[rows.segment]

    def encode(self) -> str:
        """Return the plan as JSON; the same plan gives the same text."""
        value = {"manifest": schema.to_json(self.manifest), "shards": schema.to_json(self.shards)}
        return json.dumps(value, sort_keys=True)

    @classmethod
    def decode(cls, text: str) -> "ShardPlan":
        """Read what ``encode`` gives; raise ClusterError."""
        try:
            value = schema.parse_json(text.encode())
            plan = cls(
                manifest=schema.from_json(Manifest, value["manifest"]),
                shards=schema.from_json(tuple[tuple[RowRange, ...], ...], value["shards"]),
            )
        except (ValueError, KeyError, TypeError) as error:
            raise ClusterError(
                f"the cluster's plan cannot be read ({error}); fix: the same METAH version on all "
                "machines, then start the cluster again"
            ) from None
        return plan


def make_plan(manifest: Manifest, shards: int) -> ShardPlan:
    """Cut the rows of an index, in the order of its segments, into ``shards`` equal runs.

    Raises ConfigError if there are fewer rows than shards.
    """
    total = sum(entry.codes.rows for entry in manifest.segments)
    if isinstance(shards, bool) or not isinstance(shards, int) or shards < 1:
        raise ConfigError(f"shards must be a whole number >= 1, got {shards!r}")
    if shards > total:
        raise ConfigError(f"shards must be at most the number of codes, {total}, got {shards}")
    bounds = [total * at // shards for at in range(shards + 1)]
    ranges: list[tuple[RowRange, ...]] = []
    for first, last in itertools.pairwise(bounds):
        mine, offset = [], 0
        for number, entry in enumerate(manifest.segments):
            start, stop = max(first - offset, 0), min(last - offset, entry.codes.rows)
            if start < stop:
                mine.append(RowRange(segment=number, start=start, stop=stop))
            offset += entry.codes.rows
        ranges.append(tuple(mine))
    return ShardPlan(manifest=manifest, shards=tuple(ranges))
