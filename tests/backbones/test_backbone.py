"""The vision tower is the one in the file, whole, and gives what transformers gives."""

from __future__ import annotations

import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from conftest import Country
from safetensors.torch import load_file, save_file
from transformers import (
    CLIPConfig,
    CLIPImageProcessor,
    CLIPModel,
    CLIPTextConfig,
    CLIPVisionConfig,
    CLIPVisionModel,
    CLIPVisionModelWithProjection,
)

from geo_embed.backbones.backbone import Backbone, embed, embedding_dim, freeze, load_backbone, unfreeze
from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.backbones.weights import find_backbone, fingerprint_of, hash_weights
from geo_embed.cache.find import find_store, store_attributes
from geo_embed.config import Config, Model
from geo_embed.devices import count_parameters, pick_device, pick_dtype
from geo_embed.errors import GeoError

CPU = torch.device("cpu")
WIDTH, LAYERS, PROJECTION, SIZE = 32, 3, 24, 32


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole CLIP, text tower and all, saved as the hub has them."""
    torch.manual_seed(0)
    tower = {
        "hidden_size": WIDTH,
        "intermediate_size": 64,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
    }
    config = CLIPConfig(
        text_config=CLIPTextConfig(vocab_size=50, projection_dim=PROJECTION, **tower).to_dict(),
        vision_config=CLIPVisionConfig(
            image_size=SIZE, patch_size=8, projection_dim=PROJECTION, **tower
        ).to_dict(),
        projection_dim=PROJECTION,
    )
    directory = tmp_path_factory.mktemp("clip") / "whole"
    with quiet_transformers():
        CLIPModel(config).save_pretrained(directory)
    processor = CLIPImageProcessor(size={"shortest_edge": SIZE}, crop_size={"height": SIZE, "width": SIZE})
    processor.save_pretrained(directory)
    return directory


@pytest.fixture
def tower(clip: Path, tmp_path: Path) -> Path:
    """The vision tower of that CLIP, saved on its own."""
    with quiet_transformers():
        CLIPVisionModelWithProjection.from_pretrained(clip).save_pretrained(tmp_path / "tower")
    shutil.copy(clip / "preprocessor_config.json", tmp_path / "tower")
    return tmp_path / "tower"


def load(directory: Path, **settings: object) -> Backbone:
    return load_backbone(Model(backbone_name=str(directory), **settings), CPU, torch.float32)


@pytest.fixture
def pixels() -> torch.Tensor:
    return torch.randn(3, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


def change_weights(directory: Path, change: Callable[[dict[str, torch.Tensor]], object]) -> None:
    path = directory / "model.safetensors"
    weights = load_file(path)
    change(weights)
    save_file(weights, path, metadata={"format": "pt"})


def change_config(path: Path, **values: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | values))


# ---------------------------------------------------------------- what it gives


def test_image_embeds_are_what_a_whole_clip_calls_image_features(clip: Path, pixels: torch.Tensor) -> None:
    backbone = load(clip)
    with torch.inference_mode():
        features = CLIPModel.from_pretrained(clip).eval().get_image_features(pixel_values=pixels)
        # transformers 5 gives an output object, whose pooler_output is the projected embedding.
        wanted = features if isinstance(features, torch.Tensor) else features.pooler_output
        embeddings = embed(backbone, pixels)
    assert embeddings.shape == (3, PROJECTION)
    torch.testing.assert_close(embeddings, wanted)


def test_pooler_output_is_the_state_before_the_projection(clip: Path, pixels: torch.Tensor) -> None:
    backbone = load(clip, feature="pooler_output")
    with torch.inference_mode():
        wanted = CLIPVisionModel.from_pretrained(clip).eval()(pixel_values=pixels).pooler_output
        embeddings = embed(backbone, pixels)
        projected = backbone.module.visual_projection(embeddings)
    assert (embeddings.shape, backbone.dim) == ((3, WIDTH), WIDTH)
    torch.testing.assert_close(embeddings, wanted)
    torch.testing.assert_close(projected, embed(load(clip), pixels))


def test_embeddings_are_raw_not_scaled_to_unit_length(clip: Path, pixels: torch.Tensor) -> None:
    lengths = embed(load(clip), pixels * 3).norm(dim=1)
    assert (lengths - 1).abs().min() > 0.01


def test_a_tower_saved_alone_gives_the_same_as_the_whole(
    clip: Path, tower: Path, pixels: torch.Tensor
) -> None:
    assert torch.equal(embed(load(tower), pixels), embed(load(clip), pixels))
    assert load(tower).preprocessing == load(clip).preprocessing


def test_a_whole_clip_may_write_its_projections_width_at_the_top_of_its_config_alone(
    clip: Path, tmp_path: Path, pixels: torch.Tensor
) -> None:
    """CLIPModel reads only that one, so that a model saved with the vision group's default of 512 is sound."""
    shutil.copytree(clip, tmp_path / "top")
    content = json.loads((clip / "config.json").read_text())
    del content["vision_config"]["projection_dim"]
    (tmp_path / "top" / "config.json").write_text(json.dumps(content))
    assert CLIPModel.from_pretrained(tmp_path / "top").visual_projection.out_features == PROJECTION
    assert torch.equal(embed(load(tmp_path / "top"), pixels), embed(load(clip), pixels))


