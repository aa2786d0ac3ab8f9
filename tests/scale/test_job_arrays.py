"""The examples for SLURM and Kubernetes: their own commands, run as many processes of which some are killed, make the bytes of one run."""

from __future__ import annotations

import json
import os
import random
import shlex
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
import yaml
from small import Nursery, Running, Small, assert_equals_one_run, dying, holding

from geo_embed.cache.store import PENDING, open_store, read_status

if TYPE_CHECKING:
    from conftest import Country

ROOT = Path(__file__).parents[2]
SBATCH = ROOT / "examples" / "extract.sbatch"
MANIFEST = ROOT / "examples" / "extract.k8s.yaml"
PARTS = 4
# Chunks of two rows in each part.
TRAIN_CHUNKS, TEST_CHUNKS = 3, 1


@pytest.fixture
def small(country: Country, tmp_path: Path) -> Small:
    """A folder with a geo.toml, from which jobs are begun; one picture occurs in two parts."""
    rows = {"train": 2 * PARTS * TRAIN_CHUNKS, "test": 2 * PARTS * TEST_CHUNKS}
    made = Small.cut(country, tmp_path / "small", **rows)
    table = made.table()
    table.loc[20, "image_north"] = table.loc[1, "image_north"]
    made.write(table)
    made.write_toml()
    return made


def geo_arguments(small: Small, shell: list[str], variables: Mapping[str, str]) -> list[str]:
    """What a shell gives to `geo`, which here only says so: one that has imported everything does the work."""
    bin_directory, arguments_file = small.root / "bin", small.root / "arguments"
    bin_directory.mkdir(exist_ok=True)
    script = f"#!/bin/sh\nexec {shlex.quote(sys.executable)} -ISc 'import json, sys; print(json.dumps(sys.argv[1:]))' \"$@\" > {shlex.quote(str(arguments_file))}\n"
    (bin_directory / "geo").write_text(script)
    (bin_directory / "geo").chmod(0o755)
    environment = {"PATH": f"{bin_directory}:{os.environ['PATH']}", **variables}
    subprocess.run(shell, cwd=small.root, env=environment, check=True)
    words = json.loads(arguments_file.read_text())
    assert isinstance(words, list)
    return words


def slurm_task(small: Small, k: int, array: list[int]) -> list[str]:
    """The script as SLURM runs it for task k of an array."""
    variables = {"SLURM_ARRAY_TASK_ID": str(k), "SLURM_ARRAY_TASK_COUNT": str(len(array))}
    if len(array) < PARTS:
        variables["PARTS"] = str(PARTS)
    return geo_arguments(small, ["bash", str(SBATCH)], variables)


def container() -> dict[str, Any]:
    (only,) = yaml.safe_load(MANIFEST.read_text())["spec"]["template"]["spec"]["containers"]
    assert isinstance(only, dict)
    return only


def kubernetes_pod(small: Small, k: int, array: list[int]) -> list[str]:
    """The container's command as Kubernetes runs it for the k-th index, which it counts from 0."""
    variables = {entry["name"]: entry["value"] for entry in container()["env"]} | {"PARTS": str(PARTS)}
    shell = [*container()["command"], *container()["args"]]
    return geo_arguments(small, shell, variables | {"JOB_COMPLETION_INDEX": str(k - 1)})


