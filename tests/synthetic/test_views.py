"""A view is a name and a heading, and nothing else knows which there are."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from small import files

from geo_embed.synthetic.country import write_country
from geo_embed.synthetic.views import VIEWS


def test_a_new_view_is_painted_and_named_and_changes_no_other(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_country(tmp_path / "four", locations=3, seed=0, image_size=48, workers=1)
    monkeypatch.setitem(VIEWS, "northeast", 45)
    write_country(tmp_path / "five", locations=3, seed=0, image_size=48, workers=1)
    four, five = (
        {name: digest for name, digest in files(tmp_path / folder).items() if name.endswith(".jpg")}
        for folder in ("four", "five")
    )
    assert five.items() > four.items()
    assert len(five) == len(set(five.values())) == 15
    train = pd.read_csv(tmp_path / "five" / "train_ground_truth.csv")
    assert train["image_northeast"].tolist() == ["img_000000_northeast.jpg", "img_000001_northeast.jpg"]
