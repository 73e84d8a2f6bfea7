"""Several files that belong together, written all or none."""

import os
from collections.abc import Callable, Mapping
from contextlib import suppress
from functools import partial
from pathlib import Path

from metah_runtime import files
from metah_runtime.errors import StorageError

Fill = Callable[[files.NewFile], None]


def write_files(fills: Mapping[Path, Fill], *, replace: bool) -> None:
    """Write every file or none: after a failure the old files are there, unchanged.

    All lie in one folder. replace: old files are replaced; otherwise one that exists is kept and
    FileExistsError raised. If the process is killed between two renames, only the first file has
    its name: old files of the others wait beside it under hidden names. Raises StorageError.
    """
    new_files = [files.NewFile(path) for path in fills]
    undo: list[Callable[[], None]] = []
    old: list[Path] = []
    try:
        for new, fill in zip(new_files, fills.values(), strict=True):
            new.begin()
            fill(new)
        if replace:
            for new in reversed(new_files):
                kept = _set_aside(new.path, link=new is new_files[0])
                if kept:
                    old.append(kept)
                    undo.append(partial(_restore, kept, new.path))
        for new in new_files:
            fresh = not os.path.lexists(new.path)
            new.commit(replace=replace)
            if fresh:
                undo.insert(0, partial(files.disk.unlink, new.path))
    except BaseException:
        for step in undo:
            with suppress(OSError):  # the first failure is the one to report
                step()
        for new in new_files:
            new.discard()
        raise
    for path in old:
        with suppress(OSError):
            files.disk.unlink(path)
    files.sync_folder(new_files[0].path.parent)


def _set_aside(path: Path, *, link: bool) -> Path | None:
    """Give an old file a hidden name, with ``link`` beside its own; None if there is none."""
    aside = path.with_name(f".{path.name[:200]}.{os.urandom(6).hex()}.old")
    try:
        if link:
            with suppress(OSError):  # a file system without hard links
                files.disk.link(path, aside)
                return aside
        files.disk.rename(path, aside)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise StorageError(f"cannot rename {path}: {error.strerror or error}") from error
    return aside


def _restore(kept: Path, path: Path) -> None:
    files.disk.rename(kept, path)
    with suppress(FileNotFoundError):  # a second name of the file itself is not renamed
        files.disk.unlink(kept)
