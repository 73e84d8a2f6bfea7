import html.parser
import io
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from metah_runtime import metrics, reference
from metah_runtime.codes import CodeFormat
from metah_runtime.errors import ConfigError, DataError
from metah_train.data import ArrayImages
from metah_train.evaluation.report import MethodCodes, Report, choose_queries, compare
from metah_train.evaluation.report_page import page, write
from metah_train.evaluation.report_picture import draw

RNG = np.random.default_rng(5)
QUERIES, ITEMS = 12, 30


def image_set(
    n: int, name: str, labels: np.ndarray | None = None, channels: int = 1
) -> ArrayImages:
    labels = np.arange(n) % 3 if labels is None else labels
    pixels = RNG.integers(0, 256, (n, 8, 8, channels), np.uint8)
    return ArrayImages(pixels, labels, [f"{name}/{row}.png" for row in range(n)])


QUERY, DATABASE = image_set(QUERIES, "query"), image_set(ITEMS, "<b>&db")
CODES = {
    name: MethodCodes(
        query=RNG.integers(0, 4, (QUERIES, width), np.uint8),
        database=RNG.integers(0, 4, (ITEMS, width), np.uint8),
        code_format=CodeFormat(bits=16, detail_bits=8 * width - 16),
    )
    for name, width in (("LSH", 2), ("<i>METAH</i>", 5))
}
NAMES = ("ape", "<cat>", "dog")


def report(**change: object) -> Report:
    options = {"title": "A & B", "class_names": NAMES, "queries": 4, "k": 5} | change
    return compare(CODES, QUERY, DATABASE, **options)


class TestCompare:
    def test_neighbours_distances_and_frames(self) -> None:
        found = report()
        assert [answer.method for answer in found.answers] == list(CODES)
        assert (found.bits, found.k, len(found.shown)) == (16, 5, 4)
        for answer, codes in zip(found.answers, CODES.values(), strict=True):
            query, items, form = codes.query, codes.database, codes.code_format
            expected = reference.search(query[found.shown], items, 5, code_format=form)
            np.testing.assert_array_equal(answer.ids, expected.ids)
            np.testing.assert_array_equal(answer.distances, expected.distances)
            right = found.shown[:, None] % 3 == expected.ids % 3
            np.testing.assert_array_equal(answer.right, right)
            task = (query, QUERY.labels, items, DATABASE.labels)
            scores = metrics.evaluate(*task, code_format=form)
            assert answer.scores.metrics == scores
            first = metrics.precision_at_n(*task, [5], code_format=form)[0]
            assert answer.scores.precision_at_k == first
            if not form.detail_bits:
                assert answer.code_scores is None
                continue
            assert answer.code_scores is not None
            task = (query[:, :2], QUERY.labels, items[:, :2], DATABASE.labels)
            assert answer.code_scores.metrics == metrics.evaluate(*task)

    def test_table(self) -> None:
        columns, rows = report().table()
        assert columns == (
            *("method", "MAP@H≤2", "recall@H≤2", "empty balls", "MAP", "P@5"),
            *("finds itself", "bytes"),
        )
        assert [row[0] for row in rows] == [*CODES, "<i>METAH</i>, hash code alone"]
        assert [row[-1] for row in rows] == ["2", "5", "2"]
        scores = report().answers[1].scores.metrics
        assert rows[1][1] == f"{scores.map_h2:.3f}"
        assert rows[1][3] == f"{100 * scores.empty_balls:.1f}%"
        assert report(radius=3).table()[0][1] == "MAP@H≤3"

    def test_k_is_at_most_the_database(self) -> None:
        assert report(k=99).answers[0].ids.shape == (4, ITEMS)

    def test_shared_labels_of_multi_label_images(self) -> None:
        hot = np.eye(3, dtype=np.uint8)
        both = hot | hot[[1, 2, 0]]
        query, items = (
            image_set(len(images), "m", table[np.arange(len(images)) % 3])
            for images, table in ((QUERY, both), (DATABASE, hot))
        )
        found = compare(CODES, query, items, title="", class_names=NAMES, queries=4, k=5)
        left, right = found.shown[:, None] % 3, found.answers[0].ids % 3
        np.testing.assert_array_equal(
            found.answers[0].right, (left == right) | ((left + 1) % 3 == right)
        )
        assert found.label(query, 0) == "ape, <cat>"

    def test_bad_input(self) -> None:
        options = {"title": "", "class_names": NAMES}
        with pytest.raises(ConfigError, match="at least one method, got none"):
            compare({}, QUERY, DATABASE, **options)
        with pytest.raises(DataError, match="needs labels of queries and database"):
            compare(CODES, QUERY, DATABASE.unlabelled(), **options)
        query, database = (np.zeros((n, 3), np.uint8) for n in (QUERIES, ITEMS))
        wide = MethodCodes(query=query, database=database, code_format=CodeFormat(bits=24))
        with pytest.raises(DataError, match=r"must have one length, got \[16, 24\] bits"):
            compare({**CODES, "wide": wide}, QUERY, DATABASE, **options)
        with pytest.raises(ConfigError, match="k must be a whole number >= 1, got 0"):
            report(k=0)


