"""A cache in a bucket under all that a network and a killed machine do: the store stays valid, the command ends or says why, the same command goes on."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import time
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from s3 import BUSY, CUT, KEY_ID, LOST, SECRET, SLOW, STALL, Request, Server, objects, seeded, upload
from small import Nursery, Ran, Small, command, content, files, holding

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.cache.objects import kept_dir
from geo_embed.cache.store import PENDING, open_store, read_status
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Country, Geo

HOLD = holding("extraction.writer.commit_chunk")


@pytest.fixture
def cache(bucket: Address) -> list[str]:
    """A cache in the bucket, for a command line."""
    return ["--set", f"paths.cache_dir={bucket / 'cache'}"]


def one_run(small: Small) -> Path:
    return extract(small.config(paths__cache_dir=str(small.root / "whole")), "train").store


def store_in(bucket: Address) -> Address:
    (store,) = [folder / "train.zarr" for folder in (bucket / "cache").iterdir()]
    return store


def assert_equals_one_run(small: Small, bucket: Address) -> None:
    """Byte for byte, and nothing beside it but leases that nobody holds."""
    whole, store = one_run(small), store_in(bucket)
    stored = objects(store)
    assert set(stored) == set(files(whole))
    assert all((whole / name).read_bytes() == data for name, data in stored.items() if name != "zarr.json")
    assert content(store) == content(whole)
    beside = {name: data for name, data in objects(store.parent).items() if ".zarr/" not in name}
    assert all(re.fullmatch(r"train\.(layout\.)?lock", name) and not data for name, data in beside.items())


def assert_told_plainly(ran: Ran, *, code: int = 1) -> None:
    assert ran.code == code, ran.err
    assert "Traceback" not in ran.err
    assert "unexpected" not in ran.err
    assert len([line for line in ran.err.splitlines() if line.startswith("error: ")]) == 1
    assert "hint: " in ran.err


def assert_no_secret(ran: Ran) -> None:
    for part in (SECRET, KEY_ID, "Signature", "Debug source"):
        assert part not in ran.out + ran.err


@pytest.mark.parametrize("seed", [0])
def test_an_extraction_through_all_faults_at_once_has_the_bytes_of_one_without(
    small: Small, bucket: Address, cache: list[str], s3: Server, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, seed: int,
) -> None:  # fmt: skip
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "1.5")
    s3.faults = seeded(seed, 0.25, (BUSY, CUT, "500", LOST, BUSY, CUT, SLOW, STALL))
    ran = command(capsys, *small.options(), *cache, "--json", "extract", "--split", "train")
    assert ran.code == 0, ran.err
    assert ran.json["computed"] == 32
    assert {BUSY, CUT, "500"} <= set(s3.met)
    assert STALL in s3.met or LOST in s3.met
    s3.reset()
    assert_equals_one_run(small, bucket)


@pytest.mark.parametrize("fault", [BUSY, CUT, "403", STALL])
def test_a_bucket_that_fails_for_good_ends_the_command_in_one_line_and_the_same_command_goes_on(
    small: Small, bucket: Address, cache: list[str], s3: Server, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, fault: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.5")
    monkeypatch.setenv("GEO_BUCKET_TRIES", "3")
    statuses = 0

    def from_the_third_chunk_on(request: Request) -> str | None:
        nonlocal statuses
        statuses += request.method == "PUT" and "status/c/" in request.key
        return fault if statuses > 2 else None

    s3.faults = from_the_third_chunk_on
    ran = command(capsys, *small.options(), *cache, "-v", "extract", "--split", "train")
    assert ran.code == 1
    assert_no_secret(ran)
    assert re.search(r"error: can't (write|read): ", ran.err)
    s3.reset()
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "10")
    status = read_status(open_store(store_in(bucket)))
    assert 4 <= (status != PENDING).all(axis=1).sum() < 8
    verified = command(capsys, *small.options(), *cache, "--json", "cache", "verify", "--split", "train")
    assert (verified.code, verified.json["problems"]) == (0, [])
    again = command(capsys, *small.options(), *cache, "--json", "extract", "--split", "train")
    assert again.code == 0, again.err
    assert 0 < again.json["computed"] <= 16
    assert_equals_one_run(small, bucket)


def test_a_second_writer_is_refused_by_process_host_and_time_and_another_part_is_not(
    small: Small, nursery: Nursery, bucket: Address, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    first = nursery.start(small, *cache, "extract", "--split", "train", "--part", "1/2", before=HOLD)
    assert first.wait_for((small.root / "held").exists)
    for part in (["--part", "1/2"], []):
        second = command(capsys, *small.options(), *cache, "extract", "--split", "train", *part)
        assert_told_plainly(second)
        assert f"process {first.pid} on {socket.gethostname()}, since 20" in second.err
    other = command(capsys, *small.options(), *cache, "extract", "--split", "train", "--part", "2/2")
    assert other.code == 0, other.err
    (small.root / "go").touch()
    assert first.end().code == 0
    again = command(capsys, *small.options(), *cache, "--json", "extract", "--split", "train")
    assert again.json["computed"] == 0
    assert_equals_one_run(small, bucket)


@pytest.mark.parametrize("where", ["here", "elsewhere"])
def test_a_killed_writers_lease_is_taken_over_and_the_same_command_goes_on(
    small: Small, nursery: Nursery, bucket: Address, cache: list[str], capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch, where: str,
) -> None:  # fmt: skip
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "2")
    first = nursery.start(small, *cache, "extract", "--split", "train", before=HOLD)
    assert first.wait_for((small.root / "held").exists)
    first.signal(signal.SIGKILL)
    assert first.end().code == -signal.SIGKILL
    lock = store_in(bucket).with_suffix(".lock")
    lease = buckets.get(lock)
    assert lease is not None
    assert json.loads(lease[0])["pid"] == first.pid
    if where == "elsewhere":
        buckets.put(lock, json.dumps(json.loads(lease[0]) | {"process": []}).encode())
    began = time.monotonic()
    again = command(capsys, *small.options(), *cache, "--json", "extract", "--split", "train")
    assert again.code == 0, again.err
    assert again.json["computed"] == 32
    assert (time.monotonic() - began > 4) or where == "here"
    assert ("may have been killed" in again.err) == (where == "elsewhere")
    assert_equals_one_run(small, bucket)


def test_samples_that_changed_make_a_new_store_from_the_old_one(
    small: Small, bucket: Address, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    options = [*small.options(), *cache, "--json", "extract", "--split", "train"]
    assert command(capsys, *options).json["computed"] == 32
    small.write(small.table().iloc[[3, 1, 0, 2, 7]])
    assert command(capsys, *options, "--limit", "2").json["reused"] == 8
    names = {name.partition("/")[0] for name in objects(store_in(bucket).parent)}
    assert {"train.zarr", "train.zarr.1"} <= names
    done = command(capsys, *options).json
    assert (done["computed"], done["reused"]) == (0, 20)
    assert_equals_one_run(small, bucket)


def test_every_command_that_looks_after_a_cache_does_so_in_a_bucket(
    small: Small, bucket: Address, cache: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    def geo(*arguments: object, code: int = 0) -> Ran:
        ran = command(capsys, *small.options(), *cache, "--json", *arguments)
        assert ran.code == code, ran.err
        assert "Traceback" not in ran.err
        assert_no_secret(ran)
        return ran

    assert geo("cache", "ls").json["stores"] == []
    geo("extract", "--split", "all")
    train = store_in(bucket)
    listed = geo("cache", "ls").json
    assert [store["complete"] for store in listed["stores"]] == [1, 1]
    assert geo("cache", "info", "--store", train).json["stores"][0]["path"] == str(train)
    assert geo("cache", "info").json["problems"] == []
    assert geo("cache", "verify", "--deep").json["problems"] == []
    assert geo("cache", "verify", "--parts", "2").json["problems"] == []
    geo("cache", "export", "--split", "train", "--out", "train.npz")
    imported = [
        geo("cache", "import", "train.npz", "--split", "train", "--backbone", "mine") for _ in range(2)
    ]
    place = imported[0].json["store"]
    assert place == imported[1].json["store"]
    assert place.startswith(f"{bucket}/cache/mine-")
    assert geo(
        "cache", "import", "train.npz", "--split", "train", "--backbone", "mine", "--dtype", "float32"
    ).json
    # Damage is found, and mended.
    for name in ("zarr.json", "embeddings/c/1/0/0", "sample_id/c/0"):
        before = buckets.get(train / name)
        buckets.put(train / name, b"damage")
        assert geo("cache", "verify", "--split", "train", code=3).json["problems"]
        geo("cache", "verify", "--split", "train", "--repair", code=3)
        geo("extract", "--split", "train")
        assert geo("cache", "verify", "--split", "train").json["problems"] == []
        after = buckets.get(train / name)
        assert before is not None
        assert after is not None
        assert before[0] == after[0] or name == "zarr.json"
    buckets.delete([train / "zarr.json"])
    assert geo("cache", "verify", "--store", train, code=3).json["problems"]
    assert geo("cache", "verify", "--store", train, "--repair", code=3).json["rebuilt"]
    assert geo("cache", "verify", "--store", train).json["problems"] == []
    # What nothing needs goes, and nothing else.
    garbage = geo("cache", "gc", "--unused", "--import", "mine", "--yes").json
    assert {item["path"].rpartition("/cache/")[2].partition("-")[0] for item in garbage["stores"]} == {"mine"}
    assert {folder.name.partition("-")[0] for folder in (bucket / "cache").iterdir()} == {
        train.parent.name.partition("-")[0],
        "mine",
    }
    assert {store["split"] for store in geo("cache", "ls").json["stores"]} == {"train", "test"}
    checks = {
        check["name"]: check
        for check in command(capsys, *small.options(), *cache, "--json", "doctor").json["checks"]
    }
    assert checks["cache_dir"]["ok"]
    assert checks["stores"]["ok"]


def test_heads_are_fitted_from_a_bucket_as_from_a_folder_and_the_second_time_from_this_machine(
    country: Country, bucket: Address, cache: list[str], tmp_path: Path, s3: Server,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    upload(country.cache, bucket / "cache")
    options = country.options(tmp_path)

    def fit(name: str, *more: str) -> dict[str, object]:
        s3.reset()
        ran = command(capsys, *options, *more, "--json", "fit-heads", "--name", name)
        assert ran.code == 0, ran.err
        return dict(ran.json["val"])

    def fetched() -> int:
        return len([r for r in s3.requests if r.method == "GET" and "embeddings/c/" in r.key])

    in_folder, in_bucket = fit("here"), fit("there", *cache)
    assert fetched() == 1
    again = fit("again", *cache)
    assert fetched() == 0
    assert in_folder == in_bucket == again
    ran = command(capsys, *options, *cache, "--json", "submit", "again", "--out", "s.csv")
    assert ran.code == 0, ran.err
    assert ran.json["valid"]
    # Chunks that nobody reads any more go from this machine.
    kept = sorted(path for path in kept_dir().rglob("*") if path.is_file())
    assert len(kept) == 2
    os.utime(kept[0], (0, 0))
    garbage = command(capsys, *options, *cache, "--json", "cache", "gc", "--yes").json
    assert [item["path"] for item in garbage["stores"]] == [str(kept[0])]
    assert not kept[0].exists()
    assert kept[1].exists()


@pytest.mark.parametrize(
    "arguments",
    [
        ("extract", "--split", "train"),
        ("cache", "ls"),
        ("cache", "verify"),
        ("cache", "verify", "--repair"),
        ("cache", "gc", "--unused", "--yes"),
        ("cache", "export", "--split", "train", "--out", "a.npy"),
        ("fit-heads",),
        ("sweep", "--trials", "2"),
        ("predict", "first", "--split", "test"),
        ("submit", "first"),
    ],
)
def test_where_access_is_denied_every_command_says_so_and_changes_nothing(
    small: Small, run: object, bucket: Address, cache: list[str], s3: Server, tmp_path: Path,
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...],
) -> None:  # fmt: skip
    s3.faults = lambda _: "403"
    runs = ["--set", f"paths.runs_dir={tmp_path / 'runs'}"]
    for verbose in ([], ["-v"]):
        ran = command(capsys, *small.options(), *cache, *runs, *verbose, *arguments)
        assert ran.code == 1, ran.out + ran.err
        assert "access is denied (Refused)" in ran.err
        assert_no_secret(ran)
        if not verbose:
            assert_told_plainly(ran)
    s3.reset()
    assert objects(bucket) == {}


def test_commands_that_know_no_buckets_say_so(geo: Geo, bucket: Address) -> None:
    for key in ("runs_dir", "submissions_dir", "data_root", "reports_dir"):
        ran = geo("--set", f"paths.{key}={bucket}", "runs", "ls")
        assert_told_plainly(ran)
        assert "s3:// can't be read or written here" in ran.err
