"""The HTML document that all pages share: one head, one style sheet, one escaping function.

A page holds no script and requests nothing (a Content-Security-Policy forbids both); it follows the
reader's choice of light or dark and fits a phone. Plain f-strings: a template engine would be a
dependency of the base install for four functions.
"""

import html
from collections.abc import Iterable, Sequence

from metah_runtime.text import escaped


class Html(str):
    """Text that is HTML already: ``text`` returns it unchanged."""

    __slots__ = ()


def text(value: object) -> str:
    r"""Escape a value for HTML text and attributes.

    Control characters show as escapes, bytes of a file name that are not UTF-8 as ``\x..``.
    """
    if isinstance(value, Html):
        return value
    return html.escape(escaped(str(value), keep=""))


def document(title: str, body: Iterable[str], *, header: str = "", style: str = "") -> str:
    """Return a self-contained page.

    header: HTML under the title; body: parts of HTML; style: CSS that this page adds to ``STYLE``.
    """
    parts = "\n".join(body)
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy"
 content="default-src 'none'; img-src data:; style-src 'unsafe-inline'">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>{text(title)}</title>
<style>{STYLE}{style}</style>
</head>
<body>
<header><h1>{text(title)}</h1>{header}</header>
<main>
{parts}
</main>
</body>
</html>
"""


def facts(pairs: Iterable[tuple[str, object]]) -> str:
    """Return (name, value) pairs as a definition list; nothing for none."""
    items = "".join(
        f"<div><dt>{text(name)}</dt><dd>{text(value)}</dd></div>" for name, value in pairs
    )
    return f"<dl>{items}</dl>" if items else ""


def table(columns: Sequence[object], rows: Iterable[Sequence[object]], *, left: int = 1) -> str:
    """Return a table that scrolls sideways; the first ``left`` columns are aligned to the left."""
    head = "".join(
        f'<th scope="col"{_LEFT if i < left else ""}>{text(name)}</th>'
        for i, name in enumerate(columns)
    )
    body = "".join(
        f'<tr><th scope="row" class="left">{text(row[0])}</th>'
        + "".join(
            f"<td{_LEFT if i < left else ''}>{text(cell)}</td>"
            for i, cell in enumerate(row[1:], start=1)
        )
        + "</tr>"
        for row in rows
    )
    return (
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{body}</tbody></table></div>"
    )


_LEFT = ' class="left"'


STYLE = """
:root {
  color-scheme: light dark;
  --page: #f6f7f9; --card: #fff; --line: #e2e5ea; --ink: #16191f; --soft: #666d7a;
  --frame: #eceef2; --accent: #2f6fde; --right: #1f9d55; --wrong: #d64545;
}
@media (prefers-color-scheme: dark) {
  :root {
    --page: #111318; --card: #1a1d24; --line: #2b303a; --ink: #e8eaee; --soft: #98a0ae;
    --frame: #242832; --accent: #7aa7ff; --right: #46c17d; --wrong: #f07575;
  }
}
* { box-sizing: border-box; }
body {
  margin: 0; padding: 2rem clamp(1rem, 4vw, 3rem) 4rem; background: var(--page);
  color: var(--ink); font: 15px/1.45 system-ui, sans-serif;
}
header, main { max-width: 84rem; margin: 0 auto; }
h1 { margin: 0 0 .75rem; font-size: 1.6rem; font-weight: 650; letter-spacing: -.01em; }
h2 { margin: 0; font-size: 1rem; font-weight: 600; overflow-wrap: anywhere; }
h3 { margin: 0; font-size: .9rem; font-weight: 600; overflow-wrap: anywhere; }
p { margin: .3rem 0; overflow-wrap: anywhere; }
p, dt, thead th { color: var(--soft); }
p b, p u { color: var(--ink); }
dl { display: flex; flex-wrap: wrap; gap: .4rem 2rem; margin: 0 0 1.75rem; }
dt { font-size: .8rem; }
dd { margin: 0; overflow-wrap: anywhere; }
section {
  margin: 0 0 1rem; padding: 1rem 1.1rem; background: var(--card);
  border: 1px solid var(--line); border-radius: 12px;
}
.scroll { overflow-x: auto; margin: 0 0 1.75rem; }
section .scroll { margin: .3rem 0 0; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; }
th, td {
  padding: .3rem 1.5rem .3rem 0; border-bottom: 1px solid var(--line); text-align: right;
  white-space: nowrap;
}
th.left, td.left { text-align: left; }
thead th { font-size: .8rem; font-weight: 400; }
tbody th { font-weight: 600; }
td u { text-underline-offset: 3px; }
a { color: var(--accent); }
figure { margin: 0; }
.good { color: var(--right); }
.bad { color: var(--wrong); font-weight: 600; }
@media print { section { break-inside: avoid; } }
"""
