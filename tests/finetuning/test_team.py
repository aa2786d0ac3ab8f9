"""Several processes train as one would: the same steps over the same samples, one writer, and no one left waiting."""

from __future__ import annotations

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file
from small import Nursery, Ran, dying

from geo_embed.finetuning.checkpoint import latest_checkpoint, load_checkpoint
from geo_embed.finetuning.finetune import Finetuned, finetune
from geo_embed.finetuning.team import Share, Team, is_lost_process, join_team
from geo_embed.fitting.fit import fit_heads

if TYPE_CHECKING:
    from conftest import Country, Geo

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")
DOCS = Path(__file__).parents[2] / "docs" / "finetuning.md"
HOW = {
    "finetune.epochs": 2,
    "finetune.batch_size": 7,
    "finetune.accumulate": 2,
    "finetune.backbone_lr": 1e-4,
    "finetune.patience": 9,
    "finetune.ema": 0.5,
}


# Dividing a step


@pytest.mark.parametrize(
    ("samples", "size", "processes"), [(16, 8, 2), (7, 4, 3), (9, 2, 4), (1, 8, 2), (5, 5, 1)]
)
def test_every_sample_of_a_step_is_in_one_pass_of_one_process(
    samples: int, size: int, processes: int
) -> None:
    rows = np.random.default_rng(0).permutation(100)[:samples]
    by_process = [Team(rank, processes).passes(rows, size) for rank in range(processes)]
    assert {len(passes) for passes in by_process} == {-(-samples // size)}
    counted = [share for passes in by_process for share in passes if share.weight]
    assert sorted(np.concatenate([share.rows for share in counted])) == sorted(rows)
    for share in counted:
        assert share.total == samples
        assert rows[share.before : share.before + len(share.rows)].tolist() == share.rows.tolist()
    for passes in zip(*by_process, strict=True):
        assert sum(len(share.rows) for share in passes if share.weight) <= size
        assert all(len(share.rows) for share in passes), "a process without work would wait for nothing"


def test_the_weights_of_a_step_add_up_to_its_mean() -> None:
    rows = np.arange(11)
    for size, processes in ((4, 3), (11, 1), (2, 2)):
        shares = [share for rank in range(processes) for share in Team(rank, processes).passes(rows, size)]
        assert sum(share.weight * len(share.rows) / share.total for share in shares) == pytest.approx(1)


def test_dropout_of_a_sample_is_the_same_however_a_step_is_divided() -> None:
    hidden = torch.ones(10, 3, 64)
    whole = Share(np.arange(10), 0, 10, 1.0).drops(torch.Generator().manual_seed(1))(0.3)
    first, second = whole(hidden), whole(hidden)
    for start, end in ((0, 4), (4, 9), (9, 10)):
        share = Share(np.arange(start, end), start, 10, 1.0)
        drop = share.drops(torch.Generator().manual_seed(1))(0.3)
        assert torch.equal(drop(hidden[start:end]), first[start:end])
        assert torch.equal(drop(hidden[start:end]), second[start:end])
    assert not torch.equal(first, second)
    assert 0.2 < float((first == 0).float().mean()) < 0.4


def test_a_team_of_one_needs_nobody() -> None:
    with join_team("cpu") as team:
        assert (team.first, team.size) == (True, 1)
        assert team.broadcast("value") == "value"
        assert team.gather(3) == [3]
        assert team.any(True)
        assert not team.any(False)
        team.wait()


def test_a_lost_process_is_told_from_a_fault_of_ours() -> None:
    assert is_lost_process(RuntimeError("[gloo/transport/tcp/pair.cc] Connection closed by peer [::1]:1"))
    assert not is_lost_process(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))


# In two processes: forks that find each other as torchrun's do, and torchrun itself where it is what is asked about


@pytest.fixture(scope="module")
def work(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a run of heads that have all to learn."""
    made = tmp_path_factory.mktemp("team")
    settings = {"epochs": 1, "learning_rate": 1e-9, "gps_loss": "haversine", "val_split": 0.3}
    config = country.config(
        made, model__dropout=0.2, **{f"training__{key}": value for key, value in settings.items()}
    )
    fit_heads(config, name="first")
    return made


@pytest.fixture
def options(country: Country, work: Path) -> Callable[..., list[object]]:
    """Everything after `geo`."""

    def words(name: str, *more: object, **changes: object) -> list[object]:
        how = HOW | {f"finetune.{key}": value for key, value in changes.items()}
        settings = [part for key, value in how.items() for part in ("--set", f"{key}={value}")]
        asked = ("--json", "finetune", "--name", name, "--init", "first", "--limit", 40)
        return [*country.options(work), *settings, *asked, *more]

    return words


def in_two(nursery: Nursery, directory: Path, arguments: list[object], before: str = "") -> Ran:
    """The same command in two processes; `before` is Python that both run first. Nobody ends one because the other has ended."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    together = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    together |= {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
    processes = [
        nursery.start_in(
            directory,
            *arguments,
            before=before,
            environment=together | {"RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(2)
    ]
    first, second = (process.end() for process in processes)
    return Ran(first.code or second.code, first.out + second.out, first.err + second.err)


@pytest.fixture
def tune(options: Any, nursery: Nursery, work: Path) -> Callable[..., Ran]:
    """Fine-tune in two processes."""

    def start(name: str, *more: object, before: str = "", **changes: object) -> Ran:
        return in_two(nursery, work, options(name, *more, **changes), before)

    return start


@pytest.fixture
def tune_alone(options: Any, nursery: Nursery, work: Path) -> Callable[..., Ran]:
    """Fine-tune in one process."""

    def start(name: str, **changes: object) -> Ran:
        return nursery.start_in(work, *options(name, **changes)).end()

    return start


def history(work: Path, name: str) -> pd.DataFrame:
    return pd.read_parquet(work / "runs" / name / "history.parquet")


def weights(work: Path, name: str) -> dict[str, torch.Tensor]:
    """All that was trained."""
    path = work / "runs" / name
    return load_file(path / "backbone" / "model.safetensors") | load_file(path / "heads.safetensors")


@pytest.fixture(scope="module")
def alone(country: Country, work: Path) -> Any:
    """What one process learns, once for all that is set against it."""
    config = country.config(work)
    how = {key.removeprefix("finetune."): value for key, value in HOW.items()}
    tuned = config.finetune.model_validate(how)
    return finetune(config.model_copy(update={"finetune": tuned}), name="one", init="first", limit=40)


@pytest.mark.slow
@pytest.mark.parametrize("sharded", [False, True])
def test_two_processes_learn_what_one_learns(tune: Any, work: Path, alone: Finetuned, sharded: bool) -> None:
    """Augmentation and dropout on, a last pass of five samples, and one process's turn to speak."""
    name = "parts" if sharded else "two"
    together = tune(name, sharded=sharded)
    assert together.code == 0, together.err
    assert together.json["run"] == name
    assert together.err.count("parameters: backbone") == together.err.count("epoch 2: loss") == 1
    alone_history, team_history = history(work, "one"), history(work, name)
    np.testing.assert_allclose(team_history["train_loss"], alone_history["train_loss"], rtol=1e-4)
    np.testing.assert_allclose(team_history["val_nll"], alone_history["val_nll"], rtol=1e-3)
    assert together.json["frozen_score"] == pytest.approx(alone.frozen_score, abs=1e-3)
    team_weights = weights(work, name)
    for key, value in weights(work, "one").items():
        torch.testing.assert_close(team_weights[key], value, rtol=1e-2, atol=1e-3)


def patched(path: Path, code: str) -> tuple[str, ...]:
    """torchrun on a `geo` that runs `code` first."""
    script = path / "geo_with_a_fault.py"
    script.write_text(f"import os\n{code}\nfrom geo_embed.cli import main\nmain()\n", encoding="utf-8")
    return (*TORCHRUN, str(script))


def at_call(function: str, call: int, rank: int, then: str) -> str:
    """Python that does `then` at so many calls of a function in one process."""
    module, name = function.rsplit(".", 1)
    return f"""
import importlib, os, signal
module, calls = importlib.import_module("geo_embed.{module}"), 0
def counted(*arguments, whole=module.{name}):
    global calls
    calls += 1
    if calls == {call} and os.environ["RANK"] == "{rank}":
        {then}
    return whole(*arguments)
module.{name} = counted
"""


DIES = "os.kill(os.getpid(), 9)"
# One process has room for two samples.
TIGHT = """
import os, torch
from geo_embed.finetuning.model import GeoModel
forward = GeoModel.forward
def tight(self, pixels, *arguments):
    if len(pixels) > 2 and os.environ["RANK"] == "1":
        raise torch.OutOfMemoryError("no room")
    return forward(self, pixels, *arguments)
GeoModel.forward = tight
"""


@pytest.mark.slow
def test_a_killed_process_ends_the_job_and_leaves_a_good_checkpoint(tune: Any, work: Path) -> None:
    code = at_call("finetuning.step.backward_pass", 5, 1, DIES)
    ran = tune("lost", "--seed", 3, before=code)
    assert ran.code != 0
    assert "error: another process of this training has ended (process 0 of 2)" in ran.err
    assert "the same command goes on from the last checkpoint" in ran.err
    latest = latest_checkpoint(work / "runs" / "lost" / "checkpoints")
    assert latest is not None
    assert load_checkpoint(latest).step == 0
    again = tune("lost", "--seed", 3)
    assert again.code == 0, again.err
    assert again.json["epochs"] == 2


@pytest.mark.slow
def test_a_training_killed_while_divided_goes_on_in_any_number_of_processes(
    tune: Any, tune_alone: Any, work: Path, alone: Finetuned
) -> None:
    code = at_call("finetuning.loop.accumulate_gradients", 3, 1, DIES)
    ran = tune("lost-parts", before=code, sharded=True, checkpoint_minutes=1e-9)
    assert ran.code != 0
    assert "error: another process of this training has ended (process 0 of 2)" in ran.err
    shutil.copytree(work / "runs" / "lost-parts", work / "runs" / "lost-one")
    in_one = tune_alone("lost-one")
    in_two = tune("lost-parts", sharded=True)
    for again in (in_one, in_two):
        assert again.code == 0, again.err
        assert "going on from step 2, epoch 1" in again.err
    np.testing.assert_allclose(history(work, "lost-one"), history(work, "one"), rtol=1e-3)
    if not (work / "runs" / "parts").is_dir():
        assert tune("parts", sharded=True).code == 0
    pd.testing.assert_frame_equal(history(work, "lost-parts"), history(work, "parts"), check_exact=True)
    whole = weights(work, "parts")
    for key, value in weights(work, "lost-parts").items():
        assert torch.equal(value, whole[key]), key


@pytest.mark.slow
def test_a_training_killed_in_one_process_goes_on_in_two(
    tune: Any, options: Any, nursery: Nursery, work: Path, alone: Finetuned
) -> None:
    """Each sample's draws are those of its place in the step; sums are in another order, which is rounding."""
    often = options("grows", checkpoint_minutes=1e-9)
    code = dying("finetuning.loop.accumulate_gradients", 3)
    assert nursery.start_in(work, *often, before=code).end().code == -9
    again = tune("grows")
    assert again.code == 0, again.err
    assert again.err.count("going on from step 2, epoch 1") == 1
    np.testing.assert_allclose(history(work, "grows"), history(work, "one"), rtol=1e-3)


@pytest.mark.slow
def test_two_machines_that_meet_at_an_address_learn_what_one_learns(
    options: Any, work: Path, alone: Finetuned
) -> None:
    """Both are this one, each with its own torchrun, as docs/finetuning.md begins them."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    (line,) = re.findall(
        r"^    (torchrun --nnodes 2 .*) -m geo_embed", DOCS.read_text(encoding="utf-8"), flags=re.MULTILINE
    )
    words = line.replace("--nproc-per-node 8", "--nproc-per-node 1").split()[1:]
    words[words.index("--rdzv-endpoint") + 1] = f"127.0.0.1:{port}"
    begin = [sys.executable, "-m", "torch.distributed.run", *words, "-m", "geo_embed"]
    command = [*begin, *map(str, options("machines"))]
    nodes = [
        subprocess.Popen(command, cwd=work, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [node.communicate(timeout=240) for node in nodes]
    assert [node.returncode for node in nodes] == [0, 0], outputs
    assert sum('"run": "machines"' in out for out, _ in outputs) == 1
    np.testing.assert_allclose(history(work, "machines"), history(work, "one"), rtol=1e-3)


@pytest.mark.slow
def test_every_way_of_training_is_the_same_where_the_model_is_divided(
    tune: Any, tune_alone: Any, work: Path
) -> None:
    how = {
        "lora_rank": 2,
        "gradual": True,
        "wise_ft": 0.5,
        "checkpointing": True,
        "layer_decay": 0.5,
        "backbone_lr": 1e-2,
    }
    assert tune_alone("low-rank", **how).code == 0
    divided = tune("low-rank-parts", sharded=True, **how)
    assert divided.code == 0, divided.err
    undivided, in_parts = history(work, "low-rank"), history(work, "low-rank-parts")
    np.testing.assert_allclose(in_parts["train_loss"], undivided["train_loss"], rtol=1e-4)
    parts_weights = weights(work, "low-rank-parts")
    for key, value in weights(work, "low-rank").items():
        torch.testing.assert_close(parts_weights[key], value, rtol=1e-2, atol=1e-3)


@pytest.mark.slow
def test_a_divided_model_out_of_memory_ends_with_advice(tune: Any) -> None:
    """The other process waits for a part that will not come: it can't be asked to try again."""
    ran = tune("tight-parts", before=TIGHT, sharded=True)
    assert ran.code != 0
    assert "error: out of memory: no room" in ran.err
    assert "use a smaller --batch-size" in ran.err


@pytest.mark.slow
def test_torchrun_that_is_told_to_stop_saves_first(
    options: Any, geo: Geo, work: Path, tmp_path: Path
) -> None:
    code = at_call("finetuning.step.backward_pass", 3, 0, "os.kill(os.getppid(), signal.SIGTERM)")
    ran = geo(*options("stopped", "--seed", 4), command=patched(tmp_path, code))
    assert ran.code != 0
    assert "the same command goes on from there" in ran.err
    latest = latest_checkpoint(work / "runs" / "stopped" / "checkpoints")
    assert latest is not None
    assert load_checkpoint(latest).step in (2, 3)


@pytest.mark.slow
def test_a_fault_of_the_first_process_leaves_no_other_waiting(
    country: Country, nursery: Nursery, tmp_path: Path
) -> None:
    """The first fits the heads, and finds no cache."""
    settings = [*country.options(tmp_path), "--set", f"paths.cache_dir={tmp_path / 'empty'}"]
    ran = in_two(nursery, tmp_path, [*settings, "finetune", "--name", "x"])
    assert ran.code != 0
    assert "error: no embeddings of the train split" in ran.err
    assert ran.out == ""


@pytest.mark.slow
def test_one_process_out_of_memory_halves_the_passes_of_all(tune: Any, work: Path) -> None:
    ran = tune("tight", before=TIGHT)
    assert ran.code == 0, ran.err
    assert ran.err.count("out of memory: 4 samples per pass from now on") == 1
    whole = work / "runs" / "two" / "history.parquet"
    if not whole.is_file():
        assert tune("two").code == 0
    usual, tight = (pd.read_parquet(work / "runs" / name / "history.parquet") for name in ("two", "tight"))
    np.testing.assert_allclose(tight["train_loss"], usual["train_loss"], rtol=1e-4)
