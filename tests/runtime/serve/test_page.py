"""The page at /, in a headless Chromium: it shows what the interface answers, and nothing else."""

import math
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from metah_runtime import Index
from metah_runtime.serve.labels import Labels

from .conftest import BITS, COUNT, Running, World, running

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
if CHROMIUM is None:
    pytest.skip("needs Chromium; fix: apt-get install chromium", allow_module_level=True)
playwright = pytest.importorskip("playwright.sync_api", reason="needs playwright")

FLAGS = [
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
]
HOSTILE = "<img src=x onerror=document.title='taken'>&amp;.png"


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        started = driver.chromium.launch(executable_path=CHROMIUM, args=FLAGS)
        yield started
        started.close()


@pytest.fixture
def page(browser: Any, served: Running) -> Iterator[Any]:
    """Open the page; afterwards no script error, no refused content, no foreign request."""
    yield from opened(browser, served.port)


def opened(browser: Any, port: int, **options: Any) -> Iterator[Any]:
    with browser.new_context(**options) as context:
        page = context.new_page()
        page.set_default_timeout(60_000)
        faults: list[str] = []
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if is_fault(said) else None)
        origin = f"http://127.0.0.1:{port}/"
        page.on("request", lambda made: faults.append(made.url) if foreign(made, origin) else None)
        page.goto(origin)
        page.wait_for_selector("#facts:not(:empty), #unlock:not([hidden])")
        yield page
        assert faults == []


def is_fault(said: Any) -> bool:
    """Chromium logs each answer that is no 2xx as an error: those are asked for by the tests."""
    return said.type == "error" and "the server responded with a status of 4" not in said.text


def foreign(made: Any, origin: str) -> bool:
    return not made.url.startswith((origin, f"blob:{origin}"))


def tiles(page: Any) -> list[int]:
    return [
        int(value)
        for value in page.eval_on_selector_all(".tile", "all => all.map(t => t.dataset.id)")
    ]


def upload(page: Any, file: Path) -> None:
    with page.expect_response("**/v1/search*"):
        page.set_input_files("#file", file)
    settle(page)


def settle(page: Any) -> None:
    page.wait_for_selector("main:not(.busy)")


def choose(page: Any, number: int) -> None:
    with page.expect_response("**/v1/search*"):
        page.locator(".tile").nth(number).click()
    settle(page)


def test_shows_the_neighbours_of_an_image(page: Any, served: Running, world: World) -> None:
    page.fill("#k", "7")
    upload(page, world.files[5])
    answer = served.search(world.files[5].read_bytes(), "?k=7").json
    assert tiles(page) == [item["id"] for item in answer["neighbours"]]
    distances = page.locator(".tile .distance").all_inner_texts()
    assert distances == [f"distance {item['distance']}" for item in answer["neighbours"]]
    known = page.locator(".tile .known").all_inner_texts()
    assert known == [f"{item['label']} · {item['domain']}" for item in answer["neighbours"]]
    assert f"{COUNT} images" in page.inner_text("#facts")


def test_shows_the_bits_and_which_are_unsure(page: Any, served: Running, world: World) -> None:
    upload(page, world.files[5])
    answer = served.search(world.files[5].read_bytes()).json
    assert page.inner_text("#hex") == answer["code"]
    shown = "".join(page.locator(".bit").all_inner_texts())
    assert shown == format(int(answer["code"], 16), f"0{BITS}b")
    marked = page.eval_on_selector_all(
        ".bit", "all => all.map(bit => bit.classList.contains('unsure'))"
    )
    assert marked == [abs(math.tanh(logit)) < 0.5 for logit in answer["logits"]]


def test_a_bit_is_unsure_below_half(page: Any) -> None:
    logits = [9.0, -0.54, 0.56, -9.0, 0.54, 0.0, 1.0, -1.0]
    found = page.evaluate(
        "values => drawBits(document.getElementById('bits'), '5a', values)", logits
    )
    assert found == {"bits": 8, "unsure": 3}
    classes = page.eval_on_selector_all(".bit", "all => all.map(bit => bit.className)")
    ones = [0, 1, 0, 1, 1, 0, 1, 0]
    unsure = [abs(math.tanh(logit)) < 0.5 for logit in logits]
    wanted = zip(ones, unsure, strict=True)
    assert classes == ["bit" + " one" * one + " unsure" * bool(open_) for one, open_ in wanted]


def test_counts_the_distances(page: Any, served: Running, world: World) -> None:
    page.fill("#k", str(COUNT))
    upload(page, world.files[0])
    answer = served.search(world.files[0].read_bytes(), f"?k={COUNT}").json
    distances = [item["distance"] for item in answer["neighbours"]]
    span = range(min(distances), max(distances) + 1)
    expected = "; ".join(f"distance {d}: {distances.count(d)}" for d in span)
    assert page.get_attribute("#histogram svg", "aria-label") == expected
    heights = page.eval_on_selector_all(
        "#histogram rect", "all => all.map(bar => Number(bar.getAttribute('height')))"
    )
    assert [height > 0 for height in heights] == [d in distances for d in span]


