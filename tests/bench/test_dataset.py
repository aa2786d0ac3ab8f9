"""Arrays as a dataset on disk: what is written is what is imported, and the test split's truth stays out of it."""

from pathlib import Path

import numpy as np
import pytest

from geo_embed.answers import Truth
from geo_embed.bench.dataset import write_dataset
from geo_embed.cache.exchange import cache_import
from geo_embed.cache.find import find_store
from geo_embed.cache.store import read_store
from geo_embed.config import Config, Model
from geo_embed.data.samples import load_samples, truth_of


def test_what_is_laid_out_is_imported_as_it_is_and_warns_of_nothing(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    values = np.arange(24, dtype=np.float16).reshape(3, 2, 4)
    truth = Truth(np.array([4, 9, 4]), np.array([1.25, 2, 3]), np.array([-7.5, 8, 9]))
    ids = np.array(["b, c", "a", "d"], dtype=object)
    splits = {"train": (ids[:2], values[:2], truth.take(slice(2))), "test": (ids[2:], values[2:], truth)}
    paths, files = write_dataset(tmp_path / "new", ("left", "right"), {4: "Four", 9: "Nine"}, splits)
    config = Config(paths=paths, model=Model(view_names=("left", "right"), backbone_name="made"))
    for split, file in files.items():
        cache_import(config, file, split, "made")
        samples = load_samples(config, split)
        stored = read_store(find_store(config, split))
        assert samples.sample_id.tolist() == splits[split][0].tolist()
        assert np.array_equal(stored.values, splits[split][1])
    assert truth_of(load_samples(config, "train")).longitude.tolist() == [-7.5, 8]
    assert "latitude" not in paths.csv("test").read_text()
    assert capsys.readouterr().err == ""
