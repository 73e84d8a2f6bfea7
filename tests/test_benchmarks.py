"""Rules of the benchmarks: the README shows what was measured, no device is mislabelled."""

import json
from importlib import import_module
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results" / "latency-zen5.jsonl"


@pytest.fixture
def load(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Import a script of benchmarks/ as they import each other."""
    monkeypatch.syspath_prepend(str(ROOT / "benchmarks"))
    monkeypatch.setenv("OMP_WAIT_POLICY", "passive")  # latency.py sets it
    return import_module


def test_the_readme_shows_the_results_on_file(load: Any, tmp_path: Path) -> None:
    table = load("latency_table")
    copy = tmp_path / "README.md"
    copy.write_text((ROOT / "README.md").read_text())
    table.update(copy, table.read(RESULTS))
    fix = "fix: python benchmarks/latency_table.py benchmarks/results/latency-zen5.jsonl README.md"
    assert copy.read_text() == (ROOT / "README.md").read_text(), fix


def test_a_changed_number_is_noticed(load: Any) -> None:
    table = load("latency_table")
    rows = table.read(RESULTS)
    changed = [dict(row) for row in rows]
    next(row for row in changed if row["stage"] == "encode")["p50_ms"] *= 2
    assert table.table(changed) != table.table(rows)


def test_times_of_a_gpu_do_not_enter_the_table_of_the_cpu(load: Any) -> None:
    table = load("latency_table")
    rows = [{**row, "device": "cuda"} for row in table.read(RESULTS)]
    with pytest.raises(SystemExit, match="shows times of a CPU, got rows of cuda"):
        table.table(rows)


def test_the_page_holds_every_row_and_escapes_names(load: Any) -> None:
    rows = load("latency_table").read(RESULTS)
    rows[0] = {**rows[0], "machine": "<script>"}
    text = load("latency_page").page(rows)
    assert "<script>" not in text
    assert "&lt;script&gt;" in text
    for row in rows[1:]:
        assert f"<td>{row['p50_ms']:.3f}</td>" in text


def test_a_run_on_the_cpu_is_never_called_one_on_cuda(load: Any) -> None:
    backends = load("latency_backends")
    fake = SimpleNamespace(name="onnxruntime", device="cpu")
    assert backends.on_device(fake, "cpu") is fake
    with pytest.raises(backends.WrongDeviceError, match="was to run on cuda, but runs on cpu"):
        backends.on_device(fake, "cuda")
    session = SimpleNamespace(get_providers=lambda: ["CPUExecutionProvider"])
    backend = object.__new__(backends.OrtBackend)
    backend.name, backend._runner = "onnxruntime", SimpleNamespace(_session=session)
    assert backend.device == "cpu"
    assert backend.split(None) is None


def test_turns_are_paired_and_rotate(load: Any) -> None:
    latency = load("latency")
    time, order = [0.0], []

    def run(name: str, seconds: float) -> Any:
        def call() -> None:
            order.append(name)
            time[0] += seconds

        return call

    runs = {"slow": run("slow", 0.25), "fast": run("fast", 0.125)}
    times = latency.take_turns(runs, seconds=1.0, rounds=2, now=lambda: time[0])
    assert [len(block) for block in times["slow"]] == [2, 2]
    assert [len(block) for block in times["fast"]] == [4, 4]
    assert order[4:] == ["slow"] * 3 + ["fast"] * 5 + ["fast"] * 5 + ["slow"] * 3
    slow, fast = latency.rows_of(times, 4, ("slow",))
    assert fast["speed_of_slow"] == pytest.approx(2)
    assert "speed_of_slow" not in slow
    assert fast["per_second"] == pytest.approx(32)
    assert slow["p50_ms"] == slow["p99_ms"] == pytest.approx(250)


def test_the_largest_of_few_calls_is_their_p99(load: Any) -> None:
    found = load("latency").quantiles([0.001] * 50 + [0.5])
    assert found["p50_ms"] == 1
    assert found["p99_ms"] == 500


def test_the_ablation_ranks_rows_and_names_those_that_may_be_chosen(load: Any) -> None:
    ablation = load("ablation")

    def record(method: str, source: float, **criteria: float) -> dict[str, Any]:
        base = dict.fromkeys(ablation.CRITERIA, 0.5)
        del base["source_map_h2"]
        scores = {"map_h2": source, "recall_h2": 0.5, "map_full": 0.5}
        return {
            "method": method,
            "bits": 48,
            "metrics": scores,
            "source_metrics": scores,
            "criteria": base | criteria,
        }

    rows = ablation.summary(
        [
            record("metah", 0.9, entropy=0.2, diversity=2.30),
            record("good", 0.895, entropy=0.1, diversity=2.29),  # entropy: low is good
            record("loses a class", 0.9, entropy=0.3, diversity=2.27),
            record("forgets", 0.88, entropy=0.3, diversity=2.30),
        ]
    )
    assert [row["allowed"] for row in rows] == [True, True, False, False]
    tied = 4 * 2.5  # the other four criteria are equal in all rows
    expected = [1.5 + 2 + 1.5, 3 + 1 + 3, 1.5 + 3.5 + 4, 4 + 3.5 + 1.5]
    assert [row["mean_rank"] for row in rows] == [round((e + tied) / 7, 2) for e in expected]
    assert len({row["mean_rank"] for row in rows}) > 1


def test_the_ablation_scores_held_out_images_among_themselves(load: Any) -> None:
    codes = np.array([[0x00], [0x03], [0x80], [0xFF], [0xFE]], np.uint8)
    labels = np.array([0, 0, 1, 1, 1])
    due = [1 / 2, 1, 0, 1, 1]  # the first finds the third before the second
    assert load("ablation").among(codes, labels) == pytest.approx(np.mean(due))


def test_the_folds_of_emoji_are_averaged_by_row_and_place(load: Any) -> None:
    def record(row: str, bits: int, among: float) -> dict[str, Any]:
        scores = {"among_map_h2": among, "trained_map_h2": among + 0.1}
        return {"row": row, "direction": "google2twitter", "bits": bits, "fold": 0, **scores}

    records = [record("a", 32, 0.2), record("a", 48, 0.4), record("b", 32, 0.5)]
    first, second = load("emoji_folds").summary([*records, record("a", 48, 0.6)])
    assert (first["row"], first["trainings"], second["row"]) == ("a", 3, "b")
    assert (first["among_map_h2"], first["trained_map_h2"]) == (0.4, 0.5)
    assert first["among_map_h2_by"] == {"google2twitter 32": 0.2, "google2twitter 48": 0.5}


def test_the_ablation_changes_one_thing_a_row(load: Any) -> None:
    from metah_train.config import load as configured

    ablation = load("ablation")
    plain = configured("digits", {"method": "metah-plus"}, list(ablation.PLAIN)).options
    for changes in ablation.ROWS.values():
        options = configured(
            "digits", {"method": "metah-plus"}, [*ablation.PLAIN, *changes.split(",")]
        ).options
        changed = {n for n in vars(plain) if getattr(plain, n) != getattr(options, n)}
        assert changed == {part.partition("=")[0][5:] for part in changes.split(",")}


@pytest.fixture
def stamps(load: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """The script with two photographs to name, and trees of emoji and stamps below tmp_path."""
    script = load("stamps")
    photos = {"animal-bird": ["animals/birds/owl.png"], "sky": ["space/moon/moon.png"]}
    for number, name in enumerate(name for names in photos.values() for name in names):
        path = tmp_path / "stamps" / name
        path.parent.mkdir(parents=True)
        path.write_bytes(bytes([number]))
    names = tmp_path / "stamps.json"
    digest = script.digest(tmp_path / "stamps", photos)
    names.write_text(json.dumps({"package": "stamps 1", "digest": digest, "photos": photos}))
    monkeypatch.setattr(script, "NAMES", names)
    emoji = [
        {"image": "1f426.png", "category": "Animals & Nature", "subcategory": "animal-bird"},
        {"image": "1f989.png", "category": "Animals & Nature", "subcategory": "animal-bird"},
        {"image": "1f319.png", "category": "Travel & Places", "subcategory": "sky & weather"},
        {"image": "1f697.png", "category": "Travel & Places", "subcategory": "transport-ground"},
    ]
    for vendor in ("google", "twitter"):
        (tmp_path / "emoji" / vendor).mkdir(parents=True)
        for item in emoji:
            (tmp_path / "emoji" / vendor / item["image"]).write_bytes(vendor.encode())
    (tmp_path / "emoji" / "emoji.json").write_text(json.dumps({"format": 1, "emoji": emoji}))
    return script


def test_drawings_and_photographs_lie_in_folders_of_their_class(
    stamps: Any, tmp_path: Path
) -> None:
    found = stamps.prepare(tmp_path / "emoji", tmp_path / "stamps", tmp_path / "out")
    assert found == (tmp_path / "out" / "drawings", tmp_path / "out" / "photos")
    files = {path.relative_to(tmp_path / "out").as_posix() for path in found[0].rglob("*.png")}
    assert files == {
        f"drawings/{place}"
        for vendor in ("google", "twitter")
        for place in (
            f"animal-bird/{vendor}-1f426.png",
            f"animal-bird/{vendor}-1f989.png",
            f"sky/{vendor}-1f319.png",
        )
    }
    owl = found[1] / "animal-bird" / "animals-birds-owl.png"
    assert sorted(path.name for path in found[1].rglob("*.png")) == [
        owl.name,
        "space-moon-moon.png",
    ]
    assert owl.read_bytes() == bytes([0])


def test_other_photographs_are_refused(
    stamps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    (tmp_path / "stamps" / "space" / "moon" / "moon.png").write_bytes(b"a drawing")
    folders = ["--emoji", tmp_path / "emoji", "--stamps", tmp_path / "stamps"]
    call = ["stamps.py", *map(str, folders), "--out", str(tmp_path / "out")]
    monkeypatch.setattr("sys.argv", call)
    with pytest.raises(SystemExit) as stopped:
        stamps.main()
    assert stopped.value.code == 2
    assert "not the stamps of stamps 1" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


def test_an_empty_report_is_an_error(
    stamps: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any
) -> None:
    monkeypatch.setattr("sys.argv", ["stamps.py", "--report", str(tmp_path)])
    with pytest.raises(SystemExit) as stopped:
        stamps.main()
    assert stopped.value.code == 2
    assert "no finished comparison" in capsys.readouterr().err


def test_every_division_is_a_comparison_that_a_user_can_call(stamps: Any, tmp_path: Path) -> None:
    args = SimpleNamespace(methods="metah,metah-plus", bits="48", workers=2, out=tmp_path)
    call = stamps.command(args, Path("drawings"), Path("photos"), 3)
    text = " ".join(call)
    assert "--recipe photos --data folder:drawings:photos --methods metah,metah-plus" in text
    assert "--seeds 3, --workers 2" in text
    assert "--set split.queries_per_class=4 --set data_seed=3" in text
    assert "sdh" not in text
    assert "--set sdh:sdh.anchors=500" in " ".join(
        stamps.command(SimpleNamespace(**vars(args) | {"methods": "sdh"}), Path("a"), Path("b"), 0)
    )


def test_the_table_of_photographs_on_file_is_that_of_its_records(load: Any) -> None:
    folder = ROOT / "benchmarks" / "results" / "stamps"
    lines = (folder / "results.jsonl").read_text().splitlines()
    found = load("stamps").tables([json.loads(line) for line in lines])
    assert (folder / "table.md").read_text() == found + "\n"
    assert "| METAH+ |" in found
