"""A run is found by name, complete or not there at all, and says so when it is damaged."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.files import write_json
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run, check_new_name, load_run, new_run_name, on_this_machine, writing_run
from geo_embed.settings import get_config

if TYPE_CHECKING:
    from conftest import Country


def copy_run(run: Run, name: str, age_seconds: float) -> Path:
    copy = run.path.parent / name
    shutil.copytree(run.path, copy)
    when = (run.path / "provenance.json").stat().st_mtime - age_seconds
    os.utime(copy / "provenance.json", (when, when))
    return copy


def die_half_way(runs: Path, name: str) -> None:
    with writing_run(runs, name) as writer:
        (writer.directory / "heads.safetensors").write_text("half")
        raise RuntimeError("half way")


def test_a_run_comes_back_as_it_was_written(country: Country, config: Config, run: Run) -> None:
    assert run.name == "first"
    assert run.dim == 768
    assert run.config.model == config.model
    assert run.config.training == config.training
    classes = json.loads((run.path / "labels.json").read_text())["classes"]
    assert [entry["class"] for entry in classes] == list(range(len(run.labels)))
    assert run.labels.state_idx.tolist() == [entry["state_idx"] for entry in classes]
    assert (np.diff(run.labels.state_idx) > 0).all()
    assert run.prior.probabilities.sum() == pytest.approx(1)
    store = run.provenance["store"]
    assert Path(store["path"]) == country.store()
    assert country.store().parent.name.endswith(store["fingerprint"])


def test_the_newest_run_is_taken_where_none_is_named(config: Config, run: Run) -> None:
    for name in ("a-older", "z-older"):
        copy_run(run, name, 3600)
    assert load_run(config.paths.runs_dir, None).name == "first"
    copy_run(run, "m-newer", -3600)
    assert load_run(config.paths.runs_dir, None).name == "m-newer"


def test_a_run_being_written_or_replaced_is_not_a_run_yet(config: Config, run: Run) -> None:
    copy_run(run, ".second.writing", -3600)
    copy_run(run, ".first.replaced", -3600)
    assert load_run(config.paths.runs_dir, None).name == "first"


def test_a_run_whose_writer_was_killed_between_two_renames_is_there_again(config: Config, run: Run) -> None:
    copy_run(run, ".second.replaced", 3600)
    assert load_run(config.paths.runs_dir, "second").name == "second"
    copy_run(run, ".third.replaced", -3600)
    assert load_run(config.paths.runs_dir, None).name == "third"
    (config.paths.runs_dir / "third").rename(config.paths.runs_dir / ".third.replaced")
    assert load_run(Path("elsewhere"), str(config.paths.runs_dir / "third")).name == "third"


def test_a_run_can_be_named_by_its_directory(tmp_path: Path, run: Run) -> None:
    assert load_run(tmp_path / "no-such-folder", str(run.path)).path == run.path


def test_a_run_finds_its_own_data_and_cache_where_none_were_named(
    tmp_path: Path, config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    path, verdict = submit(get_config(), run)
    assert path == Path("submissions") / "first.csv"
    assert verdict.valid
    assert on_this_machine(run, get_config().paths, "cpu").config.paths.cache_dir == config.paths.cache_dir


@pytest.mark.parametrize("named", ["data_root", "test_csv"])
def test_data_that_were_named_are_never_replaced_by_those_that_a_run_had(
    tmp_path: Path, run: Run, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(GeoError, match="elsewhere"):
        submit(get_config(paths={named: "elsewhere"}), run)


def test_data_that_lie_where_they_do_by_default_come_before_those_that_a_run_had(
    tmp_path: Path, config: Config, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(config.paths.data_root, tmp_path / "data" / "raw", symlinks=True)
    monkeypatch.chdir(tmp_path)
    assert on_this_machine(run, get_config().paths, "cpu").config.paths.csv("test") == Path(
        "data/raw/sample_submission.csv"
    )


def test_an_unknown_run_lists_the_newest_ones(config: Config, run: Run) -> None:
    for n in range(7):
        copy_run(run, f"old-{n}", 60 * (n + 1))
    with pytest.raises(GeoError, match="there is no run 'frist'") as caught:
        load_run(config.paths.runs_dir, "frist")
    assert caught.value.hint == "did you mean first? the newest are: first, old-0, old-1, old-2, old-3"
    with pytest.raises(GeoError) as caught:
        load_run(config.paths.runs_dir, "unlike")
    assert caught.value.hint == "the newest are: first, old-0, old-1, old-2, old-3"
    assert caught.value.where == str(config.paths.runs_dir)


@pytest.mark.parametrize("name", [None, "first"])
def test_where_there_is_no_run_at_all_the_command_that_makes_one_is_named(
    tmp_path: Path, name: str | None
) -> None:
    with pytest.raises(GeoError, match="there is no run") as caught:
        load_run(tmp_path / "runs", name)
    assert caught.value.hint == "train one with: geo fit-heads"


@pytest.mark.parametrize(
    ("file", "text"),
    [
        ("labels.json", ""),
        ("labels.json", "{"),
        ("labels.json", "[]"),
        ("labels.json", "{}"),
        ("labels.json", '{"classes": null, "prior": {}}'),
        ("labels.json", '{"classes": [{"state": "x"}], "prior": {}}'),
        ("labels.json", '{"classes": [], "prior": {"probabilities": [1.0], "latitude": 1, "longitude": 1}}'),
        ("labels.json", "\0\0\0"),
        ("config.toml", "[paths"),
        ("config.toml", "[paths]\nno_such_key = 1\n"),
        ("config.toml", "[training]\nepochs = 'many'\n"),
        ("provenance.json", "{"),
        ("provenance.json", "[]"),
        ("provenance.json", "{}"),
        ("provenance.json", '{"store": {"fingerprint": "x"}}'),
        ("provenance.json", '{"store": {"dim": 768}}'),
    ],
)
def test_a_damaged_file_is_one_clear_error_that_names_it(
    config: Config, run: Run, file: str, text: str
) -> None:
    (run.path / file).write_text(text)
    with pytest.raises(GeoError) as caught:
        load_run(config.paths.runs_dir, "first")
    assert caught.value.where == str(run.path / file)
    assert caught.value.hint
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("file", ["labels.json", "config.toml"])
def test_a_file_that_is_gone_or_a_directory_is_named(config: Config, run: Run, file: str) -> None:
    (run.path / file).unlink()
    with pytest.raises(GeoError) as caught:
        load_run(config.paths.runs_dir, "first")
    assert caught.value.where == str(run.path / file)
    (run.path / file).mkdir()
    with pytest.raises(GeoError) as caught:
        load_run(config.paths.runs_dir, "first")
    assert caught.value.where == str(run.path / file)


def test_an_existing_name_is_refused_before_any_work_and_the_run_stays(config: Config, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    with pytest.raises(GeoError, match="a run of this name exists") as caught:
        fit_heads(config, name="first")
    assert "--overwrite" in caught.value.hint
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_overwrite_replaces_the_whole_run(config: Config, run: Run) -> None:
    (run.path / "test_predictions.parquet").write_text("from the old run")
    before = run.provenance["created"]
    fit_heads(config, name="first", overwrite=True)
    assert load_run(config.paths.runs_dir, "first").provenance["created"] > before
    assert not (run.path / "test_predictions.parquet").exists()
    assert [path.name for path in config.paths.runs_dir.iterdir()] == ["first"]


def test_a_run_that_fails_half_way_leaves_the_old_one_and_nothing_else(config: Config, run: Run) -> None:
    before = {path.name: path.read_bytes() for path in run.path.iterdir()}
    for overwritten in ("first", "second"):
        with pytest.raises(RuntimeError, match="half way"):
            die_half_way(config.paths.runs_dir, overwritten)
    assert [path.name for path in config.paths.runs_dir.iterdir()] == ["first"]
    assert {path.name: path.read_bytes() for path in run.path.iterdir()} == before


def test_nothing_is_to_be_seen_under_the_name_until_the_run_is_whole(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    with writing_run(runs, "new") as writer:
        (writer.directory / "provenance.json").write_text("{}")
        written = writer.directory.stat().st_ino
        assert not (runs / "new").exists()
        with pytest.raises(GeoError, match="there is no run yet"):
            load_run(runs, None)
    # Renamed into place, in one step: it is the very directory.
    assert (runs / "new").stat().st_ino == written
    assert [path.name for path in (runs / "new").iterdir()] == ["provenance.json"]
    assert [path.name for path in runs.iterdir()] == ["new"]


def test_what_a_killed_writer_left_behind_does_not_enter_the_next_run(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    (runs / ".new.0123abcd.writing").mkdir(parents=True)
    (runs / ".new.0123abcd.writing" / "litter").touch()
    with writing_run(runs, "new") as writer:
        (writer.directory / "mine").touch()
    assert [path.name for path in (runs / "new").iterdir()] == ["mine"]


@pytest.mark.parametrize("name", ["", ".hidden", "..", "a/b", "/abs", "-x", "a b", "naïve", "x\n"])
def test_a_name_that_would_leave_the_runs_folder_or_hide_in_it_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(GeoError, match="can't name a run"):
        check_new_name(tmp_path, name, overwrite=True)


def test_names_made_up_for_runs_never_collide(tmp_path: Path) -> None:
    for _ in range(4):
        name = new_run_name(tmp_path, "heads")
        check_new_name(tmp_path, name, overwrite=False)
        assert name.startswith("heads-")
        (tmp_path / name).mkdir()
    assert len(list(tmp_path.iterdir())) == 4


def test_json_is_written_in_one_piece_and_in_plain_letters(tmp_path: Path) -> None:
    write_json(tmp_path / "x.json", {"state": "Hawaiʻi", "n": 0.1})
    assert json.loads((tmp_path / "x.json").read_text(encoding="utf-8")) == {"state": "Hawaiʻi", "n": 0.1}
    assert "Hawaiʻi" in (tmp_path / "x.json").read_text(encoding="utf-8")
    assert [path.name for path in tmp_path.iterdir()] == ["x.json"]
