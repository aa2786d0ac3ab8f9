"""What goes to the hub is there whole or not at all, comes back as it went, and nothing tells a token."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import huggingface_hub
import pytest
from hub import READER, TOKEN, Hub, Repository, serving_hub
from huggingface_hub import ModelCard, constants
from small import command, files
from twofold import make_twofold

from geo_embed import GeoPredictor, export
from geo_embed.config import Config
from geo_embed.errors import GeoError, UnreachableError
from geo_embed.hub import HubAddress, check_can_push, parse_address
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.transfer import pull_run, push_run

if TYPE_CHECKING:
    from conftest import Country, Geo


@pytest.fixture(scope="module")
def _hub() -> Iterator[Hub]:
    with serving_hub() as served:
        yield served


@pytest.fixture
def hub(_hub: Hub, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[Hub]:
    """The stand-in, as HF_ENDPOINT and HF_TOKEN would name it to a new process; empty, with a cache of the test's own."""
    monkeypatch.setattr(constants, "ENDPOINT", _hub.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", _hub.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    # The stand-in moves large files by LFS.
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub-cache"))
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    huggingface_hub.close_session()
    _hub.reset()
    yield _hub
    huggingface_hub.close_session()
    _hub.reset()


def test_a_run_comes_back_from_the_hub_as_it_went(run: Run, hub: Hub, tmp_path: Path) -> None:
    """Tensors by LFS, all else as files of git, in one commit; of a new repository that nobody else sees."""
    before = files(run.path)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-1.safetensors").write_text("large")
    pushed = push_run(run, "hf://ada/runs")
    assert (pushed.place, pushed.files) == ("hf://ada/runs/first", len(before))
    repository = hub.repositories["ada/runs"]
    assert repository.private
    assert repository.commits[1:] == ["Run first of geo_embed"]
    assert repository.lfs == {"first/heads.safetensors"}
    assert {name for name in repository.files if name.startswith("first/")} == {
        f"first/{name}" for name in before
    } | {"first/run.json"}
    pulled = pull_run("hf://ada/runs/first", tmp_path / "elsewhere", name="theirs")
    assert files(Path(pulled.place)) == before
    assert load_run(tmp_path / "elsewhere", "theirs").labels.names == run.labels.names


def test_one_of_this_name_is_replaced_only_where_that_is_asked_for_and_others_stay(
    run: Run, hub: Hub
) -> None:
    push_run(run, "hf://ada/runs")
    shutil.copytree(run.path, run.path.parent / "second")
    push_run(load_run(run.path.parent, "second"), "hf://ada/runs")
    repository = hub.repositories["ada/runs"]
    before = dict(repository.files)
    with pytest.raises(GeoError, match="one of this name exists there"):
        push_run(run, "hf://ada/runs")
    assert repository.files == before
    (run.path / "history.parquet").unlink()
    push_run(load_run(run.path.parent, "first"), "hf://ada/runs", overwrite=True)
    assert set(before) - set(repository.files) == {"first/history.parquet"}


def test_what_isnt_what_was_pushed_is_refused_and_leaves_nothing(run: Run, hub: Hub, tmp_path: Path) -> None:
    push_run(run, "hf://ada/runs")
    repository = hub.repositories["ada/runs"]
    whole = dict(repository.files)
    for name, change in (
        ("first/heads.safetensors", lambda data: data[:-1] + b"x"),
        ("first/labels.json", lambda data: None),
        ("first/run.json", lambda data: None),
        ("first/run.json", lambda data: data.replace(b'"labels.json"', b'"../../labels.json"')),
    ):
        data = change(whole[name])
        repository.files = {k: v for k, v in whole.items() if k != name} | (
            {} if data is None else {name: data}
        )
        repository.commits.append("changed")
        with pytest.raises(GeoError):
            pull_run("hf://ada/runs/first", tmp_path / "elsewhere")
        assert not list((tmp_path / "elsewhere").glob("*"))


def test_somebody_elses_commit_meanwhile_is_not_overwritten(run: Run, hub: Hub) -> None:
    hub.repositories["ada/runs"] = repository = Repository()

    def commit() -> None:
        repository.files["first/notes.txt"] = b"theirs"
        repository.commits.append("theirs")

    hub.between.append(commit)
    with pytest.raises(GeoError, match="somebody else changed the repository meanwhile"):
        push_run(run, "hf://ada/runs")
    assert set(repository.files) == {".gitattributes", "first/notes.txt"}


def test_without_a_name_the_runs_of_a_repository_are_listed(run: Run, hub: Hub, tmp_path: Path) -> None:
    push_run(run, "hf://ada/runs")
    with pytest.raises(GeoError, match="which run of this repository") as refused:
        pull_run("hf://ada/runs", tmp_path / "elsewhere")
    assert refused.value.hint == "hf://ada/runs/first"


def test_an_export_is_pushed_with_its_card_and_read_by_its_name(
    run: Run, hub: Hub, country: Country, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*country.options(tmp_path), "--json"]
    hub.repositories["ada/places"] = Repository(files={"README.md": b"mine", "notes.txt": b"theirs"})
    push = [*options, "export", "first", "--out", "e", "--push", "hf://ada/places"]
    assert command(capsys, *push).code == 0
    hub.repositories["ada/places"].files |= {"backbone/old.bin": b"1"}
    ran = command(capsys, *push)
    assert ran.code == 0, ran.err
    assert ran.json["pushed"] == f"{hub.url}/ada/places"
    repository = hub.repositories["ada/places"]
    assert repository.files == {name: Path("e", name).read_bytes() for name in ran.json["files"]} | {
        "notes.txt": b"theirs"
    }
    assert "POST /api/validate-yaml" in hub.requests
    paths = [str(path) for path in sorted(country.images().glob("img_000003_*"))]
    answer = GeoPredictor.from_pretrained("hf://ada/places", device="cpu").predict(paths)
    assert json.dumps(answer) == json.dumps(GeoPredictor("e", device="cpu").predict(paths))
    repository.files["model.onnx"] = b"large"
    repository.commits.append("onnx")
    assert GeoPredictor.from_pretrained("ada/places", force_download=True).states
    assert not any("model.onnx" in request for request in hub.requests)
    assert ModelCard.load("ada/places").data.library_name == "geo_embed"
    GeoPredictor("e").push_to_hub("ada/again")
    again = hub.repositories["ada/again"].files
    assert again == {name: Path("e", name).read_bytes() for name in files(Path("e"))} | {
        ".gitattributes": again[".gitattributes"]
    }


def test_an_export_of_several_backbones_is_read_by_its_name(
    country: Country, hub: Hub, tmp_path: Path
) -> None:
    made = make_twofold(country, tmp_path / "w")
    done = export(made.config(), made.run("both"), tmp_path / "e", push="ada/both")
    pushed_files = hub.repositories["ada/both"].files
    assert (
        {"backbone/1/model.safetensors", "backbone/2/model.safetensors"}
        < done.files.keys()
        <= pushed_files.keys()
    )
    pictures = made.pictures(1)
    answer = GeoPredictor.from_pretrained("ada/both", device="cpu").predict(pictures)
    assert answer == GeoPredictor(tmp_path / "e", device="cpu").predict(pictures)


@pytest.mark.parametrize(
    "files_of_another",
    [{"config.json": b'{"model_type": "bert"}'}, {"run/run.json": b"{}"}, {"config.json": b"\xff"}],
)
def test_a_repository_with_another_model_or_runs_is_no_place_for_an_export(
    run: Run, config: Config, hub: Hub, tmp_path: Path, files_of_another: dict[str, bytes]
) -> None:
    hub.repositories["ada/other"] = Repository(files=dict(files_of_another))
    with pytest.raises(GeoError, match="what lies there is no export of geo_embed"):
        export(config, run, tmp_path / "e", push="ada/other")
    assert hub.repositories["ada/other"].files == files_of_another
    assert not (tmp_path / "e").exists()


def test_what_was_downloaded_without_its_onnx_file_is_not_passed_on_as_if_it_had_it(
    run: Run, config: Config, hub: Hub, tmp_path: Path
) -> None:
    export(config, run, tmp_path / "e", heads_only=True, push="ada/heads")
    repository = hub.repositories["ada/heads"]
    described = json.loads(repository.files["config.json"]) | {"onnx": {"file": "heads.onnx"}}
    repository.files |= {"config.json": json.dumps(described).encode(), "heads.onnx": b"large"}
    repository.commits.append("onnx")
    with pytest.raises(GeoError, match=r"heads\.onnx isn't there: of a repository it isn't downloaded"):
        GeoPredictor.from_pretrained("ada/heads").save_pretrained(tmp_path / "copy")


def test_a_run_whose_name_no_address_can_have_is_not_pushed(run: Run, hub: Hub) -> None:
    odd = run.path.rename(run.path.parent / "my run")
    with pytest.raises(GeoError, match="a run of this name couldn't be pulled again"):
        push_run(load_run(odd.parent, "my run"), "hf://ada/runs")
    assert hub.repositories == {}


FAULTS = {
    "no token": ({}, None, "there is no token for the hub"),
    "may only read": ({}, READER, "the token has no right to this"),
    "broken": ({"/commit/": 500}, TOKEN, "the hub is busy or broken"),
    "refused": ({"/commit/": 400}, TOKEN, "the hub refuses (status 400)"),
    "storage": ({"/objects/": 403}, TOKEN, "the token has no right to this"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_push_that_fails_is_told_in_one_line_without_the_token(
    fault: str,
    run: Run,
    hub: Hub,
    country: Country,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    refuses, token, message = FAULTS[fault]
    monkeypatch.setattr("time.sleep", lambda _: None)
    hub.repositories["ada/runs"] = Repository()
    hub.refuses.update(refuses)
    if token is None:
        monkeypatch.delenv("HF_TOKEN")
    else:
        monkeypatch.setenv("HF_TOKEN", token)
    ran = command(capsys, *country.options(tmp_path), "runs", "push", "first", "hf://ada/runs")
    assert ran.code == 1
    errors = [line for line in ran.err.splitlines() if line.startswith("error: ")]
    assert len(errors) == 1
    assert message in errors[0]
    assert "Traceback" not in ran.err
    assert TOKEN not in ran.err + ran.out
    assert READER not in ran.err + ran.out
    assert set(hub.repositories["ada/runs"].files) == {".gitattributes"}


def test_a_repository_that_isnt_there_a_hub_that_isnt_and_one_that_may_not_be_asked(
    hub: Hub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(GeoError, match="there is no such repository"):
        pull_run("hf://ada/none/first", tmp_path / "elsewhere")
    with pytest.raises(GeoError, match="no such directory; as a repository: there is no such repository"):
        GeoPredictor.from_pretrained("ada/none")
    with pytest.raises(GeoError, match="there is no such directory"):
        GeoPredictor.from_pretrained("predictor")
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(UnreachableError, match="can't be reached"):
        pull_run("hf://ada/none/first", tmp_path / "elsewhere")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    with pytest.raises(GeoError, match="HF_HUB_OFFLINE is set"):
        check_can_push("ada/runs")


@pytest.mark.parametrize(
    "address",
    ["hf://ada", "hf://", "hf://ada/runs/first/second", "hf://ada/../x", "hf://a b/c", "hf://ada/runs?x=1"],
)
def test_what_is_no_place_on_the_hub_is_refused(address: str) -> None:
    with pytest.raises(GeoError, match="no place on the hub"):
        parse_address(address)


def test_places_on_the_hub_and_elsewhere() -> None:
    assert parse_address("hf://ada/runs") == parse_address("HF://ada/runs/") == HubAddress("ada/runs")
    assert parse_address("hf:/ada/runs/first") == HubAddress("ada/runs", "first")
    assert parse_address("s3://ada/runs") is None
    assert parse_address("hf-runs/first") is None
    for name in ("ada", "ada/", "a/b/c", "ada/x..y", "ada/x--y", "-a/b"):
        with pytest.raises(GeoError, match="names no repository"):
            check_can_push(name)


def test_a_process_finds_the_hub_by_its_own_variables(
    run: Run, hub: Hub, geo: Geo, country: Country, tmp_path: Path
) -> None:
    import sys

    environment = {
        "HF_ENDPOINT": hub.url,
        "HF_TOKEN": TOKEN,
        "HF_HUB_OFFLINE": "0",
        "HF_HUB_DISABLE_XET": "1",
        "HF_HOME": str(tmp_path / "home"),
    }
    words = [*country.options(tmp_path), "runs", "push", "first", "hf://ada/runs"]
    ran = geo(*words, env=environment, command=[sys.executable, "-m", "geo_embed"])
    assert ran.code == 0, ran.err
    assert "hf://ada/runs/first" in ran.out
    assert TOKEN not in ran.err + ran.out
    assert "first/run.json" in hub.repositories["ada/runs"].files
