"""`geo bench extract`: preprocessing against transformers, extraction against the bare model and a plain loop, all features against one."""

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.backbone import Backbone
from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.pace import STREETCLIP
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.bench.measure import Bench, Measurement, apart, gemm_rate, in_turn, seconds, this_machine
from geo_embed.bench.towers import VIT_B_32, flop_per_image, write_tower
from geo_embed.config import FEATURES, Config, Inference
from geo_embed.data import images
from geo_embed.devices import pick_device, pick_dtype
from geo_embed.extraction.extract import extract
from geo_embed.settings import resolve
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country

_ROUNDS = 3
_VIEWS = 4


def bench_extract(config: Config, *, count: int | None = None) -> Bench:
    """Time every part of stage 1 on synthetic pictures of 256 px.

    Args:
        config: device, workers and batch size.
        count: images that pass through the model of realistic size: a ViT-B/32 on the CPU, StreetCLIP's own
            architecture on CUDA, with random weights. Default: 256 on the CPU, 8,192 on CUDA, some seconds' work for either.
    """
    device = pick_device(config.model.device)
    count = count or (8192 if device.type == "cuda" else 256)
    with tempfile.TemporaryDirectory(prefix="geo-bench-") as folder:
        root = Path(folder)
        # A fifth of the places is the test split.
        locations = -(-count * 5 // (_VIEWS * 4))
        write_country(root / "data", locations=max(locations, 40), seed=0)
        write_backbone(root / "small")
        write_tower(root / "large", STREETCLIP if device.type == "cuda" else VIT_B_32)
        files = sorted((root / "data" / "train_images").glob("*.jpg"))
        data = [path.read_bytes() for path in files[:200]]
        return Bench(
            "extract",
            this_machine(),
            [
                _against_model(root, "large", config.model.device, config.inference),
                _against_loop(root, config.model.device, config.inference),
                _against_one_feature(root, "large", config.model.device, config.inference),
                _against_one_feature(root, "small", config.model.device, config.inference),
                *_preprocessing(data, root / "large"),
            ],
        )


def _extraction(
    root: Path,
    backbone: str,
    device: str,
    inference: Inference,
    features: Sequence[str] = FEATURES[:1],
) -> Callable[[], float]:
    """A call that extracts the train split into an empty cache, and returns images/s."""
    overrides = {
        "paths.data_root": root / "data",
        "paths.cache_dir": root / "cache",
        "model.backbone_name": str(root / backbone),
        "model.device": device,
        "model.features": tuple(features),
        "inference.workers": inference.workers,
        "inference.batch_size": inference.batch_size,
    }
    settings = resolve(overrides=overrides)[0]

    def run() -> float:
        shutil.rmtree(root / "cache", ignore_errors=True)
        return extract(settings, "train").images_per_second

    return run


def _against_model(root: Path, backbone: str, device_name: str, inference: Inference) -> Measurement:
    import torch

    device = pick_device(device_name)
    settings = resolve(overrides={"model.backbone_name": str(root / backbone), "model.exact": False})[0].model
    # As transformers has it, with nothing folded.
    loaded = backbones.load_backbone(settings, device, pick_dtype("auto", device), trainable=True)
    batch = inference.batch_size or (256 if device.type == "cuda" else 32)
    side = loaded.preprocessing.height
    pixels = torch.randn(batch, 3, side, side, device=device, dtype=loaded.dtype)
    bare = _bare(loaded, pixels)
    bare()
    ours, model = in_turn(_ROUNDS, _extraction(root, backbone, device_name, inference), bare)
    limit = gemm_rate(device.type) / flop_per_image(loaded.module.config)
    name = "StreetCLIP's architecture" if device.type == "cuda" else "ViT-B/32"
    return Measurement(
        f"geo extract, {name}",
        ours,
        model,
        ours / model,
        limit,
        "images/s",
        f"transformers' bare model on tensors in memory, batches of {batch}",
        "its FLOPs at the measured GEMM rate",
    )


def _against_one_feature(root: Path, backbone: str, device_name: str, inference: Inference) -> Measurement:
    """What further features of the same pass cost: reading them out, and writing them."""
    every, one = in_turn(
        _ROUNDS,
        _extraction(root, backbone, device_name, inference, FEATURES),
        _extraction(root, backbone, device_name, inference),
    )
    name = "the demo's backbone"
    if backbone == "large":
        name = "StreetCLIP's architecture" if pick_device(device_name).type == "cuda" else "ViT-B/32"
    return Measurement(
        f"geo extract with all {len(FEATURES)} features, {name}",
        every,
        one,
        every / one,
        one,
        "images/s",
        f"{FEATURES[0]} alone",
        "the same: the layers run once either way",
    )


def _bare(backbone: Backbone, pixels: Any) -> Callable[[], float]:
    import torch

    def run(batches: int = 8) -> float:
        with torch.inference_mode():
            started = time.perf_counter()
            for _ in range(batches):
                embedded = backbones.embed(backbone, pixels)
            # Reading one number waits for the device.
            float(embedded[0, 0])
        return batches * len(pixels) / (time.perf_counter() - started)

    return run


def _against_loop(root: Path, device_name: str, inference: Inference) -> Measurement:
    import torch

    device = pick_device(device_name)
    settings = resolve(overrides={"model.backbone_name": str(root / "small")})[0].model
    loaded = backbones.load_backbone(settings, device, pick_dtype("auto", device))
    small, batch = loaded.preprocessing.height, 256 if device.type == "cuda" else 32
    pixels = torch.randn(batch, 3, small, small, device=device, dtype=loaded.dtype)
    # As many as extraction has threads.
    workers = inference.workers or os.cpu_count() or 1
    ours, loop, bare = in_turn(
        _ROUNDS,
        _extraction(root, "small", device_name, inference),
        lambda: apart(__name__, "plain_loop", str(root), device.type, str(workers)),
        _bare(loaded, pixels),
    )
    return Measurement(
        "geo extract, the demo's backbone",
        ours,
        loop,
        ours / loop,
        bare,
        "images/s",
        f"a DataLoader and transformers' processor, {workers} worker processes",
        "the bare model on tensors in memory",
    )


def plain_loop(root: str, device: str, workers: str) -> float:
    """What one writes first: a dataset that opens and processes pictures, a DataLoader, the model. Images/s, without imports."""
    backbone = Path(root) / "small"
    files = sorted((Path(root) / "data" / "train_images").glob("*.jpg"))
    import torch
    from PIL import Image
    from torch.utils.data import DataLoader, Dataset
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    with quiet_transformers():
        processor = CLIPImageProcessorPil.from_pretrained(backbone)
        model = CLIPVisionModelWithProjection.from_pretrained(backbone).to(device).eval()

    class Images(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            return processor(images=Image.open(files[index]), return_tensors="pt")["pixel_values"][0]

    started = time.perf_counter()
    embeddings = []
    with torch.inference_mode():
        for batch in DataLoader(Images(), batch_size=32, num_workers=int(workers)):
            embeddings.append(model(pixel_values=batch.to(device)).image_embeds.cpu().numpy())
    np.concatenate(embeddings)
    return len(files) / (time.perf_counter() - started)


def _preprocessing(data: list[bytes], backbone: Path) -> list[Measurement]:
    """Decode and resize, then decode, resize and normalise, on one core."""
    import torch
    from PIL import Image
    from transformers import CLIPImageProcessorPil

    with quiet_transformers():
        whole = CLIPImageProcessorPil.from_pretrained(backbone)
        part = CLIPImageProcessorPil.from_pretrained(backbone, do_rescale=False, do_normalize=False)
    spec = read_preprocessing(backbone, exact=False)
    out = torch.empty(1, 3, spec.height, spec.width)

    def per_second(action: Callable[[bytes], object]) -> Callable[[], float]:
        return lambda: len(data) / seconds(lambda: [action(jpeg) for jpeg in data])

    def normalised(jpeg: bytes) -> object:
        pixels = torch.from_numpy(images.resize(images.decode(jpeg), spec))
        return images.normalise(pixels[None], spec, torch.float32, out)

    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        resized, resized_there, all_ours, all_there, decoded = in_turn(
            _ROUNDS,
            per_second(lambda jpeg: images.resize(images.decode(jpeg), spec)),
            per_second(lambda jpeg: part(images=Image.open(io.BytesIO(jpeg)), return_tensors="np")),
            per_second(normalised),
            per_second(lambda jpeg: whole(images=Image.open(io.BytesIO(jpeg)), return_tensors="np")),
            per_second(images.decode),
        )
    finally:
        torch.set_num_threads(threads)
    against, bound = "transformers' processor, one core", "decoding alone"
    return [
        Measurement(
            "decode and resize, one core",
            resized,
            resized_there,
            resized / resized_there,
            decoded,
            "images/s",
            against,
            bound,
        ),
        Measurement(
            "decode, resize and normalise, one core",
            all_ours,
            all_there,
            all_ours / all_there,
            decoded,
            "images/s",
            against,
            bound,
        ),
    ]
