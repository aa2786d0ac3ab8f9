"""Every command on pictures in tar archives and in Parquet files gives what it gives on the same pictures, loose."""

from __future__ import annotations

import re
import shutil
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from shards import pack, write_parquet
from small import Ran, Small, command, content

from geo_embed.data import shards
from geo_embed.extraction.extract import Extraction, extract
from geo_embed.fitting.fit import fit_heads

pytestmark = pytest.mark.cut(train=16, test=4)


@dataclass(frozen=True)
class Pair:
    """The same country twice: loose pictures, and pictures in shards; each with a cache of its own."""

    loose: Small
    packed: Small
    capsys: pytest.CaptureFixture[str]

    def run(self, *arguments: object, code: int = 0) -> tuple[Ran, Ran]:
        """A command on both; `{root}` in an argument is where each lies."""
        ran = []
        for small in (self.loose, self.packed):
            words = [str(argument).replace("{root}", str(small.root)) for argument in arguments]
            done = command(self.capsys, *small.options(), *words)
            assert done.code == code, done.err
            ran.append(done)
        return ran[0], ran[1]

    def fitted(self) -> None:
        for small in (self.loose, self.packed):
            extract(small.config(), "train")
            fit_heads(small.config(), name="first")


@pytest.fixture(params=["tar", "parquet"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def pair(small: Small, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> Pair:
    packed = small.copy(tmp_path / "packed")
    for split in ("train", "test"):
        pack(packed.images(split), kind)
    return Pair(small, packed, capsys)


def read_again(small: Small, other: Small) -> list[Extraction]:
    """Pictures of one, where the cache of another is."""
    config = small.config(paths__cache_dir=str(other.cache))
    return [extract(config, split) for split in ("train", "test")]


def without_paths(path: Path, small: Small) -> str:
    text = path.read_text().replace(str(small.root), "")
    # When it was made, and how long that took.
    return re.sub(r"\d{4}-\d\d-\d\d[ T]\d\d:\d\d(:\d\d)?|\b\d+\.\d+ s\b", "", text)


def test_stores_are_the_same_bytes_and_each_is_reused_for_the_other(pair: Pair) -> None:
    for split in ("train", "test"):
        for small in (pair.loose, pair.packed):
            assert extract(small.config(), split).computed == 4 * len(small.table(split))
        assert content(pair.packed.store(split)) == content(pair.loose.store(split))
    for small, other in ((pair.loose, pair.packed), (pair.packed, pair.loose)):
        before = content(other.store())
        for done in read_again(small, other):
            assert (done.computed, done.skipped) == (0, [])
        assert content(other.store()) == before


def test_parts_make_the_store_of_one_run(pair: Pair) -> None:
    extract(pair.loose.config(), "train")
    for k in (3, 1, 2):
        extract(pair.packed.config(), "train", part=(k, 3))
    assert content(pair.packed.store()) == content(pair.loose.store())


def test_embeddings_of_shuffled_rows_are_copied(pair: Pair) -> None:
    extract(pair.packed.config(), "train")
    pair.packed.write(pair.packed.table().sample(frac=1, random_state=0))
    done = extract(pair.packed.config(), "train")
    assert (done.computed, done.reused) == (0, 64)


@pytest.fixture
def spoilt(small: Small, tmp_path: Path, kind: str, capsys: pytest.CaptureFixture[str]) -> Pair:
    """One picture is absent, one is none, one is cut short; two samples far apart share one, and train and test another."""
    small.picture(1).unlink()
    small.picture(2).write_bytes(b"<html>not found</html>")
    small.picture(3).write_bytes(small.picture(3).read_bytes()[:-300])
    small.picture(5, "east").write_bytes(small.picture(9, "west").read_bytes())
    small.picture(0, "south", "test").write_bytes(small.picture(4, "south").read_bytes())
    packed = small.copy(tmp_path / "packed")
    for split in ("train", "test"):
        pack(packed.images(split), kind)
    return Pair(small, packed, capsys)


def complaints(ran: Ran) -> list[str]:
    """What is said of each picture, without where it lies."""
    return re.findall(r"(sample .*?, view .*?: .*?)(?:: img_\S+)? \(", ran.err)


def test_bad_pictures_are_refused_by_the_same_lines_and_skipped_to_the_same_store(spoilt: Pair) -> None:
    loose, packed = spoilt.run("extract", "--split", "train", code=1)
    assert len(complaints(loose)) == 3
    assert complaints(packed) == complaints(loose)
    assert re.search(r"packed/data/train_images/part-\d\.\w+/img_\d+_north\.jpg\)", packed.err)
    how = ("--on-bad-image", "skip", "--on-damaged-image", "accept")
    spoilt.run("extract", "--split", "train", *how)
    assert content(spoilt.packed.store()) == content(spoilt.loose.store())


@pytest.mark.parametrize("how", [(), ("--decode",)])
def test_data_check_finds_the_same_problems_duplicates_and_leaks(spoilt: Pair, how: tuple[str, ...]) -> None:
    loose, packed = spoilt.run("--json", "data", "check", *how, code=3)
    kinds = [problem["kind"] for split in loose.json["splits"] for problem in split["problems"]]
    assert {"missing-image", "duplicate-image"} <= set(kinds)
    warnings = [warning["kind"] for split in loose.json["splits"] for warning in split["warnings"]]
    assert "train-test-overlap" in warnings

    def output(ran: Ran, small: Small) -> Any:
        return ran.out.replace(str(small.root), "")

    assert output(packed, spoilt.packed) == output(loose, spoilt.loose)


def test_data_explore_draws_the_same_page(spoilt: Pair) -> None:
    spoilt.run("data", "explore", "--pictures", "--out", "{root}/page.html")
    pages = [without_paths(small.root / "page.html", small) for small in (spoilt.packed, spoilt.loose)]
    assert pages[1].count("data:image/") > 10
    assert pages[0] == pages[1]


def test_data_explore_without_any_picture_still_says_so(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in [*small.images().iterdir(), *small.images("test").iterdir()]:
        path.unlink()
    ran = command(capsys, *small.options(), "data", "explore", "--out", small.root / "page.html")
    assert ran.code == 0, ran.err
    assert "There is no picture in" in (small.root / "page.html").read_text()


def test_reports_show_the_same_pictures(pair: Pair) -> None:
    pair.fitted()
    pair.run("report", "first", "--pictures", "--out", "{root}/report.html")
    shown = [
        re.findall(r"data:image/[^\"]+", (small.root / "report.html").read_text())
        for small in (pair.packed, pair.loose)
    ]
    assert len(shown[1]) > 10
    assert shown[0] == shown[1]
    sample = pair.loose.table()["sample_id"][0]
    pair.run("plot", "sample", "first", "--split", "train", "--sample", sample, "--out", "{root}/sample.png")
    assert (pair.packed.root / "sample.png").read_bytes() == (pair.loose.root / "sample.png").read_bytes()


def test_predictions_and_submissions_embed_what_is_missing(pair: Pair) -> None:
    pair.fitted()
    _, packed = pair.run("submit", "first", "--out", "{root}/submission.csv")
    assert "16 pictures computed" in packed.err
    assert (pair.packed.root / "submission.csv").read_bytes() == (
        pair.loose.root / "submission.csv"
    ).read_bytes()
    assert content(pair.packed.store("test")) == content(pair.loose.store("test"))


def test_fine_tuning_learns_the_same_weights(pair: Pair) -> None:
    pair.fitted()
    how = ("--set", "finetune.epochs=1", "--set", "finetune.batch_size=4")
    pair.run(*how, "finetune", "--init", "first", "--name", "tuned")
    weights = "runs/tuned/backbone/model.safetensors"
    assert (pair.packed.root / weights).read_bytes() == (pair.loose.root / weights).read_bytes()


@pytest.mark.parametrize("codec", ["snappy", "none"])
def test_fine_tuning_says_where_pictures_are_dear_to_read_at_random(
    small: Small, codec: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    extract(small.config(), "train")
    fit_heads(small.config(), name="first")
    pictures = {path.name: path.read_bytes() for path in small.images().iterdir()}
    write_parquet(small.data / "train_images.parquet", pictures, compression=codec)
    shutil.rmtree(small.images())
    monkeypatch.setattr(shards, "_KEPT_BYTES", 20_000)
    how = ("--set", "finetune.epochs=1", "--set", "finetune.batch_size=4")
    tuned = command(capsys, *small.options(), *how, "finetune", "--init", "first", "--name", "tuned")
    assert tuned.code == 0, tuned.err
    assert ("a whole group of rows is unpacked" in tuned.err) == (codec == "snappy")


def test_fine_tuning_refuses_before_it_begins_where_pictures_are_gone(pair: Pair) -> None:
    pair.fitted()
    next(pair.packed.images().iterdir()).unlink()
    refused = command(pair.capsys, *pair.packed.options(), "finetune", "--init", "first", "--name", "tuned")
    assert refused.code == 1
    assert "pictures that the run was fitted on are gone" in refused.err


def test_a_cache_is_held_against_its_pictures(pair: Pair) -> None:
    extract(pair.packed.config(), "train")
    verified = command(pair.capsys, *pair.packed.options(), "cache", "verify", "--deep", "--split", "train")
    assert verified.code == 0, verified.err
    table = pair.packed.table()
    table.loc[0, "image_north"], table.loc[1, "image_north"] = (
        table["image_north"][1],
        table["image_north"][0],
    )
    pair.packed.write(table)
    assert extract(pair.packed.config(), "train").computed == 0


def test_a_shard_that_is_cut_short_stops_every_command_with_one_line(pair: Pair) -> None:
    pair.fitted()
    shard = sorted(pair.packed.images().iterdir())[0]
    shard.write_bytes(shard.read_bytes()[:-20_000])
    options = pair.packed.options()
    for arguments in (
        ("extract", "--split", "train", "--on-bad-image", "skip"),
        ("extract", "--split", "train"),
        ("finetune", "--init", "first", "--name", "tuned"),
    ):
        refused = command(pair.capsys, *options, *arguments)
        assert refused.code == 1
        assert "Traceback" not in refused.err
        assert str(shard) in refused.err
        assert refused.err.count("error: ") == 1
    checked = command(pair.capsys, *options, "data", "check", "--split", "train")
    assert checked.code == 3
    assert f"({shard})" in checked.out
    for arguments in (
        ("report", "first", "--pictures"),
        ("data", "explore", "--pictures", "--split", "train"),
    ):
        assert command(pair.capsys, *options, *arguments).code == 0
