"""The explorer's page in a real browser, used as a person does: it shows what the run says, by mouse and by keyboard."""

from __future__ import annotations

import hashlib
import io
import json
import re
import shutil
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from browser import Looked, look, open_browser, settle
from PIL import Image
from small import Country, encode
from worlds import made_run, make_world

from geo_embed.explorer import api
from geo_embed.explorer.api import build_app
from geo_embed.explorer.explore import open_scene
from geo_embed.explorer.game import deal
from geo_embed.explorer.guard import Guard, own_names
from geo_embed.explorer.scene import Scene
from geo_embed.explorer.serving import bind, url_of
from geo_embed.explorer.uploads import MOST_BYTES
from geo_embed.metrics import metrics
from geo_embed.runs.table import read_predictions, write_predictions

if TYPE_CHECKING:
    from playwright.sync_api import Browser

PAGE = Path(api.__file__).parent / "page"
HOSTILE = ["<img src=x onerror=alert(1)>", "</script><script>alert(2)</script>", "<svg onload=alert(3)>"]
# Where each sample's point is on the canvas, and how opaque the pixel there: the drawing is read back, not what was to be drawn.
OPACITY = """async () => {
    const {atlas} = await import('/assets/map.js'), {getSamples, getJson} = await import('/assets/data.js');
    const [samples, outlines] = [await getSamples('val', ''), await getJson('/api/outlines')];
    const {extent: [left, top, right, bottom], project} = atlas(outlines, samples);
    const canvas = document.querySelector('#map canvas.points'), pen = canvas.getContext('2d');
    const scale = Math.min(canvas.width / (right - left), canvas.height / (bottom - top));
    return Array.from(samples.ids, (id, row) => {
        const [x, y] = project(samples.longitude[row], samples.latitude[row]);
        const at = [canvas.width / 2 + (x - (left + right) / 2) * scale, canvas.height / 2 + (y - (top + bottom) / 2) * scale];
        return [id, ...at, pen.getImageData(Math.round(at[0] - 0.5), Math.round(at[1] - 0.5), 1, 1).data[3]];
    });
}"""


@contextmanager
def serving(scene: Scene) -> Iterator[str]:
    """The address of a server over a scene, which ends with the block."""
    import uvicorn

    listening = bind("127.0.0.1", None)
    app = Guard(
        build_app(scene, scene.splits[0]),
        hosts=own_names("127.0.0.1"),
        token=None,
        port=listening.getsockname()[1],
    )
    server = uvicorn.Server(uvicorn.Config(app, ws="none", lifespan="off", log_config=None))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield url_of(listening)
    server.should_exit = True
    thread.join()
    listening.close()


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def beside(country: Country, fitted: Path) -> Scene:
    """The session's run, with itself to be compared with."""
    return open_scene(country.config(fitted.parents[1]), "first", compare="first")[0]


@pytest.fixture(scope="module")
def address(browser: Browser, beside: Scene) -> Iterator[str]:
    with serving(beside) as url:
        yield url


