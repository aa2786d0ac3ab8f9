"""A training that is killed, stopped or starved goes on from its last checkpoint, to the very same bits."""

from __future__ import annotations

import json
import random
import re
import shutil
import signal
from typing import TYPE_CHECKING, Any

import pytest
from safetensors.torch import load_file
from small import DYING_BETWEEN_RENAMES, NO_LARGE_FILES, Nursery, Running, Small, dying

from geo_embed.extraction.extract import extract
from geo_embed.finetuning.checkpoint import latest_checkpoint, read_state
from geo_embed.fitting.fit import fit_heads

if TYPE_CHECKING:
    from conftest import Country

KILLS = 6
PLACES = 40
# Heads that have all to learn, so that each epoch is better than the one before.
HEADS: dict[str, Any] = {
    "training__epochs": 1,
    "training__learning_rate": 1e-9,
    "training__gps_loss": "haversine",
    "training__val_split": 0.3,
    "model__dropout": 0.2,
}
# Three passes a step, and everything random.
HOW: dict[str, Any] = {
    "finetune.epochs": 3,
    "finetune.patience": 3,
    "finetune.batch_size": 4,
    "finetune.accumulate": 3,
    "finetune.backbone_lr": 1e-4,
    "finetune.head_lr": 1e-3,
    "finetune.ema": 0.5,
    "finetune.last_layers": 1,
}


@pytest.fixture(scope="module")
def made(country: Country, tmp_path_factory: pytest.TempPathFactory) -> Small:
    """A country with barely fitted heads, and a training that nothing interrupted."""
    from geo_embed.finetuning.finetune import finetune

    small = Small.cut(country, tmp_path_factory.mktemp("tuned") / "small", train=PLACES, chunk_rows=PLACES)
    extract(small.config(), "train")
    fit_heads(small.config(**HEADS), name="first")
    how = {key.removeprefix("finetune."): value for key, value in HOW.items()}
    config = small.config()
    tuned = config.finetune.model_validate(how)
    finetune(config.model_copy(update={"finetune": tuned}), name="whole", init="first")
    return small


def start(
    made: Small, nursery: Nursery, name: str | None = "tuned", before: str = "", **changes: Any
) -> Running:
    how = HOW | {f"finetune.{key}": value for key, value in changes.items()}
    options = [part for key, value in how.items() for part in ("--set", f"{key}={value}")]
    naming = [] if name is None else ["--name", name]
    return nursery.start(made, *options, "--json", "finetune", "--init", "first", *naming, before=before)


def weights(made: Small, name: str) -> dict[str, bytes]:
    """All that was trained, bit by bit."""
    path = made.root / "runs" / name
    tower, heads = load_file(path / "backbone" / "model.safetensors"), load_file(path / "heads.safetensors")
    return {key: value.numpy().tobytes() for key, value in (tower | heads).items()}


def history(made: Small, name: str) -> bytes:
    return (made.root / "runs" / name / "history.parquet").read_bytes()


def newest(made: Small, name: str) -> str:
    """The name of the newest whole checkpoint."""
    latest = latest_checkpoint(made.root / "runs" / name / "checkpoints")
    assert latest is not None
    return latest.name


def test_all_of_it_is_trained(made: Small) -> None:
    scores = json.loads((made.root / "runs" / "whole" / "metrics.json").read_text())
    assert scores["best_epoch"] >= 2
    assert scores["chosen"]["score"] > scores["frozen_score"]


@pytest.mark.slow
def test_a_training_killed_again_and_again_ends_at_the_same_bits(made: Small, nursery: Nursery) -> None:
    rng = random.Random(0)
    kills = inside = 0
    while kills < KILLS or (made.root / "runs" / "tuned").exists():
        # In a pass, or where a checkpoint is forced to the disk: before it has its name, or after.
        function = rng.choice(("finetuning.step.backward_pass", "files.force_to_disk"))
        before = dying(function, rng.randint(1, 9)) if kills < KILLS else ""
        ran = start(made, nursery, before=before, checkpoint_minutes=rng.choice((1e-9, 10.0))).end()
        if ran.code == 0:
            assert weights(made, "tuned") == weights(made, "whole")
            assert history(made, "tuned") == history(made, "whole")
            shutil.rmtree(made.root / "runs" / "tuned")
        else:
            assert ran.code == -signal.SIGKILL, ran.err
            kills += 1
            inside += bool(list((made.root / "runs" / "tuned").glob("checkpoints/.*.writing")))
    assert inside >= 2, "too few kills came in the middle of a checkpoint"


