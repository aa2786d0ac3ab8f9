"""`make quick`: the tests of the files that changed, for the inner loop; those marked slow are left to `make test`.

`geo_embed/<wing>/<file>.py` has its tests in `tests/<wing>/test_<file>.py`. `make quick T="heads tests/test_config.py"` takes the tests
that it is told.
"""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterable
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def tests_of(changed: Iterable[str], tests: set[str]) -> set[str]:
    """The tests, of all `tests`, that changed files call for: themselves, their mirror, or their wing where they have none."""
    chosen = {"tests/test_house.py"}
    for path in map(Path, changed):
        if path.parts[0] == "geo_embed":
            folder = Path("tests", *path.parts[1:-1])
            mirror = str(folder / f"test_{path.name}")
            wing = {test for test in tests if Path(test).parent == folder} if len(path.parts) > 2 else set()
            chosen |= {mirror} & tests or wing
        chosen |= {str(path)} & tests
    return chosen & tests


def paths_of(words: Iterable[str]) -> list[str]:
    """Wings by their names, and paths."""
    return [word if (ROOT / word).exists() else f"tests/{word}" for word in words]


def changed() -> set[str]:
    """What differs from where this branch left main, committed or not."""

    def git(*arguments: str) -> list[str]:
        done = subprocess.run(["git", *arguments], capture_output=True, text=True, check=False)
        return done.stdout.splitlines() if done.returncode == 0 else []

    bases = (git("merge-base", "HEAD", name) for name in ("origin/main", "main"))
    base = next((lines[0] for lines in bases if lines), "HEAD")
    return {
        *git("diff", "--name-only", "--diff-filter=d", base),
        *git("ls-files", "--others", "--exclude-standard"),
    }


def main() -> None:
    os.chdir(ROOT)
    known = {str(path) for path in Path("tests").rglob("test_*.py")}
    tests = paths_of(sys.argv[1:]) or sorted(tests_of(changed(), known))
    print(*tests, sep="\n", flush=True)
    options = ["-n", "2", "--dist", "worksteal", "-m", "not slow", "-x"]
    os.execv(sys.executable, [sys.executable, "-m", "pytest", *options, *tests])


if __name__ == "__main__":
    main()
