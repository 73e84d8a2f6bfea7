"""Collections of Milvus: id INT64, code BINARY_VECTOR, path VARCHAR, index BIN_FLAT."""

import logging
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from metah_runtime import reference
from metah_runtime.checks import check_k, check_radius
from metah_runtime.codes import Codes
from metah_runtime.errors import (
    BackendUnavailable,
    ConfigError,
    DataError,
    IndexMismatch,
    MetahError,
    MissingExtra,
    StorageError,
)
from metah_runtime.index.index import Index
from metah_runtime.interop.rows import CodeBatch, CodeRows, path_texts
from metah_runtime.interop.table import Table, TableInfo, check_same_codes, read_note, write_note
from metah_runtime.results import Matches, RangeMatches

MOST: Final = 16_384
"""Hits that Milvus gives for one query at most."""

_ROWS = 8192  # rows of a request
_ASKED = 1 << 18  # hits of a request, at most
_PATH_BYTES = 65_535
_CONNECT_SECONDS = 30
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")


class MilvusTable(Table):
    """Exact search in a collection of Milvus with a BIN_FLAT index, in the order of an index.

    address: http://host:19530, with user:password@ if needed, or a .db file of Milvus Lite.
    Milvus gives the hits of one distance in no promised order, so more than k are asked for until
    the distance of the k-th is complete; where that takes more than 16,384 hits, DataError. Milvus
    compares whole rows: where they have a detail code, a radius is refused with DataError. The
    collection must not change during a call. Raises ConfigError, BackendUnavailable, DataError.
    """

    def __init__(self, address: str, collection: str) -> None:
        self._client = _connect(address, must_exist=True)
        self._name = collection
        with _errors(collection):
            self._info = _info(self._client, collection)
            self._client.load_collection(collection)

    def close(self) -> None:
        """Close the connection; harmless if closed."""
        self._client.close()

    def __len__(self) -> int:
        with _errors(self._name):
            return _count(self._client, self._name)

    def search(self, queries: Codes, k: int) -> Matches:
        """Return the min(k, n) nearest codes of each query; queries: (q, width) uint8."""
        queries = self._checked(queries)
        n = len(self)
        k = min(check_k(k), n)
        if k > MOST:
            raise DataError(f"Milvus gives at most {MOST:,} hits a query, k is {k:,}")
        ids = np.empty((len(queries), k), np.int64)
        distances = np.empty((len(queries), k), np.int32)
        near = np.empty_like(distances) if self.code_format.detail_bits else None
        open_rows = np.arange(len(queries))
        limit = min(max(2 * k, k + 64), n, MOST)
        while k and len(open_rows):
            left = []
            found = self._ask(queries[open_rows], limit)
            for row, (keys, far, *code, last) in zip(open_rows.tolist(), found, strict=True):
                if len(keys) != limit:
                    raise DataError(
                        f"collection {self._name} gave {len(keys)} of {limit} hits: "
                        "its ids repeat, or it changed meanwhile"
                    )
                ids[row], distances[row] = keys[:k], far[:k]
                if near is not None:
                    near[row] = code[0][:k]
                if limit < n and last <= far[k - 1]:  # rows of that distance may be missing
                    left.append(row)
            if left and limit == MOST:
                raise DataError(
                    f"query {left[0]}: more than {MOST:,} codes of collection {self._name} are as "
                    f"near as its hit {k}: Milvus cannot say which ids are first; fix: a smaller k"
                )
            open_rows, limit = np.array(left, np.int64), min(4 * limit, n, MOST)
        return Matches(ids, distances, near)

    def range_search(self, queries: Codes, radius: int) -> RangeMatches:
        """Return all codes with distance <= radius; DataError for 16,384 or more of one query."""
        if self.code_format.detail_bits:
            raise DataError(
                f"collection {self._name} has codes of {self.code_format}: a radius is one of the "
                "hash code, and Milvus compares whole rows; fix: search(k), or export to pgvector"
            )
        queries = self._checked(queries)
        radius = min(check_radius(radius), self.bits)
        found = self._ask(queries, MOST, {"radius": radius + 1})  # Milvus: distance < radius
        for row, (keys, *_) in enumerate(found):
            if len(keys) == MOST:
                raise DataError(
                    f"query {row}: Milvus gives at most {MOST:,} hits within a radius; "
                    f"fix: a radius below {radius}"
                )
        lims = np.cumsum([0, *(len(keys) for keys, *_ in found)], dtype=np.int64)
        ids = np.concatenate([np.empty(0, np.int64), *(keys for keys, *_ in found)])
        distances = np.concatenate([np.empty(0, np.int32), *(far for _, far, *_ in found)])
        return RangeMatches(lims, ids, distances)

    def count(self, queries: Codes, radius: int) -> NDArray[np.int64]:
        """Return the number of codes with distance <= radius of each query, (q,) int64."""
        return self.range_search(queries, radius).counts

    def _ask(
        self, queries: Codes, limit: int, params: dict[str, Any] | None = None
    ) -> list[tuple[Any, ...]]:
        """Return (ids, distances, code distances where there are, Milvus's last) of each query.

        Sorted as an index does; Milvus's last: the largest Hamming distance of whole rows, which
        no row that it left out is below.
        """
        out: list[tuple[Any, ...]] = []
        form = self.code_format
        step = max(1, _ASKED // max(1, limit))
        for start in range(0, len(queries), step):
            with _errors(self._name):
                answers = self._client.search(
                    self._name,
                    data=[code.tobytes() for code in queries[start : start + step]],
                    anns_field="code",
                    limit=limit,
                    search_params={"metric_type": "HAMMING", "params": params or {}},
                    consistency_level="Strong",
                )
            for query, hits in zip(queries[start : start + step], answers, strict=True):
                ids = np.array([hit["id"] for hit in hits], np.int64)
                distances = np.array([hit["distance"] for hit in hits], np.int32)
                last = int(distances.max(initial=0))
                keys: list[NDArray[np.int32]] = [distances]
                if form.detail_bits:
                    whole, near = reference.both_distances(query[None], self._codes(ids), form)
                    keys = [whole[0], near[0]]
                order = np.lexsort(np.stack([ids, *reversed(keys)]))
                out.append((ids[order], *(key[order] for key in keys), last))
        return out

    def _codes(self, ids: NDArray[np.int64]) -> Codes:
        """Return the codes of ids: a search of Milvus Lite gives no binary vectors."""
        found: dict[int, Any] = {}
        with _errors(self._name):
            for start in range(0, len(ids), _ROWS):
                rows = self._client.query(
                    self._name,
                    ids=ids[start : start + _ROWS].tolist(),
                    output_fields=["id", "code"],
                    consistency_level="Strong",
                )
                found |= {row["id"]: row["code"] for row in rows}
        if missing := [key for key in ids.tolist() if key not in found]:
            raise DataError(f"collection {self._name} changed meanwhile: id {missing[0]} is gone")
        return _packed([found[key] for key in ids.tolist()], self.code_format.width)


def write(index: Index, address: str, collection: str, *, exists: str = "error") -> None:
    """Write all codes into a collection with a BIN_FLAT index.

    exists: ``error`` refuses a collection that is there, ``append`` adds to it once it is checked
    that none of the ids is there. Milvus has no transactions: if a new collection fails it is
    dropped, if an addition fails the error says how many codes were added. Raises ConfigError,
    BackendUnavailable, IndexMismatch, DataError, StorageError.
    """
    _check_name(collection)
    if exists == "replace":
        raise ConfigError(
            "Milvus cannot replace a collection in one step; fix: export under another name"
        )
    client = _connect(address)
    try:
        with _errors(collection, StorageError):
            there = client.has_collection(collection)
        if there and exists == "error":
            raise ConfigError(
                f"collection {collection} exists already; fix: --append, or another name"
            )
        if there:
            _check_addition(client, collection, index)
        added = 0
        try:
            with _errors(collection, StorageError):
                if not there:
                    _create(client, collection, index)
                for rows in _records(index):
                    client.insert(collection, rows)
                    added += len(rows)
                client.flush(collection)
        except BaseException as error:
            if there:
                if added and isinstance(error, MetahError):
                    error.args = (f"{error}; the first {added:,} codes were added",)
            else:
                with suppress(Exception):  # what failed first is the news
                    client.drop_collection(collection)
            raise
    finally:
        client.close()


def read(address: str, collection: str) -> CodeRows:
    """Open a collection that has the fields id and code; raise DataError if it has not."""
    client = _connect(address, must_exist=True)
    try:
        with _errors(collection):
            info = _info(client, collection)
            client.load_collection(collection)
            count = _count(client, collection)
    finally:
        client.close()

    def batches() -> Iterator[CodeBatch]:
        client = _connect(address, must_exist=True)
        fields = ["id", "code", *(["path"] if info.paths else [])]
        try:
            with _errors(collection):
                client.load_collection(collection)
                rows = client.query_iterator(
                    collection, batch_size=_ROWS, output_fields=fields, consistency_level="Strong"
                )
                while some := rows.next():
                    yield _batch(some, info.code_format.width)
        finally:
            client.close()

    form, known = info.code_format, info.fingerprint is not None
    return CodeRows(form, batches, info.fingerprint, info.model, count, says_format=known)


@dataclass(frozen=True, kw_only=True)
class _MilvusInfo(TableInfo):
    paths: bool


def _info(client: Any, collection: str) -> _MilvusInfo:
    """Return what a collection is; raise DataError if codes cannot be searched in it."""
    from pymilvus import DataType

    if not client.has_collection(_check_name(collection)):
        raise DataError(f"there is no collection {collection}")
    about = client.describe_collection(collection)
    fields = {field["name"]: field for field in about["fields"]}
    for name, kind in (("id", DataType.INT64), ("code", DataType.BINARY_VECTOR)):
        if name not in fields or fields[name]["type"] != kind:
            raise DataError(f"collection {collection} needs a field {name} of type {kind.name}")
    if not fields["id"].get("is_primary"):
        raise DataError(f"field id of collection {collection} must be its primary key")
    for index in client.list_indexes(collection):
        of = client.describe_index(collection, index)
        kind, metric = of.get("index_type"), of.get("metric_type")
        if of.get("field_name", "code") == "code" and (kind, metric) != ("BIN_FLAT", "HAMMING"):
            raise DataError(
                f"collection {collection} has an index {kind} by {metric}; "
                "fix: BIN_FLAT by HAMMING, the one that is exact"
            )
    bits = int(fields["code"]["params"]["dim"])
    note = read_note(about.get("description"), bits, f"collection {collection}")
    paths = fields.get("path", {}).get("type") == DataType.VARCHAR
    return _MilvusInfo(**vars(note), paths=paths)


def _count(client: Any, collection: str) -> int:
    """Return the number of rows of a loaded collection."""
    rows = client.query(collection, output_fields=["count(*)"], consistency_level="Strong")
    return int(rows[0]["count(*)"])


def _create(client: Any, collection: str, index: Index) -> None:
    from pymilvus import DataType

    schema = client.create_schema(
        auto_id=False, enable_dynamic_field=False, description=write_note(index)
    )
    schema.add_field("id", DataType.INT64, is_primary=True)
    schema.add_field("code", DataType.BINARY_VECTOR, dim=index.code_format.total_bits)
    schema.add_field("path", DataType.VARCHAR, max_length=_PATH_BYTES)
    exact = client.prepare_index_params()
    exact.add_index("code", index_type="BIN_FLAT", metric_type="HAMMING")
    client.create_collection(
        collection, schema=schema, index_params=exact, consistency_level="Strong"
    )


def _check_addition(client: Any, collection: str, index: Index) -> None:
    with _errors(collection):
        info = _info(client, collection)
        check_same_codes(f"collection {collection}", info, index)
        if not info.paths:
            raise DataError(f"collection {collection} needs a field path of type VARCHAR")
        ids = index.ids()
        client.load_collection(collection)
        for start in range(0, len(ids), _ROWS):
            some = ids[start : start + _ROWS].tolist()
            taken = client.query(
                collection, ids=some, output_fields=["id"], consistency_level="Strong"
            )
            if taken:
                lowest = min(row["id"] for row in taken)
                raise IndexMismatch(f"id {lowest} is in collection {collection} already")


def _records(index: Index) -> Iterator[list[dict[str, Any]]]:
    """Cut an index into requests; bit k of a code is bit 7 - k % 8 of byte k // 8."""
    ids = index.ids()
    for start in range(0, len(ids), _ROWS):
        some = ids[start : start + _ROWS]
        paths = [path or b"" for path in path_texts(index, some)]  # "" where there is none
        for key, path in zip(some.tolist(), paths, strict=True):
            if len(path) > _PATH_BYTES:
                raise DataError(
                    f"the path of id {key} has {len(path)} bytes, Milvus takes {_PATH_BYTES}"
                )
        yield [
            {"id": key, "code": code.tobytes(), "path": path.decode()}
            for key, code, path in zip(some.tolist(), index.codes(some), paths, strict=True)
        ]


def _batch(rows: Any, width: int) -> CodeBatch:
    ids = np.array([row["id"] for row in rows], np.int64)
    paths = [row.get("path", "").encode() or None for row in rows]
    return _packed([row["code"] for row in rows], width), ids, paths if any(paths) else None


def _packed(codes: list[Any], width: int) -> Codes:
    """Return codes as Milvus gives them, bytes or a list of one, as rows of so many bytes."""
    data = b"".join(code if isinstance(code, bytes) else code[0] for code in codes)
    return np.frombuffer(data, np.uint8).reshape(-1, width)


def _check_name(collection: str) -> str:
    if not _NAME.fullmatch(collection):
        raise ConfigError(
            "a collection's name must be 1..255 letters, digits and _, no digit first, "
            f"got {collection!r}"
        )
    return collection


def _connect(address: str, *, must_exist: bool = False) -> Any:
    try:
        import pymilvus
    except ImportError:
        raise MissingExtra("pymilvus", "milvus") from None
    logging.getLogger("pymilvus").setLevel(logging.CRITICAL)  # it logs what it raises as well
    is_file = "://" not in address
    if is_file and not address.endswith(".db"):
        raise ConfigError(f"milvus needs http://host:port or a file *.db, got {address!r}")
    if is_file and must_exist and not Path(address).exists():
        raise DataError(f"there is no file {address}")
    try:
        return pymilvus.MilvusClient(address, timeout=_CONNECT_SECONDS)
    except Exception as error:  # of many kinds, those of gRPC among them
        raise BackendUnavailable(f"no connection to Milvus: {_line(error)}") from None


@contextmanager
def _errors(collection: str, kind: type[MetahError] = DataError) -> Iterator[None]:
    """Turn errors of Milvus and of its connection into ours."""
    import grpc
    import pymilvus

    try:
        yield
    except (pymilvus.MilvusException, grpc.RpcError) as error:
        raise kind(f"collection {collection}: Milvus says: {_line(error)}") from None


def _line(error: Any) -> str:
    return " ".join(str(getattr(error, "message", "") or error).split())[:500]
