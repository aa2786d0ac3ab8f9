"""Checksums of whole files, and tensors in a file that has the mode of any other."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from geo_embed.backbones.backbone import Backbone, load_backbone, save_backbone
from geo_embed.config import Config
from geo_embed.devices import pick_device
from geo_embed.files import file_sha256, save_tensors
from geo_embed.prediction.predict import load_heads, save_heads
from geo_embed.runs.run import Run


@contextmanager
def umask(mask: int) -> Iterator[None]:
    before = os.umask(mask)
    try:
        yield
    finally:
        os.umask(before)


def modes(directory: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mode & 0o777 for path in directory.iterdir()}


def test_the_checksum_is_of_the_whole_file(tmp_path: Path) -> None:
    content = os.urandom(3_000_000)
    (tmp_path / "file").write_bytes(content)
    assert file_sha256(tmp_path / "file") == hashlib.sha256(content).hexdigest()


@pytest.mark.parametrize(("mask", "mode"), [(0o022, 0o644), (0o002, 0o664), (0o077, 0o600)])
def test_tensors_are_written_with_the_umasks_mode_and_nothing_beside_them(
    tmp_path: Path, mask: int, mode: int
) -> None:
    with umask(mask):
        for _ in range(2):
            save_tensors({"a": torch.arange(3)}, tmp_path / "a.safetensors")
    assert modes(tmp_path) == {"a.safetensors": mode}
    assert load_file(tmp_path / "a.safetensors")["a"].tolist() == [0, 1, 2]


def test_what_the_disk_says_is_an_oserror(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="No such file"):
        save_tensors({"a": torch.arange(3)}, tmp_path / "nowhere" / "a.safetensors")


def test_a_labs_others_may_read_the_heads_and_the_backbone_of_a_run(
    run: Run, config: Config, tmp_path: Path
) -> None:
    backbone: Backbone = load_backbone(config.model, pick_device("cpu"), torch.float32)
    with umask(0o022):
        save_backbone(backbone, tmp_path / "backbone")
        (tmp_path / "run").mkdir()
        save_heads(load_heads(run), tmp_path / "run")
    for directory in (tmp_path / "backbone", tmp_path / "run"):
        assert set(modes(directory).values()) == {0o644}
