"""Whatever a preprocessor file says is done as transformers' own image processor does it, or refused by file and key."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from numpy.typing import NDArray
from PIL import Image
from towers import CLIP_PROCESSOR, SIZE, clip, dinov2, naflex, siglip

from geo_embed.backbones.backbone import load_backbone
from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.preprocessing import check_tower_takes, read_preprocessing
from geo_embed.config import Model
from geo_embed.data.images import UnreadableImage, normalise, resize
from geo_embed.errors import GeoError

SIZES = [(61, 47), (20, 90), (96, 96), (33, 34), (260, 150)]
KINDS = ("CLIPImageProcessor", "SiglipImageProcessor", "BitImageProcessor", "ViTImageProcessor")


def picture(width: int, height: int) -> Image.Image:
    """A smooth scene with grain, of which no two pixels are alike."""
    rng = np.random.default_rng(width * height)
    y, x = np.mgrid[0:height, 0:width]
    waves = [np.sin(x / rng.uniform(3, 20) + y / rng.uniform(3, 20) + phase) for phase in (0, 1, 2)]
    pixels = 128 + 70 * np.stack(waves, axis=2) + rng.normal(0, 12, (height, width, 3))
    return Image.fromarray(pixels.clip(0, 255).astype(np.uint8))


PICTURES = [picture(*size) for size in SIZES]


def write(directory: Path, content: object, *, nested: bool = False) -> Path:
    """The file as a model directory has it; the other one of the two is gone."""
    directory.mkdir(exist_ok=True)
    names = ("preprocessor_config.json", "processor_config.json")
    for name in names:
        (directory / name).unlink(missing_ok=True)
    whole = {"processor_class": "CLIPProcessor", "image_processor": content} if nested else content
    (directory / names[nested]).write_text(json.dumps(whole))
    return directory / names[nested]


def by_transformers(content: dict[str, Any], image: Image.Image) -> NDArray[np.float32]:
    """What transformers' own processor of this file makes of a picture; whatever it raises."""
    kind = content.get("image_processor_type") or content.get("feature_extractor_type", "CLIPImageProcessor")
    kind = kind.replace("FeatureExtractor", "ImageProcessor").removesuffix("Fast")
    with quiet_transformers():
        processor = getattr(transformers, f"{kind}Pil").from_dict(content)
        pixels: NDArray[np.float32] = processor(image, return_tensors="np")["pixel_values"][0]
    return pixels


def by_this_package(directory: Path, image: Image.Image) -> NDArray[np.float32]:
    spec = read_preprocessing(directory, exact=True)
    return normalise(torch.from_numpy(resize(np.asarray(image), spec))[None], spec, torch.float32).numpy()[0]


def random_file(rng: np.random.Generator) -> dict[str, Any]:
    """A file that says little or much, mostly of sense; what it leaves out is null or absent."""

    def pick(*choices: Any) -> Any:
        return choices[rng.integers(len(choices))]

    side, other = (int(number) for number in rng.integers(8, 48, 2))
    square, oblong = {"height": side, "width": side}, {"height": side, "width": other}
    edges = {"shortest_edge": side + pick(0, 1, 7)}
    numbers = [round(float(number), 3) for number in rng.uniform(0.1, 0.9, 3)]
    content = {
        pick("image_processor_type", "feature_extractor_type"): pick(*KINDS),
        "size": pick(edges, edges, edges | {"longest_edge": pick(9, 30, 60, 1333, None)}, square, oblong, side, [side, other],
                     {"longest_edge": side}, {"max_height": side, "max_width": side}),
        "crop_size": pick(square, square, oblong, side, [side, side], edges, None),
        "do_resize": pick(True, True, True, None, False),
        "do_center_crop": pick(True, True, True, None, False),
        "do_rescale": pick(True, None, False),
        "do_normalize": pick(True, None, False),
        "do_convert_rgb": pick(True, None, False),
        "resample": pick(0, 1, 2, 3, 4, 5, None),
        "rescale_factor": pick(1 / 255, 1 / 127.5, None),
        "image_mean": pick(numbers, 0.5, 0, None),
        "image_std": pick(numbers, 0.5, 1, None),
        "default_to_square": pick(True, False, None, None),
        "do_pad": pick(None, False, True),
        "pad_size": pick(None, None, square, oblong),
        "use_square_size": pick(None, None, None, None, True),
        "processor_class": "CLIPProcessor",
        "_valid_processor_keys": ["images", "do_resize"],
        "do_flip_channel_order": pick(None, False, False, False, True),
    }  # fmt: skip
    return {key: value for key, value in content.items() if rng.random() < 0.75}


