"""`geo bench finetune`: the whole training loop against bare arithmetic, and against a plain loop of transformers and DataLoader."""

import gc
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.pace import STREETCLIP
from geo_embed.bench.measure import Bench, Measurement, apart, gemm_rate, in_turn, this_machine
from geo_embed.bench.towers import VIT_B_32, flop_per_image, write_tower
from geo_embed.config import Config, Finetune
from geo_embed.devices import pick_device
from geo_embed.extraction.extract import extract
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.settings import resolve
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country

# On a shared machine neighbours take a fifth of the speed now and then: many short rounds, so that they hit both sides.
_ROUNDS = 5
# A card is rarely shared, and most of a round on one is reading and writing gigabytes of weights.
_ROUNDS_ON_CUDA = 2
_VIEWS = 4
_HEADS = "heads"
_HELD = 0.1
_PLAIN = {
    "brightness": 0,
    "contrast": 0,
    "saturation": 0,
    "hue": 0,
    "crop": 1,
    "blur": 0,
    "view_dropout": 0,
}


def bench_finetune(config: Config, *, samples: int | None = None) -> Bench:
    """Time stage 3 on synthetic pictures of 256 px, four a sample.

    On the CPU a ViT-B/32 is trained, on CUDA StreetCLIP's own architecture, both with random weights.

    Args:
        config: device, workers, and `finetune.batch_size`, `accumulate`, `checkpointing`, `compile`, `channels_last`.
        samples: that the large model is trained on; default: 24 on the CPU, 384 on CUDA; at least three
            steps' worth. The small one sees as many, by default 256.
    """
    device = pick_device(config.model.device, float64=True).type
    passes = config.finetune.accumulate or 2
    large, small = (
        max(samples or usual, 3 * passes * _pass_size(config.finetune, backbone, device))
        for backbone, usual in (("large", 384 if device == "cuda" else 24), ("small", 256))
    )
    with TemporaryDirectory(prefix="geo-bench-") as folder:
        root = Path(folder)
        # A fifth of the places is the test split, and a tenth of the others is held out.
        locations = int(max(large, small) / (1 - _HELD) / 0.8) + 20
        write_country(root / "data", locations=locations, seed=0)
        write_backbone(root / "small")
        write_tower(root / "large", STREETCLIP if device == "cuda" else VIT_B_32)
        return Bench(
            "finetune",
            this_machine(),
            [*_against_model(config, root, large, device), _against_loop(config, root, device, small, large)],
        )


def _rounds(device: str) -> int:
    return _ROUNDS_ON_CUDA if device == "cuda" else _ROUNDS


def _pass_size(tuning: Finetune, backbone: str, device: str) -> int:
    # 32 pictures of 336 px keep some 27 GB of activations in StreetCLIP's tower.
    return tuning.batch_size or (8 if device == "cuda" else 4 if backbone == "large" else 8)


def _settings(config: Config, root: Path, backbone: str, device: str) -> Config:
    tuning = config.finetune
    overrides: dict[str, Any] = {
        "paths.data_root": root / "data",
        "paths.cache_dir": root / "cache",
        "paths.runs_dir": root / f"runs-{backbone}",
        "model.backbone_name": str(root / backbone),
        "model.device": config.model.device,
        "inference.workers": config.inference.workers,
        "training.preset": "pigeon",
        "training.epochs": 1,
        "training.val_split": _HELD,
        "finetune.epochs": 1,
        "finetune.batch_size": _pass_size(tuning, backbone, device),
        "finetune.accumulate": tuning.accumulate or 2,
        "finetune.checkpointing": tuning.checkpointing,
        "finetune.compile": tuning.compile,
        "finetune.channels_last": tuning.channels_last,
    }
    return resolve(overrides=overrides)[0]


