"""Pages without scripts, of a dataset and of two submissions, in a real browser: nothing sticks out, nothing is asked for, nothing runs."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
import pytest
from browser import look, open_browser

from geo_embed.reporting.data_page import explore_data
from geo_embed.reporting.submission_comparison import Comparison, compare_submissions
from geo_embed.reporting.submission_page import comparison_page

if TYPE_CHECKING:
    from conftest import Country
    from playwright.sync_api import Browser

WICKED = "<img src=x onerror=alert(1)></svg><script>alert(2)</script>"


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    with open_browser() as opened:
        yield opened


def compared(country: Country, folder: Path) -> Comparison:
    """Two files over the country's test samples: one in three differs, by a name that would like to be more."""
    table = pd.read_csv(country.template, dtype={"sample_id": str})
    train = pd.read_csv(country.train_csv)
    rng = np.random.default_rng(0)
    config = country.config(folder)
    for name in ("a", "b"):
        rows = train.iloc[rng.integers(0, len(train), len(table))]
        table["sample_id"] = [f"{WICKED}{k}" for k in range(len(table))]
        table["predicted_latitude"], table["predicted_longitude"] = (
            rows["latitude"].to_numpy(),
            rows["longitude"].to_numpy(),
        )
        table["predicted_state_idx_1"] = rows["state_idx"].to_numpy()
        table.to_csv(folder / f"{name}.csv", index=False)
    return compare_submissions(config, folder / "a.csv", folder / "b.csv")


@pytest.fixture(scope="module")
def pages(country: Country, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    folder = tmp_path_factory.mktemp("plain")
    dataset, _ = explore_data(
        country.config(folder), ["train", "test"], folder / "dataset.html", pictures=True
    )
    comparison = folder / "comparison.html"
    comparison.write_text(comparison_page(compared(country, folder), limit=8), encoding="utf-8")
    return {"dataset": dataset, "comparison": comparison}


@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [390, 1440])
@pytest.mark.parametrize("name", ["dataset", "comparison"])
def test_nothing_sticks_out_is_complained_of_or_asked_for(
    browser: Browser, pages: dict[str, Path], name: str, width: int, scheme: str
) -> None:
    with look(browser, pages[name], width=width, scheme=scheme, scripts=False) as looked:
        assert looked.ask("document.documentElement.scrollWidth") == width
        assert looked.complaints == []
        assert [url for url in looked.requests if not url.startswith("data:")] == [pages[name].as_uri()]
        # The style is the report's, and applied: a policy that refused it would leave the page white.
        page, ink = looked.ask(
            "['backgroundColor', 'color'].map(key => getComputedStyle(document.documentElement)[key])"
        )
        light, dark = ("rgb(246, 247, 248)", "rgb(27, 31, 36)"), ("rgb(18, 21, 24)", "rgb(233, 236, 239)")
        assert (page, ink) == (light if scheme == "light" else dark)
        assert looked.ask(
            "[...document.querySelectorAll('figure svg.map')].every(svg => svg.getBoundingClientRect().width > 300)"
        )
        cut = looked.ask(
            "[...document.querySelectorAll('.shares .name')].filter(e => e.scrollWidth > e.clientWidth).map(e => e.innerText)"
        )
        assert cut == []


def test_the_map_of_two_submissions_has_a_pair_for_each_sample_and_names_it(
    browser: Browser, pages: dict[str, Path]
) -> None:
    with look(browser, pages["comparison"], scripts=False) as looked:
        pairs = looked.ask(
            """[...document.querySelectorAll('svg.map g')].map(g => {
            const [x, y] = [...g.querySelectorAll('circle')].map(c => [+c.getAttribute('cx'), +c.getAttribute('cy')]);
            return {name: g.querySelector('title').textContent, apart: Math.hypot(x[0] - y[0], x[1] - y[1]), map: g.closest('svg').viewBox.baseVal.height, y: y[1]};
        })"""
        )
        assert len(pairs) >= 30
        assert all(pair["name"].startswith(WICKED) for pair in pairs)
        # The farthest apart come first, and the map shows that: equal areas, no straight lines.
        assert pairs[0]["apart"] > 3 * pairs[-1]["apart"]
        assert all(0 <= pair["y"] <= pair["map"] for pair in pairs)
        assert looked.ask("document.querySelectorAll('main img, script').length") == 0
        assert WICKED in looked.ask("document.body.innerText")
        names = looked.ask("[...document.querySelectorAll('svg.map .class title')].map(t => t.textContent)")
        assert len(names) > 10
