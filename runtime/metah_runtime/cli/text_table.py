"""Tables as text. Ours, for importing rich takes 30 to 50 ms: longer than a whole search."""

import unicodedata
from collections.abc import Iterable, Sequence

from metah_runtime.text import escaped

_BOX = "┌─┬┐│├┼┤└┴┘"
_ASCII = "+-++|+++++++"
_LEAST = 6
"""Width below which no column is folded."""


def render(
    columns: Sequence[str],
    rows: Iterable[Sequence[object]],
    title: str | None = None,
    *,
    width: int | None = None,
    encoding: str = "utf-8",
) -> str:
    """Return a table as lines; a column of numbers is aligned to the right.

    width: of the terminal, in characters; the widest cells are folded to fit it. None: no cell is
    folded. What ``encoding`` lacks is shown as an escape, lines are then drawn in ASCII.
    """
    cells = [tuple(row) for row in rows]
    right = [
        bool(cells) and all(isinstance(row[i], int | float) for row in cells)
        for i in range(len(columns))
    ]
    texts = [[_printable(cell, encoding) for cell in row] for row in (columns, *cells)]
    lines = [[cell.split("\n") for cell in row] for row in texts]
    widths = [
        max(columns_of(line) for row in lines for line in row[i]) for i in range(len(columns))
    ]
    if width is not None:
        widths = _fitted(widths, width)
    box = _BOX if _has(encoding, _BOX) else _ASCII
    down, head = box[4], box[5:8]
    out = [] if title is None else [_printable(title, encoding)]
    out.append(_rule(widths, box[0], box[1], box[2], box[3]))
    for number, row in enumerate(lines):
        parts = [
            [piece for line in cell for piece in _folded(line, widths[i])]
            for i, cell in enumerate(row)
        ]
        for level in range(max(map(len, parts))):
            shown = [
                _padded(part[level] if level < len(part) else "", widths[i], right[i])
                for i, part in enumerate(parts)
            ]
            out.append(f"{down} {f' {down} '.join(shown)} {down}")
        if number == 0:
            out.append(_rule(widths, head[0], box[1], head[1], head[2]))
    out.append(_rule(widths, box[8], box[1], box[9], box[10]))
    return "\n".join(out)


def columns_of(text: str) -> int:
    """Return how many terminal columns a text takes: two for wide characters, none for marks."""
    if text.isascii():
        return len(text)
    return sum(_columns(c) for c in text)


def _columns(c: str) -> int:
    if unicodedata.category(c) in ("Mn", "Me", "Cf"):
        return 0
    return 2 if unicodedata.east_asian_width(c) in "WF" else 1


def _printable(cell: object, encoding: str) -> str:
    return escaped(str(cell), keep="\n").encode(encoding, "backslashreplace").decode(encoding)


def _has(encoding: str, text: str) -> bool:
    try:
        text.encode(encoding)
    except UnicodeEncodeError:
        return False
    return True


def _rule(widths: Sequence[int], left: str, line: str, cross: str, right: str) -> str:
    return left + cross.join(line * (width + 2) for width in widths) + right


def _padded(text: str, width: int, right: bool) -> str:
    space = " " * (width - columns_of(text))
    return space + text if right else text + space


def _fitted(widths: Sequence[int], total: int) -> list[int]:
    """Narrow the widest columns until the table fits, or all are at their least."""
    fitted = list(widths)
    over = sum(fitted) + 3 * len(fitted) + 1 - total
    while over > 0:
        widest = max(range(len(fitted)), key=fitted.__getitem__)
        if fitted[widest] <= _LEAST:
            break
        second = max((w for i, w in enumerate(fitted) if i != widest), default=0)
        least = max(_LEAST, min(second, fitted[widest] - 1))
        step = min(over, fitted[widest] - least)
        fitted[widest] -= step
        over -= step
    return fitted


def _folded(text: str, width: int) -> list[str]:
    if columns_of(text) <= width:
        return [text]
    pieces, piece, used = [], "", 0
    for c in text:
        size = _columns(c)
        if used + size > width and piece:
            pieces.append(piece)
            piece, used = "", 0
        piece += c
        used += size
    return [*pieces, piece]
