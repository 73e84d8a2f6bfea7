"""Name, label and domain of indexed images, from their stored paths or a table."""

import csv
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path, PurePath

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.text import printable

FIELDS = ("label", "domain")


@dataclass(frozen=True, slots=True)
class ImageFacts:
    """Name, label and domain of an image; None where unknown."""

    name: str
    label: str | None = None
    domain: str | None = None


@dataclass(frozen=True)
class Labels:
    """Finds the facts of a stored path.

    root, base: see :func:`relative`. layout: what the folders below ``root`` mean, from the top,
    such as ("domain", "label"); "*" means nothing. table: absolute path -> (label, domain), which
    takes precedence over the layout.
    """

    root: Path | None = None
    base: Path | None = None
    layout: tuple[str, ...] = ()
    table: Mapping[str, tuple[str | None, str | None]] = field(default_factory=dict)

    def __post_init__(self) -> None:
        words = [word for word in self.layout if word != "*"]
        if not set(words) <= set(FIELDS) or len(set(words)) != len(words):
            raise ConfigError(
                f"--layout must be made of domain, label and *, each of the words once, got "
                f"{'/'.join(self.layout)!r}; fix: --layout domain/label"
            )
        if words and self.root is None:
            raise ConfigError("--layout says what the folders below --images mean; fix: --images")

    def facts(self, path: str | None) -> ImageFacts:
        """Return the facts of a stored path; the name of None is empty."""
        if path is None:
            return ImageFacts("")
        below = relative(path, self.root, self.base)
        found = dict.fromkeys(FIELDS, None) | self._of_folders(below)
        places = [] if self.root is None or below is None else [str(self.root / below)]
        places.append(str(PurePath(path) if self.root is None else self.root / path))
        label, domain = next((self.table[p] for p in places if p in self.table), (None, None))
        # The folders of images outside of the root are not disclosed.
        name = PurePath(path).name if below is None else str(below)
        return ImageFacts(
            printable(name),
            _text(label if label is not None else found["label"]),
            _text(domain if domain is not None else found["domain"]),
        )

    def _of_folders(self, below: PurePath | None) -> dict[str, str | None]:
        folders = () if below is None else below.parts[:-1]
        if len(folders) < len(self.layout):
            return {}
        return {word: folders[at] for at, word in enumerate(self.layout) if word != "*"}


def relative(path: str, root: Path | None, base: Path | None = None) -> PurePath | None:
    """Return a stored path relative to ``root`` (absolute), None if it is not below it.

    base: the path of the root when the index was built, default the same. Only the text of the
    paths counts. A relative path counts from the root.
    """
    if root is None:
        return None
    pure = PurePath(path)
    if pure.is_absolute():
        above = next((p for p in (base, root) if p is not None and pure.is_relative_to(p)), None)
        if above is None:
            return None
        pure = pure.relative_to(above)
    return None if ".." in pure.parts or not pure.parts or "\0" in path else pure


def read_labels(path: Path) -> dict[str, tuple[str | None, str | None]]:
    """Read a CSV with the columns path, label and, where it likes, domain.

    Relative paths count from the file's folder. An empty cell is unknown. Raises ConfigError,
    DataError naming the line.
    """
    folder = path.absolute().parent.resolve()
    table: dict[str, tuple[str | None, str | None]] = {}
    try:
        with path.open(encoding="utf-8", errors="surrogateescape", newline="") as file:
            rows = csv.reader(file, strict=True)
            head = next(rows, [])
            if "path" not in head or not set(head) <= {"path", *FIELDS} or len(head) < 2:
                raise DataError(
                    f"{path}: the first line must be path,label or path,label,domain, got "
                    f"{','.join(head)!r:.80}"
                )
            for cells in rows:
                if len(cells) != len(head):
                    raise DataError(
                        f"{path}: line {rows.line_num} has {len(cells)} cells of {len(head)}"
                    )
                row = dict(zip(head, cells, strict=True))
                name = os.path.normpath(folder / row["path"])
                if name in table:
                    raise DataError(f"{path}: line {rows.line_num} names {row['path']} again")
                table[name] = (row.get("label") or None, row.get("domain") or None)
    except OSError as error:
        raise ConfigError(f"--labels {path}: {error.strerror}") from None
    except csv.Error as error:
        raise DataError(f"{path}: {error}") from None
    return table


def _text(value: str | None) -> str | None:
    return None if value is None else printable(value)