@pytest.mark.parametrize(("feature", "dim"), [("image_embeds", PROJECTION), ("pooler_output", WIDTH)])
def test_the_width_is_known_from_the_config_alone(clip: Path, tower: Path, feature: str, dim: int) -> None:
    assert embedding_dim(clip, feature) == embedding_dim(tower, feature) == dim
    assert load(clip, feature=feature).dim == dim


def test_it_is_loaded_frozen_in_eval_mode_and_without_the_text_tower(clip: Path) -> None:
    backbone = load(clip)
    assert not backbone.module.training
    total, trained = count_parameters(backbone.module)
    assert trained == 0
    assert not [name for name, _ in backbone.module.named_parameters() if "text" in name]
    assert total < count_parameters(CLIPModel.from_pretrained(clip))[0]


def test_loading_leaves_the_screen_alone(clip: Path, capfd: pytest.CaptureFixture[str]) -> None:
    load(clip)
    assert tuple(capfd.readouterr()) == ("", "")


# ---------------------------------------------------------------- freezing


def layer_size(module: object) -> int:
    return count_parameters(module)[0]  # type: ignore[arg-type]


@pytest.mark.parametrize("last", range(LAYERS + 1))
def test_the_last_layers_thaw_with_the_norm_and_projection_after_them(clip: Path, last: int) -> None:
    module = unfreeze(load(clip).module, last)
    thawed = {name for name, p in module.named_parameters() if p.requires_grad}
    inside = {name.split("layers.")[1].split(".")[0] for name in thawed if "layers." in name}
    assert inside == {str(n) for n in range(LAYERS - last, LAYERS)}
    vision = module.vision_model
    tail = layer_size(vision.post_layernorm) + layer_size(module.visual_projection)
    total, trained = count_parameters(module)
    assert trained == last * layer_size(vision.encoder.layers[0]) + tail
    assert total == sum(p.numel() for p in module.parameters())
    assert not [name for name in thawed if "embeddings" in name or "pre_layrnorm" in name]


def test_everything_thaws_and_freezes_again(clip: Path) -> None:
    module = load(clip).module
    total, trained = count_parameters(unfreeze(module))
    assert trained == total > 0
    assert count_parameters(freeze(module)) == (total, 0)
    unfreeze(module)
    # Fewer layers than before: what was thawed and is not asked for is frozen.
    assert count_parameters(unfreeze(module, 1))[1] < total


@pytest.mark.parametrize("last", [-1, LAYERS + 1])
def test_layers_that_are_not_there_cannot_be_thawed(clip: Path, last: int) -> None:
    with pytest.raises(GeoError, match=f"can't unfreeze the last {last} layers of {LAYERS}"):
        unfreeze(load(clip).module, last)


# ---------------------------------------------------------------- fingerprints


def test_the_text_tower_and_the_name_do_not_enter_the_hash(clip: Path, tower: Path, tmp_path: Path) -> None:
    renamed = tmp_path / "renamed"
    shutil.copytree(clip, renamed)
    change_weights(renamed, lambda w: w["text_model.final_layer_norm.weight"].add_(1))
    name = "model-00001-of-00001.safetensors"
    (renamed / "model.safetensors").rename(renamed / name)
    index = {"metadata": {}, "weight_map": dict.fromkeys(load_file(renamed / name), name)}
    (renamed / "model.safetensors.index.json").write_text(json.dumps(index))
    assert hash_weights(clip) == hash_weights(tower) == hash_weights(renamed)
    assert load(clip).weights_sha256 == hash_weights(clip)


