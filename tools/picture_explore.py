"""Take the picture of the page of `geo explore` that the docs show, as a Chromium of 1440 × 900 px shows it.

    geo explore demo &
    python tools/picture_explore.py 'http://127.0.0.1:PORT/#sample=592' docs/explore.png

Needs the dependency group `dev`, and a Chromium on PATH.
"""

import io
import shutil
import sys
from pathlib import Path

SCALE, COLOURS = 0.75, 256


def picture(address: str, out: Path) -> None:
    """Write the PNG, as small as few colours make it."""
    from PIL import Image
    from playwright.sync_api import sync_playwright

    chromium = next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))),
        None,
    )
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        opened = browser.new_page(viewport={"width": 1440, "height": 900}, color_scheme="light")
        opened.goto(address)
        opened.wait_for_selector(".of-sample .neighbours img")
        opened.wait_for_timeout(1500)
        whole = Image.open(io.BytesIO(opened.screenshot())).convert("RGB")
        browser.close()
    small = whole.resize((int(whole.width * SCALE), int(whole.height * SCALE)), Image.Resampling.LANCZOS)
    small.quantize(COLOURS, kmeans=3, dither=Image.Dither.NONE).save(out, optimize=True)


if __name__ == "__main__":
    picture(sys.argv[1], Path(sys.argv[2]))
