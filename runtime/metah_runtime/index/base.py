"""The folder that stored paths are relative to, so that an index and its images can move."""

import os
from pathlib import Path

from metah_runtime.errors import ConfigError


def base_folder(index: Path, base: str | None) -> str | None:
    """Return the absolute path of an index's base; a relative one begins at the index's folder."""
    if base is None:
        return None
    return os.path.normpath(os.path.join(os.path.realpath(index), base))  # noqa: PTH118


def base_text(index: Path, folder: str | os.PathLike[str]) -> str:
    """Return how an index names its base.

    Relative if the folder lies beside the index or below its parent, absolute otherwise: what lies
    together moves together. Raises ConfigError for a folder that does not exist.
    """
    path, home = os.path.realpath(folder), os.path.realpath(index)
    if not os.path.isdir(path):  # noqa: PTH112
        raise ConfigError(f"the base {os.fspath(folder)} is no folder; fix: the folder of images")
    parent = os.path.dirname(home)  # noqa: PTH120
    if parent != "/" and os.path.commonpath([parent, path]) == parent:
        return os.path.relpath(path, home)
    return path


def below_base(path: bytes, base: str | None) -> bytes:
    """Return a path as it is stored: relative if it lies below the base, else as it is."""
    if base is None:
        return path
    begin = os.fsencode(base.rstrip("/")) + b"/"
    return path[len(begin) :] or path if path.startswith(begin) else path


def joined(path: bytes, base: str | None) -> bytes:
    """Return a stored path as a caller sees it: below the base unless it is absolute."""
    return path if base is None else os.path.join(os.fsencode(base), path)  # noqa: PTH118