def test_weights_in_several_files_hash_as_in_one(clip: Path, tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    shutil.copytree(clip, parts)
    weights = load_file(parts / "model.safetensors")
    (parts / "model.safetensors").unlink()
    places = {}
    for n in range(2):
        half = {name: weights[name] for name in sorted(weights)[n::2]}
        save_file(half, parts / f"model-0000{n + 1}-of-00002.safetensors")
        places |= dict.fromkeys(half, f"model-0000{n + 1}-of-00002.safetensors")
    (parts / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": places}))
    assert hash_weights(parts) == hash_weights(clip)


@pytest.mark.parametrize(
    "name",
    ["visual_projection.weight", "vision_model.pre_layrnorm.bias", "vision_model.embeddings.class_embedding"],
)
def test_one_changed_number_changes_the_hash(tower: Path, name: str) -> None:
    before = hash_weights(tower)
    change_weights(tower, lambda w: w[name].view(-1)[0].add_(1e-3))
    assert hash_weights(tower) != before


def test_another_precision_on_disk_is_other_weights(tower: Path) -> None:
    before = hash_weights(tower)
    change_weights(tower, lambda w: w.update({name: t.half() for name, t in w.items()}))
    assert hash_weights(tower) != before


def test_a_fingerprint_is_16_hex_digits_of_everything_and_of_no_order() -> None:
    fields = {"weights_sha256": "ab", "dtype": "float32", "preprocessing": {"height": 336}}
    first = fingerprint_of(fields)
    assert len(first) == 16
    assert int(first, 16) >= 0
    assert fingerprint_of(dict(reversed(fields.items()))) == first
    others = [
        {"weights_sha256": "ac"},
        {"dtype": "bfloat16"},
        {"preprocessing": {"height": 224}},
        {"more": 1},
    ]
    assert len({first, *(fingerprint_of(fields | other) for other in others)}) == 5


GOLDEN = {
    "vision_model.embeddings.class_embedding": (4,),
    "vision_model.embeddings.position_ids": (1, 5),
    "vision_model.encoder.layers.0.mlp.fc1.weight": (8, 4),
    "visual_projection.weight": (3, 4),
    "text_model.final_layer_norm.bias": (4,),
    "logit_scale": (),
}


@pytest.mark.parametrize("stored_in", ["model.safetensors", "pytorch_model.bin"])
@pytest.mark.parametrize("exact", [False, True])
def test_the_fingerprint_of_a_clip_never_changes(tmp_path: Path, stored_in: str, exact: bool) -> None:
    """Where it does, everybody's embeddings have to be looked after again. The earlier numbers are those of the first release."""
    weights = {
        name: torch.arange(torch.Size(shape).numel()).float().view(shape) for name, shape in GOLDEN.items()
    }
    if stored_in == "model.safetensors":
        save_file(weights, tmp_path / stored_in, metadata={"format": "pt"})
    else:
        torch.save(weights, tmp_path / stored_in)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "clip", "projection_dim": 3}))
    processor = {
        "crop_size": 336,
        "do_center_crop": True,
        "do_normalize": True,
        "do_resize": True,
        "feature_extractor_type": "CLIPFeatureExtractor",
        "image_mean": [0.48145466, 0.4578275, 0.40821073],
        "image_std": [0.26862954, 0.26130258, 0.27577711],
        "resample": 3,
        "size": 336,
    }
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(processor))
    config = Config.model_validate({"model": {"exact": exact}})
    golden = {
        ("model.safetensors", False): ("03405aa75ff10480", "6310935a12371cf7"),
        ("model.safetensors", True): ("76acab45f4047e89", "87ce07a03f1e7a63"),
        ("pytorch_model.bin", False): ("b6972a54ff2a4fee", "e2d57fd03d8c73f4"),
        ("pytorch_model.bin", True): ("0005ad33e29b2334", "b6f7d5b492741ff2"),
    }
    attrs = store_attributes(config.model, tmp_path, torch.float32)
    assert attrs["function"] == {
        "tower": "CLIPVisionModelWithProjection",
        **{"hidden_size": 768, "intermediate_size": 3072, "num_hidden_layers": 12, "num_attention_heads": 12},
        **{"num_channels": 3, "image_size": 224, "patch_size": 32, "projection_dim": 3},
        **{"hidden_act": "quick_gelu", "layer_norm_eps": 1e-5},
    }
    later = ("backbone", "fingerprint", "function", "picture_semantics")
    earlier = fingerprint_of({key: value for key, value in attrs.items() if key not in later})
    # How files become pixels has a number of its own, which may rise.
    today = fingerprint_of(
        {key: value for key, value in attrs.items() if key not in later[:2]} | {"picture_semantics": 2}
    )
    assert (earlier, today) == golden[stored_in, exact]