def test_a_training_without_a_name_finds_its_own_beginning(made: Small, nursery: Nursery) -> None:
    runs = made.root / "runs"
    before = set(runs.glob("[!.]*"))
    assert start(made, nursery, None, dying("finetuning.step.backward_pass", 9)).end().code == -signal.SIGKILL
    # One of other settings isn't taken for it.
    assert (
        start(made, nursery, None, dying("finetuning.step.backward_pass", 2), head_lr=2e-3).end().code
        == -signal.SIGKILL
    )
    (unfinished, _) = sorted(set(runs.glob("[!.]*")) - before, key=lambda path: path.stat().st_mtime_ns)
    ran = start(made, nursery, None).end()
    assert ran.code == 0, ran.err
    assert ran.json["run"] == unfinished.name
    assert weights(made, unfinished.name) == weights(made, "whole")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_saves_at_once_and_ends_with_130(
    made: Small, nursery: Nursery, number: signal.Signals
) -> None:
    name = f"stopped-{number.name.lower()}"
    ran = start(
        made,
        nursery,
        name,
        dying("finetuning.step.backward_pass", 11, f"os.kill(os.getpid(), {int(number)})"),
    ).end()
    assert ran.code == 130, ran.err
    assert ran.out == ""
    assert "interrupted: 5 steps are done and saved; the same command goes on from there" in ran.err
    assert "Traceback" not in ran.err
    assert newest(made, name) == "step-00000005"
    ran = start(made, nursery, name).end()
    assert ran.code == 0, ran.err
    assert "going on from step 5, epoch 2" in ran.err
    assert weights(made, name) == weights(made, "whole")
    assert history(made, name) == history(made, "whole")


def test_a_signal_during_validation_saves_as_well(made: Small, nursery: Nursery) -> None:
    before = dying("finetuning.loop.validate", 1, f"os.kill(os.getpid(), {int(signal.SIGTERM)})")
    ran = start(made, nursery, "judged", before).end()
    assert ran.code == 130, ran.err
    assert "interrupted: 3 steps are done and saved" in ran.err
    latest = latest_checkpoint(made.root / "runs" / "judged" / "checkpoints")
    assert latest is not None
    assert read_state(latest)["training"]["epoch"] == 0, "it waited for the end of the validation"
    assert start(made, nursery, "judged").end().code == 0
    assert weights(made, "judged") == weights(made, "whole")
    assert history(made, "judged") == history(made, "whole")


def test_a_kill_while_the_run_takes_the_checkpoints_place_loses_nothing(
    made: Small, nursery: Nursery
) -> None:
    """The checkpoints are out of the way, the run doesn't have its name yet: where two names can't be swapped in one step."""
    assert start(made, nursery, "between", DYING_BETWEEN_RENAMES).end().code == -signal.SIGKILL
    assert not (made.root / "runs" / "between").exists()
    ran = start(made, nursery, "between").end()
    assert ran.code == 0, ran.err
    assert "going on from step 9" in ran.err
    assert weights(made, "between") == weights(made, "whole")


def test_a_full_disk_leaves_the_checkpoint_before_as_it_was(made: Small, nursery: Nursery) -> None:
    """The limit on the size of files stands for the disk: the first checkpoint is written, the second is not."""
    full = dying(
        "finetuning.loop.save_checkpoint",
        2,
        NO_LARGE_FILES,
    )
    ran = start(made, nursery, "starved", full).end()
    assert ran.code == 1
    assert len(re.findall("^error: can't write: ", ran.err, re.MULTILINE)) == 1
    assert "the same command goes on from there" in ran.err
    assert "Traceback" not in ran.err
    assert newest(made, "starved") == "step-00000000"
    assert start(made, nursery, "starved").end().code == 0
    assert weights(made, "starved") == weights(made, "whole")


def test_a_damaged_checkpoint_is_passed_over(made: Small, nursery: Nursery) -> None:
    assert (
        start(made, nursery, "bitten", dying("finetuning.step.backward_pass", 16)).end().code
        == -signal.SIGKILL
    )
    assert newest(made, "bitten") == "step-00000006"
    tensors = made.root / "runs" / "bitten" / "checkpoints" / "step-00000006" / "tensors.safetensors"
    data = bytearray(tensors.read_bytes())
    data[-5] ^= 1
    tensors.write_bytes(data)
    ran = start(made, nursery, "bitten").end()
    assert ran.code == 0, ran.err
    assert "is damaged" in ran.err
    assert "going on from step 3, epoch 2" in ran.err
    assert weights(made, "bitten") == weights(made, "whole")
    assert history(made, "bitten") == history(made, "whole")
