"""The parts of every HTML page: escaping, tables, facts, the head."""

import os

import pytest

from metah_runtime.html.page import STYLE, Html, document, facts, table, text


@pytest.mark.parametrize(
    ("value", "shown"),
    [
        ("<b>&\"'", "&lt;b&gt;&amp;&quot;&#x27;"),
        ("a\nb\x00\x1b[31m", "a\\nb\\x00\\x1b[31m"),
        ("right\u202eto left", "right\\u202eto left"),
        (os.fsdecode(b"caf\xe9"), "caf\\xe9"),
        ("\ud800", "\\ud800"),
        ("é 図 🙂", "é 図 🙂"),
        (3, "3"),
        (Html("<b>kept</b>"), "<b>kept</b>"),
    ],
)
def test_text_is_escaped(value: object, shown: str) -> None:
    assert text(value) == shown
    text(value).encode("utf-8")


def test_a_table_scrolls_and_aligns_its_first_columns() -> None:
    shown = table(["<n>", "kind", "ms"], [["a", "x", 1.5], [Html("<b>b</b>"), "<y>", 2]], left=2)
    assert shown == (
        '<div class="scroll"><table><thead><tr><th scope="col" class="left">&lt;n&gt;</th>'
        '<th scope="col" class="left">kind</th><th scope="col">ms</th></tr></thead><tbody>'
        '<tr><th scope="row" class="left">a</th><td class="left">x</td><td>1.5</td></tr>'
        '<tr><th scope="row" class="left"><b>b</b></th><td class="left">&lt;y&gt;</td>'
        "<td>2</td></tr></tbody></table></div>"
    )


def test_facts_are_a_definition_list_or_nothing() -> None:
    assert facts([]) == ""
    assert facts([("<n>", 3)]) == "<dl><div><dt>&lt;n&gt;</dt><dd>3</dd></div></dl>"


def test_a_document_has_one_head_for_light_dark_and_phones() -> None:
    page = document("<t>", ["<p>a</p>", "<p>b</p>"], header="<p>h</p>", style=".own{}")
    assert page.startswith("<!doctype html>\n")
    assert "<title>&lt;t&gt;</title>" in page
    assert "<h1>&lt;t&gt;</h1><p>h</p></header>" in page
    assert "default-src 'none'; img-src data:; style-src 'unsafe-inline'" in page
    assert '<meta name="viewport" content="width=device-width, initial-scale=1">' in page
    assert f"<style>{STYLE}.own{{}}</style>" in page
    assert "prefers-color-scheme: dark" in STYLE
