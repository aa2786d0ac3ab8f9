"""Runs to a bucket and back: whole or not at all, and no file but those that were pushed."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3 import LOST, Request, Server, objects
from small import command, files

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.errors import GeoError, UnreachableError
from geo_embed.runs.run import Run, load_run
from geo_embed.runs.transfer import pull_run, push_run

if TYPE_CHECKING:
    from conftest import Country


def killed_at(call: int) -> Callable[[Request], str | None]:
    writes = 0

    def fault(request: Request) -> str | None:
        nonlocal writes
        writes += request.method in ("PUT", "POST")
        return "403" if writes > call else None

    return fault


def test_a_run_comes_back_as_it_went_but_for_checkpoints_and_what_is_hidden(
    run: Run, bucket: Address, tmp_path: Path
) -> None:
    before = files(run.path)
    (run.path / "checkpoints").mkdir()
    (run.path / "checkpoints" / "step-1.safetensors").write_text("large")
    (run.path / ".hidden").touch()
    pushed = push_run(load_run(run.path.parent, "first"), bucket / "runs")
    assert str(pushed.place) == f"{bucket}/runs/first"
    assert pushed.files == len(before)
    pulled = pull_run(bucket / "runs" / "first", tmp_path / "elsewhere")
    assert files(pulled.place) == before
    assert load_run(tmp_path / "elsewhere", "first").labels.names == run.labels.names
    with pytest.raises(GeoError, match="a run of this name exists"):
        pull_run(bucket / "runs" / "first", tmp_path / "elsewhere")
    again = pull_run(bucket / "runs" / "first", tmp_path / "elsewhere", name="second")
    assert files(again.place) == before


def test_a_run_in_the_bucket_is_replaced_only_where_that_is_asked_for(
    run: Run, bucket: Address, tmp_path: Path
) -> None:
    push_run(run, bucket / "runs")
    pushed = objects(bucket)
    with pytest.raises(GeoError, match="a run of this name exists"):
        push_run(run, bucket / "runs")
    assert objects(bucket) == pushed
    (run.path / "history.parquet").unlink()
    push_run(load_run(run.path.parent, "first"), bucket / "runs", overwrite=True)
    assert set(pushed) - set(objects(bucket)) == {"runs/first/history.parquet"}


def test_pushed_by_halves_it_is_no_run_and_the_same_command_ends_it(
    run: Run, bucket: Address, s3: Server, tmp_path: Path
) -> None:
    for moment in count():
        s3.reset()
        s3.faults = killed_at(moment)
        try:
            push_run(run, bucket / "runs", overwrite=moment > 0)
        except UnreachableError:
            s3.reset()
            with pytest.raises(GeoError, match="no run lies there"):
                pull_run(bucket / "runs" / "first", tmp_path / "elsewhere")
            assert not (tmp_path / "elsewhere").exists()
        else:
            break
    assert moment > 5
    s3.reset()
    pulled = pull_run(bucket / "runs" / "first", tmp_path / "elsewhere")
    assert files(pulled.place) == files(run.path)
    # Nor is one that was being replaced.
    s3.faults = killed_at(3)
    with pytest.raises(UnreachableError):
        push_run(run, bucket / "runs", overwrite=True)
    s3.reset()
    with pytest.raises(GeoError, match="no run lies there"):
        pull_run(bucket / "runs" / "first", tmp_path / "third")


def test_answers_that_are_lost_are_asked_for_again(
    run: Run, bucket: Address, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.5")
    s3.faults = lambda request: LOST if request.earlier < 1 and request.key.endswith("json") else None
    push_run(run, bucket / "runs")
    assert files(pull_run(bucket / "runs" / "first", tmp_path / "elsewhere").place) == files(run.path)
    assert s3.met[LOST] > 3


@pytest.mark.parametrize("damage", ["another file", "a file less", "../../a", "/a", "a/../../b", ".a", ""])
def test_what_is_not_what_was_pushed_is_refused_and_nothing_is_left_of_it(
    run: Run, bucket: Address, tmp_path: Path, damage: str
) -> None:
    push_run(run, bucket / "runs")
    place = bucket / "runs" / "first"
    if damage == "another file":
        buckets.put(place / "metrics.json", b"{}")
    elif damage == "a file less":
        buckets.delete([place / "metrics.json"])
    else:
        buckets.put(place / "run.json", json.dumps({"files": {damage: "0" * 64}}).encode())
    before = set(tmp_path.rglob("*"))
    with pytest.raises(GeoError):
        pull_run(place, tmp_path / "elsewhere")
    assert set(tmp_path.rglob("*")) == before


def test_commands_push_pull_and_submit_into_a_bucket(
    country: Country, run: Run, bucket: Address, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = country.options(tmp_path)
    pushed = command(capsys, *options, "--json", "runs", "push", "first", f"{bucket}/runs")
    assert pushed.code == 0, pushed.err
    shutil.rmtree(run.path)
    pulled = command(capsys, *options, "--json", "runs", "pull", pushed.json["place"])
    assert pulled.code == 0, pulled.err
    done = command(capsys, *options, "--json", "submit", "first", "--out", f"{bucket}/submissions/a.csv")
    assert done.code == 0, done.err
    assert done.json["copy"] == f"{bucket}/submissions/a.csv"
    assert objects(bucket / "submissions") == {"a.csv": Path(done.json["submission"]).read_bytes()}
    for words in (("push", "first", "runs"), ("pull", "runs/first"), ("pull", f"{bucket}/nothing")):
        refused = command(capsys, *options, "runs", *words)
        assert refused.code == 1
        assert len(refused.err.splitlines()) == 2