def test_hundreds_of_random_files_are_followed_to_the_last_bit_or_refused_by_key(tmp_path: Path) -> None:
    rng = np.random.default_rng(12)
    followed = 0
    refusals: list[tuple[GeoError, Path, dict[str, Any]]] = []
    for k in range(1000):
        content = random_file(rng)
        file = write(tmp_path / "model", content, nested=k % 3 == 0)
        image = PICTURES[k % len(PICTURES)]
        try:
            pixels = by_this_package(file.parent, image)
        except GeoError as error:
            refusals.append((error, file, content))
            continue
        followed += 1
        wanted = by_transformers(content, image)
        assert pixels.shape == wanted.shape, content
        np.testing.assert_allclose(pixels, wanted, atol=1e-6, rtol=0, err_msg=str(content))
        # The faster resize is within two grey levels of PIL, where it isn't PIL's own.
        exact, fast = (
            resize(np.asarray(image), read_preprocessing(file.parent, exact=exact)) for exact in (True, False)
        )
        assert np.abs(exact.astype(int) - fast).max() <= 2, content
    assert followed > 150
    assert len(refusals) > 150
    for error, file, content in refusals:
        assert error.where == str(file)
        assert any(key in error.what for key in (*content, "size", "crop_size")), (content, error.what)
        assert error.hint


@pytest.mark.parametrize(
    ("width", "height"), [(260, 150), (150, 260), (61, 47), (97, 96), (1000, 100), (12, 10)]
)
@pytest.mark.parametrize("longest", [1, 20, 96, 97, 150, 1333])
def test_a_longest_edge_beside_the_shortest_is_kept(
    tmp_path: Path, width: int, height: int, longest: int
) -> None:
    content = CLIP_PROCESSOR | {"size": {"shortest_edge": 96, "longest_edge": longest}, "crop_size": 96}
    write(tmp_path, content)
    image = picture(width, height)
    try:
        wanted = by_transformers(content, image)
    except ValueError:
        # Nothing is left of the shorter side.
        with pytest.raises(UnreadableImage, match=f"longest_edge of {longest}"):
            by_this_package(tmp_path, image)
        return
    np.testing.assert_allclose(by_this_package(tmp_path, image), wanted, atol=1e-6, rtol=0)
    spec = read_preprocessing(tmp_path, exact=True).to_dict()
    assert spec["longest_edge"] == longest


def test_an_ordinary_file_has_the_fields_that_stores_have_always_recorded(tmp_path: Path) -> None:
    write(tmp_path, CLIP_PROCESSOR)
    assert list(read_preprocessing(tmp_path, exact=False).to_dict()) == [
        "shortest_edge", "height", "width", "resample", "scale", "mean", "std", "resize"
    ]  # fmt: skip


def test_what_transformers_5_writes_is_read_and_comes_before_the_older_file(tmp_path: Path) -> None:
    older = CLIP_PROCESSOR | {"image_mean": 0.1}
    write(tmp_path, CLIP_PROCESSOR | {"image_mean": 0.25}, nested=True)
    (tmp_path / "preprocessor_config.json").write_text(json.dumps(older))
    assert read_preprocessing(tmp_path, exact=True).mean == (0.25, 0.25, 0.25)
    # As transformers does it.
    processor = transformers.CLIPImageProcessorPil.from_pretrained(tmp_path)
    assert processor.image_mean == 0.25
    (tmp_path / "processor_config.json").write_text(json.dumps({"processor_class": "CLIPProcessor"}))
    assert read_preprocessing(tmp_path, exact=True).mean == (0.1, 0.1, 0.1)


HOSTILE: dict[str, list[Any]] = {
    "size": [10**9, -1, 0, True, 2.5, "224", [224], [1, 2, 3], {}, {"shortest_edge": 10**9}, {"shortest_edge": None},
             {"height": 224}, {"height": 224, "width": 10**9}, {"shortest_edge": 224, "longest_edge": -3},
             {"longest_edge": 224}, {"min_pixels": 1, "max_pixels": 9}, {"shortest_edge": {"shortest_edge": 3}}],
    "crop_size": [10**9, -1, 0, True, "224", [224, -1], {"shortest_edge": 224}, {"height": 1e300, "width": 3}],
    "resample": [6, -1, 3.0, "bicubic", True, [3]],
    "rescale_factor": [0, -1, "1/255", 1e-300, 1e300, True],
    "image_mean": [[0.5], [0.5] * 4, [], ["a", "b", "c"], "0.5", [0.5, 0.5, 1e200], {"r": 1}, True, 1e39],
    "image_std": [0, [0.5, 0.5, 0], -0.5, [0.5, 0.5], 1e-46, 1e30],
    "do_resize": [1, "true", [], False],
    "do_center_crop": [1, "no", {}],
    "do_rescale": ["false"],
    "do_normalize": [0],
    "do_convert_rgb": ["RGB"],
    "do_pad": [3],
    "pad_size": [10**9, {"height": 5}],
    "image_processor_type": [3, ["CLIPImageProcessor"]],
    "do_flip_channel_order": [True],
    "do_thumbnail": [True],
    "offset": [True],
    "crop_pct": [0.875],
    "size_divisor": [32],
}  # fmt: skip


