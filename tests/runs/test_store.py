"""A run answers from the embeddings of the backbone that it was fitted on, also where they were imported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from small import Ran, Small, command

ROWS = {"train": 8, "test": 4}


def made_up(backbone: int, split: str) -> NDArray[np.float32]:
    seed = (backbone, ROWS[split])
    return np.random.default_rng(seed).normal(size=(ROWS[split], 4, 7)).astype(np.float32)


def import_of(
    small: Small, capsys: pytest.CaptureFixture[str], split: str, values: NDArray[Any], *options: str
) -> Ran:
    file = small.root / f"{split}.npy"
    np.save(file, values)
    words = ("cache", "import", file, "--split", split, "--backbone", "mine", *options)
    ran = command(capsys, *small.options(), *words)
    assert ran.code == 0, ran.err
    return ran


@pytest.fixture
def fitted_on_import(small: Small, capsys: pytest.CaptureFixture[str]) -> Small:
    for split in ROWS:
        import_of(small, capsys, split, made_up(0, split))
    ran = command(capsys, *small.options(), "fit-heads", "--backbone", "mine", "--name", "first")
    assert ran.code == 0, ran.err
    return small


def submit(small: Small, capsys: pytest.CaptureFixture[str]) -> Ran:
    return command(capsys, *small.options(), "--json", "submit", "first")


def test_a_run_refuses_an_import_that_another_backbones_took_the_place_of(
    fitted_on_import: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fitted_on_import
    replaced = import_of(small, capsys, "train", made_up(1, "train"), "--overwrite")
    assert "runs that were fitted on it: first" in replaced.err
    replaced = import_of(small, capsys, "test", made_up(1, "test"), "--overwrite")
    assert "first will predict from it" in replaced.err
    for words in (
        ("submit", "first"),
        ("predict", "first", "--split", "test"),
        ("evaluate", "first", "--split", "train"),
        ("evaluate", "first", "--by", "view"),
    ):
        ran = command(capsys, *small.options(), *words)
        assert ran.code == 1, (words, ran.out)
        assert "the import 'mine' was replaced since the run first was fitted on it" in ran.err, words
        assert f"{small.geo} fit-heads --backbone mine --name first --overwrite" in ran.err
    assert not any((small.root / "submissions").glob("*.csv"))

    import_of(small, capsys, "train", made_up(0, "train"), "--overwrite")
    import_of(small, capsys, "test", made_up(0, "test"), "--overwrite")
    assert submit(small, capsys).json["valid"]


def test_samples_that_come_go_and_change_places_make_no_other_backbone(
    fitted_on_import: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fitted_on_import
    table, values = small.table(), made_up(0, "train")
    order = [6, 5, 4, 3, 2, 1]
    small.write(table.iloc[order])
    import_of(small, capsys, "train", values[order], "--overwrite")
    same = import_of(small, capsys, "train", values[order], "--overwrite")
    assert "was replaced" not in same.err
    # The test split anew, too.
    import_of(small, capsys, "test", made_up(2, "test"), "--overwrite")
    assert submit(small, capsys).json["valid"]


def test_a_run_of_an_earlier_version_and_a_test_split_alone_are_believed_by_name(
    fitted_on_import: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    small = fitted_on_import
    provenance = small.config().paths.runs_dir / "first" / "provenance.json"
    recorded = json.loads(provenance.read_text())
    assert len(recorded["store"]["content_sample"]) == 32
    (train,) = small.cache.glob("*/train.zarr")
    train.rename(small.root / "elsewhere")
    assert submit(small, capsys).code == 0
    (small.root / "elsewhere").rename(train)

    import_of(small, capsys, "train", made_up(1, "train"), "--overwrite")
    for key in ("content_sample", "source_made_by"):
        del recorded["store"][key]
    provenance.write_text(json.dumps(recorded))
    assert submit(small, capsys).code == 0


def test_an_export_of_another_backbone_is_refused_by_what_it_says(
    small: Small, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    def named(split: str, fingerprint: str) -> None:
        file = tmp_path / f"{split}.npz"
        np.savez(file, embeddings=made_up(0, split), fingerprint=np.array(fingerprint))
        words = ("cache", "import", file, "--split", split, "--backbone", "mine", "--overwrite")
        ran = command(capsys, *small.options(), *words)
        assert ran.code == 0, ran.err

    named("train", "a" * 16)
    ran = command(capsys, *small.options(), "fit-heads", "--backbone", "mine", "--name", "first")
    assert ran.code == 0, ran.err
    (train,) = small.cache.glob("*/train.zarr")
    train.rename(small.root / "elsewhere")
    named("test", "b" * 16)
    ran = submit(small, capsys)
    assert ran.code == 1
    assert f"its fingerprint is '{'b' * 16}', not '{'a' * 16}'" in ran.err
    named("test", "a" * 16)
    assert submit(small, capsys).code == 0
