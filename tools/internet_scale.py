"""The table of docs/scale.md, "Internet scale": what images by the million and billion take, from what is measured or stated below.

python tools/internet_scale.py
"""

from types import SimpleNamespace

from geo_embed.backbones.pace import STREETCLIP
from geo_embed.bench.towers import flop_per_image
from geo_embed.config import Inference

IMAGES = (1_000_000, 10_000_000, 1_000_000_000)
VIEWS, DIM = 4, 768
# Floating-point operations per second: an H100's dense bfloat16 product as it was measured, an A100's as its data sheet has it; and which share
# of them a tower reaches. That share is assumed, not measured.
GPUS = {"H100": 798e12, "A100": 312e12}
SHARE = 0.5
# Dollars: an hour of a GPU, a thousand objects put, a gigabyte for a month (S3 Standard, us-east-1).
HOUR = {"H100": 3.95, "A100": 2.50}
PUT, MONTH = 0.005 / 1000, 0.023
JPEG = 20_000
# Measured by `geo bench scale --samples 10000000`: processor seconds and bytes at the peak for each sample.
PLAN_SECONDS, PLAN_BYTES = 1.8e-6, 170


def main() -> None:
    """Print the table as Markdown."""
    flop = flop_per_image(SimpleNamespace(**STREETCLIP))
    print(
        f"{flop / 1e9:.0f} GFLOP an image; {', '.join(f'{gpu} {SHARE * rate / flop:,.0f} images/s' for gpu, rate in GPUS.items())}\n"
    )
    rows: list[list[str]] = [["images", *(f"{count:,}" for count in IMAGES)]]

    def row(name: str, *texts: str) -> None:
        rows.append([name, *texts])

    samples = [count // VIEWS for count in IMAGES]
    chunks = [-(-count // Inference().chunk_rows) for count in samples]
    # An embedding in float16, its content's hash, its status; an id for each sample.
    size = [count * (2 * DIM + 8 + 1) + 8 * n for count, n in zip(IMAGES, samples, strict=True)]
    row("samples", *(f"{n:,}" for n in samples))
    for gpu, rate in GPUS.items():
        hours = [count * flop / (SHARE * rate) / 3600 for count in IMAGES]
        row(f"{gpu} hours", *(f"{h:,.1f}" for h in hours))
        row(f"{gpu}, $", *(f"{h * HOUR[gpu]:,.0f}" for h in hours))
    row("store, GB", *(f"{b / 1e9:,.1f}" for b in size))
    row("its objects", *(f"{3 * n:,}" for n in chunks))
    row("putting them, $", *(f"{3 * n * PUT:,.2f}" for n in chunks))
    row("keeping it, $ a month", *(f"{b / 1e9 * MONTH:,.2f}" for b in size))
    row("pictures, GB", *(f"{count * JPEG / 1e9:,.0f}" for count in IMAGES))
    row("keeping those, $ a month", *(f"{count * JPEG / 1e9 * MONTH:,.0f}" for count in IMAGES))
    row("planning, s of a core", *(f"{n * PLAN_SECONDS:,.1f}" for n in samples))
    row("planning, GB", *(f"{n * PLAN_BYTES / 1e9:,.2f}" for n in samples))
    rows.insert(1, ["---"] * len(rows[0]))
    for texts in rows:
        print("| " + " | ".join(texts) + " |")


if __name__ == "__main__":
    main()
