"""The report in a real browser: it complains of nothing, asks for nothing, shows every figure, and runs no text of the data."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from browser import Looked, look, open_browser, settle
from worlds import made_run, make_world

from geo_embed.reporting.report import report

if TYPE_CHECKING:
    from playwright.sync_api import Browser

FIGURES = "[...document.querySelectorAll('figure')]"
HOSTILE = [
    "<img src=x onerror=alert(1)>",
    "</script><script>alert(2)</script>",
    "<!-- --><svg onload=alert(3)>",
    "javascript:alert(4)",
]
WORLDS: dict[str, dict[str, Any]] = {
    # States that have outlines, four views with attention, a calibration.
    "states": {
        "classes": ["Kansas", "Missouri", "Illinois", "Indiana", "Ohio"],
        "views": ("n", "e", "s", "w"),
        "samples": 120,
        "middle": (39.0, -98.0),
        "step": 4.0,
        "noise": 5.0,
        "model__fusion": "attention",
        "training__calibration": "temperature",
    },
    # Two classes without outlines across the antimeridian, twenty rows, one view.
    "tiny": {"classes": ["left", "right"], "samples": 20, "middle": (-17.0, 179.5)},
    # A class's name, an id and a view's name may hold anything.
    "hostile": {
        "classes": HOSTILE,
        "views": ("<b>up</b>", '"><script>alert(5)</script>'),
        "ids": "<i>{}</i></script><script>alert(6)</script>",
        "samples": 48,
    },
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A report of each world, and of two runs."""
    root = tmp_path_factory.mktemp("pages")
    reports = {}
    for name, world in WORLDS.items():
        config = make_world(root / name, **world)
        made_run(config, name)
        reports[name] = report(config, [name])
        if name == "states":
            training = config.training.model_copy(update={"seed": 5, "epochs": 2})
            made_run(config.model_copy(update={"training": training}), "other")
            reports["two"] = report(config, ["states", "other"])
    return reports


