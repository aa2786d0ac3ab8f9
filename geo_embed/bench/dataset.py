"""A dataset on disk made of arrays, in the form that `geo cache import` and `geo fit-heads` are given one."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import Truth
from geo_embed.bench.planted import Planted
from geo_embed.cache.exchange import cache_import
from geo_embed.config import Paths
from geo_embed.settings import resolve

BACKBONE = "planted"
_VIEWS = ("north", "east", "south", "west")


def write_dataset(
    root: Path,
    view_names: Sequence[str],
    names: Mapping[int, str],
    splits: Mapping[str, tuple[NDArray[Any], NDArray[Any], Truth]],
) -> tuple[Paths, dict[str, Path]]:
    """Lay samples out below `root` as a dataset without pictures; its cache and runs are to lie there, too.

    Args:
        root: a directory, empty or not there yet.
        view_names: V of them.
        names: of the states, by `state_idx`.
        splits: ids (N,), embeddings (N, V, D) and truth (N,) of `train` and `test`; no file shows the truth of `test`.

    Returns:
        Paths of the dataset, and of each split the file of its embeddings.
    """
    paths = Paths(data_root=root / "data", cache_dir=root / "cache", runs_dir=root / "runs")
    paths.data_root.mkdir(parents=True)
    mapping = {"state_idx": list(names), "state": list(names.values())}
    pd.DataFrame(mapping).to_csv(paths.mapping(), index=False)
    files = {}
    for split, (sample_id, embeddings, truth) in splits.items():
        table = pd.DataFrame({"sample_id": sample_id})
        for view in view_names:
            table[f"image_{view}"] = [f"{i}_{view}.jpg" for i in range(len(sample_id))]
        if split == "train":
            table["state"] = [names[int(index)] for index in truth.state_idx]
            table["state_idx"] = truth.state_idx
            table["latitude"], table["longitude"] = truth.latitude, truth.longitude
        table.to_csv(paths.csv(split), index=False)
        files[split] = root / f"{split}.npz"
        np.savez(
            files[split],
            embeddings=embeddings,
            sample_id=np.asarray(sample_id).astype(str),
            view_names=np.array(view_names),
        )
    return paths, files


def write_planted(data: Planted, root: Path) -> dict[str, Any]:
    """Lay planted data out as a dataset below `root`, import its embeddings, and return the settings that point there."""
    names = {int(k): f"State {k}" for k in np.unique(data.state_idx)}
    truth = Truth(data.state_idx, data.latitude, data.longitude)
    splits = {
        split: (data.sample_id[rows], data.embeddings[rows], truth.take(rows))
        for split, rows in (("train", data.train), ("test", data.test))
    }
    paths, files = write_dataset(root, _VIEWS, names, splits)
    overrides = {
        "paths.data_root": paths.data_root,
        "paths.cache_dir": paths.cache_dir,
        "paths.runs_dir": paths.runs_dir,
        "model.backbone_name": BACKBONE,
        "model.view_names": _VIEWS,
    }
    for split, file in files.items():
        cache_import(resolve(overrides=overrides)[0], file, split, BACKBONE)
    return overrides
