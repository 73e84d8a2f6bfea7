"""Emoji: the packages as npm packs them, the division by code points, what is refused."""

import io
import json
import subprocess
import tarfile
from collections.abc import Callable
from functools import cache
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from metah_runtime.errors import BackendUnavailable, ConfigError, DataError
from metah_train.data import Split, SplitSizes, load_split
from metah_train.data import emoji as module
from metah_train.data import emoji_fetch as fetch
from metah_train.data.emoji import CATEGORIES, VENDORS, family_of, read_list

PEOPLE = ["1f468", "1f469", "1f468-200d-1f469-200d-1f466", "1f46a"]
RUNNERS = ["1f3c3", "1f3c3-200d-2640-fe0f", "1f3c3-200d-2642-fe0f", "1f3c3-200d-27a1-fe0f"]


def listing() -> list[dict[str, Any]]:
    """The items of a small emoji.json: two subcategories of eight or more in each category."""
    items = []
    code = 0x1F500
    for c, category in enumerate(CATEGORIES):
        for part in range(2):
            for _ in range(9 + part):
                items.append((f"{code:x}", category, f"s{c}{part}"))
                code += 1
    items += [(f"{code + i:x}", "Objects", "small") for i in range(3)]
    items += [(name, "People & Body", "s10") for name in RUNNERS]
    items += [(name, "People & Body", "s11") for name in PEOPLE]
    return [
        {
            "image": f"{name}.png",
            "unified": name.upper(),
            "category": category,
            "subcategory": sub,
            "skin_variations": {"1F3FB": {"image": f"{name}-1f3fb.png"}},
        }
        for name, category, sub in items
    ]


@cache
def picture(name: str, vendor: str) -> bytes:
    """A 64x64 PNG: transparent for one vendor, with a palette for the other."""
    rng = np.random.default_rng([*name.encode(), *vendor.encode()])
    image = Image.fromarray(rng.integers(0, 255, (64, 64, 4), np.uint8).repeat(1, 0))
    if vendor == "twitter":
        image = image.convert("RGB").quantize(8)
    out = io.BytesIO()
    image.resize((64, 64)).save(out, "PNG")
    return out.getvalue()


def files_of(vendor: str) -> dict[str, bytes]:
    """The files of a package by path, images of a skin tone and of a larger size among them."""
    items = listing()
    found = {"package.json": b"{}", "emoji.json": json.dumps(items).encode()}
    for item in items:
        found[f"img/{vendor}/64/{item['image']}"] = picture(item["image"], vendor)
    found[f"img/{vendor}/64/1f3c3-1f3fb.png"] = b"a runner of light skin"
    found[f"img/{vendor}/sheets/64.png"] = b"all of them"
    return found


