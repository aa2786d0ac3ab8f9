"""Take the picture of a report that the docs show: its head, score, map and confusion, as a Chromium of 1200 px shows them.

    python tools/picture_report.py demo/reports/demo.html docs/report.png

Needs the dependency group `dev`, and a Chromium on PATH.
"""

import io
import shutil
import sys
from pathlib import Path

WIDTH, SCALE = 1200, 0.75
# The sections that are shown, one below the other, each from its heading on and so many pixels of it.
SHOWN = {"header": 280, "#score": 300, "#map": 835, "#confusion": 810}
COLOURS = 128


def picture(page: Path, out: Path) -> None:
    """Write the PNG, as small as few colours make it."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": WIDTH, "height": 900}, color_scheme="light")
        opened.goto(page.resolve().as_uri())
        opened.wait_for_function("document.documentElement.dataset.shown === 'yes'")
        opened.wait_for_timeout(300)
        whole = Image.open(io.BytesIO(opened.screenshot(full_page=True))).convert("RGB")
        tops = {
            name: opened.evaluate(f"document.querySelector('{name}').getBoundingClientRect().top")
            for name in SHOWN
        }
        browser.close()
    parts = [
        whole.crop((0, int(tops[name]), WIDTH, min(int(tops[name]) + height, whole.height)))
        for name, height in SHOWN.items()
    ]
    sheet = Image.new("RGB", (WIDTH, sum(part.height for part in parts)))
    top = 0
    for part in parts:
        sheet.paste(part, (0, top))
        top += part.height
    small = sheet.resize((int(sheet.width * SCALE), int(sheet.height * SCALE)), Image.Resampling.LANCZOS)
    small.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    picture(Path(sys.argv[1]), Path(sys.argv[2]))
