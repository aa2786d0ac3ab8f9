"""Model directories as a stranger may hand them over: refused in one line, or embedded as transformers itself embeds with them."""

from __future__ import annotations

import json
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from towers import MAKERS, embedded, load, pixels

from geo_embed.backbones.families import quiet_transformers
from geo_embed.backbones.weights import hash_weights
from geo_embed.cache.find import store_attributes
from geo_embed.config import Model
from geo_embed.errors import GeoError

WEIGHTS, BIN, CONFIG = "model.safetensors", "pytorch_model.bin", "config.json"
# What a case does to a whole directory of a small CLIP.
Change = Callable[[Path], object]


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("hostile") / "clip"
    MAKERS["clip"](directory)
    return directory


@pytest.fixture
def made(clip: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(clip, tmp_path / "model"))


def by_transformers(directory: Path) -> torch.Tensor:
    with quiet_transformers(), torch.inference_mode():
        tower = transformers.CLIPVisionModelWithProjection.from_pretrained(directory).eval()
        embeddings: torch.Tensor = tower(pixels()).image_embeds
    return embeddings


def refusal(directory: Path) -> GeoError | None:
    """Why the directory can't be a backbone; None where it can, and is embedded."""
    try:
        backbone = load(directory)
        embedded(backbone)
    except GeoError as error:
        return error
    attrs = store_attributes(Model(backbone_name=str(directory)), directory, torch.float32)
    assert (attrs["weights_sha256"], attrs["function"]) == (backbone.weights_sha256, backbone.function)
    return None


def assert_one_line(error: GeoError | None) -> None:
    assert error is not None
    assert error.what
    assert error.where
    assert "\n" not in str(error)
    assert len(error.what) < 600


def config(**changes: object) -> Change:
    def change(directory: Path) -> None:
        path = directory / CONFIG
        path.write_text(json.dumps(json.loads(path.read_text()) | changes))

    return change


def file(name: str, data: bytes) -> Change:
    return lambda directory: (directory / name).write_bytes(data)


def without(name: str) -> Change:
    return lambda directory: (directory / name).unlink()


def in_turn(*changes: Change) -> Change:
    def change(directory: Path) -> None:
        for single_change in changes:
            single_change(directory)

    return change


