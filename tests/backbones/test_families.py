"""Every family of backbones gives what its own class in transformers gives, trains, and is saved to be loaded again."""

from __future__ import annotations

import importlib
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from PIL import Image
from safetensors.torch import load_file, save_file
from small import Country
from torch import nn
from towers import (
    ALL_TOWERS,
    LAYERS,
    MAKERS,
    NO_TIMM,
    PATCH,
    SIZE,
    TIMM,
    TIMM_CONFIG,
    WIDTH,
    clip,
    dinov2,
    dinov3,
    embedded,
    geoclip,
    load,
    naflex,
    pixels,
    random_numbers,
    siglip,
    siglip_tower,
)

from geo_embed.backbones.backbone import (
    blocks,
    embed,
    embed_features,
    embedding_dim,
    freeze,
    layer_groups,
    save_backbone,
    unfreeze,
)
from geo_embed.backbones.families import FAMILIES, family_of, mlp_tensors, quiet_transformers
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import hash_weights
from geo_embed.cache.find import find_store
from geo_embed.cache.store import read_store
from geo_embed.data.images import decode, normalise, resize
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.synthetic.country import write_country

each_family = pytest.mark.parametrize("family", ALL_TOWERS)


@pytest.fixture
def made(tmp_path: Path, family: str) -> Path:
    directory = tmp_path / family
    MAKERS[family](directory)
    return directory


def picture(width: int = 61, height: int = 61) -> Image.Image:
    noise = np.random.default_rng(2).integers(0, 256, (height // 4 + 1, width // 4 + 1, 3), dtype=np.uint8)
    return Image.fromarray(noise).resize((width, height), Image.Resampling.BICUBIC)


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    weights = load_file(directory / "model.safetensors")
    change(weights)
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})


