"""How torch's threads wait is chosen by the command that runs, before torch reads it, and never against the environment."""

from __future__ import annotations

import importlib
import os
import subprocess
import sys

import pytest

import geo_embed

# Prints what torch finds when it is first looked for, and ends there; or what it would find where the command ends before.
_WATCHED = """
import atexit, os, sys

def tell():
    print("torch found", *(f"{key}={os.environ.get(key)}" for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")), flush=True)

class Watch:
    def find_spec(self, name, path=None, target=None):
        if name == "torch":
            tell()
            os._exit(0)

sys.meta_path.insert(0, Watch())
atexit.register(tell)
from geo_embed.cli import main
main(sys.argv[1:])
"""
PASSIVE, SPINNING = "OMP_WAIT_POLICY=PASSIVE GOMP_SPINCOUNT=None", "OMP_WAIT_POLICY=None GOMP_SPINCOUNT=1000"


def found_by_torch(*words: str, **env: str) -> str:
    bare = {
        key: value for key, value in os.environ.items() if key not in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")
    }
    done = subprocess.run(
        [sys.executable, "-c", _WATCHED, *words], env=bare | env, capture_output=True, text=True, check=False
    )
    lines = [line for line in done.stdout.splitlines() if line.startswith("torch found ")]
    assert len(lines) == 1, done.stderr
    return lines[0].removeprefix("torch found ")


@pytest.mark.parametrize(
    ("words", "wanted"),
    [
        (["extract", "--split", "train"], PASSIVE),
        (["fit-heads"], SPINNING),
        (["sweep", "--name", "evaluate"], SPINNING),
        (["finetune"], SPINNING),
        # A run's name is no command.
        (["evaluate", "heads"], PASSIVE),
        (["submit", "finetune"], PASSIVE),
        (["--set", "model.device=none", "bench", "heads"], SPINNING),
        (["--set", "model.device=none", "bench", "extract"], PASSIVE),
    ],
)
def test_the_command_decides_and_not_a_word_of_the_command_line(words: list[str], wanted: str) -> None:
    assert found_by_torch(*words) == wanted


def test_what_the_environment_says_stands() -> None:
    settings = found_by_torch("evaluate", "first", GOMP_SPINCOUNT="7")
    assert settings == "OMP_WAIT_POLICY=None GOMP_SPINCOUNT=7"


def test_a_verb_of_the_package_decides_too_and_its_import_alone_does_not(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for key in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT"):
        monkeypatch.delenv(key, raising=False)
        # So that what is set meanwhile is taken back, too.
        monkeypatch.setenv(key, "")
        monkeypatch.delenv(key)
    importlib.reload(geo_embed)
    assert not {"OMP_WAIT_POLICY", "GOMP_SPINCOUNT"} & os.environ.keys()
    assert callable(geo_embed.fit_heads)
    assert os.environ["GOMP_SPINCOUNT"] == "1000"