@pytest.mark.parametrize("key", HOSTILE)
def test_what_cannot_be_followed_is_refused_by_file_and_key(tmp_path: Path, key: str) -> None:
    for value in HOSTILE[key]:
        for nested in (False, True):
            file = write(tmp_path, CLIP_PROCESSOR | {key: value}, nested=nested)
            with pytest.raises(GeoError, match=rf"^{'image_processor.' * nested}{key}\b") as refused:
                read_preprocessing(tmp_path, exact=True)
            assert refused.value.where == str(file)
            assert len(refused.value.what) < 400
            assert "\n" not in refused.value.what


@pytest.mark.parametrize(
    "key",
    [
        "processor_class",
        "return_tensors",
        "_auto_class",
        "resize",
        "_preprocess",
        "__class__",
        "do_reduce_labels",
    ],
)
@pytest.mark.parametrize("value", [True, "x", 3, {"a": []}])
def test_a_key_that_no_processor_reads_for_pixels_changes_nothing(
    tmp_path: Path, key: str, value: object
) -> None:
    write(tmp_path, CLIP_PROCESSOR)
    before = read_preprocessing(tmp_path, exact=True)
    write(tmp_path, CLIP_PROCESSOR | {key: value})
    assert read_preprocessing(tmp_path, exact=True) == before


@pytest.mark.parametrize(("make", "key"), [(clip, "crop_size"), (siglip, "size")])
def test_a_size_that_contradicts_the_tower_is_one_line_that_names_file_and_key(
    tmp_path: Path, make: Any, key: str
) -> None:
    make(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {key: {"height": 40, "width": 40}}
    file.write_text(json.dumps(content))
    with pytest.raises(
        GeoError, match=rf"{key}.* pictures of 40 × 40 pixels, where image_size in config.json is {SIZE}"
    ) as refused:
        load_backbone(Model(backbone_name=str(tmp_path)), torch.device("cpu"), torch.float32)
    assert refused.value.where == str(file)
    assert refused.value.hint


def test_a_tower_that_interpolates_takes_pictures_of_another_size(tmp_path: Path) -> None:
    dinov2(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    content = json.loads(file.read_text()) | {"size": {"shortest_edge": 48}, "crop_size": 48}
    file.write_text(json.dumps(content))
    spec = read_preprocessing(tmp_path, exact=True)
    check_tower_takes(tmp_path, spec)
    assert (spec.height, spec.width) == (48, 48)


def test_patches_of_another_size_than_the_towers_are_refused(tmp_path: Path) -> None:
    naflex(tmp_path)
    file = tmp_path / "preprocessor_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | {"patch_size": 7}))
    with pytest.raises(GeoError, match="patch_size"):
        check_tower_takes(tmp_path, read_preprocessing(tmp_path, exact=True))


@pytest.mark.parametrize(
    "text",
    [
        '{"size": NaN}',
        '{"image_mean": [0.5, 0.5, Infinity]}',
        '{"size": 1e400}',
        "[]",
        "3",
        "",
        '{"size":' * 5000,
        "\x00",
    ],
)
def test_what_is_no_json_object_is_refused_by_file(tmp_path: Path, text: str) -> None:
    file = tmp_path / "preprocessor_config.json"
    file.write_text(text)
    with pytest.raises(GeoError) as refused:
        read_preprocessing(tmp_path, exact=True)
    assert refused.value.where == str(file)


TIMM_CFG: dict[str, Any] = {"input_size": [3, 32, 32], "crop_mode": "center"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("input_size", value)
        for value in ([1, 32, 32], [3, 10**9, 10**9], [3, -1, -1], "x", [3, 32], {"a": 1}, 32)
    ]
    + [("crop_pct", value) for value in (0, -1, 1e9, "x", 1e-300)]
    + [("mean", value) for value in (0.5, ["a"] * 3, [1e300] * 3)]
    + [("std", value) for value in ([0, 1, 1], [1, 1])]
    + [("interpolation", 3), ("crop_mode", ["center"])],
)
def test_timm_settings_of_no_sense_are_refused_by_key(tmp_path: Path, key: str, value: object) -> None:
    config = {"architecture": "vit_tiny_patch16_224", "pretrained_cfg": TIMM_CFG | {key: value}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    with pytest.raises(GeoError, match=rf"pretrained_cfg\.{key}"):
        read_preprocessing(tmp_path, exact=False)
