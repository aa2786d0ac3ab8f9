"""How before-the-house.tar.xz was made: run with the code of commit f58f5ea, the last before the files moved into wings.

    git worktree add /tmp/f58f5ea f58f5ea
    cd /tmp && PYTHONPATH=/tmp/f58f5ea python …/tests/old/make.py …/tests/old/before-the-house.tar.xz

It holds two datasets with their stores, one imported and one extracted from pictures, and runs of every head, fusion and
preset with the predictions that they made. It is never made again: it stands for what lies on people's disks.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tarfile
import tempfile
from pathlib import Path

import numpy as np
import pandas as pd

VIEWS = ("left", "ahead", "right")
STATES = {3: "Alpha", 7: "Beta", 20: "Gamma", 41: "Delta"}
TRAIN, TEST, DIM = 64, 9, 6
TINY = {
    "model.head_hidden": 6,
    "model.gps_hidden": 4,
    "model.cell_samples": 8,
    "model.dropout": 0.1,
    "training.epochs": 30,
    "training.batch_size": 16,
}
TINY |= {"training.preset": "pigeon", "training.val_split": 0.2, "training.learning_rate": 0.01}
RUNS: dict[str, dict[str, object]] = {
    "separate": {},
    "median": {"model.point": "median", "model.fusion": "weighted", "training.gps_loss": "haversine"},
    "dual": {"model.head": "dual", "model.fusion": "concat", "training.state_loss": "pigeon"},
    "hierarchical": {
        "model.head": "hierarchical",
        "model.fusion": "attention",
        "training.state_loss": "cross_entropy",
    },
    "geocells": {
        **{
            "model.head": "geocells",
            "model.fusion": "evidence",
            "model.standardise": True,
            "model.directional": True,
        },
        **{"training.refine": True, "training.view_swap": 0.5, "training.view_dropout": 0.1},
    },
    "transformer": {"model.head": "geocells", "model.fusion": "transformer", "model.cells": "quad"},
    "probe": {"model.head": "probe", "training.calibration": "vector"},
    "folds": {"training.folds": 3, "training.seeds": 2, "training.calibration": "temperature"},
    "best": {"training.preset": "best", "training.budget_seconds": 0.001},
}


def geo(*words: object, settings: dict[str, object]) -> None:
    options = [
        part
        for key, value in settings.items()
        for part in ("--set", f"{key}={value if isinstance(value, str) else json.dumps(value)}")
    ]
    subprocess.run([sys.executable, "-m", "geo_embed", *options, *map(str, words)], check=True)


def table(rng: np.random.Generator, count: int, first: int) -> tuple[pd.DataFrame, np.ndarray]:
    """Places in four states side by side, and embeddings that tell them."""
    state = rng.integers(4, size=count)
    state[:4] = range(4)
    step = rng.uniform(-2, 2, size=(count, 2))
    signal = np.concatenate([np.eye(4)[state], step / 2], axis=1)
    embeddings = signal[:, None] + rng.normal(scale=0.4, size=(count, len(VIEWS), DIM))
    frame = pd.DataFrame({"sample_id": [f"p{first + i}" for i in range(count)]})
    for view in VIEWS:
        frame[f"image_{view}"] = [f"p{first + i}_{view}.jpg" for i in range(count)]
    frame["state_idx"] = np.array(list(STATES))[state]
    frame["state"] = frame["state_idx"].map(STATES)
    frame["latitude"], frame["longitude"] = 40 + step[:, 0], -100 + 5 * state + step[:, 1]
    return frame, embeddings.astype(np.float32)


def imported(root: Path) -> None:
    rng = np.random.default_rng(0)
    data = root / "data"
    for split in ("train", "test"):
        (data / f"{split}_images").mkdir(parents=True)
    train, x = table(rng, TRAIN, 0)
    test, y = table(rng, TEST, TRAIN)
    train.to_csv(data / "train_ground_truth.csv", index=False)
    test = test.drop(columns=["state", "state_idx", "latitude", "longitude"])
    for rank in range(1, 6):
        test[f"predicted_state_idx_{rank}"] = 0
    test["predicted_latitude"] = test["predicted_longitude"] = 0.0
    test.to_csv(data / "sample_submission.csv", index=False)
    pd.DataFrame({"state_idx": list(STATES), "state": list(STATES.values())}).to_csv(
        data / "state_mapping.csv", index=False
    )
    settings: dict[str, object] = {
        "paths.data_root": "data",
        "model.view_names": list(VIEWS),
        "model.backbone_name": "mine",
    }
    settings |= {"model.device": "cpu", "inference.chunk_rows": 40}
    for split, values in (("train", x), ("test", y)):
        np.save("embeddings.npy", values)
        geo("cache", "import", "embeddings.npy", "--split", split, "--backbone", "mine", settings=settings)
    Path("embeddings.npy").unlink()
    for name, changes in RUNS.items():
        geo("fit-heads", "--name", name, settings=settings | TINY | changes)
        geo("predict", name, "--split", "test", settings=settings)
    geo(
        "ensemble", "separate", "dual", "best", "--method", "stacking", "--name", "stacked", settings=settings
    )
    geo("predict", "stacked", "--split", "test", settings=settings)
    geo("submit", "geocells", settings=settings)


def extracted(root: Path) -> None:
    from geo_embed import synthetic

    synthetic.write_country(root / "country", locations=8, seed=0, image_size=48, workers=1)
    synthetic.write_backbone(root / "backbone")
    (root / "country").rename(root / "pictures")
    geo(
        "extract",
        "--split",
        "train",
        settings={
            "paths.data_root": "pictures",
            "paths.cache_dir": "pictures/cache",
            "model.backbone_name": "backbone",
            "model.device": "cpu",
        },
    )
    shutil.rmtree(root / "backbone")
    shutil.rmtree(root / "pictures" / "test_images")


def main() -> None:
    to = Path(sys.argv[1]).resolve()
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder)
        os.chdir(root)
        imported(root)
        extracted(root)
        with tarfile.open(to, "w:xz", preset=9) as archive:
            archive.add(root, arcname=".", filter=lambda info: None if info.name.endswith(".lock") else info)
    print(f"{to}: {to.stat().st_size:,} bytes")


if __name__ == "__main__":
    main()
