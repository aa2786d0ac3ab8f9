"""One writer per range of a store in a bucket, on whatever machine; a dead one's lease is taken over, and who lost it stops."""

from __future__ import annotations

import json
import subprocess
import threading
import time
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import numpy as np
import pytest
from s3 import LOST, STALL, Server

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.cache import leases
from geo_embed.cache.leases import held_leases, is_alive, lease, lease_seconds
from geo_embed.cache.locks import changing_layout, is_busy, only_writer
from geo_embed.cache.storage import storage_at
from geo_embed.errors import BusyError, UnreachableError

if TYPE_CHECKING:
    from contextlib import AbstractContextManager


@pytest.fixture
def path(bucket: Address) -> Address:
    return bucket / "backbone-0" / "train.zarr"


@pytest.fixture
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leases of a second."""
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.5")
    assert lease_seconds() == 1


def take(address: Address) -> AbstractContextManager[None]:
    return lease(address, busy="at work", where=address, hint="wait")


def leave(address: Address, **changes: Any) -> bytes:
    """A lease whose holder is gone without a word, from a machine that nobody here can look into."""
    content = {
        "pid": 4711,
        "host": "elsewhere",
        "since": "now",
        "process": ["another boot", "pid:[1]", 4711, "1"],
    }
    data = json.dumps(content | changes).encode()
    buckets.put(address, data)
    return data


def test_a_lease_excludes_a_second_one_by_process_and_host_until_it_is_let_go(path: Address) -> None:
    file = path.with_suffix(".lock")
    with take(file):
        with pytest.raises(BusyError, match=r"at work: process \d+ on .+, since 20"), take(file):
            pass
        assert is_alive(file)
    assert buckets.get(file) is not None
    assert not held_leases([file])
    with take(file):
        assert list(held_leases([file])) == [file]


def test_of_many_that_try_at_once_one_at_a_time_succeeds(path: Address) -> None:
    inside, most, done = 0, 0, 0
    counting = threading.Lock()

    def work() -> None:
        nonlocal inside, most, done
        with changing_layout(path):
            with counting:
                inside += 1
                most = max(most, inside)
            time.sleep(0.01)
            with counting:
                inside, done = inside - 1, done + 1

    threads = [threading.Thread(target=work) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert (most, done) == (1, 4)


def test_ranges_that_overlap_exclude_each_other_and_others_do_not(path: Address) -> None:
    with only_writer(path, slice(0, 4)), only_writer(path, slice(4, 8)):
        for rows in (None, slice(2, 6), slice(0, 4)):
            with (
                pytest.raises(BusyError, match="another extraction is writing to this store: process"),
                only_writer(path, rows),
            ):
                pass
        assert is_busy(path)
        assert not is_busy(path.with_name("test.zarr"))
    assert not is_busy(path)
    with only_writer(path):
        assert [file.name for file in path.parent.iterdir()] == ["train.layout.lock", "train.lock"]


@pytest.mark.parametrize("rows", [None, slice(0, 4)])
def test_a_lease_that_nobody_renews_is_taken_over_once_it_was_watched_for_as_long_as_it_lasts(
    path: Address, short: None, rows: slice | None, capsys: pytest.CaptureFixture[str]
) -> None:
    leave(path.with_suffix(".rows-0-4.lock"))
    assert is_busy(path)
    began = time.monotonic()
    with only_writer(path, rows):
        assert time.monotonic() - began > lease_seconds()
        assert is_busy(path)
    assert "process 4711 on elsewhere, since now, may have been killed" in capsys.readouterr().err
    assert not is_busy(path)


def test_a_holder_that_was_seen_at_work_and_whose_machine_died_since_is_waited_for(
    path: Address, short: None
) -> None:
    """As a worker sees those beside it, and then is given the part of one."""
    file = path.with_suffix(".rows-0-4.lock")
    for renewals in range(3):
        leave(file, renewals=renewals)
        with only_writer(path, slice(4, 8)):
            assert is_alive(file) is (True if renewals else None)
    began = time.monotonic()
    with only_writer(path, slice(0, 4)):
        assert time.monotonic() - began > lease_seconds() / 2
    assert not is_busy(path)


def test_a_lease_that_is_renewed_is_not_taken_over_however_long_it_is_watched(
    path: Address, short: None
) -> None:
    file = path.with_suffix(".lock")
    ended = threading.Event()

    def renew() -> None:
        renewals = 0
        while not ended.wait(0.2):
            renewals += 1
            leave(file, renewals=renewals)

    leave(file)
    with ExitStack() as stack:
        thread = threading.Thread(target=renew)
        thread.start()
        stack.callback(thread.join)
        stack.callback(ended.set)
        with pytest.raises(BusyError, match="process 4711 on elsewhere"), only_writer(path):
            pass


def test_a_dead_process_of_this_machine_is_known_at_once(path: Address) -> None:
    this_process = leases._this_process()
    if not this_process:
        pytest.skip("this system can't tell")
    leave(path.with_suffix(".lock"), process=[*this_process[:2], 2**22 + 1, "1"])
    began = time.monotonic()
    with only_writer(path):
        assert time.monotonic() - began < lease_seconds() / 2
    # Its number is another process's by now.
    leave(path.with_suffix(".lock"), process=[*this_process[:3], "1"])
    with only_writer(path):
        pass


def test_a_process_of_this_machine_that_was_seen_at_work_and_then_died_is_known_at_once(
    path: Address,
) -> None:
    this_process = leases._this_process()
    if not this_process:
        pytest.skip("this system can't tell")
    file = path.with_suffix(".lock")
    with subprocess.Popen(["sleep", "60"]) as holder:
        process = [*this_process[:2], holder.pid, leases._started(holder.pid)]
        for renewals in range(2):
            leave(file, process=process, renewals=renewals)
            assert is_alive(file)
        with pytest.raises(BusyError), only_writer(path):
            pass
        holder.kill()
    assert not is_alive(file)
    began = time.monotonic()
    with only_writer(path):
        assert time.monotonic() - began < lease_seconds() / 2


def test_the_holder_renews_and_the_lost_answer_to_a_renewal_is_no_loss(
    path: Address, short: None, s3: Server
) -> None:
    file = path.with_suffix(".lock")
    with take(file):
        before = buckets.head(file)
        seen = set()
        s3.faults = lambda request: LOST if request.is_conditional and request.earlier == 2 else None
        until = time.monotonic() + 3 * lease_seconds()
        while time.monotonic() < until:
            now = buckets.head(file)
            assert now is not None
            seen.add(now.e_tag)
            leases.check_held(path)
            time.sleep(0.05)
        assert before is not None
        assert len(seen - {before.e_tag}) > 2
        assert s3.met[LOST] == 1


def test_who_lost_its_lease_writes_nothing_more_and_says_who_has_it(path: Address, short: None) -> None:
    storage, block = storage_at(path), np.arange(4, dtype="<f4")
    with only_writer(path):
        storage.write_chunk("status/c/0/0", block)
        lease_elsewhere = leave(path.with_suffix(".lock"))
        # Until the next renewal finds it out.
        time.sleep(lease_seconds() / 2)
        with pytest.raises(BusyError, match="its place taken: process 4711 on elsewhere"):
            storage.write_chunk("status/c/1/0", block)
        written = buckets.listing(path)
        with pytest.raises(BusyError):
            storage.write_durably("zarr.json", b"{}")
        assert buckets.listing(path) == written
    stored = buckets.get(path.with_suffix(".lock"))
    assert stored is not None
    assert stored[0] == lease_elsewhere, "what isn't ours any more is not let go"


def test_a_holder_out_of_touch_for_longer_than_a_lease_asks_before_it_writes(
    path: Address, short: None, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEO_BUCKET_TRIES", "1")
    storage, block = storage_at(path), np.arange(4, dtype="<f4")
    with only_writer(path):
        s3.faults = lambda request: STALL if request.is_conditional else None
        time.sleep(1.2 * lease_seconds())
        with pytest.raises(UnreachableError, match="doesn't answer in time"):
            storage.write_chunk("status/c/0/0", block)
        assert not buckets.listing(path)
        s3.reset()
        # Nobody took it meanwhile.
        storage.write_chunk("status/c/0/0", block)
    assert list(buckets.listing(path)) == ["status/c/0/0"]
    assert not is_busy(path)