def tensors(change: Callable[[dict[str, torch.Tensor]], object]) -> Change:
    def rewrite(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        change(weights)
        save_file(weights, directory / WEIGHTS, metadata={"format": "pt"})

    return rewrite


def header(edit: Callable[[dict[str, Any]], object]) -> Change:
    """Change what a safetensors file claims, and nothing of what it holds."""

    def rewrite(directory: Path) -> None:
        data = (directory / WEIGHTS).read_bytes()
        (length,) = struct.unpack("<Q", data[:8])
        claims = json.loads(data[8 : 8 + length])
        edit(claims)
        written = json.dumps(claims).encode()
        (directory / WEIGHTS).write_bytes(struct.pack("<Q", len(written)) + written + data[8 + length :])

    return rewrite


def pickled(make: Callable[[dict[str, torch.Tensor]], object] = dict, **options: Any) -> Change:
    """pytorch_model.bin in place of model.safetensors."""

    def write(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        (directory / WEIGHTS).unlink()
        torch.save(make(weights), directory / BIN, **options)

    return write


def sharded(kind: str = ".safetensors", edit: Callable[[dict[str, Any]], object] = bool) -> Change:
    """Two files and their index in place of the one."""

    def write(directory: Path) -> None:
        weights = load_file(directory / WEIGHTS)
        (directory / WEIGHTS).unlink()
        places = {}
        for k in range(2):
            name = f"{'model' if kind == '.safetensors' else 'pytorch_model'}-0000{k + 1}-of-00002{kind}"
            part = {n: weights[n] for n in sorted(weights)[k::2]}
            save_file(part, directory / name) if kind == ".safetensors" else torch.save(
                part, directory / name
            )
            places |= dict.fromkeys(part, name)
        index: dict[str, Any] = {"metadata": {}, "weight_map": places}
        edit(index)
        whole = WEIGHTS if kind == ".safetensors" else BIN
        (directory / f"{whole}.index.json").write_text(json.dumps(index))

    return write


def swapped_for(make: Callable[[Path], object], name: str) -> Change:
    def change(directory: Path) -> None:
        (directory / name).unlink()
        make(directory / name)

    return change


def noise(weights: dict[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    return {name: tensor + torch.randn(tensor.shape) for name, tensor in weights.items()}


def stale(directory: Path) -> None:
    """Files of other weights, which nothing names."""
    other = noise(load_file(directory / next(p.name for p in directory.glob("*.safetensors"))))
    save_file(other, directory / "model-00001-of-00009.safetensors")
    save_file(other, directory / "open_clip_model.safetensors")
    torch.save(other, directory / "pytorch_model.fp16.bin")


def as_snapshot(directory: Path) -> None:
    """As the hub's cache has it: links to blobs elsewhere."""
    blobs = directory.parent / "blobs"
    blobs.mkdir()
    for k, path in enumerate(sorted(directory.iterdir())):
        path.rename(blobs / str(k))
        path.symlink_to(Path("..") / "blobs" / str(k))


def adapter(directory: Path) -> None:
    settings = {"peft_type": "LORA", "r": 4, "target_modules": ["q_proj"], "base_model_name_or_path": "x"}
    (directory / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"base_model.model.x.lora_A.weight": torch.ones(4, 4)}, directory / "adapter_model.safetensors")


def compressed(directory: Path) -> None:
    pickled()(directory)
    with zipfile.ZipFile(directory / BIN) as archive:
        records = {record.filename: archive.read(record) for record in archive.infolist()}
    with zipfile.ZipFile(directory / BIN, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, data in records.items():
            archive.writestr(name, data)


def nested(directory: Path) -> None:
    flat = json.loads((directory / CONFIG).read_text())
    whole = {"model_type": "clip", "projection_dim": flat["projection_dim"], "vision_config": flat}
    (directory / CONFIG).write_text(json.dumps(whole))


class Payload:
    """What a pickle would run, were it unpickled."""

    def __reduce__(self) -> tuple[Callable[..., object], tuple[str]]:
        return os.mkdir, ("ran",)


first = "vision_model.embeddings.class_embedding"
last = "visual_projection.weight"
RIGHT: dict[str, Change] = {
    "as it is": lambda directory: None,
    "a whole CLIP's config": nested,
    "null beside the group's own width": in_turn(nested, config(vision_config_dict=None)),
    "another activation": config(hidden_act="gelu"),
    "another activation yet": config(hidden_act="relu"),
    "other heads": config(num_attention_heads=8),
    "another epsilon": config(layer_norm_eps=0.1),
    "keys that mean nothing": config(
        **{"//": "é\u2028", "_name_or_path": "x", "eos_token_id": -5, "label2id": {}}
    ),
    "a pickle": pickled(),
    "a pickle of before 2020": pickled(_use_new_zipfile_serialization=False),
    "a pickle in half precision": pickled(lambda w: {n: t.half() for n, t in w.items()}),
    "a pickle of parameters": pickled(lambda w: {n: torch.nn.Parameter(t) for n, t in w.items()}),
    "a pickle beside a stranger's tensors": in_turn(
        pickled(),
        lambda directory: save_file({"x": torch.ones(3)}, directory / "open_clip_model.safetensors"),
    ),
    "a pickle beside a stranger's tensors of the same names": in_turn(
        lambda directory: stale(directory), pickled()
    ),
    "files that nothing names": stale,
    "safetensors before pickles": lambda directory: torch.save(
        noise(load_file(directory / WEIGHTS)), directory / BIN
    ),
    "shards": sharded(),
    "shards beside others": in_turn(stale, sharded()),
    "shards of pickles": sharded(".bin"),
    "one file before shards": in_turn(
        lambda directory: shutil.copy(directory / WEIGHTS, directory / "one"),
        sharded(),
        lambda directory: (directory / "one").rename(directory / WEIGHTS),
    ),
    "an index that says the wrong shard": sharded(
        edit=lambda index: index["weight_map"].update({first: index["weight_map"][last]})
    ),
    "half precision": tensors(lambda w: w.update({n: t.half() for n, t in w.items()})),
    "bfloat16": tensors(lambda w: w.update({n: t.bfloat16() for n, t in w.items()})),
    "double precision": tensors(lambda w: w.update({n: t.double() for n, t in w.items()})),
    "a text tower": tensors(
        lambda w: w.update({"text_model.x": torch.ones(2, dtype=torch.int8), "é\n": torch.ones(1)})
    ),
    "position ids": tensors(
        lambda w: w.update({"vision_model.embeddings.position_ids": torch.arange(17)[None]})
    ),
    "links to blobs": as_snapshot,
    "a linked directory": lambda directory: (
        directory.rename(directory.with_name("real")),
        directory.symlink_to("real"),
    ),
}

REFUSED: dict[str, Change] = {
    # config.json
    "no config": without(CONFIG),
    "an empty config": file(CONFIG, b""),
    "half a config": file(CONFIG, b'{"model_type": "clip_vision_model", "hidden'),
    "a list for a config": file(CONFIG, b"[]"),
    "no text": file(CONFIG, bytes(range(256))),
    "UTF-16": lambda d: (d / CONFIG).write_bytes((d / CONFIG).read_text().encode("utf-16")),
    "nested without end": file(CONFIG, b'{"model_type":' + b"[" * 100_000),
    "a gigabyte of config": lambda d: os.truncate(d / CONFIG, 1 << 30),
    "a directory for a config": swapped_for(Path.mkdir, CONFIG),
    "a pipe for a config": swapped_for(os.mkfifo, CONFIG),
    "a device for a config": swapped_for(lambda path: path.symlink_to("/dev/zero"), CONFIG),
    "a link to nowhere": swapped_for(lambda path: path.symlink_to("gone"), CONFIG),
    "a link to itself": swapped_for(lambda path: path.symlink_to(path.name), CONFIG),
    "NaN": lambda d: (d / CONFIG).write_text((d / CONFIG).read_text().replace("1e-05", "NaN")),
    "a number beyond floats": lambda d: (d / CONFIG).write_text((d / CONFIG).read_text().replace("1e-05", "1e999")),
    "no kind of model": config(model_type=None),
    "a list for a kind of model": config(model_type=["clip"]),
    "another kind of model": config(model_type="resnet"),
    "ten million layers": config(num_hidden_layers=10_000_000),
    "a million layers": config(num_hidden_layers=1_000_000),
    "one layer less": config(num_hidden_layers=1),
    "one layer more": config(num_hidden_layers=3),
    "a billion wide": config(hidden_size=1_000_000_000),
    "half a million wide": config(hidden_size=524_288),
    "wide within": config(intermediate_size=1_000_000),
    "fine patches": config(patch_size=1, image_size=1_000_000),
    "other patches": config(patch_size=16),
    "patches larger than pictures": config(patch_size=64),
    "no patches": config(patch_size=0),
    "patches of two sides": config(patch_size=[8, 4]),
    "a picture of two sides": config(image_size=[32, 16]),
    "heads that don't divide": config(num_attention_heads=5),
    "no heads": config(num_attention_heads=0),
    "one channel": config(num_channels=1),
    "another projection": config(projection_dim=25),
    "no such activation": config(hidden_act="swoosh"),
    "an activation of Python's": config(hidden_act="__class__"),
    "a list of activations": config(hidden_act=["gelu"]),
    "a negative epsilon": config(layer_norm_eps=-1.0),
    "an epsilon in words": config(layer_norm_eps="1e-5"),
    "dropout above one": config(attention_dropout=1.5),
    "a group that is null": in_turn(nested, config(vision_config=None)),
    "a group that is a list": in_turn(nested, config(vision_config=[1])),
    "a group in words": in_turn(nested, config(vision_config="ViT-B/32")),
    "an empty group": in_turn(nested, config(vision_config={})),
    "two groups that disagree": in_turn(nested, config(vision_config_dict={"num_attention_heads": 8})),
    "quantised": config(quantization_config={"quant_method": "bitsandbytes", "load_in_8bit": True}),
    "each layer its own": config(per_layer_config={"0": {"hidden_act": "relu"}}),
    "fused": config(fusion_config={"patch_embeddings": True}),
    "weights by another name": config(transformers_weights="other.safetensors"),
    "weights elsewhere": config(transformers_weights="../x.safetensors"),
    "heads cut off": config(pruned_heads={"0": [1]}),
    "heads of a width of their own": config(head_dim=4),
    # which files
    "no weights": without(WEIGHTS),
    "only a stranger's weights": lambda d: (d / WEIGHTS).rename(d / "open_clip_model.safetensors"),
    "a directory for weights": swapped_for(Path.mkdir, WEIGHTS),
    "a pipe for weights": swapped_for(os.mkfifo, WEIGHTS),
    "a device for weights": swapped_for(lambda path: path.symlink_to("/dev/zero"), WEIGHTS),
    "a pipe for a pickle": in_turn(without(WEIGHTS), lambda d: os.mkfifo(d / BIN)),
    "an adapter": adapter,
    "an adapter that is a pipe": lambda d: os.mkfifo(d / "adapter_config.json"),
    "a distributed checkpoint": file(".metadata", b"x"),
    "a shard that is missing": in_turn(sharded(), without("model-00002-of-00002.safetensors")),
    "an index to outside": in_turn(
        lambda d: shutil.copy(d / WEIGHTS, d.parent / "x.safetensors"),
        sharded(edit=lambda index: index["weight_map"].update({first: "../x.safetensors"})),
    ),
    "an index to anywhere": in_turn(
        sharded(edit=lambda index: index["weight_map"].update({first: "/dev/zero"}))
    ),
    "an index to a pipe": in_turn(
        lambda d: os.mkfifo(d / "x.safetensors"),
        sharded(edit=lambda index: index["weight_map"].update({first: "x.safetensors"})),
    ),
    "an index to no name": sharded(edit=lambda index: index["weight_map"].update({first: ""})),
    "an index with NUL": sharded(edit=lambda index: index["weight_map"].update({first: "a\0b"})),
    "an index to itself": sharded(edit=lambda index: index["weight_map"].update({first: f"{WEIGHTS}.index.json"})),
    "an index of numbers": sharded(edit=lambda index: index["weight_map"].update({first: 3})),
    "an index of nothing": sharded(edit=lambda index: index["weight_map"].clear()),
    "an index that is a list": in_turn(without(WEIGHTS), file(f"{WEIGHTS}.index.json", b"[1]")),
    "an index without a map": in_turn(without(WEIGHTS), file(f"{WEIGHTS}.index.json", b"{}")),
    "an index of a list": in_turn(without(WEIGHTS), file(f"{WEIGHTS}.index.json", b'{"weight_map": ["a"]}')),
    # safetensors
    "no bytes": file(WEIGHTS, b""),
    "seven bytes": file(WEIGHTS, b"\0" * 7),
    "zeros": file(WEIGHTS, b"\0" * 4096),
    "a text file": file(WEIGHTS, b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n"),
    "a header beyond the file": file(WEIGHTS, struct.pack("<Q", 1 << 62) + b"{}"),
    "a header of no JSON": file(WEIGHTS, struct.pack("<Q", 4) + b"{{{{"),
    "a header that is a list": file(WEIGHTS, struct.pack("<Q", 2) + b"[]"),
    "an empty header": file(WEIGHTS, struct.pack("<Q", 2) + b"{}"),
    "half the file": lambda d: os.truncate(d / WEIGHTS, (d / WEIGHTS).stat().st_size // 2),
    "the header alone": lambda d: os.truncate(d / WEIGHTS, 3000),
    "offsets beyond the file": header(lambda h: h[last].update(data_offsets=[0, 1 << 40])),
    "offsets backwards": header(lambda h: h[last].update(data_offsets=h[last]["data_offsets"][::-1])),
    "offsets of another": header(lambda h: h[last].update(data_offsets=h[first]["data_offsets"])),
    "no offsets": header(lambda h: h[last].pop("data_offsets")),
    "a shape of 10^18": header(lambda h: h[last].update(shape=[10**9, 10**9])),
    "a negative shape": header(lambda h: h[last].update(shape=[-24, -32])),
    "a shape in words": header(lambda h: h[last].update(shape="24 x 32")),
    "an unknown dtype": header(lambda h: h[last].update(dtype="F31")),
    "integers of the same width": header(lambda h: h[last].update(dtype="I32")),
    "booleans": tensors(lambda w: w.update({last: w[last] > 0})),
    "bytes": tensors(lambda w: w.update({last: w[last].to(torch.int8)})),
    "eight-bit floats": tensors(lambda w: w.update({last: w[last].to(torch.float8_e4m3fn)})),
    "whole numbers": tensors(lambda w: w.update({first: w[first].long()})),
    "one tensor less": tensors(lambda w: w.pop(first)),
    "one tensor more": tensors(lambda w: w.update({"vision_model.embeddings.more": torch.ones(2)})),
    "a tensor turned": tensors(lambda w: w.update({last: w[last].T.contiguous()})),
    "a tensor of no numbers": tensors(lambda w: w.update({last: torch.ones(0, 32)})),
    "a tensor of one number": tensors(lambda w: w.update({first: torch.tensor(1.0)})),
    "other names": tensors(lambda w: [w.update({f"module.{n}": w.pop(n)}) for n in list(w)]),
    "nothing of the tower": tensors(lambda w: (w.clear(), w.update({"text_model.x": torch.ones(2)}))),
    # pickles
    "no bytes of a pickle": in_turn(without(WEIGHTS), file(BIN, b"")),
    "no pickle": in_turn(without(WEIGHTS), file(BIN, bytes(range(256)) * 9)),
    "half a pickle": in_turn(pickled(), lambda d: os.truncate(d / BIN, (d / BIN).stat().st_size // 2)),
    "a pickle that runs": pickled(lambda w: {**w, "x": Payload()}),
    "an old pickle that runs": pickled(lambda w: {**w, "x": Payload()}, _use_new_zipfile_serialization=False),
    "a pickled list": pickled(lambda w: list(w.values())),
    "a pickled tensor": pickled(lambda w: w[last]),
    "a pickled module": pickled(lambda w: torch.nn.Linear(2, 2)),
    "a pickle of a pickle": pickled(lambda w: {"state_dict": w}),
    "a pickle of other things": pickled(lambda w: {n: n for n in w}),
    "a pickle that repeats one number": pickled(lambda w: {**w, last: torch.ones(1).expand(10**13)}),
    "a sparse pickle": pickled(lambda w: {**w, last: w[last].to_sparse()}),
    "a pickle of integers": pickled(lambda w: {**w, last: w[last].long()}),
    "a pickle of no memory": pickled(lambda w: {**w, last: w[last].to("meta")}),
    "a compressed pickle": compressed,
    "no pictures": without("preprocessor_config.json"),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_what_transformers_loads_is_embedded_as_it_does(name: str, made: Path) -> None:
    RIGHT[name](made)
    backbone = load(made)
    torch.testing.assert_close(embedded(backbone), by_transformers(made), atol=1e-5, rtol=1e-5)
    assert hash_weights(made) == backbone.weights_sha256
    assert refusal(made) is None


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_no_model_is_refused_in_one_line(name: str, made: Path) -> None:
    REFUSED[name](made)
    assert_one_line(refusal(made))
    assert not Path("ran").exists()


VALUES = (
    0,
    -1,
    3,
    7,
    1 << 20,
    10**9,
    10**30,
    1.5,
    -0.0,
    "8",
    "",
    None,
    True,
    False,
    [],
    [8],
    [8, 8, 8],
    {},
    {"a": 1},
)
FAMILIES = ("clip", "siglip", "siglip_tower", "naflex", "dinov2", "dinov2_registers", "dinov3")


def by_class(family: str, directory: Path) -> torch.Tensor:
    name = type(load(directory).module).__name__
    with quiet_transformers(), torch.inference_mode():
        answer = getattr(transformers, name).from_pretrained(directory).eval()(pixels())
    embeddings: torch.Tensor = answer.image_embeds if family == "clip" else answer.pooler_output
    return embeddings


@pytest.mark.parametrize("family", FAMILIES)
def test_any_value_of_any_setting_is_refused_or_means_what_it_means_to_transformers(
    family: str, tmp_path: Path
) -> None:
    directory = tmp_path / family
    MAKERS[family](directory)
    whole, path, untouched = (directory / CONFIG).read_text(), directory / CONFIG, embedded(load(directory))
    settings_file = json.loads(whole)
    taken = 0
    settings = sorted(settings_file.get("vision_config", settings_file).keys() - {"model_type"})
    # A few of the values for each, others in the next family: all of them take minutes.
    step = 8 if len(settings) > 12 else 2
    for k, key in enumerate(settings):
        for value in VALUES[(k + FAMILIES.index(family)) % step :: step]:
            content = json.loads(whole)
            content.get("vision_config", content)[key] = value
            path.write_text(json.dumps(content))
            error = refusal(directory)
            if error is not None:
                assert_one_line(error)
                continue
            taken += 1
            try:
                wanted = untouched if family == "naflex" else by_class(family, directory)
            # It refuses values of settings that have nothing to do with the tower, and a whole number where it wants a fraction.
            except Exception:
                fraction = isinstance(value, int) and key in ("layer_norm_eps", "rope_theta")
                path.write_text(json.dumps(settings_file | {key: float(value)}) if fraction else whole)
                wanted = by_class(family, directory) if family != "naflex" else untouched
                path.write_text(json.dumps(content))
            torch.testing.assert_close(embedded(load(directory)), wanted, atol=1e-5, rtol=1e-5)
    assert taken > 1
