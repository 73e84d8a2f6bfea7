import hashlib
import json
import subprocess
import sys
from pathlib import Path

import matplotlib
import numpy as np
import PIL
import pytest
from click.testing import CliRunner
from PIL import Image, ImageFont, features

from metah_runtime.errors import ConfigError
from metah_runtime.images.find import find_images
from metah_runtime.images.preprocess import Preprocess, load_image
from metah_train.cli.data import data
from metah_train.data import SplitSizes, digits, load_split

SIZES = SplitSizes(synthetic=600)


def digest(array: np.ndarray) -> str:
    return hashlib.sha256(array.tobytes()).hexdigest()[:16]


class TestSynthetic:
    def test_pinned_images(self) -> None:
        # Rendered by Pillow 13.0.0 with FreeType 2.14.3, matplotlib 3.11.2 and numpy 2.4.6.
        found = digest(digits.synthetic(100).load(range(100)))
        assert found == "20d12e21f4d8b8d9", (
            f"the rendered digits changed (digest {found}): trained models and their numbers are "
            "for other images. Versions here: Pillow "
            f"{PIL.__version__}, FreeType {features.version('freetype2')}, matplotlib "
            f"{matplotlib.__version__}, numpy {np.__version__}; constraints.txt has the right ones"
        )

    def test_a_larger_set_begins_with_the_smaller(self) -> None:
        small, large = digits.synthetic(12), digits.synthetic(20)
        np.testing.assert_array_equal(large.load(range(12)), small.load(range(12)))
        assert small.names == large.names[:12]
        assert small.names[11] == "syn/1/00011.png"

    def test_classes_in_turn_and_white_on_black(self) -> None:
        images = digits.synthetic(600)
        assert np.bincount(images.labels).tolist() == [60] * 10
        pixels = images.load(range(600))
        assert pixels.shape == (600, 32, 32, 1)
        assert np.median(pixels) < 40
        assert (pixels.max(axis=(1, 2, 3)) > 120).all()
        assert len(np.unique(pixels, axis=0)) == 600

    @pytest.mark.parametrize("name", digits.FONTS)
    def test_every_font_has_ten_different_digits(self, name: str) -> None:
        font = digits._font(name, 32)
        assert isinstance(font, ImageFont.FreeTypeFont)
        shapes = [bytes(font.getmask(text)) for text in digits.CLASSES]
        assert len(set(shapes)) == 10
        assert bytes(font.getmask("\ue123")) not in shapes

    def test_cache(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("METAH_CACHE", str(tmp_path / "cache"))
        plain = digits._render_all(5)
        digits._rendered.cache_clear()
        np.testing.assert_array_equal(digits._rendered(5), plain)
        (path,) = (tmp_path / "cache").iterdir()
        assert path.name.startswith("digits-syn-")
        digits._rendered.cache_clear()
        monkeypatch.setattr(digits, "_render_all", None)  # must not be called
        np.testing.assert_array_equal(digits._rendered(5), plain)
        path.write_bytes(path.read_bytes()[:150])
        digits._rendered.cache_clear()
        with pytest.raises(ConfigError, match="damaged cache; fix: delete it"):
            digits._rendered(5)
        digits._rendered.cache_clear()


class TestHandwritten:
    def test_against_scikit_learn(self) -> None:
        from sklearn.datasets import load_digits

        images, truth = digits.handwritten(), load_digits()
        assert images.labels is not None
        assert images.labels.tolist() == truth.target.tolist()
        pixels = images.load(range(1797)).astype(float)[..., 0]
        assert pixels.shape == (1797, 32, 32)
        blocks = pixels.reshape(1797, 8, 4, 8, 4).mean(axis=(2, 4))
        assert np.abs(blocks - truth.images * 255 / 16).mean() < 12
        assert np.median(pixels) < 40  # white on black, as the rendered ones


class TestSplit:
    def test_syn2real(self) -> None:
        split = load_split("digits", "syn2real", sizes=SIZES)
        assert (split.name, split.direction) == ("digits", "syn2real")
        assert split.class_names == tuple("0123456789")
        assert (len(split.source_train), len(split.source_valid)) == (540, 60)
        assert (len(split.query), len(split.database), len(split.target_train)) == (300, 1497, 1497)
        assert np.bincount(split.query.labels).tolist() == [30] * 10
        assert all(name.startswith("real/") for name in split.target_train.names)
        assert load_split("digits", sizes=SIZES).direction == "syn2real"

    def test_real2syn(self) -> None:
        split = load_split("digits", "real2syn", sizes=SIZES)
        assert len(split.source_train) + len(split.source_valid) == 1797
        assert (len(split.query), len(split.database)) == (300, 300)

    def test_queries_are_the_same_whatever_the_number_of_source_images(self) -> None:
        one, other = (
            load_split("digits", sizes=SplitSizes(synthetic=count)) for count in (200, 600)
        )
        assert one.query.names == other.query.names
        assert one.database.names == other.database.names
        assert load_split("digits", seed=1, sizes=SIZES).query.names != one.query.names

    def test_pinned_queries(self) -> None:
        names = "\n".join(load_split("digits", "syn2real", sizes=SIZES).query.names)
        assert hashlib.sha256(names.encode()).hexdigest()[:16] == "e0920221c34f0fcc"

    def test_another_size(self) -> None:
        spec = Preprocess(height=16, width=24, channels=3)
        split = load_split("digits", sizes=SplitSizes(synthetic=40), preprocess=spec)
        assert split.preprocess == spec
        assert split.source_train.load([0]).shape == (1, 16, 24, 3)


def command(*args: object) -> subprocess.CompletedProcess[str]:
    code = "from metah_train.cli.main import main; main()"
    return subprocess.run(
        [sys.executable, "-c", code, "data", *map(str, args)], capture_output=True, text=True
    )


class TestCommand:
    def test_written_files_have_the_pixels_that_training_sees(self, tmp_path: Path) -> None:
        out = tmp_path / "the digits"
        done = CliRunner().invoke(data, ["digits", "--out", str(out), "--synthetic", "350"])
        assert done.output == f"2147 images in {out}\n"
        assert len(find_images([out])) == 2147
        for direction in digits.DIRECTIONS:
            split = load_split("digits", direction, sizes=SplitSizes(synthetic=350))
            for name, images in (("query", split.query), ("database", split.database)):
                listed = (out / f"{direction}-{name}.txt").read_text().splitlines()
                assert listed == list(images.names)
                read = [load_image(out / line, digits.PREPROCESS) for line in listed]
                np.testing.assert_array_equal(read, images.load(range(len(images))))
                assert [int(line.split("/")[1]) for line in listed] == images.labels.tolist()
        again = command("digits", "--out", out)
        assert again.returncode == 2
        assert "exists; fix: name a new folder" in again.stderr
        assert again.stderr.count("\n") == 1

    @pytest.mark.parametrize(("name", "module"), [("digits", "digits"), ("emoji", "emoji_fetch")])
    def test_what_was_written_is_said_in_json(
        self, name: str, module: str, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(f"metah_train.data.{module}.write", lambda *_, **__: 7)
        done = CliRunner().invoke(data, [name, "--out", "new", "--seed", "3", "--json"])
        assert json.loads(done.stdout) == {"out": "new", "images": 7, "seed": 3}

    def test_nothing_is_left_of_a_failed_write(self, tmp_path: Path) -> None:
        done = command("digits", "--out", tmp_path / "d", "--synthetic", 50)
        assert done.returncode == 1
        assert "class '0' has 5 target images, too few for 30 queries" in done.stderr
        assert list(tmp_path.iterdir()) == []

    def test_info(self, tmp_path: Path) -> None:
        for place in ("s/0", "s/1", "t/0", "t/1"):
            (tmp_path / place).mkdir(parents=True)
            for row in range(40):
                Image.new("L", (3, 2), 51).save(tmp_path / place / f"{row}.png")
        spec = f"folder:{tmp_path}/s:{tmp_path}/t"
        done = command("info", spec, "--direction", "tgt2src", "--seed", 3, "--json")
        assert done.returncode == 0
        value = json.loads(done.stdout)
        assert (value["data"], value["direction"], value["seed"]) == (spec, "tgt2src", 3)
        assert [row["images"] for row in value["sets"]] == [72, 8, 20, 60, 20]
        assert value["sets"][0]["pixel_mean"] == pytest.approx(0.2)
        shown = command("info", spec)
        assert "source_train" in shown.stdout
        assert "0.200" in shown.stdout

    @pytest.mark.parametrize(
        ("args", "status", "message"),
        [
            (("info", "mnist"), 2, "data must be 'digits', 'folder:SRC_DIR"),
            (("info", "digits", "--direction", "up"), 2, "direction must be one of"),
            (("info", "folder:/no/such:/place"), 1, "/no/such: no such folder"),
            (("digits",), 2, "Missing option '--out'"),
            (("digits", "--out", "x", "--synthetic", "0"), 2, "--synthetic"),
        ],
    )
    def test_user_errors(self, args: tuple[str, ...], status: int, message: str) -> None:
        done = command(*args)
        assert done.returncode == status
        assert message in done.stderr
        assert done.stderr.count("\n") == 1
        assert done.stdout == ""

    def test_the_rendering_is_the_same_in_another_process(self) -> None:
        code = (
            "import hashlib; from metah_train.data import digits; "
            "print(hashlib.sha256(digits.synthetic(9).load(range(9)).tobytes()).hexdigest()[:16])"
        )
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.stdout.strip() == digest(digits.synthetic(9).load(range(9)))
