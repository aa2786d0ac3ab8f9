"""torchrun's processes embed a part each: one store, the bytes of one run, one process that speaks."""

from __future__ import annotations

import json
import socket
import sys
from typing import TYPE_CHECKING

import pytest
from small import Nursery, Ran, Small, assert_equals_one_run

from geo_embed.cache.store import PENDING, open_store, read_status

if TYPE_CHECKING:
    from conftest import Geo

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def in_two(nursery: Nursery, small: Small, *arguments: object) -> list[Ran]:
    """The same command in two processes, which find each other as torchrun's do. Nobody ends one because the other has ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "TORCHELASTIC_RUN_ID": "test"}
    together |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        nursery.start_in(
            small.root,
            *small.options(),
            *arguments,
            environment=together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    return [process.end() for process in processes]


@pytest.mark.slow
@pytest.mark.cut(train=16, test=4)
def test_torchrun_makes_the_bytes_of_one_process_and_one_process_speaks(small: Small, geo: Geo) -> None:
    features = ("pooler_output", "token_mean")
    arguments = [*small.options(), "--set", f"model.features={json.dumps(features)}"]
    arguments += ["--json", "extract", "--split", "all"]
    ran = geo(*arguments, command=(*TORCHRUN, "-m", "geo_embed"))
    assert ran.code == 0, ran.err
    train, test = ran.json["splits"]
    # Of both processes together.
    assert (train["samples"], train["computed"], train["reused"]) == (16, 4 * 16, 0)
    assert (test["computed"], test["skipped"]) == (4 * 4, [])
    for split in ("train", "test"):
        assert_equals_one_run(small, split, model__features=features)


@pytest.mark.cut(train=16, test=4)
def test_a_process_that_fails_makes_the_whole_fail_and_what_others_did_stays(
    small: Small, nursery: Nursery
) -> None:
    small.picture(15).write_bytes(b"no image")
    first, second = in_two(nursery, small, "extract", "--split", "train")
    assert (first.code, second.code) == (1, 1)
    assert "error: another process of this extraction has ended (process 0 of 2)" in first.err
    assert "error: 1 picture can't be read" in second.err
    assert first.out == second.out == ""
    done = (read_status(open_store(small.store())) != PENDING).all(axis=1)
    assert done.tolist() == [True] * 8 + [False] * 8
    small.picture(15).write_bytes(small.other_picture(1))
    again, quiet = in_two(nursery, small, "--json", "extract", "--split", "train")
    assert (again.code, quiet.code) == (0, 0), again.err + quiet.err
    assert (again.json["computed"], again.json["reused"]) == (32, 32)
    assert (quiet.out, quiet.err) == ("", "")
    assert_equals_one_run(small, "train")


def test_a_part_or_a_limit_beside_torchruns_own_is_refused(small: Small, nursery: Nursery) -> None:
    for more in (["--part", "1/2"], ["--limit", "3"]):
        for ran in in_two(nursery, small, "extract", "--split", "train", *more):
            assert (ran.code, ran.out) == (2, "")
            message = " ".join(ran.err.replace("│", "").split())
            assert "each process of torchrun takes its part of all samples" in message
    assert not small.cache.exists()