def test_searches_within_a_radius(page: Any, served: Running, world: World) -> None:
    upload(page, world.files[5])
    with page.expect_response("**/v1/search*"):
        page.check("#by-radius")
    settle(page)
    answer = served.search(world.files[5].read_bytes(), "?radius=2").json
    assert tiles(page) == [item["id"] for item in answer["neighbours"]]
    assert f"{answer['within']} within the radius" in page.inner_text("#summary")


def test_goes_on_from_a_neighbour_and_back(page: Any, served: Running, world: World) -> None:
    upload(page, world.files[5])
    first = tiles(page)
    assert page.is_disabled("#back")
    choose(page, 3)
    assert tiles(page) == [
        item["id"] for item in served.search({"id": first[3]}, "?k=24").json["neighbours"]
    ]
    assert page.locator(".bit.unsure").count() == 0
    with page.expect_response("**/v1/search*"):
        page.click("#back")
    settle(page)
    assert tiles(page) == first
    assert page.is_disabled("#back")


def test_shows_pictures(page: Any, world: World) -> None:
    upload(page, world.files[5])
    page.wait_for_selector(".tile img.small")  # 4 x 5 pixels, enlarged with sharp edges
    page.wait_for_function(
        "() => Array.from(document.querySelectorAll('.tile img')).every(one => one.naturalWidth)"
    )


def test_works_by_keyboard(page: Any, served: Running, world: World) -> None:
    upload(page, world.files[5])
    first = tiles(page)
    page.locator(".tile").first.focus()
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowLeft")
    assert page.evaluate("Number(document.activeElement.dataset.id)") == first[1]
    page.keyboard.press("ArrowDown")
    below = page.evaluate("Number(document.activeElement.dataset.id)")
    assert below in first[2:]
    with page.expect_response("**/v1/search*"):
        page.keyboard.press("Enter")
    settle(page)
    assert tiles(page) == [
        item["id"] for item in served.search({"id": below}, "?k=24").json["neighbours"]
    ]


@pytest.mark.parametrize("width", [320, 390, 700, 1000, 1400])
def test_nothing_sticks_out(page: Any, world: World, width: int) -> None:
    page.set_viewport_size({"width": width, "height": 800})
    upload(page, world.files[5])
    assert page.evaluate("document.documentElement.scrollWidth") <= width


def test_says_what_is_wrong_with_a_file(page: Any, world: World, tmp_path: Path) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(world.files[0].read_bytes()[:60])
    upload(page, broken)
    told = page.inner_text("#problem")
    assert "Rule:" in told
    assert "Fix:" in told
    page.set_input_files(
        "#file", {"name": "a.txt", "mimeType": "text/plain", "buffer": b"no image"}
    )
    page.wait_for_function(
        "() => document.getElementById('problem').textContent.includes('a.txt is no image')"
    )
    upload(page, world.files[0])
    assert page.is_hidden("#problem")


@pytest.mark.parametrize("value", ["0", "-3", "1000000", ""])
def test_asks_nothing_with_a_number_out_of_range(page: Any, world: World, value: str) -> None:
    asked: list[str] = []
    page.on("request", lambda made: asked.append(made.url) if "/v1/search" in made.url else None)
    page.fill("#k", value)
    page.set_input_files("#file", world.files[5])
    page.wait_for_timeout(100)
    assert asked == []
    page.fill("#k", "5")
    upload(page, world.files[5])
    assert len(tiles(page)) == 5


def test_a_hostile_name_is_text(browser: Any, world: World, tmp_path: Path) -> None:
    images = tmp_path / "images"
    images.mkdir()
    file = images / HOSTILE
    Image.new("RGB", (5, 4), "red").save(file, format="PNG")
    index = Index.create(tmp_path / "index", bits=BITS, fingerprint=world.bundle.fingerprint)
    index.add(world.encoder().encode([file]), paths=[str(file)])
    labels = Labels(root=images.resolve(), layout=())
    with running(world.service(tmp_path / "index", images=images, labels=labels)) as server:
        for page in opened(browser, server.port):
            upload(page, file)
            assert page.inner_text(".tile .name") == HOSTILE
            assert page.inner_text("#asked") == HOSTILE
            page.wait_for_selector(".tile img")
            assert page.title() == "METAH image search"
            assert page.locator("#gallery img").count() == 1


def test_asks_for_the_token(browser: Any, world: World) -> None:
    with running(
        world.service(token="open sesame".replace(" ", "-"), images=world.images)
    ) as server:
        for page in opened(browser, server.port):
            assert page.is_visible("#unlock")
            page.fill("#token", "wrong-token")
            page.click("#unlock button")
            page.wait_for_function("() => document.getElementById('token').value === ''")
            page.wait_for_selector("#unlock:not([hidden])")
            page.fill("#token", "open-sesame")
            page.click("#unlock button")
            page.wait_for_selector("#unlock", state="hidden")
            upload(page, world.files[5])
            page.wait_for_selector(".tile img")
            assert len(tiles(page)) == 24