@pytest.fixture(scope="module")
def packages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with one package packed and the other unpacked."""
    folder = tmp_path_factory.mktemp("packages")
    with tarfile.open(folder / "emoji-datasource-google-16.0.0.tgz", "w:gz") as archive:
        for name, data in files_of("google").items():
            info = tarfile.TarInfo(f"package/{name}")
            info.size = len(data)
            archive.addfile(info, io.BytesIO(data))
        link = tarfile.TarInfo("package/img/google/64/1f500.png.link")
        link.type, link.linkname = tarfile.SYMTYPE, "/etc/passwd"
        archive.addfile(link)
    for name, data in files_of("twitter").items():
        path = folder / "emoji-datasource-twitter" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
    return folder


@cache
def pinned(vendor: str) -> str:
    found = files_of(vendor)
    names = [item["image"] for item in listing()]
    return fetch.digest(found["emoji.json"], {n: found[f"img/{vendor}/64/{n}"] for n in names})


@pytest.fixture(autouse=True)
def _digests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(fetch, "DIGESTS", {vendor: pinned(vendor) for vendor in VENDORS})


@pytest.fixture(scope="module")
def root(packages: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fetch, "DIGESTS", {vendor: pinned(vendor) for vendor in VENDORS})
        out = tmp_path_factory.mktemp("data") / "emoji"
        assert fetch.write(out, packages) == 2 * len(listing())
    return out


@pytest.fixture
def load(root: Path) -> Callable[..., Split]:
    def load(options: str = "", direction: str | None = None, seed: int = 0, **sizes: Any) -> Split:
        spec = f"emoji:{root}{options}"
        return load_split(spec, direction, seed=seed, sizes=SplitSizes(**sizes))

    return load


def emoji_of(images: Any) -> set[str]:
    return {name.partition("/")[2] for name in images.names}


def vendors_of(images: Any) -> set[str]:
    return {name.partition("/")[0] for name in images.names}


def test_what_is_written(root: Path) -> None:
    assert {path.name for path in root.iterdir()} == {
        *("emoji.json", "NOTICE.txt", "google", "twitter"),
        *(f"{d}-{part}.txt" for d in module.DIRECTIONS for part in ("query", "database")),
    }
    for vendor in VENDORS:
        files = {path.name: path.read_bytes() for path in (root / vendor).iterdir()}
        assert files == {item["image"]: picture(item["image"], vendor) for item in listing()}
    assert [item.image for item in read_list(root)] == [item["image"] for item in listing()]
    listed = (root / "google2twitter-query.txt").read_text().split()
    assert listed == list(load_split(f"emoji:{root}").query.names)
    assert "CC-BY 4.0" in (root / "NOTICE.txt").read_text()


@pytest.mark.parametrize("options", ["", ":subcategories", ":cross", ":unseen", ":unseen,cross"])
@pytest.mark.parametrize("direction", module.DIRECTIONS)
def test_no_family_is_both_trained_and_tested(
    options: str, direction: str, load: Callable[..., Split]
) -> None:
    split = load(options, direction)
    source, target = direction.split("2")
    for part in (split.source_train, split.source_valid):
        assert vendors_of(part) == {source}
    assert vendors_of(split.database) == vendors_of(split.target_train) == {target}
    assert vendors_of(split.query) == {source if "cross" in options else target}
    assert split.target_train.labels is None
    trained = emoji_of(split.source_train) | emoji_of(split.source_valid)
    assert emoji_of(split.target_train) == trained
    assert not emoji_of(split.source_train) & emoji_of(split.source_valid)
    tested = emoji_of(split.query) | emoji_of(split.database)
    assert not {family_of(name) for name in trained} & {family_of(name) for name in tested}
    if "cross" in options:
        assert emoji_of(split.query) == emoji_of(split.database)
    else:
        assert not emoji_of(split.query) & emoji_of(split.database)
    names = {item["image"]: item for item in listing()}
    assert not {"Flags", "Component"} & {names[name]["category"] for name in tested}
    for part in (split.source_train, split.query, split.database):
        assert part.labels is not None
        for name, label in zip(part.names, part.labels, strict=True):
            item = names[name.partition("/")[2]]
            assert item["category"] == split.class_names[label].partition(":")[0]
            if "s" in options:
                assert item["subcategory"] == split.class_names[label].partition(": ")[2] or (
                    options == ":cross"
                )


def test_folds_leave_out_whole_families_and_nothing_that_is_tested(
    root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parents[3] / "benchmarks"))
    folds = import_module("emoji_folds")
    job = {"recipe": "emoji", "data": f"emoji:{root}", "direction": "google2twitter"}
    split, source, _ = folds.whole(**job)
    asked: list[str] = []
    for fold in range(folds.FOLDS):
        own = folds.divided({**job, "fold": fold})
        held = own.source_valid
        out = {family_of(name) for name in emoji_of(held)}
        for part in (own.source_train, own.target_train):
            assert not out & {family_of(name) for name in emoji_of(part)}
        assert emoji_of(own.source_train) <= emoji_of(source)
        assert len(own.target_train) >= 0.6 * len(split.target_train)
        assert own.target_train.labels is None
        assert len(own.query) == len(own.database) == 0
        asked += held.names
    known = {name: int(label) for name, label in zip(source.names, source.labels, strict=True)}
    tested = {n for n, c in known.items() if split.class_names[c] not in ("Component", "Flags")}
    assert sorted(asked) == sorted(tested)
    assert not emoji_of(source) & (emoji_of(split.query) | emoji_of(split.database))


def test_classes(load: Callable[..., Split]) -> None:
    split = load()
    assert split.class_names == CATEGORIES
    assert set(np.unique(split.source_train.labels)) == set(range(10))
    assert len(split.query) == pytest.approx(len(emoji_of(split.database)) / 2, rel=0.2)
    fine = load(":subcategories")
    assert len(fine.class_names) == 16  # of eight categories; "small" has too few
    assert set(np.unique(fine.source_train.labels)) == set(range(16))
    held = load(":unseen")
    labels, trained = held.query.labels, set(np.unique(held.source_train.labels))
    assert labels is not None
    assert trained == set(range(13))  # three of sixteen are held out
    assert set(np.unique(labels[held.groups["unseen"]])) == {13, 14, 15}
    assert set(np.unique(labels[held.groups["seen"]])) <= trained
    rows = np.concatenate([held.groups["seen"], held.groups["unseen"]])
    assert np.array_equal(np.sort(rows), np.arange(len(held.query)))


def test_images_are_flattened_on_white(load: Callable[..., Split]) -> None:
    split = load()
    assert split.database.load([0, 1]).shape == (2, 64, 64, 3)
    image = Image.open(io.BytesIO(picture(split.source_train.names[0][7:], "google")))
    alpha = np.asarray(image)[..., 3:] / 255
    expected = np.asarray(image)[..., :3] * alpha + 255 * (1 - alpha)
    found = split.source_train.load([0])[0].astype(float)
    assert np.abs(found - expected).max() <= 2


def test_the_data_seed_divides(load: Callable[..., Split]) -> None:
    assert load().query.names == load().query.names
    assert set(load().query.names) != set(load(seed=1).query.names)
    assert len(load(queries_per_class=2).query) == 16
    assert len(load(target_train=20).target_train) == 20
    with pytest.raises(ConfigError, match="target_train must be at most"):
        load(target_train=1000)
    with pytest.raises(DataError, match="too few for 50 queries and a database"):
        load(queries_per_class=50)


@pytest.mark.parametrize(
    ("image", "family"),
    [
        ("1f3c3.png", "1F3C3"),
        ("1f3c3-200d-2640-fe0f.png", "1F3C3"),
        ("1f3c3-200d-2642-fe0f-200d-27a1-fe0f.png", "1F3C3"),
        ("27a1-fe0f.png", "27A1"),
        ("2640-fe0f.png", "2640"),
        ("1f468-200d-1f692.png", "1F692"),
        ("1f468-200d-1f469-200d-1f466.png", "people"),
        ("1f46a.png", "people"),
    ],
)
def test_family(image: str, family: str) -> None:
    assert family_of(image) == family


@pytest.mark.parametrize(
    "spec", ["emoji:", "emoji:a:b:c", "emoji:a:", "emoji:a:cros", "emoji:a:cross,cross"]
)
def test_bad_specs(spec: str) -> None:
    with pytest.raises(ConfigError, match="emoji are emoji:ROOT or emoji:ROOT:OPTIONS"):
        load_split(spec)


def test_trees_that_are_not_complete(root: Path, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no such folder; fix: metah-train data emoji"):
        load_split(f"emoji:{tmp_path}/none")
    with pytest.raises(DataError, match=r"emoji\.json: cannot be used"):
        load_split(f"emoji:{tmp_path}")
    (tmp_path / "emoji.json").write_bytes((root / "emoji.json").read_bytes())
    with pytest.raises(DataError, match=r"\.png: no such image"):
        load_split(f"emoji:{tmp_path}")
    with pytest.raises(ConfigError, match="direction must be one of google2twitter"):
        load_split(f"emoji:{root}", "syn2real")
    value = json.loads((root / "emoji.json").read_text())
    value["emoji"][0]["category"] = "Cars"
    (tmp_path / "emoji.json").write_text(json.dumps(value))
    with pytest.raises(DataError, match="unknown categories"):
        load_split(f"emoji:{tmp_path}")
    (tmp_path / "emoji.json").write_text('{"format": 2}')
    with pytest.raises(DataError, match="not a list of format 1"):
        load_split(f"emoji:{tmp_path}")


def test_packages_that_are_not_the_pinned_ones(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out = tmp_path / "out"
    with pytest.raises(DataError, match="no such folder"):
        fetch.write(out, tmp_path / "none")
    with pytest.raises(DataError, match="holds neither emoji-datasource-google-16"):
        fetch.write(out, tmp_path)
    monkeypatch.setitem(fetch.DIGESTS, "twitter", "0" * 64)
    with pytest.raises(DataError, match=r"not the contents of emoji-datasource-twitter 16\.0\.0"):
        fetch.write(out, packages)
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").write_bytes(b"nonsense")
    with pytest.raises(DataError, match="cannot be read"):
        fetch.write(out, tmp_path)
    assert not out.exists()
    (tmp_path / "emoji-datasource-google-16.0.0.tgz").unlink()
    bad = tmp_path / "emoji-datasource-google"
    bad.mkdir()
    (bad / "emoji.json").write_text('[{"image": "../../etc/passwd"}]')
    with pytest.raises(DataError, match="an image is no plain file name"):
        fetch.write(out, tmp_path)
    out.mkdir()
    with pytest.raises(ConfigError, match="exists; fix: name a new folder"):
        fetch.write(out, packages)


def test_npm_fetches_both_packages_and_runs_no_script(
    packages: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []

    def run(command: list[str], cwd: Path, **_: Any) -> Any:
        calls.append(command[1:])
        for entry in packages.iterdir():
            (cwd / entry.name).symlink_to(entry)
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(fetch, "which", lambda name: f"/bin/{name}")
    monkeypatch.setattr(fetch.subprocess, "run", run)  # type: ignore[attr-defined]
    assert fetch.write(tmp_path / "out", None) == 2 * len(listing())
    names = [f"emoji-datasource-{vendor}@16.0.0" for vendor in ("google", "twitter")]
    assert calls == [["pack", "--silent", "--ignore-scripts", *names]]
    failed = subprocess.CompletedProcess([], 1, "", "npm error code E404\nmore\n")
    monkeypatch.setattr(fetch.subprocess, "run", lambda *a, **k: failed)  # type: ignore[attr-defined]
    with pytest.raises(BackendUnavailable, match=r"npm pack .* failed: npm error code E404"):
        fetch.write(tmp_path / "other", None)
    monkeypatch.setattr(fetch, "which", lambda name: None)
    with pytest.raises(BackendUnavailable, match="npm is not on the path; fix: install Node"):
        fetch.write(tmp_path / "other", None)