def _training(config: Config, samples: int) -> Callable[[], float]:
    """A call that fine-tunes for an epoch, from heads that are fitted here, and returns samples/s of its steps."""
    import torch

    extract(config, "train")
    fit_heads(config, name=_HEADS)

    def run() -> float:
        tuned = finetune(config, name="tuned", init=_HEADS, limit=samples, overwrite=True)
        assert tuned.samples_per_second is not None
        # What is measured next has a process of its own, and needs the card's memory.
        gc.collect()
        torch.cuda.empty_cache()
        return tuned.samples_per_second

    return run


def _against_model(config: Config, root: Path, samples: int, device: str) -> list[Measurement]:
    settings = _settings(config, root, "large", device)
    # A hidden view isn't embedded: with some of them, less would be done than is counted.
    shown = settings.finetune.augment.model_copy(update={"view_dropout": 0.0})
    settings = settings.model_copy(
        update={"finetune": settings.finetune.model_copy(update={"augment": shown})}
    )
    tower = STREETCLIP if device == "cuda" else VIT_B_32
    name = "StreetCLIP's architecture" if device == "cuda" else "ViT-B/32"
    ours, model = in_turn(_rounds(device), _training(settings, samples), _bare(settings, samples))
    with quiet_transformers():
        from transformers import CLIPVisionConfig

        forward = flop_per_image(CLIPVisionConfig(**tower))
    # Backwards, each product is two: towards the input, and towards the weights.
    flop = 3 * _VIEWS * forward
    rate = gemm_rate(device)
    size = settings.finetune.batch_size
    return [
        Measurement(
            f"geo finetune, {name}, {size} samples of {_VIEWS} pictures a pass",
            ours,
            model,
            ours / model,
            rate / flop,
            "samples/s",
            "bare forward, backward and step on tensors in memory",
            "its FLOPs at the measured GEMM rate",
        ),
        Measurement(
            "the same, in floating-point operations",
            ours * flop / 1e12,
            rate / 1e12,
            ours * flop / rate,
            rate / 1e12,
            "TFLOP/s",
            "a dense product, bfloat16 on CUDA, float32 on the CPU",
            "the same",
        ),
    ]


def _bare(config: Config, samples: int) -> Callable[[], float]:
    """A call of `bare` in a process of its own, where nothing is left of ours, in memory or in how threads wait."""
    return lambda: apart(__name__, "bare", config.model_dump_json(), str(samples))


def bare(config_json: str, samples: str) -> float:
    """Train the tower, with a layer on top, on the same random pictures again and again; samples/s, as with ours without
    the first step.
    """
    import torch
    from torch import nn

    config = Config.model_validate_json(config_json)
    device = pick_device(config.model.device, float64=True)
    size, passes = config.finetune.batch_size or 1, config.finetune.accumulate or 1
    steps = max(1, round(int(samples) / (size * passes)) - 1)
    backbone = backbones.load_backbone(config.model, device, torch.float32, trainable=True)
    tower = backbones.unfreeze(backbone.module).train()
    if config.finetune.checkpointing:
        tower.gradient_checkpointing_enable()
    if config.finetune.compile:
        tower.compile()
    spec = backbone.preprocessing
    pixels = torch.randn(size * _VIEWS, 3, spec.height, spec.width, device=device)
    if config.finetune.channels_last:
        tower.to(memory_format=torch.channels_last)
        pixels = pixels.contiguous(memory_format=torch.channels_last)
    head = nn.Linear(backbone.dim, 33, device=device)
    labels = torch.arange(size, device=device) % 33
    optimizer = torch.optim.AdamW([*tower.parameters(), *head.parameters()], lr=1e-5, fused=True)
    half = torch.autocast("cuda", torch.bfloat16, enabled=device.type == "cuda")

    def step() -> float:
        for _ in range(passes):
            with half:
                views = backbones.embed(backbone, pixels).float().view(size, _VIEWS, -1)
                loss = nn.functional.cross_entropy(head(views.mean(1)), labels)
            loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(tower.parameters(), 1.0, foreach=True)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        # Reading the number waits for the device.
        return float(loss.detach())

    step()
    started = time.perf_counter()
    for _ in range(steps):
        step()
    return steps * passes * size / (time.perf_counter() - started)


