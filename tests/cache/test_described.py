"""What a model directory is made of is asked of transformers once, and again when anything that it follows from differs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from geo_embed.backbones.function import read_function
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.cache import described
from geo_embed.cache.described import NAME, describe
from geo_embed.errors import GeoError

CONFIG = {
    "model_type": "clip_vision_model",
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_attention_heads": 2,
    "num_hidden_layers": 1,
    "image_size": 32,
    "patch_size": 8,
    "projection_dim": 16,
}


@pytest.fixture
def model(tmp_path: Path) -> Path:
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(CONFIG))
    processor = {"image_processor_type": "CLIPImageProcessor", "size": {"shortest_edge": 32}, "crop_size": 32}
    (folder / "preprocessor_config.json").write_text(json.dumps(processor))
    (tmp_path / "cache").mkdir()
    return folder


def as_read(model: Path, *, exact: bool = False) -> dict[str, object]:
    return {
        "function": read_function(model).to_dict(),
        "preprocessing": read_preprocessing(model, exact=exact).to_dict(),
    }


def test_what_is_remembered_is_what_the_files_say_whichever_of_them_changes(model: Path) -> None:
    cache = model.parent / "cache"
    for exact in (False, True, False):
        for _ in range(2):
            assert describe(model, cache, exact=exact) == as_read(model, exact=exact)
    for name, change in (
        ("config.json", {"hidden_act": "gelu"}),
        ("preprocessor_config.json", {"image_std": [0.5, 0.5, 0.5]}),
        ("processor_config.json", {"image_processor": {"size": 64, "crop_size": 64}}),
    ):
        path = model / name
        content = json.loads(path.read_text()) if path.exists() else {}
        before = describe(model, cache, exact=False)
        path.write_text(json.dumps(content | change))
        assert describe(model, cache, exact=False) == as_read(model) != before


def test_the_second_time_transformers_is_not_imported(model: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from geo_embed.cache.described import describe; "
        "describe(Path(sys.argv[1]), Path(sys.argv[2]), exact=False); print('transformers' in sys.modules)"
    )
    cache = model.parent / "cache"
    command = [sys.executable, "-c", code, str(model), str(cache)]
    describe(model, cache, exact=False)
    heard = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert heard.strip() == "False"


def test_another_version_of_transformers_is_asked_anew(model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    cache = model.parent / "cache"
    describe(model, cache, exact=False)
    asked = []
    monkeypatch.setattr(described, "read_function", lambda path: (asked.append(path), read_function(path))[1])
    describe(model, cache, exact=False)
    assert not asked
    monkeypatch.setattr(described, "version", lambda name: "999")
    describe(model, cache, exact=False)
    assert asked == [model]


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"by_digest": {"x": 1}}'])
def test_a_damaged_memory_is_made_anew(model: Path, damage: str) -> None:
    cache = model.parent / "cache"
    describe(model, cache, exact=False)
    whole = (cache / NAME).read_text()
    (cache / NAME).write_text(damage)
    assert describe(model, cache, exact=False) == as_read(model)
    assert (cache / NAME).read_text() == whole


def test_without_a_cache_nothing_is_written_and_a_fault_is_never_remembered(model: Path) -> None:
    nowhere = model.parent / "nowhere"
    assert describe(model, nowhere, exact=False) == as_read(model)
    assert not nowhere.exists()
    (model / "config.json").write_text(json.dumps(CONFIG | {"hidden_size": 33}))
    for _ in range(2):
        with pytest.raises(GeoError, match="no multiple"):
            describe(model, model.parent / "cache", exact=False)
