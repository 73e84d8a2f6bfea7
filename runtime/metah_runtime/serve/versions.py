"""Versions of an index: each request uses one, and new versions replace it without a pause."""

import asyncio
import os
from collections.abc import Callable, Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from pathlib import Path
from typing import TypeAlias

from metah_runtime.codes import CodeFormat
from metah_runtime.errors import IndexCorrupt, IndexMismatch
from metah_runtime.index import Index
from metah_runtime.index.manifest import NAME, Manifest
from metah_runtime.index.snapshot import Snapshot, newest
from metah_runtime.serve.logs import log

Stamp: TypeAlias = tuple[int, int, int] | None

RETRY = 30.0
"""Seconds after which a version that could not be opened is tried again."""


class Version:
    """One state of an index, open while it is current or a request uses it."""

    def __init__(self, path: Path, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.index = Index(path, snapshot, "first-use")
        manifest = snapshot.manifest
        self.name = f"{manifest.index_id}.{manifest.generation}"
        self._users = 0
        self._retired = False
        self.closed = False

    def retire(self) -> None:
        """Close now, or when the last request that uses it has ended."""
        self._retired = True
        self._close_if_unused()

    @contextmanager
    def used(self) -> Iterator["Version"]:
        """Keep it open for the block. Call from the event loop's thread."""
        self._users += 1
        try:
            yield self
        finally:
            self._users -= 1
            self._close_if_unused()

    def _close_if_unused(self) -> None:
        if self._retired and not self._users:
            self.closed = True
            self.index.close()


def open_version(
    path: Path, known: Version | None = None, *, code_format: CodeFormat, fingerprint: str
) -> Version:
    """Open the newest state of an index, all its checksums compared before its first answer.

    known: a version whose segments are shared where they are the same. Raises IndexCorrupt, and
    IndexMismatch for another model or width.
    """
    manifest = Manifest.read(path)
    if (manifest.code_format, manifest.fingerprint) != (code_format, fingerprint):
        theirs, model = _short(manifest.fingerprint), _short(fingerprint)
        raise IndexMismatch(
            f"{path} holds codes of {manifest.code_format} of model {theirs}, those of the bundle "
            f"have {code_format} and are of model {model}: they cannot be compared; "
            "fix: the bundle of the index, or build the index again"
        )
    same = known is not None and known.snapshot.manifest.index_id == manifest.index_id
    snapshot = newest(path, "first-use", known.snapshot if known and same else None)
    found = snapshot.manifest
    if (found.code_format, found.fingerprint) != (code_format, fingerprint):
        raise IndexMismatch(f"{path} was replaced by another index just now")
    for view in snapshot.views:
        _ = view.searcher  # compares the checksums and builds what searches need
    return Version(path, snapshot)


class Versions:
    """The current version of an index, and the task that looks for the next one.

    on_reload: told whether a new version could be opened.
    """

    def __init__(
        self,
        path: Path,
        *,
        code_format: CodeFormat,
        fingerprint: str,
        on_reload: Callable[[bool], None] = lambda _: None,
    ) -> None:
        self.path = path
        self._code_format = code_format
        self._fingerprint = fingerprint
        self._on_reload = on_reload
        self._stamp = self._look()
        self.current = open_version(path, code_format=code_format, fingerprint=fingerprint)
        self.failure: str | None = None

    @contextmanager
    def use(self) -> Iterator[Version]:
        """Yield the current version, which stays open during the block."""
        with self.current.used() as version:
            yield version

    async def watch(self, interval: float, executor: Executor) -> None:
        """Reload when the manifest file has been replaced; runs until cancelled."""
        loop = asyncio.get_running_loop()
        tried = loop.time()
        while True:
            await asyncio.sleep(interval)
            stamp = self._look()
            again = self.failure is not None and loop.time() - tried > RETRY
            if stamp != self._stamp or again:
                self._stamp, tried = stamp, loop.time()
                await self.reload(executor)

    async def reload(self, executor: Executor) -> bool:
        """Open the newest state and make it current; keep the old one if that fails."""
        old = self.current
        loop = asyncio.get_running_loop()
        try:
            new = await loop.run_in_executor(executor, self._open, old)
        except Exception as error:  # of any kind, such as no memory: the next look may succeed
            self.failure = str(error) or type(error).__name__
            self._on_reload(False)
            log.error("reload failed, the old version goes on: %s", self.failure)
            return False
        self.failure = None
        if new.name == old.name:
            return False
        self.current = new
        old.retire()
        self._on_reload(True)
        log.info("reloaded %s: %d codes", new.name, len(new.snapshot))
        return True

    def close(self) -> None:
        """Close the current version when no request uses it."""
        self.current.retire()

    def _open(self, known: Version) -> Version:
        try:
            form, model = self._code_format, self._fingerprint
            return open_version(self.path, known, code_format=form, fingerprint=model)
        except OSError as error:
            raise IndexCorrupt(f"{self.path}: {error.strerror or error}") from error

    def _look(self) -> Stamp:
        try:
            status = os.stat(self.path / NAME, follow_symlinks=False)  # noqa: PTH116
        except OSError:
            return None
        return status.st_ino, status.st_mtime_ns, status.st_size


def _short(fingerprint: str | None) -> str:
    return fingerprint[:12] if fingerprint else "none"
