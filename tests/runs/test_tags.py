"""Tags and notes lie in a file of their own, whoever writes at the same time."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest
from small import files

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.ensemble import ensemble
from geo_embed.runs import tags as room
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.tags import Tagged, note_run, read_tags, tag_run


def without_tags(run: Run) -> dict[str, str]:
    return {name: digest for name, digest in files(run.path).items() if name != "tags.json"}


def test_tags_come_and_go_and_nothing_that_training_wrote_changes(run: Run) -> None:
    runs, before = run.path.parent, files(run.path)
    assert read_tags(run) == Tagged()
    assert tag_run(runs, "first", ["good", "é", "good"]).tags == ("good", "é")
    assert note_run(runs, "first", "two\nlines").note == "two\nlines"
    assert tag_run(runs, "first", ["old", "good"]) == Tagged(("good", "é", "old"), "two\nlines")
    assert tag_run(runs, "first", ["good", "absent"], remove=True).tags == ("é", "old")
    assert note_run(runs, "first", "").note == ""
    assert read_tags(load_run(runs, "first")) == Tagged(("é", "old"))
    assert without_tags(run) == before
    assert [path.name for path in runs.iterdir()] == ["first"], "no lock is left"


@pytest.mark.parametrize("tag", ["", "two words", "a,b", "x" * 65, "a\nb", "\x1b[31m"])
def test_a_tag_is_one_word(run: Run, tag: str) -> None:
    before = files(run.path)
    with pytest.raises(GeoError) as caught:
        tag_run(run.path.parent, "first", ["good", tag])
    assert "is no tag" in str(caught.value)
    assert "one word" in str(caught.value.hint)
    assert "\n" not in str(caught.value)
    assert files(run.path) == before
    with pytest.raises(GeoError, match="no tag was given"):
        tag_run(run.path.parent, "first", [])


def test_a_damaged_file_is_said_and_not_overwritten(run: Run) -> None:
    run.tags_path.write_text("{")
    with pytest.raises(GeoError, match="tags and note can't be read") as caught:
        tag_run(run.path.parent, "first", ["good"])
    assert "delete this file" in caught.value.hint
    assert run.tags_path.read_text() == "{"


def test_of_many_writers_at_once_nobodys_tag_is_lost(run: Run) -> None:
    words = [f"t{k}" for k in range(12)]
    threads = [threading.Thread(target=tag_run, args=(run.path.parent, "first", [word])) for word in words]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(read_tags(run).tags) == sorted(words)


def test_a_run_that_takes_its_place_meanwhile_gets_no_tag_of_the_old_one(
    config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = room.read_tags

    def replaced_meanwhile(read: Run) -> Tagged:
        fit_heads(
            config.model_copy(update={"training": config.training.model_copy(update={"epochs": 1})}),
            name="first",
            overwrite=True,
        )
        return whole(read)

    monkeypatch.setattr(room, "read_tags", replaced_meanwhile)
    with pytest.raises(GeoError, match="replaced"):
        tag_run(run.path.parent, "first", ["good"])
    assert not run.tags_path.exists()


def test_members_of_an_ensemble_take_no_tags_along(config: Config, run: Run, tmp_path: Path) -> None:
    training = config.training.model_copy(update={"epochs": 1, "seed": 1})
    fit_heads(config.model_copy(update={"training": training}), name="second")
    tag_run(config.paths.runs_dir, "first", ["good"])
    ensemble(config, ["first", "second"], method="average", name="both")
    assert not list((config.paths.runs_dir / "both").rglob("tags.json"))
