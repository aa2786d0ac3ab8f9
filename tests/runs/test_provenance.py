"""A run tells by which command line it was made, and from what."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import command

from geo_embed.cache.store import open_store
from geo_embed.config import Config
from geo_embed.files import file_sha256
from geo_embed.fitting.fit import fit_heads
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from conftest import Country


def test_a_run_tells_what_it_was_fitted_on(country: Country, run: Run) -> None:
    store = open_store(country.store(), writable=False)
    assert run.provenance["data"] == {
        "train_csv": str(country.train_csv),
        "sha256": file_sha256(country.train_csv),
    }
    assert run.provenance["store"] == {
        "path": str(country.store()),
        "fingerprint": store.fingerprint,
        **{key: store.attrs[key] for key in ("backbone", "weights_sha256", "preprocessing")},
        "manifest_sha256": store.attrs["manifest_sha256"],
        **dict(zip(("samples", "views", "dim"), store.shape, strict=True)),
        # Of a further feature alone, and of an import.
        "feature": None,
        "content_sample": [],
        "source_made_by": None,
    }
    assert run.store_fingerprints == [store.fingerprint]


def test_a_run_keeps_the_command_line_that_made_it(
    country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        *country.options(tmp_path),
        *("--set", "training.epochs=1", "--set", "tracking.note=first try", "--set", "training.seed=3"),
        *("fit-heads", "--name", "made"),
    ]
    done = command(capsys, *words)
    assert done.code == 0, done.err
    provenance = load_run(tmp_path / "runs", "made").provenance
    assert provenance["command"] == ["geo", *words]
    assert (provenance["note"], provenance["seed"]) == ("first try", 3)


def test_a_run_made_in_a_notebook_has_no_command_line_and_not_the_notebooks(
    country: Country, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", ["ipykernel_launcher.py", "-f", "kernel.json"])
    config: Config = country.config(tmp_path, training__epochs=1)
    fit_heads(config, name="made")
    assert load_run(config.paths.runs_dir, "made").provenance["command"] == []
