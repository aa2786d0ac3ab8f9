"""No result is written over what it is made of, whatever command is told to."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from small import Country, command, files

from geo_embed.config import Paths
from geo_embed.data.outputs import PAGES, check_output
from geo_embed.errors import GeoError

COMMANDS = {
    "submit": ("submit", "first", "--out"),
    "evaluate": ("evaluate", "first", "--by", "worst", "--out"),
    "report": ("report", "first", "--out"),
    "plot": ("plot", "states", "first", "--out"),
    "explore": ("data", "explore", "--split", "train", "--out"),
    "export": ("cache", "export", "--split", "train", "--out"),
    "compare": ("submission", "compare", "a.csv", "b.csv", "--out"),
    "compare --html": ("submission", "compare", "a.csv", "b.csv", "--html"),
}


@pytest.mark.parametrize(
    ("verb", "out"),
    [
        ("submit", "data/sample_submission.csv"),
        ("submit", "linked/sample_submission.csv"),
        ("evaluate", "data/train_ground_truth.csv"),
        ("evaluate", "runs/first/val_predictions.parquet"),
        ("report", "data/state_mapping.csv"),
        ("report", "runs/first/metrics.json"),
        ("plot", "data/train_images/mine.png"),
        ("explore", "geo.toml"),
        ("export", "other/first/haversine_matrix.npy"),
        ("export", "runs/first/haversine_matrix.npy"),
        ("compare", "data/./state_mapping.csv"),
        ("compare --html", "runs/first/labels.json"),
    ],
)
def test_a_commands_result_never_replaces_what_commands_read(
    verb: str, out: str, own: Country, fitted: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(fitted, tmp_path / "runs" / "first", dirs_exist_ok=True)
    Path("data").symlink_to(own.data)
    Path("linked").symlink_to(own.data)
    Path("other").symlink_to("runs")
    Path("geo.toml").touch()
    (own.images() / "mine.png").touch()
    places = (own.data, tmp_path / "runs", own.cache)
    before = [files(place) for place in places]
    ran = command(capsys, *own.options(tmp_path), "--set", "paths.data_root=data", *COMMANDS[verb], out)
    assert ran.code == 1
    assert f"({out.replace('./', '')})" in ran.err
    assert "hint: " in ran.err
    assert [files(place) for place in places] == before
    assert Path("geo.toml").read_bytes() == b""


def test_results_may_lie_anywhere_else_and_be_written_again() -> None:
    run = Path("runs/first")
    run.mkdir(parents=True)
    for name in ("report.html", "worst.csv", "worst.geojson", "map.svg"):
        (run / name).touch()
        check_output(Paths(), run / name)
    check_output(Paths(), run / "new.parquet")
    check_output(Paths(), Path("worst.csv"))
    check_output(Paths(), Path("PAGE.HTM"), PAGES)


@pytest.mark.parametrize("name", ["page", "page.txt", "page.html.gz"])
def test_a_page_is_called_a_page(name: str) -> None:
    with pytest.raises(GeoError, match=r"this is written as \.html"):
        check_output(Paths(), Path(name), PAGES)


def test_no_result_is_written_over_a_shard_of_pictures() -> None:
    shard = Path("pictures.parquet")
    shard.touch()
    with pytest.raises(GeoError, match="a file of the dataset"):
        check_output(Paths(train_images=shard), shard)