@pytest.fixture(scope="module")
def hostile(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A run whose names hold HTML; its pictures, its backbone, and the truth of its test samples aren't here."""
    config = make_world(
        tmp_path_factory.mktemp("hostile"),
        HOSTILE,
        views=("<b>up</b>", "down"),
        ids="<i>{}</i>",
        samples=48,
        model__fusion="attention",
        model__head="geocells",
    )
    run = made_run(config, "plain")
    # Answers for test samples, whose truth nobody here knows. The other run has none of those, and none for one that was held out.
    other = shutil.copytree(run.path, run.path.with_name("other"))
    path = run.predictions_path("val")
    predictions, truth = read_predictions(path, run.labels)
    assert truth is not None
    write_predictions(other / path.name, predictions.take(slice(1, None)), truth.take(slice(1, None)))
    write_predictions(run.predictions_path("test"), predictions.take(slice(5)), None)
    with serving(open_scene(config, "plain", compare="other")[0]) as url:
        yield url


def number(looked: Looked, name: str) -> str:
    """A number beside the map, as text, by its name."""
    tile = looked.page.locator(".numbers > div", has=looked.page.locator(f"dt:text-is('{name}')"))
    return (tile.locator("dd").text_content() or "").replace("\u00a0", " ")


def listed(looked: Looked, count: int) -> None:
    """Wait until so many samples are in the list: it is sorted once the hand rests."""
    looked.page.locator(f".samples h2:text-is('{count} sample{'s' * (count != 1)}')").wait_for()


def middle_of(looked: Looked, selector: str) -> tuple[float, float, float, float]:
    """Left, top, width and height of a plane of points."""
    box = looked.page.locator(f"{selector} .plane").bounding_box()
    assert box
    return box["x"], box["y"], box["width"], box["height"]


def brush(looked: Looked, selector: str, share: float) -> None:
    """Drag a box over the left part of a plane, with Shift."""
    left, top, width, height = middle_of(looked, selector)
    page = looked.page
    page.keyboard.down("Shift")
    page.mouse.move(left + 3, top + 3)
    page.mouse.down()
    page.mouse.move(left + share * width, top + height - 3, steps=4)
    page.mouse.up()
    page.keyboard.up("Shift")
    settle(page)


def test_every_held_out_sample_is_drawn_at_its_place_and_a_click_opens_it(
    browser: Browser, address: str
) -> None:
    with look(browser, f"{address}?points=pixels") as looked:
        drawn = looked.ask(OPACITY)
        left, top, *_ = middle_of(looked, "#map")
        x, y = drawn[0][1:3]
        looked.page.mouse.move(left + x, top + y)
        tip = looked.page.locator("#map .tip")
        assert tip.is_visible()
        named = re.search(r"Sample (\S+)", tip.inner_text())
        looked.page.mouse.click(left + x, top + y)
        looked.page.wait_for_selector(".of-sample .bars")
        title = looked.page.locator(".sample h2").inner_text()
        complaints = looked.complaints

    assert drawn
    assert [row[0] for row in drawn if row[3] < 150] == []
    # Another point may lie on top of it.
    assert named
    assert title == f"Sample {named[1]}"
    assert complaints == []


def test_the_layer_of_a_graphics_card_looks_like_the_one_without(browser: Browser, address: str) -> None:
    screenshots = []
    for kind in ("pixels", "webgl"):
        with look(browser, f"{address}?points={kind}") as looked:
            if looked.ask("document.documentElement.dataset.layer") != kind:
                pytest.skip("this Chromium has no WebGL 2")
            picture = looked.page.locator("#map .plane").screenshot()
            screenshots.append(np.asarray(Image.open(io.BytesIO(picture)).convert("RGB"), dtype=int))

    colourful = [np.ptp(pixels, axis=2) > 60 for pixels in screenshots]
    assert colourful[0].sum() > 100
    assert (colourful[0] != colourful[1]).sum() < 0.35 * colourful[0].sum()


def test_the_numbers_are_the_runs_and_follow_the_filters(
    browser: Browser, address: str, fitted: Path, beside: Scene
) -> None:
    predictions, truth = read_predictions(fitted / "val_predictions.parquet", beside.run.labels)
    assert truth is not None
    labels = predictions.labels.encode(truth.state_idx)
    chosen = int(np.bincount(labels).argmax())
    whole, part = (
        metrics(predictions, truth),
        metrics(predictions.take(labels == chosen), truth.take(labels == chosen)),
    )

    count = part["samples"]
    with look(browser, address) as looked:
        before = number(looked, "Score"), number(looked, "Samples")
        looked.page.get_by_label("True class").select_option(str(chosen))
        settle(looked.page)
        after = {name: number(looked, name) for name in ("Score", "Samples", "Top-1", "Median")}
        listed(looked, count)
        looked.page.get_by_role("button", name="Clear all").click()
        settle(looked.page)
        cleared = number(looked, "Samples")

    assert before[0].startswith(f"{whole['score']:.4f}")
    assert before[1] == f"{len(labels)}all"
    assert after["Score"] == f"{part['score']:.4f}all: {whole['score']:.4f}"
    assert after["Samples"] == f"{count}of {len(labels)}"
    assert after["Top-1"].startswith(f"{100 * part['top1']:.0f} %")
    assert after["Median"].startswith(f"{part['median_km']:,.0f} km")
    assert cleared == before[1]


@pytest.mark.parametrize("selector", ["#map", ".space"])
def test_a_box_drawn_over_either_view_selects_in_both(browser: Browser, address: str, selector: str) -> None:
    grey = """selector => {
        const canvas = document.querySelector(selector + ' canvas.points'), pixels = new Uint32Array(canvas.getContext('2d').getImageData(0, 0, canvas.width, canvas.height).data.buffer);
        return pixels.filter(pixel => (pixel >>> 24) > 150).length;
    }"""
    with look(browser, f"{address}?points=pixels") as looked:
        before = [looked.page.evaluate(grey, name) for name in ("#map", ".space")]
        brush(looked, selector, 0.5)
        selected = number(looked, "Samples")
        inked = [looked.page.evaluate(grey, name) for name in ("#map", ".space")]
        looked.page.locator(f"{selector} .plane").focus()
        looked.page.keyboard.press("Escape")
        settle(looked.page)
        cleared = number(looked, "Samples")

    count, of = map(int, selected.split("of "))
    assert 0 < count < of
    assert all(0 < now < whole for now, whole in zip(inked, before, strict=True))
    assert cleared == f"{of}all"


def test_what_is_drawn_around_is_selected_and_the_address_has_it(browser: Browser, address: str) -> None:
    with look(browser, f"{address}?points=pixels") as looked:
        page, drawn = looked.page, looked.ask(OPACITY)
        left, top, width, height = middle_of(looked, "#map")
        page.locator("#map [data-tool=lasso]").click()
        corners = [(0.1, 0.1), (0.6, 0.2), (0.45, 0.9)]
        for k, (x, y) in enumerate([*corners, corners[0]]):
            page.mouse.move(left + x * width, top + y * height, steps=12)
            if k == 0:
                page.mouse.down()
        page.mouse.up()
        settle(page)
        selected = number(looked, "Samples")
        page.wait_for_url(re.compile("area="))
        page.reload()
        page.wait_for_selector("html[data-shown=yes]", state="attached")
        settle(page)
        again = number(looked, "Samples")

    inside = 0
    (ax, ay), (bx, by), (cx, cy) = [(x * width, y * height) for x, y in corners]
    for _, x, y, _ in drawn:
        sides = [
            (qx - px) * (y - py) - (qy - py) * (x - px)
            for px, py, qx, qy in ((ax, ay, bx, by), (bx, by, cx, cy), (cx, cy, ax, ay))
        ]
        inside += min(sides) > 0 or max(sides) < 0
    assert 0 < inside < len(drawn)
    assert selected == again == f"{inside}of {len(drawn)}"


def test_fingers_tap_pan_and_pinch_and_a_pinch_selects_nothing(browser: Browser, address: str) -> None:
    with look(browser, f"{address}?points=pixels", width=390, touch=True) as looked:
        page = looked.page
        x, y = next(row[1:3] for row in looked.ask(OPACITY))
        page.locator("#map [data-tool=box]").tap()
        page.locator("#map .plane").scroll_into_view_if_needed()
        left, top, width, height = middle_of(looked, "#map")
        fingers = page.context.new_cdp_session(page)

        def touch(kind: str, *places: tuple[float, float]) -> None:
            points = [
                {"x": left + a * width, "y": top + b * height, "id": k} for k, (a, b) in enumerate(places)
            ]
            fingers.send("Input.dispatchTouchEvent", {"type": kind, "touchPoints": points})

        # Two fingers, of which the first moves a little before the second comes, and goes on when that is gone.
        touch("touchStart", (0.45, 0.5))
        touch("touchMove", (0.4, 0.5))
        touch("touchStart", (0.4, 0.5), (0.6, 0.5))
        for reach in (0.15, 0.2, 0.25):
            touch("touchMove", (0.5 - reach, 0.5), (0.5 + reach, 0.5))
        touch("touchEnd", (0.25, 0.5))
        touch("touchMove", (0.3, 0.6))
        touch("touchEnd")
        settle(page)
        page.wait_for_url(re.compile("at="))
        zoomed = page.evaluate("async () => (await import('/assets/address.js')).shown.at")
        unselected = number(looked, "Samples")
        page.get_by_role("button", name="Show all").first.tap()
        page.wait_for_url(re.compile("^((?!at=).)*$"))
        page.touchscreen.tap(left + x, top + y)
        page.wait_for_selector(".of-sample .bars")
        opened = page.url

    assert zoomed[0] > 1.5
    assert unselected.endswith("all")
    assert "sample=" in opened


def test_a_sample_shows_its_views_its_probabilities_and_its_neighbours(
    browser: Browser, address: str, beside: Scene
) -> None:
    with look(browser, address) as looked:
        page = looked.page
        page.locator(".line").first.click()
        page.wait_for_selector(".of-sample .neighbours img")
        images = page.locator(".of-sample .views img")
        images.last.evaluate("image => image.decode()")
        sides = images.evaluate_all("all => all.map(image => image.naturalWidth)")
        shares = page.locator(".bars .share").all_inner_texts()
        links = page.locator("#map .above .link").count()
        first = page.url
        page.get_by_role("button", name="Next sample").click()
        page.wait_for_selector(".of-sample .bars")
        second = page.url
        page.go_back()
        settle(page)
        back = page.locator(".sample h2").inner_text()
        complaints = looked.complaints

    assert len(sides) == len(beside.run.config.model.view_names)
    assert all(side > 0 for side in sides)
    assert len(shares) == 5
    assert links == 1
    assert first != second
    named = re.search("sample=([^&]+)", first)
    assert named
    assert back == f"Sample {named[1]}"
    assert complaints == []


def test_an_address_brings_everything_back(browser: Browser, address: str, beside: Scene) -> None:
    identity = beside.shown("val").predictions.sample_id[0]
    state = f"#mode=map&colour=confidence&place=predicted&rank=1,2&sample={identity}&score=0.1,1&at=2,0.4,0.5"
    with look(browser, f"{address}{state}") as looked:
        page = looked.page
        page.wait_for_selector(".of-sample .bars")
        title = page.locator(".sample h2").inner_text()
        colour = page.get_by_label("Colour").input_value()
        predicted = page.get_by_label("predicted", exact=True).is_checked()
        ranks = page.locator(".chips input:checked").evaluate_all("all => all.map(one => one.value)")
        lowest = page.get_by_label("Score at least").input_value()
        near = page.locator("#map .above .truth").get_attribute("cx")
        page.keyboard.press("Escape")
        settle(page)
        closed = page.url
    with look(browser, f"{address}#sample={identity}&at=1.01,0.5,0.5") as looked:
        looked.page.wait_for_selector(".of-sample .bars")
        far = looked.page.locator("#map .above .truth").get_attribute("cx")

    assert title == f"Sample {identity}"
    assert (colour, predicted, sorted(ranks), float(lowest)) == ("confidence", True, ["1", "2"], 0.1)
    assert near
    assert far
    assert abs(float(near) - float(far)) > 20
    assert "sample=" not in closed
    assert "at=2,0.4,0.5" in closed


DROP = """async files => {
    const data = new DataTransfer();
    for (const [bytes, name, type] of files) data.items.add(new File([Uint8Array.from(bytes)], name, {type}));
    document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true}));
}"""


def test_a_dropped_picture_is_answered_and_a_text_is_refused_in_words(
    browser: Browser, address: str, country: Country
) -> None:
    picture = sorted(country.images("train").glob("*south*"))[0]
    with look(browser, address) as looked:
        page = looked.page
        # Which field a picture is sent in can be seen here alone: Playwright shows no form with files.
        page.evaluate(
            """() => { const real = fetch; globalThis.fetch = (url, options) => {
            globalThis.fields = options?.body instanceof FormData ? [...options.body.keys()] : globalThis.fields; return real(url, options); }; }"""
        )
        page.evaluate(DROP, [[list(picture.read_bytes()), picture.name, "image/jpeg"]])
        page.wait_for_selector(".result .bars li")
        bars = page.locator(".result .bars li").count()
        mark = page.locator("#map .above .prediction").count()
        mode = page.url
        view, fields = page.locator(".trial .views select").input_value(), looked.ask("globalThis.fields")
        asked = [url for url in looked.requests if url.endswith("/api/predict")]
        page.evaluate(DROP, [[list(b"no picture"), "notes.txt", "text/plain"]])
        page.wait_for_selector(".result .problem")
        refused = page.locator(".result .problem").inner_text()
        page.get_by_role("button", name="Remove notes.txt").click()
        page.wait_for_selector(".result .bars li")

    assert (bars, mark) == (5, 1)
    assert "mode=try" in mode
    assert (view, fields) == ("south", ["south"])
    # Although it came from another view of the page: a large backbone takes its time.
    assert len(asked) == 1
    assert "picture" in refused


def test_where_a_picture_was_taken_is_shown_as_truth_and_what_is_too_much_is_said(
    browser: Browser, address: str, country: Country
) -> None:
    exif = Image.Exif()
    exif[0x8825] = {1: "N", 2: (40.0, 30.0, 0.0), 3: "W", 4: (100.0, 0.0, 0.0)}
    taken = list(encode(Image.new("RGB", (64, 64), (90, 120, 60)), "JPEG", exif=exif))
    plain = list((country.images("train") / "img_000000_north.jpg").read_bytes())
    with look(browser, address) as looked:
        page = looked.page
        page.evaluate(DROP, [[taken, "taken.jpg", "image/jpeg"]])
        page.wait_for_selector(".result .bars li")
        facts = page.locator(".result .facts").inner_text()
        marks = page.locator("#map .above .truth").count(), page.locator("#map .above .link").count()
        # Three more fit, the fourth doesn't; then the place is full, and what comes is of another.
        page.evaluate(DROP, [[plain, f"{k}.jpg", "image/jpeg"] for k in range(4)])
        page.wait_for_selector(".result .bars li")
        full = page.locator(".trial .views li").count(), page.locator(".trial .note").inner_text()
        page.evaluate(DROP, [[plain, "next.jpg", "image/jpeg"]])
        page.wait_for_selector(".result .bars li")
        after = page.locator(".trial .views li").count(), page.locator(".trial .note").is_visible()
        untold = page.locator(".result .facts").inner_text()
        page.evaluate(
            "size => { const [data, file] = [new DataTransfer(), new File([new Uint8Array(size)], 'large.jpg', {type: 'image/jpeg'})];"
            "data.items.add(file); document.body.dispatchEvent(new DragEvent('drop', {dataTransfer: data, bubbles: true, cancelable: true})); }",
            MOST_BYTES + 1,
        )
        page.wait_for_selector(".result .problem")
        refused = page.locator(".result .problem").inner_text()
        complaints = looked.complaints

    assert "40.50° N, 100.00° W" in facts
    assert "Nebraska" in facts
    assert re.search(r"Distance\s+[\d,.]+ km", facts)
    assert marks == (1, 1)
    assert full == (4, "The model looks at 4 pictures of a place at most: 1 picture is left out.")
    assert after == (1, False)
    assert "no coordinates" in untold
    assert "large.jpg has 24.0 MB" in refused
    assert complaints == []


def test_a_game_of_five_rounds_is_played_by_keyboard(browser: Browser, address: str) -> None:
    with look(browser, f"{address}#mode=play&seed=7") as looked:
        page = looked.page
        for _ in range(5):
            page.wait_for_selector(".views.large")
            assert page.locator("#map .above .prediction").count() == 0
            page.locator("#map .plane").focus()
            for key in ("ArrowLeft", "Shift+ArrowLeft", "ArrowUp", "Enter"):
                page.keyboard.press(key)
            page.wait_for_selector(".verdict")
            settle(page)
            assert page.locator("#map .above .truth").count() == 1
            # The button for what comes next has the focus.
            page.keyboard.press("Enter")
            settle(page)
        rows = page.locator(".versus tbody tr").all_inner_texts()
        rounds = page.locator(".ledger li").all_inner_texts()

    assert [row.split("\t")[0] for row in rows] == ["Mean distance", "Score", "GeoGuessr points"]
    assert len(rounds) == 5
    scores = [float(text) for text in re.findall(r"you (\d\.\d+)", " ".join(rounds))]
    assert float(rows[1].split("\t")[1]) == pytest.approx(np.mean(scores), abs=0.005)


def test_a_pin_is_put_by_a_click_where_the_map_was_clicked_and_what_the_model_scores_is_explained(
    browser: Browser, address: str, beside: Scene
) -> None:
    shown = beside.shown("val")
    assert shown.labels is not None
    # A game that begins with a sample whose class is the model's second guess.
    second = {str(shown.predictions.sample_id[k]) for k in np.flatnonzero(shown.ranked[:, 1] == shown.labels)}
    seed = next(k for k in range(200) if deal(beside, 1, k)["rounds"][0]["sample_id"] in second)
    with look(browser, f"{address}#mode=play&seed={seed}") as looked:
        page = looked.page
        page.wait_for_selector(".views.large")
        left, top, width, height = middle_of(looked, "#map")
        page.mouse.click(left + 0.5 * width, top + 0.5 * height)
        settle(page)
        with page.expect_request("**/api/guess") as asked:
            page.get_by_role("button", name="Guess").click()
        guess = asked.value.post_data_json
        page.wait_for_selector(".verdict")
        verdict = page.locator(".verdict").inner_text()

    # The middle of the map of the states lies in Kansas or a neighbour of it.
    assert guess["latitude"] == pytest.approx(38, abs=5)
    assert guess["longitude"] == pytest.approx(-97, abs=6)
    assert "GeoGuessr points" in verdict
    assert "is its second, which earns a part of the score" in verdict


def test_the_keyboard_alone_reaches_and_opens_samples(browser: Browser, address: str) -> None:
    focus = "document.activeElement.className + ' ' + document.activeElement.tagName"
    with look(browser, address) as looked:
        page = looked.page
        reached, unseen = [], []
        for _ in range(60):
            page.keyboard.press("Tab")
            reached.append(looked.ask(focus))
            ring = looked.ask(
                """(() => { const style = element => getComputedStyle(element).outlineStyle, at = document.activeElement;
                return [at, at.nextElementSibling, at.closest('label')].some(element => element && style(element) !== 'none')
                    || at.matches('input[type=range]'); })()"""
            )
            if not ring:
                unseen.append(reached[-1])
            if reached[-1].startswith("list"):
                break
        for key in ("ArrowDown", "ArrowDown", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector(".of-sample .bars")
        opened = page.locator(".sample .head .at").inner_text()
        page.keyboard.press("n")
        page.wait_for_selector(".of-sample .bars")
        settle(page)
        stepped = page.locator(".sample .head .at").inner_text()
        page.keyboard.press("Escape")
        settle(page)
        returned = looked.ask(focus)
        page.locator("#map .plane").focus()
        for key in ("+", "+", "v"):
            page.keyboard.press(key)
        settle(page)
        seen = number(looked, "Samples")

    assert any(name.startswith("plane") for name in reached)
    assert reached[-1].startswith("list")
    assert unseen == []
    assert opened.startswith("3 of")
    assert stepped.startswith("4 of")
    assert returned.startswith("list")
    assert "of" in seen


def test_it_fits_a_telephone_and_a_desk_in_both_schemes_and_asks_nobody_else(
    browser: Browser, address: str
) -> None:
    backgrounds: dict[str, Any] = {}
    for width, scheme in ((390, "light"), (1440, "dark")):
        with look(browser, address, width=width, scheme=scheme) as looked:
            for mode, ready in (("Explore", ".line"), ("Try it", ".drop"), ("Play", ".views.large")):
                looked.page.get_by_role("link", name=mode).click()
                looked.page.wait_for_selector(ready)
                assert looked.ask("document.documentElement.scrollWidth") <= width
            backgrounds[scheme] = looked.ask("getComputedStyle(document.documentElement).backgroundColor")
            assert looked.complaints == []
            assert [url for url in looked.requests if not url.startswith((address, "data:"))] == []
    assert backgrounds["light"] != backgrounds["dark"]


def test_names_are_never_run_and_what_is_missing_says_why(browser: Browser, hostile: str) -> None:
    with look(browser, hostile) as looked:
        page = looked.page
        page.locator(".line").first.click()
        page.wait_for_selector(".of-sample .bars")
        text = page.locator(".of-sample").inner_text()
        weights = page.locator(".of-sample .views .share").all_inner_texts()
        options = page.get_by_label("True class").inner_text()
        page.get_by_role("link", name="Try it").click()
        settle(page)
        refused = page.locator(".trial .empty").inner_text()
        page.get_by_role("link", name="Play").click()
        page.wait_for_selector(".game .empty")
        without = page.locator(".game .empty").inner_text()
        injected = looked.ask(
            "document.querySelectorAll('main i, main b, main script, main img[src=x]').length"
        )
        complaints = [complaint for complaint in looked.complaints if "404" not in complaint]

    assert injected == 0
    assert complaints == []
    assert any(name in options for name in HOSTILE)
    assert sum(float(weight.replace("%", "")) for weight in weights) == pytest.approx(100, abs=1)
    assert "picture" in text
    assert len(refused) > 20
    assert len(without) > 20


def test_what_is_bundled_is_what_its_sums_say_with_the_licence_of_every_package() -> None:
    vendor = PAGE / "vendor"
    lines = (vendor / "SHA256SUMS").read_text().splitlines()
    assert {line.split()[1] for line in lines} == {"explore.min.js", "LICENSES.txt"}
    for line in lines:
        digest, name = line.split()
        assert hashlib.sha256((vendor / name).read_bytes()).hexdigest() == digest
    licences = (vendor / "LICENSES.txt").read_text()
    lock = json.loads((Path(__file__).parents[2] / "tools/page/package-lock.json").read_text())["packages"]
    for package in ("d3-geo", "@uwdata/flechette"):
        assert f"{package} {lock[f'node_modules/{package}']['version']}" in licences


def test_every_module_is_fetched_at_once_and_nothing_is_inline() -> None:
    page = (PAGE / "index.html").read_text()
    preloaded = set(re.findall(r'modulepreload" href="/assets/([^"]+)"', page))
    scripts = {path.relative_to(PAGE).as_posix() for path in PAGE.rglob("*.js")}
    assert preloaded == scripts | {name for name in api._SHARED if name.endswith(".js")}
    assert not re.search(r"<style|<script(?![^>]*src=)|\bon\w+=|\bstyle=", page)


def test_samples_without_truth_have_no_score_and_back_leads_to_those_that_have_one(
    browser: Browser, hostile: str
) -> None:
    with look(browser, f"{hostile}#truth=1&colour=error") as looked:
        page = looked.page
        page.locator("#splits select").select_option("test")
        page.wait_for_selector(".numbers dt:text-is('Mean confidence')")
        without = page.locator("#panel").inner_text()
        options = page.locator(".toolbar select option").all_inner_texts()
        count = number(looked, "Samples")
        page.go_back()
        page.wait_for_selector(".numbers dt:text-is('Score')")
        back = number(looked, "Samples")
        url = page.url
        complaints = looked.complaints

    assert "The truth of the test samples isn't known" in without
    assert options == ["Confidence", "Class"]
    assert count == "5all"
    assert re.fullmatch(r"\d+of \d+", back)
    assert "truth=1" in url
    assert complaints == []


def test_a_sample_that_the_other_run_has_no_answer_for_is_not_said_to_be_answered_otherwise(
    browser: Browser, hostile: str
) -> None:
    with look(browser, f"{hostile}#colour=agrees") as looked:
        page = looked.page
        legend = page.locator(".key-of-points").inner_text()
        page.get_by_label("Beside other").select_option("none")
        settle(page)
        left = number(looked, "Samples")
        listed(looked, 1)
        page.locator(".line").first.click()
        page.wait_for_selector(".of-sample .bars")
        facts = page.locator(".of-sample .facts").inner_text()

    assert re.search(r"another class · 0\b.*no answer of other · 1\b", legend, re.DOTALL)
    assert left.startswith("1of")
    assert "no answer to this sample" in facts


# Of the open sample's distribution the places in sight that lie in a class: how blue it is there, and which class that is. Where places are on the
# screen follows from the marks of truth and prediction.
TINTS = """(async () => {
    const {atlas} = await import('/assets/map.js'), {shown} = await import('/assets/address.js');
    const told = await (await fetch('/api/samples/val/' + encodeURIComponent(shown.sample))).json();
    const {levels, project} = atlas(await (await fetch('/api/outlines')).json(), {});
    const [truth, point] = [told.truth, told.prediction].map(at => project(at.longitude, at.latitude));
    const ring = document.querySelector('#map .above .truth'), [x, y] = ['cx', 'cy'].map(name => Number(ring.getAttribute(name)));
    const other = Number(document.querySelector('#map .above .prediction').getAttribute('d').match(/[0-9.]+/)[0]);
    const scale = (other - x) / (point[0] - truth[0]), canvas = document.querySelector('#map canvas.ground'), pen = canvas.getContext('2d');
    const {latitude, longitude} = told.distribution, aside = new OffscreenCanvas(1, 1).getContext('2d'), found = [];
    for (const k in latitude) {
        const [a, b] = project(longitude[k], latitude[k]), at = [x + (a - truth[0]) * scale, y + (b - truth[1]) * scale].map(Math.round);
        const inside = levels[1].classes.findIndex(path => aside.isPointInPath(path, a, b, 'evenodd'));
        if (inside < 0 || at[0] < 0 || at[1] < 0 || at[0] >= canvas.width || at[1] >= canvas.height) continue;
        const [red, , blue] = pen.getImageData(...at, 1, 1).data;
        found.push([blue - red, inside]);
    }
    return found;
})()"""


def test_the_heat_over_classes_is_strongest_where_the_model_says(
    browser: Browser, address: str, beside: Scene
) -> None:
    predictions = beside.shown("val").predictions
    sure = int(predictions.probabilities.max(axis=1).argmax())
    with look(browser, f"{address}#sample={predictions.sample_id[sure]}") as looked:
        looked.page.wait_for_selector(".of-sample .bars")
        looked.page.wait_for_timeout(400)
        tints = looked.ask(TINTS)

    assert len({inside for _, inside in tints}) > 3
    assert max(tints)[1] == predictions.probabilities[sure].argmax()


def test_the_heat_of_a_prediction_covers_the_hulls_of_classes_and_a_drag_beside_the_map_selects_nothing(
    browser: Browser, hostile: str
) -> None:
    with look(browser, hostile) as looked:
        page = looked.page
        page.locator("#map [data-tool=lasso]").click()
        page.locator(".line").last.click()
        page.wait_for_selector(".of-sample .bars")
        page.wait_for_timeout(400)
        tints = [tint for tint, _ in looked.ask(TINTS)]
        # What the map does there is chosen where it is shown alone.
        page.get_by_role("link", name="Try it").click()
        settle(page)
        brush(looked, "#map", 0.5)
        page.locator("#map .plane").focus()
        page.keyboard.press("V")
        page.get_by_role("link", name="Explore").click()
        settle(page)
        selected = number(looked, "Samples")

    # Land is nearly grey.
    assert tints
    assert min(tints) > 30
    assert selected.endswith("all")


def test_a_game_that_was_left_goes_on_and_a_seed_that_is_none_deals_another(
    browser: Browser, address: str
) -> None:
    with look(browser, f"{address}#mode=play&seed=no") as looked:
        page = looked.page
        page.wait_for_selector(".views.large")
        dealt = page.url
        page.locator("#map .plane").focus()
        for key in ("ArrowLeft", "ArrowLeft", "Enter"):
            page.keyboard.press(key)
        page.wait_for_selector(".verdict")
        page.get_by_role("button", name="Next round").click()
        page.get_by_role("link", name="Explore").click()
        settle(page)
        page.go_back()
        settle(page)
        title = page.locator(".game h2").inner_text()
        page.locator("#map .plane").focus()
        page.keyboard.press("ArrowLeft")
        settle(page)
        pins = page.locator("#map .above .pin").count()

    assert re.search(r"seed=\d+$", dealt)
    assert title == "Round 2 of 5"
    assert pins == 1
