"""What a tower computes is in the fingerprint, all of it and nothing else; known without its weights."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from towers import ALL_TOWERS, MAKERS, NO_TIMM, TIMM_CONFIG, clip_config, embedded, load, random_numbers

from geo_embed.backbones.backbone import save_backbone
from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.function import read_function
from geo_embed.cache.find import store_attributes
from geo_embed.config import Model
from geo_embed.data import images
from geo_embed.errors import GeoError


def config(directory: Path, **changes: Any) -> None:
    """Settings of the tower, whether they stand in a group of their own or not."""
    path = directory / "config.json"
    content = json.loads(path.read_text())
    content.get("vision_config", content).update(changes)
    path.write_text(json.dumps(content))


def fingerprint(directory: Path) -> str:
    model = Model(backbone_name=str(directory))
    return str(store_attributes(model, directory, torch.float32)["fingerprint"])


CHANGES: dict[str, list[dict[str, Any]]] = {
    "clip": [{"hidden_act": "gelu"}, {"num_attention_heads": 8}, {"layer_norm_eps": 0.1}],
    "geoclip": [{"hidden_act": "gelu"}, {"num_attention_heads": 8}],
    "siglip": [{"hidden_act": "relu"}, {"num_attention_heads": 2}, {"layer_norm_eps": 0.1}],
    "siglip_tower": [{"hidden_act": "relu"}, {"num_attention_heads": 2}],
    "naflex": [{"hidden_act": "relu"}, {"num_attention_heads": 2}, {"layer_norm_eps": 0.1}],
    "dinov2": [{"hidden_act": "relu"}, {"num_attention_heads": 2}, {"layer_norm_eps": 0.1}],
    "dinov2_registers": [{"hidden_act": "relu"}, {"num_attention_heads": 2}],
    "dinov3": [{"hidden_act": "relu"}, {"num_attention_heads": 2}, {"rope_theta": 7.0}, {"layer_norm_eps": 0.1}],
}  # fmt: skip


@pytest.mark.parametrize("family", CHANGES)
def test_a_setting_that_changes_the_tower_changes_the_fingerprint(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / "model")
    names, answers = [fingerprint(tmp_path / "model")], [embedded(load(tmp_path / "model"))]
    for k, change in enumerate(CHANGES[family]):
        other = tmp_path / str(k)
        shutil.copytree(tmp_path / "model", other)
        config(other, **change)
        names.append(fingerprint(other))
        answers.append(embedded(load(other)))
    assert len(set(names)) == len(names)
    for k, answer in enumerate(answers[1:]):
        assert (answer - answers[0]).abs().max() > 1e-4, CHANGES[family][k]


NOTHING: list[dict[str, Any]] = [
    {"//": "a comment", "_name_or_path": "somewhere", "transformers_version": "4.1.0"},
    {"torch_dtype": "float16"},
    {"dtype": "bfloat16", "architectures": ["Other"], "output_attentions": False, "return_dict": True},
    {"initializer_range": 0.5, "initializer_factor": 3.0},
    {"attention_dropout": 0.5},
    {"id2label": {"0": "a", "1": "b"}, "label2id": {"a": 0, "b": 1}, "problem_type": None},
]


@pytest.mark.parametrize("family", CHANGES)
def test_what_says_nothing_of_the_tower_changes_no_fingerprint(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / "model")
    name, answer = fingerprint(tmp_path / "model"), embedded(load(tmp_path / "model"))
    path = tmp_path / "model" / "config.json"
    whole = json.loads(path.read_text())
    for change in NOTHING:
        path.write_text(json.dumps(whole))
        config(tmp_path / "model", **change)
        assert fingerprint(tmp_path / "model") == name, change
        assert torch.equal(embedded(load(tmp_path / "model")), answer)

    def turned(content: Any) -> Any:
        if isinstance(content, dict):
            return {key: turned(content[key]) for key in reversed(list(content))}
        return content

    path.write_text(json.dumps(turned(whole), indent=7))
    assert fingerprint(tmp_path / "model") == name


@pytest.mark.parametrize("family", ALL_TOWERS)
def test_saved_and_loaded_again_it_is_the_same_function(family: str, tmp_path: Path) -> None:
    MAKERS[family](tmp_path / "model")
    backbone = load(tmp_path / "model", trainable=True)
    save_backbone(backbone, tmp_path / "saved")
    assert read_function(tmp_path / "saved") == read_function(tmp_path / "model")
    assert (
        load(tmp_path / "saved").function == backbone.function == read_function(tmp_path / "model").to_dict()
    )
    assert json.loads(json.dumps(backbone.function)) == backbone.function


def test_a_whole_clip_and_its_tower_saved_alone_are_one_and_defaults_may_be_left_out(tmp_path: Path) -> None:
    vision = clip_config()
    small = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 1, "num_attention_heads": 4}
    text = {"vocab_size": 50, "projection_dim": 24, **small}
    whole = transformers.CLIPConfig(text_config=text, vision_config=vision.to_dict(), projection_dim=24)
    with quiet_transformers():
        random_numbers(transformers.CLIPModel(whole)).save_pretrained(tmp_path / "whole")
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(tmp_path / "whole")
        tower.save_pretrained(tmp_path / "alone")
    MAKERS["clip"](tmp_path / "processor")
    for name in ("whole", "alone"):
        shutil.copy(tmp_path / "processor" / "preprocessor_config.json", tmp_path / name)
    first = fingerprint(tmp_path / "whole")
    assert fingerprint(tmp_path / "alone") == first
    for name in ("whole", "alone"):
        path = tmp_path / name / "config.json"
        content = json.loads(path.read_text())
        group = content.get("vision_config", content)
        for key in ("hidden_act", "layer_norm_eps", "num_channels"):
            del group[key]
        # Other settings of the text tower, or none at all.
        content.pop("text_config", None)
        path.write_text(json.dumps(content))
        assert fingerprint(tmp_path / name) == first


def test_the_weights_are_not_needed_nor_anything_built(tmp_path: Path) -> None:
    MAKERS["clip"](tmp_path / "model")
    wanted = load(tmp_path / "model").function
    (tmp_path / "model" / "model.safetensors").unlink()
    assert read_function(tmp_path / "model").to_dict() == wanted


def test_another_reading_of_pictures_is_another_fingerprint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from geo_embed.cache import find

    MAKERS["clip"](tmp_path / "model")
    first = fingerprint(tmp_path / "model")
    monkeypatch.setattr(find, "PICTURE_SEMANTICS", images.PICTURE_SEMANTICS + 1)
    assert fingerprint(tmp_path / "model") != first


def timm_function(directory: Path, **changes: Any) -> dict[str, Any]:
    (directory / "config.json").write_text(json.dumps(TIMM_CONFIG | changes))
    return read_function(directory).to_dict()


def test_a_timm_models_function_is_its_architecture_and_arguments_and_needs_no_timm(tmp_path: Path) -> None:
    plain = timm_function(tmp_path)
    assert timm_function(tmp_path, num_classes=1000, label_names=["a"], num_features=3) == plain
    assert timm_function(tmp_path, model_type="timm_wrapper", architectures=["x"]) == plain
    arguments = TIMM_CONFIG["model_args"]
    assert isinstance(arguments, dict)
    assert timm_function(tmp_path, model_args=dict(reversed(arguments.items()))) == plain
    for change in (
        {"architecture": "vit_small_patch16_224"},
        {"model_args": arguments | {"global_pool": "avg"}},
        {"model_args": arguments | {"act_layer": "relu"}},
        {"model_args": None},
    ):
        assert timm_function(tmp_path, **change) != plain


@pytest.mark.parametrize(
    "change",
    [
        {"architecture": "hf_hub:somebody/something"},
        {"architecture": "local-dir:/tmp"},
        {"architecture": ""},
        {"architecture": 5},
        {"model_args": {"checkpoint_path": "/tmp/other.bin"}},
        {"model_args": {"pretrained": True}},
        {"model_args": {"features_only": True}},
        {"model_args": {"depth": {"a": 1}}},
        {"model_args": [1]},
        {"model_args": {"depth": 10_000_000}},
        {"model_args": {"depths": [3, 10_000_000]}},
        {"model_args": {"embed_dim": 10**30}},
        {"pretrained_cfg": 5},
    ],
    ids=str,
)
def test_a_timm_model_that_would_be_loaded_from_elsewhere_is_refused(
    change: dict[str, Any], tmp_path: Path
) -> None:
    with pytest.raises(GeoError) as caught:
        timm_function(tmp_path, **change)
    assert caught.value.where == str(tmp_path / "config.json")


@pytest.mark.skipif(bool(NO_TIMM), reason=NO_TIMM)
@pytest.mark.parametrize("depth", [10_000_000, -1, 0, 3, "2", 1.5])
def test_a_timm_model_of_other_depth_than_its_weights_is_refused(depth: Any, tmp_path: Path) -> None:
    MAKERS["timm"](tmp_path / "model")
    arguments = TIMM_CONFIG["model_args"]
    assert isinstance(arguments, dict)
    path = tmp_path / "model" / "config.json"
    path.write_text(json.dumps(TIMM_CONFIG | {"model_args": arguments | {"depth": depth}}))
    with pytest.raises(GeoError):
        load(tmp_path / "model")