def drawn(looked: Looked) -> list[dict[str, Any]]:
    """Of every figure its title, the size of its drawing, and how many marks with data it has."""
    figures: list[dict[str, Any]] = looked.ask(
        FIGURES
        + """.map(figure => {
        const svg = figure.querySelector('svg');
        const box = svg ? svg.getBoundingClientRect() : {width: 0, height: 0};
        const marks = '[aria-label="dot"] > *, [aria-label="line"] > path, [aria-label="cell"] > rect, [aria-label="link"] > path';
        return {title: figure.querySelector('h3').textContent, width: box.width, height: box.height,
            marks: svg ? svg.querySelectorAll(marks).length : 0};
    })"""
    )
    return figures


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", [*WORLDS, "two"])
def test_every_figure_is_drawn_nothing_is_complained_of_and_nothing_is_asked_for(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    with look(browser, pages[name], width=width, scheme=scheme) as looked:
        figures = drawn(looked)
        assert len(figures) >= 8, figures
        for figure in figures:
            assert figure["width"] > 200, figure
            assert figure["height"] > 60, figure
            assert figure["marks"] > 0, figure
        # Nothing sticks out of the page sideways.
        assert looked.ask("document.documentElement.scrollWidth") == width
        assert looked.complaints == []
        assert looked.requests == [pages[name].as_uri()]


def test_a_table_wider_than_a_phone_fades_where_it_goes_on(browser: Browser, pages: dict[str, Path]) -> None:
    faded = """[...document.querySelectorAll('.scroll')].filter(each => each.clientWidth > 0).map(each => ({
        hidden: each.scrollWidth - each.clientWidth - each.scrollLeft,
        fade: getComputedStyle(each).getPropertyValue('--hidden-right') }))"""
    with look(browser, pages["states"], width=390) as looked:
        looked.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
        settle(looked.page)
        parts = looked.ask(faded)
        assert any(part["hidden"] > 0 for part in parts)
        for part in parts:
            assert (part["fade"] != "0px") == (part["hidden"] > 0), part
        looked.ask("document.querySelectorAll('.scroll').forEach(each => each.scrollLeft = 10_000)")
        settle(looked.page)
        assert {part["fade"] for part in looked.ask(faded)} == {"0px"}


def test_text_of_the_data_is_shown_and_never_run(browser: Browser, pages: dict[str, Path]) -> None:
    with look(browser, pages["hostile"]) as looked:
        looked.ask("document.querySelectorAll('details').forEach(each => each.open = true)")
        settle(looked.page)
        text = looked.ask("document.body.innerText")
        for name in [*HOSTILE, "<b>up</b>", "<i>1</i></script><script>alert(6)</script>"]:
            assert name in text
        assert looked.ask("document.querySelectorAll('main img, main i, main b, main script').length") == 0
        assert looked.ask("document.scripts.length") == 3
        assert looked.complaints == []


def test_the_policy_refuses_whatever_the_page_did_not_bring(browser: Browser, pages: dict[str, Path]) -> None:
    with look(browser, pages["tiny"]) as looked:
        looked.ask(
            """(() => { const one = document.createElement('script'); one.textContent = 'window.ran = true';
            document.body.append(one); new Image().src = 'https://example.org/spy.png'; })()"""
        )
        settle(looked.page)
        assert looked.ask("window.ran") is None
        refused = [complaint for complaint in looked.complaints if "Content Security Policy" in complaint]
        assert len(refused) == 2, looked.complaints


@pytest.mark.parametrize("name", ["states", "tiny"])
def test_a_hover_names_the_sample(browser: Browser, pages: dict[str, Path], name: str) -> None:
    with look(browser, pages[name]) as looked:
        for section, marks, text in (
            ("map", "[aria-label=dot] > circle", "sample s"),
            ("errors", "[aria-label=line] > path", "sample s"),
            ("confusion", "[aria-label=cell] > rect[fill^=color-mix]", "true: "),
        ):
            drawing = looked.page.locator(f"#{section} svg[role=img]").first
            drawing.scroll_into_view_if_needed()
            box = drawing.locator(marks).first.bounding_box()
            assert box is not None
            looked.page.mouse.move(box["x"] + box["width"] / 2, box["y"] + box["height"] / 2, steps=3)
            assert text in (drawing.locator("[aria-label=tip]").last.text_content() or ""), section
        assert looked.complaints == []


def test_the_map_shows_only_the_wrong_ones_where_that_is_asked_for(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with look(browser, pages["states"]) as looked:
        dots = "document.querySelectorAll('#map [aria-label=dot] > circle').length"
        wrong = "JSON.parse(document.getElementById('data').textContent).runs[0].map.points.filter(p => p[1] !== p[2]).length"
        all_dots = looked.ask(dots)
        looked.page.get_by_label("Wrong class").check()
        settle(looked.page)
        assert 0 < looked.ask(dots) == looked.ask(wrong) < all_dots


def test_every_state_has_its_outline_and_its_accuracy(browser: Browser, pages: dict[str, Path]) -> None:
    with look(browser, pages["states"]) as looked:
        data = looked.ask("JSON.parse(document.getElementById('data').textContent).runs[0]")
        assert [bool(rings) for rings in data["map"]["classes"]] == [True] * 5
        assert "us-atlas" in looked.ask("document.querySelector('#map').innerText")
        fills = looked.ask(
            "[...document.querySelectorAll('#map [aria-label=geo]:nth-of-type(2) path')].map(p => getComputedStyle(p).fill)"
        )
        rates = [row["top1"] for row in data["classes"]]
        assert len(fills) == 5
        assert len(set(fills)) == len(set(rates))


def test_each_figure_has_its_numbers_as_a_table_that_the_keyboard_opens(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with look(browser, pages["states"]) as looked:
        summaries = looked.page.locator("figure details.behind > summary")
        assert summaries.count() == looked.page.locator("figure").count()
        for k in range(summaries.count()):
            summaries.nth(k).focus()
            looked.page.keyboard.press("Enter")
        settle(looked.page)
        rows = looked.ask(
            "[...document.querySelectorAll('figure table')].map(table => table.tBodies[0].rows.length)"
        )
        assert len(rows) == summaries.count()
        assert min(rows) > 0
        assert looked.complaints == []


def test_a_screen_reader_finds_one_title_sections_labels_and_names(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with look(browser, pages["two"]) as looked:
        levels = looked.ask("[...document.querySelectorAll('h1, h2, h3')].map(h => Number(h.tagName[1]))")
        assert levels.count(1) == 1
        # No level is skipped on the way down.
        assert all(after - before <= 1 for before, after in pairwise(levels))
        assert looked.ask("document.documentElement.lang") == "en"
        unnamed = looked.ask(
            """[...document.querySelectorAll('svg[role=img], section, nav, [role=region], table')].filter(each =>
            !(each.getAttribute('aria-label') || each.getAttribute('aria-labelledby') || each.caption)).length"""
        )
        assert unnamed == 0
        links = looked.ask("[...document.querySelectorAll('nav a')].map(a => a.getAttribute('href'))")
        assert all(looked.ask(f"document.querySelector('{link}') !== null") for link in links)
        ids = looked.ask("[...document.querySelectorAll('[id]')].map(each => each.id)")
        assert len(ids) == len(set(ids))
        looked.page.keyboard.press("Tab")
        assert looked.ask("document.activeElement.className") == "skip"


CONTRAST = """(() => {
    const linear = c => (c /= 255) <= 0.03928 ? c / 12.92 : ((c + 0.055) / 1.055) ** 2.4;
    const light = ([r, g, b]) => 0.2126 * linear(r) + 0.7152 * linear(g) + 0.0722 * linear(b);
    const rgb = text => text.match(/[\\d.]+/g).map(Number);
    const ground = element => {
        for (let each = element; each; each = each.parentElement) {
            const colour = rgb(getComputedStyle(each).backgroundColor);
            if (colour.length < 4 || colour[3] > 0.99) return colour;
        }
        return [255, 255, 255];
    };
    const worst = [];
    const texts = document.querySelectorAll('h1, h2, h3, p, dt, dd, th, td, li, a, summary, label, caption, code, svg text');
    for (const element of texts) {
        const style = getComputedStyle(element);
        const [a, b] = [light(rgb(element.closest('svg') ? style.fill : style.color)), light(ground(element))].sort((x, y) => y - x);
        const ratio = (a + 0.05) / (b + 0.05);
        if (ratio < 4.5) worst.push(`${ratio.toFixed(2)} ${element.tagName} ${element.textContent.slice(0, 40)}`);
    }
    return worst;
})()"""


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_from_its_ground_in_one_typeface(
    browser: Browser, pages: dict[str, Path], scheme: str
) -> None:
    """WCAG 2.2, 1.4.3: a contrast of 4.5 at least."""
    with look(browser, pages["two"], scheme=scheme) as looked:
        assert looked.ask(CONTRAST) == []
        faces = looked.ask(
            "[...new Set([...document.querySelectorAll('body *')].map(each => getComputedStyle(each).fontFamily))]"
        )
        assert len(faces) == 1, faces


def test_it_prints_light_and_whole(browser: Browser, pages: dict[str, Path]) -> None:
    with look(browser, pages["states"], scheme="dark") as looked:
        printed = looked.page.pdf(format="A4")
        assert printed.startswith(b"%PDF")
        assert len(printed) > 50_000
        looked.page.emulate_media(media="print", color_scheme="dark")
        settle(looked.page)
        assert (
            looked.ask("getComputedStyle(document.body.parentElement).backgroundColor")
            == "rgb(255, 255, 255)"
        )
        hidden = looked.ask(
            "[...document.querySelectorAll('nav, .choices')].every(each => getComputedStyle(each).display === 'none')"
        )
        assert hidden
        wide = looked.ask(
            "Math.max(...[...document.querySelectorAll('svg')].map(svg => svg.getBoundingClientRect().right))"
        )
        assert wide <= 1440


def test_without_pictures_the_file_is_small(pages: dict[str, Path]) -> None:
    for path in pages.values():
        assert path.stat().st_size < 1_000_000
