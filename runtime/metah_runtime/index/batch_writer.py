"""A stream of batches becomes segments of one transaction."""

from metah_runtime.domain import TARGET, Domain
from metah_runtime.index.batch import CodeBatch
from metah_runtime.index.segment import SegmentWriter
from metah_runtime.index.transaction import Transaction


class BatchWriter:
    """Writes a stream of batches as segments.

    Codes of one domain and nothing else go to one open segment; batches with ids, paths or
    attributes are held up to ``limit`` bytes and then written as one segment.
    """

    def __init__(self, transaction: Transaction, *, upsert: bool, limit: int) -> None:
        self.count = 0
        self._transaction = transaction
        self._upsert = upsert
        self._limit = limit
        self._open: SegmentWriter | None = None
        self._domain: Domain = TARGET  # of the open segment
        self._held: list[CodeBatch] = []
        self._size = 0

    def add(self, batch: CodeBatch) -> None:
        """Take the next batch; its arrays may be reused afterwards."""
        self.count += len(batch)
        if batch.ids is None and batch.paths is None and not batch.attributes:
            self._write_held()
            if batch.domain != self._domain:
                self._close_open()
            if self._open is None:
                self._open, self._domain = self._transaction.segment(), batch.domain
            self._open.write(batch.codes)
            return
        self._close_open()
        if self._held and batch.kind != self._held[0].kind:
            self._write_held()
        self._held.append(batch.copy())
        self._size += batch.size
        if self._size >= self._limit:
            self._write_held()

    def finish(self) -> None:
        """Write what is left."""
        self._write_held()
        self._close_open()

    def discard(self) -> None:
        """Remove the unfinished segment."""
        if self._open is not None:
            self._open.discard()

    def _close_open(self) -> None:
        writer = self._open
        if writer is None:
            return
        if writer.rows:
            first_id = self._transaction.reserve(writer.rows)
            header = writer.finish(first_id=first_id)
            self._transaction.keep(writer.path, header, self._domain)
        else:
            writer.discard()
        self._open = None

    def _write_held(self) -> None:
        if self._held:
            held, self._held, self._size = self._held, [], 0
            self._transaction.add(CodeBatch.join(held), upsert=self._upsert)