def change_json(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---------------------------------------------------------------- what it gives


def from_class(name: str, directory: Path) -> Any:
    with quiet_transformers():
        return getattr(transformers, name).from_pretrained(directory).eval()


def pooled_by(name: str) -> Callable[[Path], torch.Tensor]:
    return lambda directory: from_class(name, directory)(pixels()).pooler_output


def first_token_by(name: str) -> Callable[[Path], torch.Tensor]:
    return lambda directory: from_class(name, directory)(pixels()).last_hidden_state[:, 0]


def by_geoclip(directory: Path) -> torch.Tensor:
    """Its paper's equation, from the files: CLIP's features, then Linear, ReLU, Linear."""
    features = from_class("CLIPVisionModelWithProjection", directory)(pixels()).image_embeds
    w = torch.load(directory / "image_encoder_mlp_weights.pth", weights_only=True)
    return (features @ w["0.weight"].T + w["0.bias"]).relu() @ w["2.weight"].T + w["2.bias"]


def by_siglip(directory: Path) -> torch.Tensor:
    features = from_class("SiglipModel", directory).get_image_features(pixels())
    return features if isinstance(features, torch.Tensor) else features.pooler_output


def timm_model(directory: Path) -> Any:
    module: Any = importlib.import_module("timm")
    model = module.create_model("vit_tiny_patch16_224", num_classes=7, **TIMM_CONFIG["model_args"])
    model.load_state_dict(load_file(directory / "model.safetensors"))
    model.reset_classifier(0)
    return model.eval()


def by_timm(directory: Path) -> torch.Tensor:
    pooled: torch.Tensor = timm_model(directory)(pixels())
    return pooled


def by_naflex(directory: Path) -> Any:
    """Each picture through the class's own patches: 8 × 8 pixels from left to right and top to bottom."""
    patches = [
        image[:, y : y + PATCH, x : x + PATCH].permute(1, 2, 0).flatten()
        for image in pixels()
        for y in range(0, SIZE, PATCH)
        for x in range(0, SIZE, PATCH)
    ]
    side = SIZE // PATCH
    return from_class("Siglip2VisionModel", directory)(
        pixel_values=torch.stack(patches).view(3, side * side, -1),
        pixel_attention_mask=torch.ones(3, side * side, dtype=torch.int64),
        spatial_shapes=torch.tensor([[side, side]] * 3),
    )


WANTED: dict[str, tuple[int, Callable[[Path], torch.Tensor]]] = {
    "clip": (
        24,
        lambda directory: from_class("CLIPVisionModelWithProjection", directory)(pixels()).image_embeds,
    ),
    "geoclip": (16, by_geoclip),
    "siglip": (WIDTH, by_siglip),
    "siglip_tower": (WIDTH, pooled_by("SiglipVisionModel")),
    "naflex": (WIDTH, lambda directory: by_naflex(directory).pooler_output),
    "dinov2": (WIDTH, first_token_by("Dinov2Model")),
    "dinov2_registers": (WIDTH, first_token_by("Dinov2WithRegistersModel")),
    "dinov3": (WIDTH, first_token_by("DINOv3ViTModel")),
    "timm": (WIDTH, by_timm),
}


def tokens_by(name: str) -> Callable[[Path], torch.Tensor]:
    return lambda directory: from_class(name, directory)(pixels()).last_hidden_state


# All tokens of the last hidden state, (B, T, D), as the family's own class gives them.
TOKENS: dict[str, Callable[[Path], torch.Tensor]] = {
    "clip": tokens_by("CLIPVisionModel"),
    "siglip": tokens_by("SiglipVisionModel"),
    "siglip_tower": tokens_by("SiglipVisionModel"),
    "naflex": lambda directory: by_naflex(directory).last_hidden_state,
    "dinov2": tokens_by("Dinov2Model"),
    "dinov2_registers": tokens_by("Dinov2WithRegistersModel"),
    "dinov3": tokens_by("DINOv3ViTModel"),
    "timm": lambda directory: timm_model(directory).forward_features(pixels()),
}


@each_family
def test_all_features_are_taken_from_one_run_of_the_layers(made: Path, family: str) -> None:
    others = family_of(made).other_features("image_embeds")
    if family == "geoclip":
        assert others == ()
        with pytest.raises(GeoError, match="no token_mean, only image_embeds"):
            load(made, further=("token_mean",))
        return
    # What is the embedding under another name isn't kept twice, unless it is asked for.
    assert others == (("pooler_output", "token_mean") if family == "clip" else ("token_mean",))
    backbone = load(made, further=("pooler_output", "token_mean"))
    runs = []
    for block in blocks(backbone.module):
        block.register_forward_hook(lambda *_: runs.append(1))
    with torch.inference_mode():
        by_feature = embed_features(backbone, pixels())
        wanted = TOKENS[family](made).mean(dim=1)
    assert len(runs) == len(blocks(backbone.module))
    assert tuple(by_feature) == backbone.features == ("image_embeds", "pooler_output", "token_mean")
    for feature in ("image_embeds", "pooler_output"):
        assert torch.equal(by_feature[feature], embedded(load(made, feature=feature)))
    torch.testing.assert_close(by_feature["token_mean"], wanted, atol=1e-5, rtol=1e-5)
    assert embedding_dim(made, "token_mean") == wanted.shape[1]


@each_family
def test_the_embedding_is_what_the_familys_own_class_gives(made: Path, family: str) -> None:
    dim, wanted = WANTED[family]
    backbone = load(made)
    with torch.inference_mode():
        expected = wanted(made)
    embeddings = embedded(backbone)
    assert embeddings.shape == (3, dim)
    assert backbone.dim == embedding_dim(made, "image_embeds") == dim
    assert not torch.allclose(embeddings[0], embeddings[1], atol=1e-2)
    torch.testing.assert_close(embeddings, expected, atol=1e-5, rtol=1e-5)


@each_family
def test_a_pooler_output_is_given_or_refused_in_one_line(made: Path, family: str) -> None:
    if family == "geoclip":
        with pytest.raises(GeoError, match="no pooler_output, only image_embeds") as caught:
            load(made, feature="pooler_output")
        assert caught.value.hint
    elif family == "clip":
        assert embedded(load(made, feature="pooler_output")).shape == (3, WIDTH)
    else:
        # These have no projection: the pooled state is the embedding.
        assert torch.equal(embedded(load(made, feature="pooler_output")), embedded(load(made)))


@each_family
def test_bfloat16_runs_on_a_cpu_and_points_the_same_way(made: Path, family: str) -> None:
    rough = embedded(load(made, torch.bfloat16))
    assert rough.dtype == torch.bfloat16
    assert torch.cosine_similarity(rough.float(), embedded(load(made))).min() > 0.97


@pytest.mark.parametrize("family", ["clip", "geoclip"])
def test_a_clip_that_is_not_trained_computes_the_same_in_one_pass_where_quick_gelu_takes_three(
    made: Path, family: str, tmp_path: Path
) -> None:
    plain, folded = load(made, trainable=True), load(made)
    assert (plain.module.config.hidden_act, folded.module.config.hidden_act) == ("quick_gelu", "silu")
    assert not torch.equal(embedded(folded), embedded(plain))
    torch.testing.assert_close(embedded(folded), embedded(plain), rtol=1e-5, atol=1e-6)
    # It is the same backbone by all that names one, and what is saved of it is what it computes.
    assert (folded.weights_sha256, folded.function) == (plain.weights_sha256, plain.function)
    save_backbone(folded, tmp_path / "saved")
    torch.testing.assert_close(embedded(load(tmp_path / "saved", trainable=True)), embedded(folded))


def test_folding_rounds_weights_no_more_than_loading_them_does(tmp_path: Path) -> None:
    """In a precision of 8 bits, a second rounding would show."""
    clip(tmp_path / "model")
    exact = embedded(load(tmp_path / "model", trainable=True))
    errors = [
        (embedded(load(tmp_path / "model", torch.bfloat16, trainable=trainable)).float() - exact).norm()
        for trainable in (True, False)
    ]
    stored = load_file(tmp_path / "model" / "model.safetensors")
    name = next(name for name in stored if name.endswith("mlp.fc1.weight"))
    weight = load(tmp_path / "model", torch.bfloat16).module.get_parameter(name)
    assert torch.equal(weight, (stored[name].float() * 1.702).bfloat16())
    assert errors[1] < 1.5 * errors[0]


def test_a_clip_to_be_trained_has_its_weights_as_they_are_stored(tmp_path: Path) -> None:
    clip(tmp_path / "model")
    stored = load_file(tmp_path / "model" / "model.safetensors")
    tower = load(tmp_path / "model", trainable=True).module
    for name, weight in tower.named_parameters():
        assert torch.equal(weight, stored[name]), name


def test_a_siglip_and_its_tower_alone_are_the_same_backbone(tmp_path: Path) -> None:
    siglip(tmp_path / "whole")
    with quiet_transformers():
        tower = transformers.SiglipVisionModel.from_pretrained(tmp_path / "whole")
    (tmp_path / "alone").mkdir()
    (tmp_path / "alone" / "config.json").write_text(tower.config.to_json_string())
    # As a tower that never was part of a whole is saved: no vision_model before its names.
    save_file(dict(tower.named_parameters()), tmp_path / "alone" / "model.safetensors", {"format": "pt"})
    shutil.copy(tmp_path / "whole" / "preprocessor_config.json", tmp_path / "alone")
    assert hash_weights(tmp_path / "alone") == hash_weights(tmp_path / "whole")
    assert torch.equal(embedded(load(tmp_path / "alone")), embedded(load(tmp_path / "whole")))


def test_geoclips_layers_may_be_a_pickle_or_safetensors_and_count_in_the_hash(tmp_path: Path) -> None:
    geoclip(tmp_path / "a")
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    shipped = tmp_path / "b" / "image_encoder_mlp_weights.pth"
    weights = torch.load(shipped, weights_only=True)
    shipped.unlink()
    without = hash_weights(tmp_path / "b")
    save_file(weights, tmp_path / "b" / "geoclip_mlp.safetensors")
    assert torch.equal(embedded(load(tmp_path / "b")), embedded(load(tmp_path / "a")))
    assert hash_weights(tmp_path / "b") == hash_weights(tmp_path / "a") != without
    weights["2.bias"][0] += 1
    save_file(weights, tmp_path / "b" / "geoclip_mlp.safetensors")
    assert hash_weights(tmp_path / "b") != hash_weights(tmp_path / "a")


# ---------------------------------------------------------------- preprocessing

PROCESSORS = {
    "siglip": "SiglipImageProcessorPil",
    "dinov2": "BitImageProcessorPil",
    "dinov2_registers": "BitImageProcessorPil",
}


@pytest.mark.parametrize("size", [(61, 61), (90, 50), (32, 47)])
@pytest.mark.parametrize("family", PROCESSORS)
def test_exact_pixels_are_bit_equal_to_the_models_own_processor(
    made: Path, family: str, size: tuple[int, int]
) -> None:
    processor = getattr(transformers, PROCESSORS[family]).from_pretrained(made)
    reference = processor(picture(*size), return_tensors="np")["pixel_values"][0]
    spec = read_preprocessing(made, exact=True)
    batch = torch.from_numpy(resize(np.asarray(picture(*size)), spec))[None]
    assert (normalise(batch, spec, torch.float32).numpy()[0] == reference).all()


def test_a_naflex_model_sees_a_square_picture_as_its_own_processor_cuts_it(tmp_path: Path) -> None:
    naflex(tmp_path / "naflex")
    processor = transformers.Siglip2ImageProcessorPil.from_pretrained(tmp_path / "naflex")
    reference = processor(picture(), return_tensors="pt")
    backbone = load(tmp_path / "naflex", exact=True)
    batch = torch.from_numpy(resize(np.asarray(picture()), backbone.preprocessing))[None]
    with torch.inference_mode():
        embeddings = embed(backbone, normalise(batch, backbone.preprocessing, torch.float32))
        wanted = from_class("Siglip2VisionModel", tmp_path / "naflex")(**reference).pooler_output
    torch.testing.assert_close(embeddings, wanted, atol=1e-5, rtol=1e-5)


def test_a_dinov3_file_that_leaves_things_out_has_dinov3s_defaults(tmp_path: Path) -> None:
    dinov3(tmp_path / "dinov3")
    spec = read_preprocessing(tmp_path / "dinov3", exact=False)
    assert (spec.shortest_edge, spec.height, spec.width, spec.resample) == (None, SIZE, SIZE, 2)
    assert spec.mean == (0.485, 0.456, 0.406)
    assert spec.std == (0.229, 0.224, 0.225)
    change_json(tmp_path / "dinov3" / "preprocessor_config.json", image_mean=[0.1, 0.2, 0.3], resample=3)
    changed = read_preprocessing(tmp_path / "dinov3", exact=False)
    assert (changed.mean, changed.resample) == ((0.1, 0.2, 0.3), 3)


@pytest.fixture
def timm_config(tmp_path: Path) -> Path:
    """A timm model's config.json is all that its preprocessing needs, timm itself is not."""
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    return tmp_path / "config.json"


def test_a_timm_models_preprocessing_comes_from_its_config(timm_config: Path) -> None:
    spec = read_preprocessing(timm_config.parent, exact=False)
    assert (spec.shortest_edge, spec.height, spec.width, spec.resample) == (40, SIZE, SIZE, 3)
    assert (spec.mean, spec.std, spec.scale) == ((0.4, 0.5, 0.6), (0.2, 0.3, 0.4), 1 / 255)
    squash = {"input_size": [3, 48, 32], "crop_mode": "squash", "crop_pct": 1.0, "interpolation": "bilinear"}
    change_json(timm_config, pretrained_cfg=squash)
    spec = read_preprocessing(timm_config.parent, exact=False)
    assert (spec.shortest_edge, spec.height, spec.width, spec.resample) == (None, 48, 32, 2)
    assert spec.mean == (0.485, 0.456, 0.406)


@pytest.mark.parametrize(
    "pretrained",
    [
        {"crop_mode": "border"},
        {"crop_mode": "squash", "crop_pct": 0.9},
        {"interpolation": "random"},
        {"input_size": [3, 48, 32]},
    ],
)
def test_what_timm_does_that_cannot_be_followed_is_refused(
    timm_config: Path, pretrained: dict[str, object]
) -> None:
    change_json(timm_config, pretrained_cfg={"input_size": [3, 32, 32]} | pretrained)
    with pytest.raises(GeoError, match="can't be followed") as caught:
        read_preprocessing(timm_config.parent, exact=False)
    assert caught.value.hint


def test_a_processor_that_is_not_known_is_refused_by_name(tmp_path: Path) -> None:
    dinov2(tmp_path / "dinov2")
    change_json(tmp_path / "dinov2" / "preprocessor_config.json", image_processor_type="FuyuImageProcessor")
    with pytest.raises(GeoError, match=r"FuyuImageProcessor.*BitImageProcessor"):
        load(tmp_path / "dinov2")


def test_a_fixed_size_that_is_cropped_to_another_is_refused(tmp_path: Path) -> None:
    dinov2(tmp_path / "dinov2")
    change_json(tmp_path / "dinov2" / "preprocessor_config.json", size={"height": 40, "width": 40})
    with pytest.raises(GeoError, match="no fixed size"):
        read_preprocessing(tmp_path / "dinov2", exact=False)


# ---------------------------------------------------------------- training and saving


@each_family
def test_gradients_reach_the_input_end(made: Path, family: str) -> None:
    backbone = load(made)
    unfreeze(backbone.module)
    embed(backbone, pixels()).square().sum().backward()
    untouched = {n for n, p in backbone.module.named_parameters() if p.grad is None or not p.grad.any()}
    # A mask token stands for patches that are left out in pre-training only; adding to a key changes no softmax.
    assert not {name for name in untouched if "mask_token" not in name and "k_proj.bias" not in name}


@each_family
@pytest.mark.parametrize("last", range(LAYERS + 1))
def test_the_last_layers_thaw_with_all_that_follows_them(made: Path, family: str, last: int) -> None:
    tower = unfreeze(load(made).module, last)
    thawed = {id(p) for p in tower.parameters() if p.requires_grad}
    groups = layer_groups(tower)
    assert thawed == {id(p) for group in groups[LAYERS + 1 - last :] for p in group}
    assert not any(p.requires_grad for p in freeze(tower).parameters())
    with pytest.raises(GeoError, match="can't unfreeze the last 3 layers of 2"):
        unfreeze(tower, LAYERS + 1)


@each_family
def test_layer_groups_hold_every_parameter_once_from_input_to_output(made: Path, family: str) -> None:
    tower = load(made).module
    groups = layer_groups(tower)
    names = {id(p): name for name, p in tower.named_parameters()}
    assert len(groups) == LAYERS + 2
    assert all(groups)
    assert sorted(id(p) for group in groups for p in group) == sorted(names)
    assert [{id(p) for p in layer.parameters()} for layer in blocks(tower)] == [
        {id(p) for p in group} for group in groups[1:-1]
    ]
    first, last = ({names[id(p)] for p in group} for group in (groups[0], groups[-1]))
    assert any("patch_embed" in name for name in first)
    assert all("embed" in name or "pre_layrnorm" in name or "cls_token" in name for name in first)
    assert all("norm" in name or "head" in name or "projection" in name for name in last)
    assert len(groups[-1]) == {"clip": 3, "geoclip": 7, "siglip": 13, "siglip_tower": 13, "naflex": 13}.get(
        family, 2
    )


@each_family
def test_a_trained_tower_is_saved_and_loaded_to_the_last_bit(made: Path, family: str, tmp_path: Path) -> None:
    backbone = load(made)
    before = embedded(backbone)
    random_numbers(backbone.module, 9)
    wanted = embedded(backbone)
    assert not torch.equal(before, wanted)
    saved = tmp_path / "out" / "backbone"
    for _ in range(2):
        # What a save that was killed may have left.
        for name in (".backbone.0a1b2c3d.writing", ".backbone.replaced"):
            (saved.parent / name / "litter").mkdir(parents=True)
            os.utime(saved.parent / name, (0, 0))
        save_backbone(backbone, saved)
    again = load(saved)
    assert torch.equal(embedded(again), wanted)
    for exact in (False, True):
        assert read_preprocessing(saved, exact=exact) == read_preprocessing(made, exact=exact)
    assert family_of(saved) == family_of(made)
    assert again.weights_sha256 not in ("", backbone.weights_sha256)
    # What is saved again is the same backbone: nobody pays for its embeddings twice.
    save_backbone(again, tmp_path / "out" / "second")
    assert hash_weights(tmp_path / "out" / "second") == again.weights_sha256
    assert sorted(path.name for path in saved.parent.iterdir()) == ["backbone", "second"]
    assert {"config.json", "model.safetensors"} <= {path.name for path in saved.iterdir()}


@pytest.mark.parametrize("family", ["clip", "siglip", "dinov2", "dinov2_registers", "dinov3", TIMM])
def test_what_is_saved_is_loaded_by_transformers_too(made: Path, family: str, tmp_path: Path) -> None:
    backbone = load(made)
    save_backbone(backbone, tmp_path / "saved")
    with torch.inference_mode():
        reference = from_class(type(backbone.module).__name__, tmp_path / "saved")(pixels())
    wanted = reference.image_embeds if family == "clip" else reference.pooler_output
    torch.testing.assert_close(embedded(backbone), wanted, atol=1e-5, rtol=1e-5)


def test_a_save_that_fails_leaves_what_was_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    dinov2(tmp_path / "model")
    backbone = load(tmp_path / "model")
    save_backbone(backbone, tmp_path / "saved")
    before = {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()}
    random_numbers(backbone.module, 9)

    def full(directory: Path, **_: object) -> None:
        (directory / "config.json").write_text("{")
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(backbone.module, "save_pretrained", full)
    with pytest.raises(GeoError, match="No space left on device"):
        save_backbone(backbone, tmp_path / "saved")
    assert {path.name: path.read_bytes() for path in (tmp_path / "saved").iterdir()} == before
    assert not list(tmp_path.glob(".*"))


# ---------------------------------------------------------------- refusals


def test_a_family_that_is_not_known_is_refused_with_those_that_are(tmp_path: Path) -> None:
    dinov2(tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", model_type="resnet")
    with pytest.raises(GeoError, match="a 'resnet' model can't be a backbone") as caught:
        load(tmp_path / "model")
    for family in FAMILIES:
        assert all(name in str(caught.value) for name in family.model_types)


@pytest.mark.parametrize("family", ["siglip", "naflex", "dinov2", "dinov2_registers", "dinov3", TIMM])
def test_missing_weights_are_refused_instead_of_filled_with_random_ones(made: Path, family: str) -> None:
    gone = {"timm": "blocks.1.norm1.weight", "siglip": "vision_model.head.probe", "naflex": "head.probe"}
    name = gone.get(family, "embeddings.cls_token")
    change_weights(made, lambda w: w.pop(name))
    with pytest.raises(GeoError, match="1 of the vision tower's weights are missing") as caught:
        load(made)
    assert name.split(".")[-1] in str(caught.value)
    assert caught.value.hint


@each_family
def test_a_layer_too_many_is_refused_instead_of_left_out(made: Path, family: str) -> None:
    def one_more(weights: dict[str, torch.Tensor]) -> None:
        for name in [n for n in weights if ".1." in f".{n}" and "text" not in n and "mlp." not in n]:
            weights[f".{name}".replace(".1.", ".2.", 1)[1:]] = weights[name].clone()

    change_weights(made, one_more)
    with pytest.raises(GeoError, match="weights too many for the vision tower"):
        load(made)


def test_a_siglip_without_its_pooling_head_is_refused(tmp_path: Path) -> None:
    siglip_tower(tmp_path / "model")
    change_json(tmp_path / "model" / "config.json", vision_use_head=False)
    with pytest.raises(GeoError, match="without its pooling head"):
        load(tmp_path / "model")


def spoil(weights: dict[str, torch.Tensor], how: str) -> None:
    if how == "missing":
        del weights["2.bias"]
    elif how == "extra":
        weights["4.weight"] = torch.zeros(2, 2)
    else:
        weights["0.bias"] = torch.zeros(3)


@pytest.mark.parametrize("how", ["missing", "extra", "shapes"])
def test_geoclips_layers_must_be_the_two_that_it_has(tmp_path: Path, how: str) -> None:
    geoclip(tmp_path / "model")
    path = tmp_path / "model" / "image_encoder_mlp_weights.pth"
    weights = torch.load(path, weights_only=True)
    spoil(weights, how)
    torch.save(weights, path)
    with pytest.raises(GeoError, match="not GeoCLIP's two linear layers") as caught:
        load(tmp_path / "model")
    assert caught.value.where == str(path)


def test_geoclips_layers_must_fit_the_clip_beside_them(tmp_path: Path) -> None:
    geoclip(tmp_path / "model")
    mlp = nn.Sequential(nn.Linear(25, 20), nn.ReLU(), nn.Linear(20, 16))
    torch.save(mlp.state_dict(), tmp_path / "model" / "image_encoder_mlp_weights.pth")
    with pytest.raises(GeoError, match="take 25 numbers, the CLIP beside them gives 24"):
        load(tmp_path / "model")


class Payload:
    """What a pickle would run, were it unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return Path.touch, (Path("ran"),)  # type: ignore[return-value]


def test_a_pickle_that_is_more_than_weights_is_never_run(tmp_path: Path) -> None:
    geoclip(tmp_path / "model")
    torch.save({"0.weight": Payload()}, tmp_path / "model" / "image_encoder_mlp_weights.pth")
    with pytest.raises(GeoError, match="GeoCLIP's layers can't be read"):
        mlp_tensors(tmp_path / "model")
    assert not Path("ran").exists()


@pytest.mark.skipif(not NO_TIMM, reason="timm is here")
def test_without_timm_its_models_say_how_to_get_it(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text(json.dumps(TIMM_CONFIG))
    save_file({"blocks.0.attn.qkv.weight": torch.zeros(2, 2)}, tmp_path / "model.safetensors")
    with pytest.raises(GeoError, match="this is a timm model, and timm") as caught:
        load(tmp_path)
    assert "geo-embed[timm]" in caught.value.hint
    # Who got the cache alone needs no timm to find the store.
    assert len(hash_weights(tmp_path)) == 64


# ---------------------------------------------------------------- end to end


@pytest.fixture
def places(tmp_path: Path) -> Country:
    """A handful: timm's tests have a session of their own, and the others' country would be made for this one alone."""
    write_country(tmp_path / "places" / "data", locations=5, seed=0, image_size=64, workers=1)
    return Country(tmp_path / "places", tmp_path / "nowhere")


@pytest.mark.parametrize("family", ["siglip", "dinov2", TIMM])
def test_pictures_are_extracted_with_it_and_with_what_was_saved_of_it(
    places: Country, made: Path, family: str, tmp_path: Path
) -> None:
    config = places.config(tmp_path, model__backbone_name=str(made), model__exact=True)
    done = extract(config, "train", limit=3)
    assert (done.computed, done.dim) == (12, WIDTH)
    backbone = load(made, exact=True)
    samples = load_samples(config, "train")
    stored = read_store(find_store(config, "train"), slice(0, 3)).values
    for row, view in ((0, 0), (2, 3)):
        data = (samples.image_root / samples.images[row, view]).read_bytes()
        batch = torch.from_numpy(resize(decode(data), backbone.preprocessing))[None]
        with torch.inference_mode():
            wanted = embed(backbone, normalise(batch, backbone.preprocessing, torch.float32))[0]
        np.testing.assert_allclose(stored[row, view], wanted.numpy(), atol=1e-3, rtol=1e-3)
    save_backbone(backbone, tmp_path / "saved")
    resaved = places.config(tmp_path, model__backbone_name=str(tmp_path / "saved"), model__exact=True)
    again = extract(resaved, "train", limit=3)
    # A whole SigLIP, a timm model with its classifier, or a tower saved alone: the same weights, the same store.
    assert (again.fingerprint, again.computed) == (done.fingerprint, 0)
