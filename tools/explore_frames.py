"""Measure the page of `geo explore` with 66,000 points: first paint, first points, frames while it is moved, zoomed, pointed at, brushed.

    python tools/explore_frames.py                  # in a headless Chromium without a graphics card
    python tools/explore_frames.py --points webgl   # by WebGL, whatever the machine has
    python tools/explore_frames.py --keep DIRECTORY # leave the dataset and the run there, and take them from there the next time

Needs the dependency group `dev`, the extra `explore`, and a Chromium on PATH. The samples lie in the states of the demo; their embeddings are
a code of the place and noise, and nine of ten are held out. Frames are counted by `requestAnimationFrame` in the page while Playwright moves
the mouse every 8 ms, so 60 a second is all there can be.
"""

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geo_embed.answers import Truth
from geo_embed.bench.dataset import write_dataset
from geo_embed.cache.exchange import cache_import
from geo_embed.fitting.fit import fit_heads
from geo_embed.geography import to_unit_vectors
from geo_embed.settings import resolve
from geo_embed.synthetic.country import true_locations

if TYPE_CHECKING:
    from playwright.sync_api import Page

HELD_OUT, SHARE, DIM, RUN = 66_000, 0.9, 32, "many"
STEPS, EVERY_MS = 150, 8
COUNT = """() => {
    const gaps = globalThis.gaps = [];
    let last = performance.now();
    requestAnimationFrame(function frame(now) { gaps.push(now - last); last = now; requestAnimationFrame(frame); });
}"""


def make_run(root: Path) -> None:
    """A dataset without pictures below `root`, its embeddings, and a run whose held-out samples are `HELD_OUT`."""
    learnt = round(HELD_OUT / SHARE)
    table, _ = true_locations(round(learnt / 0.8), 0)
    truth = Truth(*(table[name].to_numpy() for name in ("state_idx", "latitude", "longitude")))
    rng = np.random.default_rng(0)
    place = to_unit_vectors(truth.latitude, truth.longitude)
    code = np.sin(place @ rng.normal(size=(3, DIM)) * 12 + rng.uniform(0, 6.3, DIM))
    embeddings = (code[:, None] + rng.normal(size=(len(table), 2, DIM)) * 0.8).astype(np.float32)
    names = dict(zip(table["state_idx"].tolist(), table["state"].tolist(), strict=True))
    views = ("north", "south")
    splits = {"train": (table["sample_id"].to_numpy(), embeddings, truth)}
    paths, files = write_dataset(root, views, names, splits)
    settings = {
        "paths.data_root": str(paths.data_root),
        "paths.cache_dir": str(paths.cache_dir),
        "paths.runs_dir": str(paths.runs_dir),
        "model.backbone_name": "planted",
        "model.view_names": list(views),
        "model.device": "cpu",
        "training.val_split": SHARE,
        "training.preset": "pigeon",
        "training.epochs": 4,
    }
    config = resolve(overrides=settings)[0]
    cache_import(config, files["train"], "train", "planted")
    fit_heads(config, name=RUN)


def frames(page: "Page", what: str, act: Callable[[int], None]) -> dict[str, Any]:
    """Frames a second while something is done `STEPS` times, and the gaps between them in ms."""
    page.wait_for_timeout(400)
    page.evaluate("() => { gaps.length = 0; }")
    begun = time.perf_counter()
    for k in range(STEPS):
        act(k)
        page.wait_for_timeout(EVERY_MS)
    seconds = time.perf_counter() - begun
    gaps = np.array(page.evaluate("() => gaps.slice()"))
    return {
        "what": what,
        "frames_per_second": round(len(gaps) / seconds, 1),
        "median_ms": round(float(np.median(gaps)), 1),
        "p95_ms": round(float(np.quantile(gaps, 0.95)), 1),
    }


def measure(url: str, points: str | None) -> list[dict[str, Any]]:
    """Everything, in a Chromium of 1440 by 900 pixels."""
    from playwright.sync_api import sync_playwright

    path = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    measured: list[dict[str, Any]] = []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=path, args=["--no-sandbox"])
        address = f"{url}?points={points}" if points else url
        for k in range(3):
            page = browser.new_page(viewport={"width": 1440, "height": 900})
            page.goto(address)
            page.wait_for_selector("html[data-shown=yes]", state="attached")
            paint, drawn = page.evaluate(
                "() => [performance.getEntriesByName('first-contentful-paint')[0].startTime, performance.getEntriesByName('points')[0].startTime]"
            )
            layer = page.evaluate("() => document.documentElement.dataset.layer")
            measured.append(
                {
                    "what": f"load {k + 1}",
                    "first_paint_ms": round(paint),
                    "points_ms": round(drawn),
                    "layer": layer,
                }
            )
            if k < 2:
                page.close()
        box = page.locator("#map .plane").bounding_box()
        assert box
        x, y = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
        page.evaluate(COUNT)
        mouse = page.mouse
        mouse.move(x, y)
        mouse.down()
        measured.append(
            frames(page, "move", lambda k: mouse.move(x + 3 * (k % 40 - 20), y + 2 * (k % 30 - 15)))
        )
        mouse.up()
        measured.append(frames(page, "zoom", lambda k: mouse.wheel(0, -30 if k < STEPS // 2 else 30)))
        measured.append(frames(page, "point at", lambda k: mouse.move(x - 225 + 3 * k, y - 75 + k)))
        page.keyboard.down("Shift")
        mouse.move(x - 250, y - 150)
        mouse.down()
        measured.append(frames(page, "brush", lambda k: mouse.move(x - 248 + 3 * k, y - 149 + 1.6 * k)))
        browser.close()
    return measured


def main() -> None:
    """Make the run, serve it, measure, print a line of JSON for each figure."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--points", choices=("webgl", "pixels"))
    parser.add_argument("--keep", type=Path)
    chosen = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        root = chosen.keep or Path(scratch)
        if not (root / "runs" / RUN).exists():
            make_run(root)
        command = [sys.executable, "-m", "geo_embed", "explore", str(root / "runs" / RUN), "--json"]
        for key, folder in (("data_root", "data"), ("cache_dir", "cache")):
            command += ["--set", f"paths.{key}={(root / folder).resolve()}"]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as server:
            assert server.stdout
            try:
                url = json.loads(server.stdout.readline())["url"]
                for row in measure(url, chosen.points):
                    print(json.dumps(row), flush=True)
            finally:
                server.terminate()


if __name__ == "__main__":
    main()