# ---------------------------------------------------------------- refusals


def test_offline_without_weights_the_hint_names_the_download_and_the_directory() -> None:
    with pytest.raises(GeoError, match="not in the local Hugging Face cache") as caught:
        find_backbone("geolocal/StreetCLIP")
    assert "did you mean" not in caught.value.hint
    assert "geolocal/StreetCLIP" in str(caught.value)
    assert "hf download geolocal/StreetCLIP" in caught.value.hint
    assert "--backbone DIR" in caught.value.hint


def test_a_backbone_that_lies_here_needs_no_client_of_the_hub(
    country: Country, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    assert find_backbone(str(country.backbone)) == country.backbone


@pytest.mark.parametrize("name", ["no/such/directory", "./nothing-here", "spaces are no id"])
def test_a_name_that_is_neither_a_directory_nor_an_id_is_told_so(name: str) -> None:
    with pytest.raises(GeoError, match="neither a directory nor a Hugging Face id") as caught:
        find_backbone(name)
    assert caught.value.hint


@pytest.mark.parametrize("missing", ["config.json", "model.safetensors"])
def test_a_directory_without_a_model_is_told_so(tower: Path, missing: str) -> None:
    (tower / missing).unlink()
    with pytest.raises(GeoError, match="no Hugging Face model here") as caught:
        load(tower)
    assert caught.value.where == str(tower)


def test_a_tower_with_missing_weights_is_refused_instead_of_filled_with_random_ones(tower: Path) -> None:
    change_weights(tower, lambda w: w.pop("vision_model.post_layernorm.weight"))
    with pytest.raises(
        GeoError, match=r"1 of the vision tower's weights are missing, .*post_layernorm\.weight"
    ):
        load(tower)


def test_a_tower_without_its_projection_is_refused(clip: Path, tmp_path: Path) -> None:
    with quiet_transformers():
        CLIPVisionModel.from_pretrained(clip).save_pretrained(tmp_path / "bare")
    shutil.copy(clip / "preprocessor_config.json", tmp_path / "bare")
    with pytest.raises(GeoError, match="visual_projection"):
        load(tmp_path / "bare")


def test_weights_of_another_shape_than_the_config_says_are_refused(tower: Path) -> None:
    change_config(tower / "config.json", projection_dim=PROJECTION * 2)
    with pytest.raises(GeoError) as caught:
        load(tower)
    assert caught.value.where == str(tower)


@pytest.mark.parametrize("kind", ["vit", "resnet", "bert"])
def test_a_model_of_no_known_family_is_refused_by_name(tower: Path, kind: str) -> None:
    change_config(tower / "config.json", model_type=kind)
    with pytest.raises(
        GeoError, match=f"a '{kind}' model can't be a backbone; those that can: clip, "
    ) as caught:
        load(tower)
    assert caught.value.hint


def test_a_layer_more_than_the_config_says_is_refused(tower: Path) -> None:
    change_config(tower / "config.json", num_hidden_layers=LAYERS - 1)
    with pytest.raises(
        GeoError, match=r"weights too many for the vision tower, vision_model\.encoder\.layers\.2"
    ):
        load(tower)


@pytest.mark.parametrize("text", ["", "{", "[]", "not json"])
def test_a_config_that_is_no_json_object_is_refused(tower: Path, text: str) -> None:
    (tower / "config.json").write_text(text)
    with pytest.raises(GeoError) as caught:
        load(tower)
    assert str(tower) in caught.value.where


def test_weights_that_are_cut_short_are_refused(tower: Path) -> None:
    path = tower / "model.safetensors"
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(GeoError) as caught:
        load(tower)
    assert str(tower) in caught.value.where


def test_a_model_without_a_preprocessor_file_is_refused(tower: Path) -> None:
    (tower / "preprocessor_config.json").unlink()
    with pytest.raises(GeoError, match=r"no preprocessor_config\.json"):
        load(tower)


# ---------------------------------------------------------------- preprocessing, device, dtype


def test_preprocessing_is_what_the_models_own_file_asks_for(tower: Path) -> None:
    path = tower / "preprocessor_config.json"
    change_config(
        path,
        size={"shortest_edge": 40},
        crop_size={"height": 36, "width": 32},
        resample=2,
        image_mean=[0.1, 0.2, 0.3],
        image_std=[0.4, 0.5, 0.6],
        rescale_factor=0.5,
    )
    spec = read_preprocessing(tower, exact=True)
    assert (spec.shortest_edge, spec.height, spec.width, spec.resample) == (40, 36, 32, 2)
    assert (spec.mean, spec.std, spec.scale, spec.resize) == ((0.1, 0.2, 0.3), (0.4, 0.5, 0.6), 0.5, "pil")
    assert read_preprocessing(tower, exact=False).resize == "torch"


def test_a_clips_file_is_read_as_a_clips_by_whatever_name_it_goes(tower: Path) -> None:
    before = read_preprocessing(tower, exact=False)
    change_config(tower / "preprocessor_config.json", image_processor_type="SomeImageProcessorFast")
    assert read_preprocessing(tower, exact=False) == before


def test_a_preprocessor_that_gives_no_fixed_size_is_refused(tower: Path) -> None:
    change_config(tower / "preprocessor_config.json", do_resize=False)
    with pytest.raises(GeoError, match="no fixed size"):
        read_preprocessing(tower, exact=False)


def test_auto_is_float32_on_a_cpu_and_a_named_precision_is_taken() -> None:
    assert pick_dtype("auto", CPU) == torch.float32
    assert pick_dtype("bfloat16", CPU) == torch.bfloat16
    assert pick_device("cpu") == CPU


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a CUDA device")
def test_cuda_where_there_is_none_is_an_error_with_a_way_out() -> None:
    assert pick_device("auto") == CPU
    with pytest.raises(GeoError, match="no CUDA device") as caught:
        pick_device("cuda")
    assert "--device cpu" in caught.value.hint


# ---------------------------------------------------------------- the real architecture


@pytest.mark.slow
def test_the_exact_architecture_of_streetclip_loads_and_embeds_one_picture(tmp_path: Path) -> None:
    directory = tmp_path / "streetclip"
    config = CLIPVisionConfig(
        hidden_size=1024,
        num_hidden_layers=24,
        num_attention_heads=16,
        intermediate_size=4096,
        patch_size=14,
        image_size=336,
        projection_dim=768,
    )
    with torch.device("meta"):
        module = CLIPVisionModelWithProjection(config)
    module.to_empty(device="cpu").to(torch.bfloat16)
    generator = torch.Generator().manual_seed(0)
    # The same million numbers again and again: to draw 304 would take seconds.
    drawn = torch.randn(2**20, generator=generator).to(torch.bfloat16) * 0.02
    with torch.no_grad():
        for name, weight in module.named_parameters():
            if "norm" in name and name.endswith("weight"):
                weight.fill_(1)
            else:
                weight.copy_(drawn.repeat(-(-weight.numel() // len(drawn)))[: weight.numel()].view_as(weight))
    weights = {name: tensor for name, tensor in module.state_dict().items() if "position_ids" not in name}
    directory.mkdir()
    save_file(weights, directory / "model.safetensors", metadata={"format": "pt"})
    (directory / "config.json").write_text(config.to_json_string())
    CLIPImageProcessor(size={"shortest_edge": 336}, crop_size={"height": 336, "width": 336}).save_pretrained(
        directory
    )
    del module, weights

    backbone = load_backbone(Model(backbone_name=str(directory)), CPU, torch.float32)
    total, _ = count_parameters(backbone.module)
    assert total == pytest.approx(304e6, rel=0.005)
    assert backbone.dim == 768
    assert (backbone.preprocessing.height, backbone.preprocessing.width) == (336, 336)
    picture = torch.randn(1, 3, 336, 336, generator=generator)
    try:
        with torch.inference_mode():
            embedding = embed(backbone, picture)
    finally:
        # pytest keeps the folders of the last three sessions, and this one is of 600 MB.
        shutil.rmtree(directory)
    assert embedding.shape == (1, 768)
    assert torch.isfinite(embedding).all()
    assert embedding.std() > 0


@pytest.mark.parametrize(
    "mistyped", ["made/backbon", "mad/backbone", "./made/bakbone", "made/../mde/backbone"]
)
def test_a_mistyped_directory_is_answered_with_the_near_one(country: Country, mistyped: str) -> None:
    Path("made").mkdir()
    Path("made/backbone").symlink_to(country.backbone)
    Path("made/backboard").mkdir()
    with pytest.raises(GeoError) as caught:
        find_backbone(mistyped)
    assert caught.value.hint.startswith("no such directory; did you mean made/")
    assert "/backbone?" in caught.value.hint
    with pytest.raises(GeoError) as caught:
        find_store(country.config(model__backbone_name=mistyped), "train")
    assert "did you mean made/" in caught.value.hint
