"""Stage 1 on a card: embeddings close to float32's on the CPU, and no picture lost between two pinned batches."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from small import Small, content

from geo_embed.backbones.backbone import read_preprocessing
from geo_embed.cache.store import open_store, read_store
from geo_embed.data import images
from geo_embed.data.loader import read_batches
from geo_embed.data.samples import load_samples
from geo_embed.extraction.extract import extract

pytestmark = pytest.mark.cut(train=24)

# Of a picture's embedding with that of float32 on the CPU. bfloat16 keeps 8 bits, float16 11; float32 on a card may convolve in
# TF32, which keeps 11.
LEAST_COSINE = {"bfloat16": 0.999, "float16": 0.9999, "float32": 0.9999}
# Cycles of a card's clock, some 10 ms: much longer than the small backbone takes for a batch.
LATE = 20_000_000


@pytest.fixture
def embed(small: Small, device: torch.device) -> Callable[..., Path]:
    """Extract the small country into a cache of this name; the store's place."""

    def run(name: str, *, chunk_rows: int = 2, on: str = device.type, **changes: Any) -> Path:
        other = Small(small.root, small.backbone, chunk_rows)
        settings = {
            "paths__cache_dir": str(small.root / name),
            "model__device": on,
            "model__dtype": "float32",
        }
        return extract(other.config(**(settings | changes)), "train").store

    return run


def values(store: Path) -> np.ndarray:
    return read_store(open_store(store, writable=False)).values.astype(np.float64)


def least_cosine(a: np.ndarray, b: np.ndarray) -> float:
    lengths = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    return float(((a * b).sum(axis=-1) / lengths).min())


@pytest.mark.parametrize("exact", [False, True])
@pytest.mark.parametrize("dtype", LEAST_COSINE)
def test_embeddings_are_close_to_those_of_float32_on_the_cpu(
    embed: Callable[..., Path], dtype: str, exact: bool, record_property: Callable[[str, object], None]
) -> None:
    on_cpu = values(embed("cpu", on="cpu", model__exact=exact))
    cosine = least_cosine(values(embed("card", model__dtype=dtype, model__exact=exact)), on_cpu)
    record_property("least cosine", f"{cosine:.6f}")
    assert cosine >= LEAST_COSINE[dtype]


def test_a_second_run_gives_the_same_bytes(embed: Callable[..., Path]) -> None:
    for dtype in ("float32", "bfloat16"):
        first, second = (embed(f"{dtype}-{k}", model__dtype=dtype) for k in range(2))
        assert content(first) == content(second), dtype


def test_a_picture_is_embedded_alike_in_whichever_batch_and_turn(
    embed: Callable[..., Path], record_property: Callable[[str, object], None]
) -> None:
    """Chunks of 1, 3 or 24 rows put it in other places of other batches, the first or the second of the pair."""
    whole = values(embed("chunks-2"))
    others = {rows: values(embed(f"chunks-{rows}", chunk_rows=rows)) for rows in (1, 3, 24)}
    record_property("bit-identical", all(np.array_equal(other, whole) for other in others.values()))
    for rows, other in others.items():
        assert least_cosine(other, whole) > 0.999999, rows


def test_a_batch_is_not_filled_again_before_the_card_has_read_it(
    embed: Callable[..., Path], device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A card that lags behind: every batch waits for the one before it, while the next pictures are at hand."""
    prompt = embed("prompt", chunk_rows=24)
    normalise = images.normalise

    def late(batch: torch.Tensor, *arguments: Any, **options: Any) -> torch.Tensor:
        if device.type == "cuda":
            torch.cuda._sleep(LATE)
        return normalise(batch, *arguments, **options)

    monkeypatch.setattr(images, "normalise", late)
    assert content(embed("late", chunk_rows=24)) == content(prompt)


def test_pixels_for_training_lie_in_pinned_memory_and_arrive_whole(
    small: Small, device: torch.device
) -> None:
    samples, spec = load_samples(small.config(), "train"), read_preprocessing(small.backbone, exact=False)
    present = np.ones((len(samples), 4), dtype=bool)
    present[3, 1] = False
    asked = [np.arange(start, start + 4) for start in range(0, 24, 4)]
    pinned = device.type == "cuda"
    with read_batches(samples, present, asked, spec, 2, pinned=False) as read:
        expected = [batch.pixels for batch in read]
    arrived = []
    with read_batches(samples, present, asked, spec, 2, pinned=pinned) as read:
        for batch in read:
            assert batch.pixels.is_pinned() == pinned
            if pinned:
                torch.cuda._sleep(LATE)
            arrived.append(batch.pixels.to(device, non_blocking=True))
            del batch
    for copied, original in zip(arrived, expected, strict=True):
        assert torch.equal(copied.cpu(), original)
