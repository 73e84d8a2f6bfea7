"""Names, labels and domains of stored paths."""

import os
from pathlib import Path

import pytest

from metah_runtime.errors import ConfigError, DataError
from metah_runtime.serve.labels import ImageFacts, Labels, read_labels, relative

ROOT = Path("/photos")


@pytest.mark.parametrize(
    ("path", "below"),
    [
        ("/photos/a/b.png", "a/b.png"),
        ("a/b.png", "a/b.png"),
        ("/photos", None),
        ("/photos2/a.png", None),
        ("/etc/passwd", None),
        ("/photos/../etc/passwd", None),
        ("../x", None),
        ("", None),
        ("/photos/a\0b", None),
    ],
)
def test_what_is_below_the_root(path: str, below: str | None) -> None:
    found = relative(path, ROOT)
    assert (None if found is None else str(found)) == below
    assert relative(path, None) is None


def test_folders_say_label_and_domain() -> None:
    labels = Labels(root=ROOT, layout=("domain", "*", "label"))
    assert labels.facts("/photos/real/2024/cat/1.png") == ImageFacts(
        "real/2024/cat/1.png", "cat", "real"
    )
    assert labels.facts("/photos/real/cat/1.png") == ImageFacts("real/cat/1.png")
    assert labels.facts("/other/real/2024/cat/1.png") == ImageFacts("1.png")
    assert labels.facts(None) == ImageFacts("")


def test_a_base_stands_for_the_root_of_old(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f"path,label\ncat/1.png,kitten\n{ROOT}/cat/2.png,tom\n")
    labels = Labels(root=tmp_path, base=ROOT, layout=("label",), table=read_labels(file))
    assert labels.facts("/photos/cat/1.png") == ImageFacts("cat/1.png", "kitten")
    assert labels.facts("/photos/cat/2.png") == ImageFacts("cat/2.png", "tom")
    assert labels.facts("/photos/cat/3.png") == ImageFacts("cat/3.png", "cat")
    assert labels.facts(f"{tmp_path}/cat/3.png") == ImageFacts("cat/3.png", "cat")
    assert labels.facts("/other/cat/3.png") == ImageFacts("3.png")


def test_hostile_names_are_text() -> None:
    name = os.fsdecode(b"/photos/\xff\x1b[2J\n<b>.png")
    assert Labels(root=ROOT).facts(name).name == r"\xff\x1b[2J\n<b>.png"


@pytest.mark.parametrize("layout", ["class", "label/label", "domain/label/", "label//domain"])
def test_a_wrong_layout_is_refused(layout: str) -> None:
    with pytest.raises(ConfigError, match="--layout must be made of domain, label and"):
        Labels(root=ROOT, layout=tuple(layout.split("/")))


def test_a_layout_needs_a_root() -> None:
    with pytest.raises(ConfigError, match="fix: --images"):
        Labels(layout=("label",))


def test_a_table_goes_before_folders(tmp_path: Path) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(f'path,label,domain\na/1.png,"cat, big",\n{tmp_path}/b/2.png,,sketch\n')
    labels = Labels(root=tmp_path, layout=("label",), table=read_labels(file))
    assert labels.facts(f"{tmp_path}/a/1.png") == ImageFacts("a/1.png", "cat, big")
    assert labels.facts("b/2.png") == ImageFacts("b/2.png", "b", "sketch")


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("", "first line must be path,label"),
        ("label\nx\n", "first line must be"),
        ("path,colour\nx,y\n", "first line must be"),
        ("path\nx\n", "first line must be"),
        ("path,label\nx\n", "line 2 has 1 cells of 2"),
        ("path,label\nx,1\n./x,2\n", "line 3 names ./x again"),
        ('path,label\n"x,1\n', "unexpected end of data"),
    ],
)
def test_a_wrong_table_is_refused(tmp_path: Path, text: str, error: str) -> None:
    file = tmp_path / "labels.csv"
    file.write_text(text)
    with pytest.raises(DataError, match=error):
        read_labels(file)


def test_a_missing_table_is_a_usage_error(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="No such file"):
        read_labels(tmp_path / "none.csv")
