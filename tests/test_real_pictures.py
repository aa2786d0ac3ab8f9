"""Six real places with three views each go all the way through the command line. Nothing is written beside them."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Geo

PICTURES = Path(__file__).parent.parent.parent / "shared" / "data" / "streetview-us"

pytestmark = pytest.mark.skipif(
    not PICTURES.is_dir(), reason=f"the real street-view pictures are not on this machine: no {PICTURES}"
)


def untouched() -> list[tuple[str, int, int]]:
    files = ((path, path.stat()) for path in [PICTURES, *PICTURES.rglob("*")])
    return sorted((str(path), stat.st_mtime_ns, stat.st_size) for path, stat in files)


def test_real_pictures_go_from_check_to_prediction_with_the_three_views_that_exist(
    geo: Geo, tmp_path: Path
) -> None:
    before = untouched()
    write_backbone(tmp_path / "backbone")
    options = [
        "--set",
        f"paths.data_root={PICTURES}",
        "--set",
        f"model.backbone_name={tmp_path / 'backbone'}",
    ]
    options += ["--set", 'model.view_names=["north", "east", "south"]', "--json"]

    checked = geo(*options, "data", "check", "--split", "train", "--decode")
    assert checked.code == 0, checked.out
    assert (checked.json["samples"], checked.json["problems"]) == (6, [])

    extracted = geo(*options, "extract", "--split", "train")
    assert extracted.code == 0, extracted.err
    assert {key: extracted.json[key] for key in ("samples", "views", "dim", "computed", "skipped")} == {
        "samples": 6,
        "views": 3,
        "dim": 768,
        "computed": 18,
        "skipped": [],
    }

    fitted = geo(*options, "fit-heads", "--name", "real")
    assert fitted.code == 0, fitted.err
    # Every state has one sample, so that nothing can be held out, and no score is claimed.
    assert "too few samples to hold any out" in fitted.err
    assert (fitted.json["val"]["samples"], fitted.json["val"]["score"]) == (0, None)

    views = [PICTURES / "train_images" / f"img_000003_{view}.jpg" for view in ("north", "east", "south")]
    answer = geo(*options, "predict", "real", "--images", *views)
    assert answer.code == 0, answer.err
    states = {state["state"]: state["probability"] for state in answer.json["states"]}
    assert states.keys() == {"California", "Florida", "Michigan", "South Carolina", "South Dakota", "Utah"}
    assert sum(states.values()) == pytest.approx(1, abs=1e-5)
    assert 18 <= answer.json["latitude"] <= 72
    assert -180 <= answer.json["longitude"] <= -65

    assert untouched() == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["backbone", "cache", "runs"]


def test_asked_for_four_views_the_missing_west_is_named(geo: Geo) -> None:
    ran = geo("--set", f"paths.data_root={PICTURES}", "--json", "data", "check", "--split", "train")
    assert ran.code == 3
    assert len(ran.json["problems"]) == 6
    assert all("column image_west" in problem["where"] for problem in ran.json["problems"])
