"""The comparison: every number from its source, broken limits said, a page that is safe to open."""

import dataclasses
import itertools
import json
import re
import subprocess
import sys
import xml.etree.ElementTree as ET
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from metah_export import reference_set
from metah_export.cli import main as cli
from metah_export.compare import Comparison, compare, measure, table
from metah_export.compare_page import page
from metah_export.reference_set import DATABASE, QUERY, SOURCE, ReferenceSet
from metah_export.svg import Line, columns, lines, rows
from metah_runtime.cli import console
from metah_runtime.errors import BundleError, ConfigError
from metah_runtime.model import runners
from metah_runtime.model.bundle import Bundle, add_engine
from metah_runtime.model.manifest import Engine
from metah_runtime.model.runners.tensorrt_library import this_platform

Make = Callable[..., Bundle]


@pytest.fixture
def make(make_bundle: Make) -> Make:
    """Write a toy bundle with 80 reference images; sign -1 turns the bits of their logits."""

    def build(name: str = "bundle", *, sign: int = 1, **options: Any) -> Bundle:
        plain = make_bundle(f"{name}-plain", **options)
        rng = np.random.default_rng(0)
        images = rng.integers(0, 256, (80, *plain.preprocess.shape), dtype=np.uint8)
        logits = runners.open(plain, threads=1).run(images)[1]
        reference = ReferenceSet(
            images=images,
            logits=sign * logits,
            roles=np.repeat(np.array([SOURCE, QUERY, DATABASE], np.uint8), [20, 20, 40]),
            names=np.array([f"<b>{i}</b>.png" for i in range(80)]),
            labels=rng.integers(0, 3, 80),
        )
        return make_bundle(name, **options, extra={reference_set.FILE: reference.to_bytes()})

    return build


def fast(paths: list[Path], **options: Any) -> Comparison:
    ticks = itertools.count()
    return compare(
        paths, batches=(1, 4), seconds=8, threads=1, clock=lambda: next(ticks) * 0.5, **options
    )


def test_rows_hold_what_was_measured(make: Make) -> None:
    bundle = make()
    (row,) = fast([bundle.path]).rows
    assert (row.bundle, row.artefact, row.precision) == ("bundle", "onnx", "fp32")
    assert row.megabytes == bundle.manifest.files["model.onnx"].size / 1e6
    assert (row.runs_on, row.note, row.problem) == ("cpu", None, None)
    assert row.parity is not None
    assert (row.parity.flips, row.parity.images, row.parity.top10_overlap) == (0, 80, 1)
    assert [timing.batch for timing in row.timings] == [1, 4]


def test_times_are_those_of_the_clock(make: Make) -> None:
    runner = runners.open(make(), threads=1)
    images = np.zeros((3, 4, 5, 3), np.uint8)
    ticks = iter([0.0, 0.0, 0.2, 1.0, 1.4, 2.0, 2.2, 3.0, 3.2, 4.0, 4.2, 99.0])
    timing = measure(runner, images, 4, 0.001, lambda: next(ticks))
    assert (timing.batch, timing.calls) == (4, 5)
    assert timing.p50 == pytest.approx(50)
    assert timing.p99 == pytest.approx(98, abs=3)
    assert timing.rate == pytest.approx(4 * 5 / 1.2)


