"""On Ray, with workers that die, a store holds the bytes that one process would have written."""

from __future__ import annotations

import os
import random
import signal
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING

import pytest
from small import Nursery, Small, assert_equals_one_run, command, content, forty_places

from geo_embed.buckets import Address
from geo_embed.cache.store import PENDING, open_store, read_status
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.scale.cluster import Cluster
from geo_embed.scale.extract_on_ray import extract_on_ray

if TYPE_CHECKING:
    from conftest import Country

ROWS = 40
# Workers import this file as a plugin.
DYING = """
import os, pathlib, signal
from geo_embed.extraction import writer

def commit(store, rows, *others, commit=writer.commit_chunk):
    died = pathlib.Path({folder!r}, f"died-{{rows.start}}")
    if rows.start in {starts} and not died.exists():
        died.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    commit(store, rows, *others)

writer.commit_chunk = commit
"""


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    return forty_places(country, tmp_path / "small")


def plugin(small: Small, code: str) -> dict[str, list[str]]:
    """The setting that has workers run Python first."""
    (small.root / "plugin.py").write_text(code)
    return {"model__plugins": [str(small.root / "plugin.py")]}


@pytest.mark.slow
def test_workers_that_die_at_random_leave_the_bytes_of_one_run(
    small: Small, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    starts = sorted(random.Random(4).sample(range(0, ROWS, 2), 2))
    changes = plugin(small, DYING.format(folder=str(small.root), starts=set(starts)))
    features = {"model__features": ("pooler_output", "token_mean")}
    done = extract_on_ray(small.config(**changes, **features), "train", cluster)
    assert sorted(small.root.glob("died-*")) == sorted(small.root / f"died-{start}" for start in starts)
    assert (done.samples, done.skipped, done.damaged) == (ROWS, [], [])
    # What a dead worker had committed of its part was found there by the next.
    assert 4 * (ROWS - 6) <= done.computed <= 4 * ROWS
    assert done.computed + done.reused == 4 * ROWS
    stderr = capsys.readouterr().err
    assert stderr.count("is begun again elsewhere") == 2
    assert "a worker died" in stderr
    assert_equals_one_run(small, **features)
    again = extract(small.config(), "train")
    assert (again.computed, again.reused) == (0, 4 * ROWS)
    assert asdict(again).keys() == asdict(done).keys()


@pytest.mark.slow
def test_a_part_whose_workers_all_die_ends_the_command_and_leaves_the_store_valid(
    small: Small, cluster: Cluster, capsys: pytest.CaptureFixture[str]
) -> None:
    count = small.root / "begun"
    code = f"import os\nwith open({str(count)!r}, 'a') as f: f.write('x')\nos.kill(os.getpid(), 9)\n"
    with pytest.raises(
        GeoError, match=r"the part of rows 0–1 was begun 3 times in vain: a worker died"
    ) as refused:
        extract_on_ray(small.config(**plugin(small, code)), "train", cluster, limit=2)
    assert "the same command goes on" in refused.value.hint
    assert count.read_text() == "xxx"
    assert (read_status(open_store(small.store())) == PENDING).all()


def test_bad_pictures_are_refused_before_anything_is_made(small: Small, cluster: Cluster) -> None:
    small.picture(39).write_bytes(b"no image")
    with pytest.raises(GeoError, match="1 picture can't be read"):
        extract_on_ray(small.config(), "train", cluster)
    assert list(small.cache.glob("*/*.zarr")) == []


@pytest.mark.slow
def test_a_picture_that_changed_makes_the_store_anew_as_in_one_process(
    small: Small, cluster: Cluster
) -> None:
    extract(small.config(), "train")
    small.picture(1, "west").write_bytes(small.other_picture(0))
    done = extract_on_ray(small.config(), "train", cluster, limit=2)
    assert (done.computed, done.reused) == (1, 2 * 4 - 1)
    rest = extract(small.config(), "train")
    assert (rest.computed, rest.reused) == (0, 4 * ROWS)
    assert_equals_one_run(small)


@pytest.mark.slow
def test_the_command_prints_what_it_prints_without_ray_and_keeps_stdout_clean(
    small: Small, nursery: Nursery, ray_address: str
) -> None:
    """Workers' folder is not the command's: its paths are relative. One of them dies, of which Ray tells on stdout."""
    small.write_toml()
    (small.root / "plugin.py").write_text(DYING.format(folder=str(small.root), starts={0}))
    settings = ["--set", "paths.cache_dir=cache", "--set", "paths.data_root=data"]
    settings += ["--set", 'model.plugins=["plugin.py"]']
    options = ["--json", *settings, "extract", "--split", "test", "--limit", "2"]
    ran = nursery.start_in(small.root, *options, "--engine", "ray", "--ray-address", ray_address).end()
    assert ran.code == 0, ran.err
    alone = nursery.start_in(small.root, *options).end()
    assert (ran.json["computed"], alone.json["computed"], alone.json["reused"]) == (8, 0, 8)
    differing = {"computed", "reused", "images_per_second", "working_seconds", "seconds"}
    for key in ran.json.keys() | alone.json.keys():
        assert key in differing or ran.json[key] == alone.json[key], key
    lines = ran.err.splitlines()
    assert sum(line.startswith("warning: a worker died (") for line in lines) == 1
    beginnings = ("look at pictures", "extract test: ", "waiting for", "warning: a worker died (")
    assert [line for line in lines if not line.startswith(beginnings)] == []


@pytest.mark.slow
def test_workers_share_a_store_in_a_bucket_and_take_over_the_lease_of_one_that_died(
    small: Small, cluster: Cluster, bucket: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    """The cluster was begun before there was a bucket: its workers get to know of it by a plugin."""
    known = {name: value for name, value in os.environ.items() if name.startswith(("AWS_", "GEO_BUCKET"))}
    code = f"import os\nos.environ |= {known!r}\n" + DYING.format(folder=str(small.root), starts={6})
    changes = {"paths__cache_dir": str(bucket / "cache"), **plugin(small, code)}
    done = extract_on_ray(small.config(**changes), "train", cluster)
    assert (small.root / "died-6").exists()
    assert "once its lease has ended: 20 seconds at most" in capsys.readouterr().err
    assert done.computed + done.reused == 4 * ROWS
    assert content(done.store) == content(extract(small.config(), "train").store)


def ray_processes(folder: str) -> list[str]:
    """Command lines of processes that name a folder."""
    lines = []
    for path in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = path.read_bytes().replace(b"\0", b" ").decode(errors="replace")
        except OSError:
            continue
        if folder in line:
            lines.append(line)
    return lines


@pytest.mark.slow
def test_sigterm_ends_a_local_ray_and_its_folder_and_leaves_the_store_valid(
    small: Small, nursery: Nursery
) -> None:
    (small.root / "tmp").mkdir()
    code = f"""
import pathlib, time
from geo_embed.extraction import writer

def commit(store, rows, *others, commit=writer.commit_chunk):
    commit(store, rows, *others)
    pathlib.Path({str(small.root)!r}, "held").touch()
    time.sleep(60)

writer.commit_chunk = commit
"""
    (file,) = plugin(small, code)["model__plugins"]
    arguments = ["--set", f'model.plugins=["{file}"]', "extract", "--split", "train", "--limit", 2]
    # As a user's environment: without what the tests' own cluster is known by.
    before_it = f"import tempfile; tempfile.tempdir = {str(small.root / 'tmp')!r}\n"
    before_it += "for name in [name for name in os.environ if name.startswith('RAY_')]: del os.environ[name]"
    running = nursery.start(small, *arguments, "--engine", "ray", before=before_it)
    deadline = time.monotonic() + 400
    while not (small.root / "held").exists():
        assert time.monotonic() < deadline, running.err()
        time.sleep(0.05)
    # Too long a path for sockets: the folder came to lie in /tmp itself, where other tests' may lie as well.
    (session,) = Path("/tmp").glob(f"geo-ray-*/session_*_{running.pid}")
    folder = session.parent
    assert ray_processes(str(folder))
    running.signal(signal.SIGTERM)
    ended = running.end()
    assert ended.code == 130
    assert "the same command goes on from there" in ended.err
    assert "Traceback" not in ended.err
    assert ray_processes(str(folder)) == []
    assert not folder.exists()
    assert list((small.root / "tmp").iterdir()) == []
    status = (read_status(open_store(small.store())) != PENDING).all(axis=1)
    assert 0 < status.sum() < ROWS
    extract(small.config(), "train")
    assert_equals_one_run(small)


@contextmanager
def silent_port() -> Iterator[int]:
    """A port that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()[1]


def test_an_address_that_is_none_or_does_not_answer_is_one_line_soon(
    small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("ray")
    monkeypatch.setattr("geo_embed.scale.cluster._ANSWER_SECONDS", 2.0)
    with socket.create_server(("127.0.0.1", 0)) as server:
        closed = server.getsockname()[1]
    options = (*small.options(), "extract", "--split", "train", "--engine", "ray", "--ray-address")
    with silent_port() as silent:
        for address in (f"127.0.0.1:{closed}", f"127.0.0.1:{silent}", "127.0.0.1:99999"):
            refused = command(capsys, *options, address)
            assert (refused.code, refused.out) == (1, "")
            first, hint = refused.err.splitlines()
            assert first == f"error: no Ray cluster answers at this address (--ray-address {address})"
            assert hint.startswith("hint: ")
    for address in ("ray://127.0.0.1:10001", "localhost", "host:port"):
        refused = command(capsys, *options, address)
        assert (refused.code, refused.err.splitlines()[0]) == (
            1,
            f"error: not the address of a Ray cluster (--ray-address {address})",
        )
    assert not small.cache.exists()


def test_without_ray_the_command_says_how_to_install_it(small: Small, nursery: Nursery) -> None:
    ran = nursery.run(
        small,
        "extract",
        "--split",
        "train",
        "--engine",
        "ray",
        before="import sys; sys.modules['ray'] = None",
    )
    assert (ran.code, ran.err) == (
        1,
        "error: Ray isn't installed (--engine ray)\nhint: pip install 'geo-embed[ray]'\n",
    )


def test_what_does_not_go_with_ray_is_refused(
    small: Small, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    extraction = ["extract", "--split", "train"]
    refused = command(capsys, *small.options(), *extraction, "--engine", "ray", "--part", "1/2")
    assert (refused.code, "Ray deals out parts by itself" in refused.err) == (2, True)
    refused = command(capsys, *small.options(), *extraction, "--ray-address", "auto")
    assert (refused.code, "goes together with --engine ray" in refused.err) == (2, True)
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "none")
    for several in (extraction, ["sweep"]):
        refused = command(capsys, *small.options(), *several, "--engine", "ray")
        assert (refused.code, "every process would begin Ray" in refused.err) == (2, True)
