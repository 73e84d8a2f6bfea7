"""Tables as text: aligned by what a terminal shows, folded to its width, never a lost character."""

import pytest

from metah_runtime.cli.text_table import columns_of, render


def test_numbers_go_right_words_left() -> None:
    assert render(["rank", "path"], [(1, "a.png"), (22, "longer.png")], "title").splitlines() == [
        "title",
        "┌──────┬────────────┐",
        "│ rank │ path       │",
        "├──────┼────────────┤",
        "│    1 │ a.png      │",
        "│   22 │ longer.png │",
        "└──────┴────────────┘",
    ]


def test_a_table_without_rows_has_its_head() -> None:
    assert render(["a"], []).splitlines() == ["┌───┐", "│ a │", "├───┤", "└───┘"]


@pytest.mark.parametrize(("text", "columns"), [("é", 1), ("日本", 4), ("e\u0301", 1), ("😀", 2)])
def test_the_columns_that_a_text_takes(text: str, columns: int) -> None:
    assert columns_of(text) == columns
    lines = render(["x"], [(text,), ("wide enough",)]).splitlines()
    assert len({columns_of(line) for line in lines}) == 1


@pytest.mark.parametrize("width", [21, 40, 79, 300])
def test_it_is_folded_to_the_width_and_keeps_every_character(width: int) -> None:
    path, reason = "/very" + "/deep" * 30, "日本" * 20
    text = render(["n", "path", "reason"], [(1, path, reason), (22, "b", "c")], width=width)
    lines = text.splitlines()
    least = 3 + 6 + 6 + 10
    assert {columns_of(line) for line in lines} == {columns_of(lines[0])}
    assert columns_of(lines[0]) <= max(width, least)
    cells = [line.split("│")[1:-1] for line in lines if line.startswith("│")]
    for place, whole in ((1, path + "b"), (2, reason + "c")):
        head = ("path", "reason")[place - 1]
        assert "".join(cell[place].strip() for cell in cells) == head + whole


def test_what_an_encoding_lacks_is_escaped_and_the_lines_are_ascii() -> None:
    text = render(["é"], [("日",)], encoding="ascii")
    assert text.splitlines() == [
        "+--------+",
        "| \\xe9   |",
        "+--------+",
        "| \\u65e5 |",
        "+--------+",
    ]