def _against_loop(config: Config, root: Path, device: str, small: int, large: int) -> Measurement:
    """On CUDA with the large model; on a CPU, where that leaves nothing to gain, with the demo's."""
    backbone, samples = ("large", large) if device == "cuda" else ("small", small)
    settings = _settings(config, root, backbone, device)
    augment = settings.finetune.augment.model_validate(_PLAIN)
    plain = settings.finetune.model_copy(update={"augment": augment, "accumulate": 1})
    settings = settings.model_copy(update={"finetune": plain})
    size = settings.finetune.batch_size
    ours, loop, limit = in_turn(
        _rounds(device),
        _training(settings, samples),
        lambda: apart(__name__, "plain_loop", str(root), backbone, device, str(size), str(samples)),
        _bare(settings, samples),
    )
    return Measurement(
        f"geo finetune without augmentation, {'StreetCLIP' if backbone == 'large' else 'the demo'}'s backbone",
        ours,
        loop,
        ours / loop,
        limit,
        "samples/s",
        "a DataLoader and transformers' processor, 2 worker processes"
        + (", and autocast" if device == "cuda" else ""),
        "bare forward, backward and step on tensors in memory",
    )


def plain_loop(root: str, backbone: str, device: str, batch: str, samples: str) -> float:
    """What one writes first: a dataset that opens and processes pictures, a DataLoader, autocast, the model. Samples/s of
    an epoch of single passes, as with ours without the first.
    """
    import numpy as np
    import pandas as pd
    import torch
    from PIL import Image
    from torch import nn
    from torch.utils.data import DataLoader, Dataset
    from transformers import CLIPImageProcessorPil, CLIPVisionModelWithProjection

    data = Path(root) / "data"
    table = pd.read_csv(data / "train_ground_truth.csv").head(int(samples))
    files = table.filter(like="image_").to_numpy()
    states = np.unique(table["state_idx"], return_inverse=True)[1]
    places = table[["latitude", "longitude"]].to_numpy(dtype="float32")
    with quiet_transformers():
        processor = CLIPImageProcessorPil.from_pretrained(Path(root) / backbone)
        model = CLIPVisionModelWithProjection.from_pretrained(Path(root) / backbone).to(device).train()
    width = model.config.projection_dim
    state_head, place_head = nn.Linear(width, 50).to(device), nn.Linear(width, 2).to(device)
    parameters = [*model.parameters(), *state_head.parameters(), *place_head.parameters()]
    optimizer = torch.optim.AdamW(parameters, lr=1e-5)

    class Places(Dataset[Any]):
        def __len__(self) -> int:
            return len(files)

        def __getitem__(self, index: int) -> Any:
            images = [Image.open(data / "train_images" / name) for name in files[index]]
            pixels = processor(images=images, return_tensors="pt")["pixel_values"]
            return pixels, int(states[index]), places[index]

    loader = DataLoader(
        Places(), batch_size=int(batch), shuffle=True, num_workers=2, pin_memory=device == "cuda"
    )
    seen, started = 0, 0.0
    for pixels, state, place in loader:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            embedded = model(pixel_values=pixels.flatten(0, 1).to(device)).image_embeds
            fused = embedded.view(len(pixels), -1, width).mean(1)
            loss = nn.functional.cross_entropy(state_head(fused), state.to(device))
            loss = loss + nn.functional.mse_loss(place_head(fused), place.to(device))
        loss.backward()  # type: ignore[no-untyped-call]
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if device == "cuda":
            torch.cuda.synchronize()
        if started:
            seen += len(pixels)
        else:
            started = time.perf_counter()
    return seen / (time.perf_counter() - started)