def test_a_broken_limit_is_said_and_fails_the_command(
    make: Make, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    good, bad = make("good"), make("bad", sign=-1)
    found = fast([good.path, bad.path])
    assert found.rows[0].problem is None
    assert "flipped bits with |logit| > 0.001" in str(found.rows[1].problem)
    assert [cells[-1] for cells in table(found)[1]] == ["kept", "BROKEN"]
    code, out, err = command(capsys, good, "--json")
    assert code == 0
    assert json.loads(out)["rows"][0]["bundle"] == "good"
    code, out, err = command(capsys, good, bad, "--html", tmp_path / "page.html")
    assert code == 1
    assert "BROKEN" in out
    assert re.search(r"error: bad onnx: \d+ flipped bits", err)
    assert '<span class="bad">BROKEN</span></td>' in (tmp_path / "page.html").read_text()


def command(capsys: pytest.CaptureFixture[str], *args: Any) -> tuple[Any, str, str]:
    names = [str(arg.path) if isinstance(arg, Bundle) else str(arg) for arg in args]
    with pytest.raises(SystemExit) as stop:
        console.run(
            cli.cli,
            "metah-export",
            ["compare", *names, "--seconds", "0.01", "--batches", "1", "--threads", "1"],
        )
    return (stop.value.code, *capsys.readouterr())


def test_engines_that_cannot_run_here_have_a_row_that_says_why(make: Make) -> None:
    bundle = make()
    entry = Engine(
        kind="tensorrt-rtx",
        file="engines/a.plan",
        builder="0.0.0",
        targets=("8.9",),
        platform=this_platform(),
        batch=(1, 8, 64),
        flags=(),
        model_sha256=bundle.manifest.files["model.onnx"].sha256,
        parity=None,
    )
    add_engine(bundle, entry, b"plan")
    row = fast([bundle.path]).rows[1]
    assert (row.artefact, row.runs_on, row.parity) == ("tensorrt-rtx 8.9", None, None)
    assert row.note
    assert table(fast([bundle.path]))[1][1][-1] == "not measured"


def test_bf16_is_emulated_for_its_bits_and_not_timed(
    fp32_model: bytes, reference: ReferenceSet, make_bundle: Make
) -> None:
    from metah_export.precision import lower
    from metah_runtime.images.preprocess import Preprocess

    model = lower(fp32_model, "bf16", bits=48, image_shape=(32, 32, 1))
    spec = Preprocess(height=32, width=32, channels=1)
    extra = {reference_set.FILE: reference.to_bytes()}
    bundle = make_bundle(
        model=model, bits=48, preprocess=spec, precision="bf16", opset=22, extra=extra
    )
    (row,) = fast([bundle.path]).rows
    assert (row.runs_on, row.timings) == (None, ())
    assert "no bf16 kernels" in str(row.note)
    assert row.parity is not None
    assert "bf16 rounding emulated" in row.parity.runner


def test_without_truth_only_size_and_speed_are_shown(make_bundle: Make) -> None:
    (row,) = fast([make_bundle().path]).rows
    assert row.parity is None
    assert row.timings


def test_folders_of_one_name_are_told_apart(make: Make, tmp_path: Path) -> None:
    one = make("one")
    (tmp_path / "deep").mkdir()
    two = Bundle.open(make("two").path.rename(tmp_path / "deep" / "one"))
    names = [row.bundle for row in fast([one.path, two.path]).rows]
    assert names == [str(one.path), str(two.path)]


def test_other_runs_are_pointed_out(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    one, two = make("one", training={"run": "a"}), make("two", training={"run": "b"})
    assert fast([one.path, two.path]).runs == 2
    assert "2 training runs" in page(fast([one.path, two.path]))
    assert "come from 2 training runs" in command(capsys, one, two)[2]


def test_options_out_of_range(make: Make, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = make()
    for options, match in (
        ({"batches": ()}, "batches must be whole numbers in 1..65536"),
        ({"batches": (1, 65537)}, "batches must be whole numbers in 1..65536"),
        ({"batches": (0,)}, "batches must be whole numbers in 1..65536"),
        ({"seconds": 0}, "seconds must be in"),
        ({"seconds": float("nan")}, "seconds must be in"),
    ):
        with pytest.raises(ConfigError, match=match):
            compare([bundle.path], **options)
    with pytest.raises(ConfigError, match="at least one bundle"):
        compare([])
    with pytest.raises(BundleError, match="does not exist"):
        compare(["nowhere"])
    with pytest.raises(SystemExit) as stop:
        console.run(cli.cli, "metah-export", ["compare", str(bundle.path), "--batches", "1,x"])
    assert stop.value.code == 2
    assert "whole numbers like 1,8,64, got '1,x'" in capsys.readouterr().err


def test_the_page_is_self_contained_and_escapes(make: Make) -> None:
    bundle = make("<script>alert(1)</script>".replace("/", "_"))
    text = page(fast([bundle.path]))
    assert "<script" not in text
    assert "&lt;b&gt;" in text
    assert "default-src 'none'" in text
    assert not re.search(r"(?:src|href|url)\s*[=(]\s*[\"']?\w+:", text)
    pictures = re.findall(r"<svg.*?</svg>", text, re.DOTALL)
    assert len(pictures) == 7
    for picture in pictures:
        ET.fromstring(picture)


def test_charts_draw_every_value_in_its_place() -> None:
    picture = ET.fromstring(columns([0, 5, 10], ["a", "b", "c"], x="x", y="y", marked=[0, 2, 0]))
    boxes = [e for e in picture.iter() if e.tag.endswith("rect")]
    heights = [float(box.get("height", "nan")) for box in boxes]
    assert heights[0] == 0
    assert heights[3] == pytest.approx(2 * heights[1])
    assert heights[2] == pytest.approx(heights[1] * 2 / 5, abs=0.02)
    assert [next(iter(box)).text for box in boxes] == ["a: 0", "b: 5", "b: 2 of 5", "c: 10"]
    assert "not measured" in rows([None, 1.0], ["a", "b"], unit="MB", digits=1)
    for values in ([], [0, 0], [1e-9], [1e12]):
        ET.fromstring(columns(values, ["v"] * len(values), x="x", y="y"))
        ET.fromstring(columns(values, ["v"] * len(values), x="x", y="y", log=True))
    ET.fromstring(
        lines([Line(name="<n>", colour=9, points=[(1, 0.5)], upper=[0.5])], x="batch", y="ms")
    )


def test_a_comparison_survives_json(make: Make) -> None:
    from metah_runtime import schema

    found = fast([make().path])
    assert schema.from_json(Comparison, json.loads(json.dumps(schema.to_json(found)))) == found
    assert dataclasses.asdict(found)["rows"]


def test_compare_imports_no_torch(make: Make) -> None:
    program = (
        "import sys\n"
        "from metah_export.compare import compare\n"
        "from metah_export.compare_page import page\n"
        "page(compare(sys.argv[1:], seconds=0.01, threads=1))\n"
        "bad = {'torch', 'matplotlib'} & set(sys.modules)\n"
        "sys.exit(str(bad) if bad else 0)"
    )
    subprocess.run([sys.executable, "-c", program, str(make().path)], check=True, timeout=120)