class TestChooseQueries:
    def test_no_class_again_before_every_class_once(self) -> None:
        labels = np.repeat(np.arange(5), (1, 9, 3, 4, 2))
        chosen = choose_queries(labels, 12, seed=1)
        assert len(set(chosen.tolist())) == 12
        assert sorted(labels[chosen[:5]]) == [0, 1, 2, 3, 4]
        assert sorted(labels[chosen[5:9]]) == [1, 2, 3, 4]
        assert choose_queries(labels, 99).tolist() != list(range(19))
        assert sorted(choose_queries(labels, 99)) == list(range(19))

    def test_seed(self) -> None:
        labels = np.arange(100) % 10
        first = choose_queries(labels, 10, seed=3).tolist()
        assert choose_queries(labels, 10, seed=3).tolist() == first
        assert choose_queries(labels, 10, seed=4).tolist() != first
        assert labels[first].tolist() != sorted(labels[first])

    def test_bad_count(self) -> None:
        with pytest.raises(ConfigError, match="queries must be a whole number >= 1, got 0"):
            choose_queries(np.zeros(3, int), 0)


class Page(html.parser.HTMLParser):
    """Counts what the page shows and refuses what it must not contain."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.text: list[str] = []
        self.tags: list[str] = []
        self.classes: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        for name, value in attrs:
            if name in ("src", "href"):
                assert (value or "").startswith("data:image/png;base64,")
            if name == "class":
                self.classes.append(value or "")

    def handle_data(self, data: str) -> None:
        self.text.append(data)


class TestPage:
    def test_everything_is_shown_and_escaped(self) -> None:
        found = report()
        shown = Page(page(found))
        assert shown.tags.count("img") == 4 * (1 + 2 * 5)
        rights = sum(int(answer.right.sum()) for answer in found.answers)
        assert shown.classes.count("frame right") == rights
        assert shown.classes.count("frame wrong") == 4 * 2 * 5 - rights
        assert not {"script", "link", "cat"} & set(shown.tags)
        text = "".join(shown.text)
        for part in ("A & B", "<i>METAH</i>", "<cat>", "MAP@H≤2", "empty balls", "P@5"):
            assert part in text
        assert shown.text.count("<i>METAH</i>") == 1 + 4
        columns, rows = found.table()
        cells = [cell for row in (columns, *rows) for cell in row]
        assert [part for part in shown.text if part in cells][: len(cells)] == cells

    def test_precision_of_each_answer(self) -> None:
        found = report()
        text = page(found)
        for answer in found.answers:
            for right in answer.right:
                assert f"P@5 {right.mean():.1f}" in text


class TestPicture:
    def test_frames(self) -> None:
        found = report(queries=2)
        image = np.asarray(Image.open(io.BytesIO(draw(found, dpi=100))).convert("RGB")).astype(int)
        counts = {}
        for name, colour in (("right", (0x1F, 0x9D, 0x55)), ("wrong", (0xD6, 0x45, 0x45))):
            near = np.abs(image - colour).max(axis=2) < 12
            counts[name] = int(near.sum())
        rights = sum(int(answer.right.sum()) for answer in found.answers)
        wrongs = 2 * 2 * 5 - rights
        assert 0.6 < counts["right"] / rights / (counts["wrong"] / wrongs) < 1.1  # crosses add red

    def test_more_queries_make_it_taller(self) -> None:
        found = report()
        sizes = [Image.open(io.BytesIO(draw(found, queries=n, dpi=50))).size for n in (1, 2, 99)]
        assert sizes[0][0] == sizes[1][0] == sizes[2][0]
        block = sizes[1][1] - sizes[0][1]
        assert sizes[2][1] == pytest.approx(sizes[1][1] + 2 * block, abs=2)

    def test_colour_images_and_the_same_bytes_twice(self) -> None:
        query, items = image_set(QUERIES, "q", channels=3), image_set(ITEMS, "d", channels=3)
        found = compare(CODES, query, items, title="", class_names=NAMES, queries=1, k=3)
        assert draw(found, dpi=40) == draw(found, dpi=40)


def test_write(tmp_path: Path) -> None:
    found = report()
    paths = write(found, tmp_path / "new folder", drawn=1)
    assert [path.name for path in paths] == ["report.html", "report.png", "report.json"]
    assert paths[0].read_text(encoding="utf-8") == page(found)
    assert Image.open(paths[1]).format == "PNG"
    value = json.loads(paths[2].read_text())
    assert value == json.loads(json.dumps(found.to_dict()))
    assert value["methods"]["LSH"]["map_h2"] == found.answers[0].scores.metrics.map_h2
    first = value["queries"][0]
    assert first["name"] == QUERY.names[found.shown[0]]
    assert first["label"] == NAMES[found.shown[0] % 3]
    assert first["answers"]["LSH"]["distances"] == found.answers[0].distances[0].tolist()
