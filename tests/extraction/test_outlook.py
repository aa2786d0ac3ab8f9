"""A long extraction says, after its first batches, how long it will take and on what; a short one says nothing."""

from __future__ import annotations

import re
import time
from typing import TYPE_CHECKING

import pytest
import torch

from geo_embed.config import Model
from geo_embed.extraction import outlook
from geo_embed.extraction.extract import extract
from geo_embed.extraction.outlook import Outlook

if TYPE_CHECKING:
    from small import Small

# How long its layers take can't be known here.
UNKNOWN = Model(backbone_name="somebody/unknown")


@pytest.fixture(autouse=True)
def slow_in_bfloat16(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(outlook, "bfloat16_gain", lambda device: 0.5)


def watched(total: int, monkeypatch: pytest.MonkeyPatch, copied: int = 0, model: Model = UNKNOWN) -> None:
    """100 images of 8 in a batch at a second each, `copied` more with each of them at no cost."""
    now = 0.0
    monkeypatch.setattr(time, "monotonic", lambda: now)
    watching = Outlook("extract train", total, 8, torch.device("cpu"), torch.float32, model)
    for computed in range(1, 101):
        now += 1
        watching.look(computed * (1 + copied), computed)


def test_it_is_said_once_by_the_pace_of_the_batches_after_the_first(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched(10_000, monkeypatch)
    # Two batches of eight after the first one.
    assert capsys.readouterr().err == (
        "extract train: about 2 h 46 min for the 9,976 images that are left, 1.0 images/s on cpu in float32\n"
    )
    watched(40_000, monkeypatch, copied=3)
    assert "about 2 h 46 min for the 39,904 images that are left, 4.0 images/s" in capsys.readouterr().err


def test_a_processor_that_is_faster_in_bfloat16_is_told_of_once(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outlook, "bfloat16_gain", lambda device: 3.0)
    watched(10_000, monkeypatch)
    advice = "this processor is faster in bfloat16: --dtype bfloat16, with a store of its own"
    assert capsys.readouterr().err.splitlines()[1:] == [advice]
    watched(50, monkeypatch)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(("seconds", "advice"), [(0.25, "about 42 min: --dtype bfloat16"), (0.7, "")])
def test_what_bfloat16_would_save_is_told_where_it_is_worth_a_store_of_its_own(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], seconds: float, advice: str
) -> None:
    monkeypatch.setattr(outlook, "bfloat16_gain", lambda device: 3.0)
    paces = {torch.float32: 1.0, torch.bfloat16: seconds}
    monkeypatch.setattr(outlook, "seconds_per_picture", lambda model, device, dtype: paces[dtype])
    watched(10_000, monkeypatch)
    (_, *more) = capsys.readouterr().err.splitlines()
    assert len(more) == bool(advice)
    assert advice in "".join(more)


def test_what_is_soon_done_says_nothing(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    watched(50, monkeypatch)
    assert capsys.readouterr().err == ""


def test_an_extraction_says_it(
    small: Small, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(outlook, "_SECONDS", 0.0)
    monkeypatch.setattr(outlook, "_LONG", 0.0)
    extract(small.config(inference__batch_size=2), "train")
    (line,) = capsys.readouterr().err.splitlines()
    assert re.fullmatch(
        r"extract train: about \d+ s for the 26 images that are left, [\d,.]+ images/s on cpu in float32",
        line,
    )
    # What is there already is nothing to wait for.
    extract(small.config(inference__batch_size=2), "train")
    assert capsys.readouterr().err == ""
