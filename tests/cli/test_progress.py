"""Every stage that may last tells how far it is, and how good so far; nothing of it with `-q`, and no control codes in a log."""

from __future__ import annotations

import re
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import Small, command

if TYPE_CHECKING:
    from conftest import Country

PROGRESS_OF = {
    ("extract", "--split", "all"): (r"hash weights: \d of \d MB", r"extract train: 256 of 256 images"),
    ("cache", "verify"): (r"verify train: 64 of 64 samples, .*, 0 problems",),
    ("fit-heads", "--name", "a"): (
        r"read train: \d+ of 64 samples",
        r"fit-heads: 1 of 3 epochs, .*, ETA \d+ s, best score 0\.\d{4}$",
    ),
    ("fit-heads", "--name", "b", "--preset", "best", "--budget", "0.05"): (
        r"race: 1 of \d members, .*, ETA \d+ s, best 0\.\d{4}$",
    ),
    ("sweep", "--trials", "2", "--name", "c"): (r"sweep: 1 of 2, rung 1 of 1, .*, best so far 0\.\d{4}",),
    ("ensemble", "a", "b", "--method", "stacking", "--name", "d"): (r"ensemble: \d of \d folds",),
    ("predict", "a", "--split", "test"): (r"predict test: 8 of 8 samples",),
    ("evaluate", "a", "--by", "view"): (r"by view: 4 of 4 views",),
    ("cache", "export", "--split", "train", "--out", "t.npy"): (r"read train: ",),
    ("cache", "import", "t.npy", "--split", "train", "--backbone", "x"): (r"import train: 64 of 64 samples",),
}


def test_every_stage_tells_how_far_it_is(
    country: Country, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    few = Small.cut(country, tmp_path / "few", train=64, test=8)
    settings = ("training.preset=pigeon", "training.epochs=3", "tracking.progress_seconds=1e-9")
    options = [*few.options(), *(word for setting in settings for word in ("--set", setting))]
    for words, patterns in PROGRESS_OF.items():
        ran = command(capsys, *options, *words)
        assert ran.code == 0, ran.err
        for pattern in patterns:
            assert re.search(pattern, ran.err, re.MULTILINE), (words, pattern, ran.err)
        assert "\x1b" not in ran.err + ran.out
        assert "\r" not in ran.err + ran.out
