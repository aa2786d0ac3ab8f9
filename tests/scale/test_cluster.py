"""What killed drivers of a local Ray left is removed by the next one, and nothing that somebody may still need."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from geo_embed.files import lock
from geo_embed.scale.cluster import remove_abandoned


def driver(folder: Path) -> int:
    """A process that holds a folder as a driver does."""
    (folder / "session_1").mkdir(parents=True)
    reading, writing = os.pipe()
    child = os.fork()
    if child == 0:
        with lock(folder / "driver.lock", busy="held", where=folder, hint=""):
            os.write(writing, b"x")
            time.sleep(600)
    os.read(reading, 1)
    os.close(reading)
    os.close(writing)
    return child


def kill(process: int) -> None:
    os.kill(process, signal.SIGKILL)
    os.waitpid(process, 0)


def test_the_folder_of_a_driver_that_was_killed_goes_and_no_other(tmp_path: Path) -> None:
    names = ("killed", "at-work", "no-lock", "elsewhere", "by-nobody", "outside")
    folders = {name: tmp_path / f"geo-ray-{name}" for name in names}
    folders["outside"] = tmp_path / "other-ray"
    (folders["no-lock"] / "session_1").mkdir(parents=True)
    folders["by-nobody"].mkdir()
    (folders["by-nobody"] / "driver.lock").write_text("{}")
    at_work = driver(folders["at-work"])
    try:
        for name in ("killed", "elsewhere", "outside"):
            kill(driver(folders[name]))
        lock_file = folders["elsewhere"] / "driver.lock"
        lock_file.write_text(lock_file.read_text().replace('"host": "', '"host": "not-'))
        # A link leads nowhere that is removed.
        (tmp_path / "geo-ray-link").symlink_to(folders["outside"])
        remove_abandoned(tmp_path)
        left = sorted(path.name for path in tmp_path.iterdir())
        kept = sorted([*(f"geo-ray-{name}" for name in names[1:5]), "geo-ray-link", "other-ray"])
        assert left == kept
        assert (folders["at-work"] / "session_1").is_dir()
    finally:
        kill(at_work)
    remove_abandoned(tmp_path)
    assert not folders["at-work"].exists()