@pytest.mark.parametrize(("task", "seed"), [(slurm_task, 1), (kubernetes_pod, 2)])
def test_tasks_of_which_some_are_killed_and_begun_again_make_the_bytes_of_one_run(
    small: Small, nursery: Nursery, task: Callable[[Small, int, list[int]], list[str]], seed: int
) -> None:
    draw = random.Random(seed)
    everyone = list(range(1, PARTS + 1))

    def begin(k: int, array: list[int], *, dies: bool) -> Running:
        # As a kill from outside, in the midst of a chunk, which no test could time so well.
        before = dying("extraction.writer.commit_chunk", draw.randint(2, TRAIN_CHUNKS)) if dies else ""
        return nursery.start_in(small.root, *task(small, k, array), before=before)

    # All at once, two of them killed; one of those is begun again, and killed again.
    killed = sorted(draw.sample(everyone, 2))
    tasks = {k: begin(k, everyone, dies=k in killed) for k in everyone}
    assert {k: running.end().code for k, running in tasks.items()} == {
        k: -9 if k in killed else 0 for k in everyone
    }
    status = read_status(open_store(small.store(), writable=False)) != PENDING
    for k in killed:
        part = status[2 * TRAIN_CHUNKS * (k - 1) : 2 * TRAIN_CHUNKS * k]
        assert part.any(), "what was committed before a kill stays"
        assert not part.all()
    again = draw.choice(killed)
    assert begin(again, killed, dies=True).end().code in (-9, 0)

    # What is missing, and the commands that make it, pasted into a shell.
    verified = nursery.start_in(small.root, "--json", "cache", "verify", "--parts", PARTS).end().json
    left = {Path(pending["store"]).stem: pending["missing_parts"] for pending in verified["pending"]}
    assert left["test"] == [f"{k}/{PARTS}" for k in killed]
    assert set(left["train"]) <= set(left["test"])
    printed = nursery.start_in(small.root, "cache", "verify", "--parts", PARTS).end().out
    commands = [line for line in printed.splitlines() if line.startswith("    geo extract ")]
    assert len(commands) == len(left["test"]) + len(left["train"])
    pasted = [
        nursery.start_in(small.root, *geo_arguments(small, ["bash", "-c", line], {})) for line in commands
    ]
    assert [running.end().code for running in pasted] == [0] * len(pasted)
    assert nursery.start_in(small.root, "--json", "cache", "verify").end().json["pending"] == []

    for split in ("train", "test"):
        assert_equals_one_run(small, split)
    assert list(small.store().parent.glob("*.rows-*")) == []


def test_the_manifest_is_an_indexed_job_with_one_pod_at_a_time_for_each_part() -> None:
    job = yaml.safe_load(MANIFEST.read_text())
    assert (job["apiVersion"], job["kind"]) == ("batch/v1", "Job")
    spec = job["spec"]
    assert spec["completionMode"] == "Indexed"
    assert container()["env"] == [{"name": "PARTS", "value": str(spec["completions"])}]
    assert spec["podReplacementPolicy"] == "Failed"
    assert spec["backoffLimitPerIndex"] > 0
    assert spec["template"]["spec"]["restartPolicy"] == "Never"
    volumes = {volume["name"] for volume in spec["template"]["spec"]["volumes"]}
    assert {mount["name"] for mount in container()["volumeMounts"]} <= volumes


@pytest.mark.slow
def test_a_task_that_slurm_ends_says_so_and_the_next_goes_on(small: Small) -> None:
    """SIGTERM reaches the batch script's shell alone, and that is `geo` by then."""
    bin_directory = small.root / "bin"
    bin_directory.mkdir()
    program = f"#!{sys.executable}\n{holding('extraction.writer.write_chunk')}\nfrom geo_embed.cli import main\nmain()\n"
    (bin_directory / "geo").write_text(program)
    (bin_directory / "geo").chmod(0o755)
    environment = os.environ | {"SLURM_ARRAY_TASK_ID": "2", "SLURM_ARRAY_TASK_COUNT": str(PARTS)}
    environment["PATH"] = f"{bin_directory}:{environment['PATH']}"
    with subprocess.Popen(
        ["bash", str(SBATCH)], cwd=small.root, env=environment, stderr=subprocess.PIPE, text=True
    ) as shell:
        while shell.poll() is None and not (small.root / "held").exists():
            time.sleep(0.01)
        shell.send_signal(signal.SIGTERM)
        (small.root / "go").touch()
        _, stderr = shell.communicate(timeout=120)
    assert shell.returncode == 130
    assert "the same command goes on from there" in stderr
    done = (read_status(open_store(small.store(), writable=False)) != PENDING).all(axis=1).nonzero()[0]
    assert len(done) >= 2
    assert set(done.tolist()) <= set(range(2 * TRAIN_CHUNKS, 4 * TRAIN_CHUNKS))
