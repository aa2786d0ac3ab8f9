"""The script for rented machines: its header is one that uv reads, and it goes from pictures to a submission."""

import re
import runpy
import subprocess
import sys
import tomllib
from importlib.metadata import version
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from small import Small

import geo_embed

SCRIPT = Path(geo_embed.__file__).parent / "scale" / "uv_job.py"


def run(*arguments: object) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, SCRIPT, *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )


def test_the_header_asks_for_this_package_and_a_python_that_it_supports() -> None:
    # The reference implementation's pattern (PEP 723).
    block = re.search(
        r"(?m)^# /// (?P<type>[a-zA-Z0-9-]+)$\s(?P<content>(^#(| .*)$\s)+)^# ///$", SCRIPT.read_text()
    )
    assert block
    assert block["type"] == "script"
    header = tomllib.loads(re.sub(r"(?m)^# ?", "", block["content"]))
    (requirement,) = map(Requirement, header["dependencies"])
    assert requirement.name == "geo-embed"
    assert requirement.specifier.contains(version("geo-embed"))
    pyproject = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())
    assert header["requires-python"] == pyproject["project"]["requires-python"]


@pytest.mark.cut(train=30, test=4, chunk_rows=16)
@pytest.mark.slow
def test_it_goes_from_pictures_to_a_submission_and_may_be_started_again(
    small: Small, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = [
        part
        for key, value in small.settings().items()
        if not key.startswith("paths.")
        for part in ("--set", f"{key}={value}")
    ]
    out = tmp_path / "results"
    words = (small.data, "--out", out, "--no-with-finetune", *settings)

    def submitted(output: str) -> bytes:
        submission = Path(output.strip())
        assert submission.parent == out / "submissions"
        assert len(submission.read_text().splitlines()) == 5
        return submission.read_bytes()

    done = run(*words)
    assert done.returncode == 0, done.stderr
    first = submitted(done.stdout)
    # The second start here, without seconds of imports.
    monkeypatch.setattr("sys.argv", [str(SCRIPT), *map(str, words)])
    with pytest.raises(SystemExit) as ended:
        runpy.run_path(str(SCRIPT), run_name="__main__")
    assert ended.value.code == 0
    assert submitted(capsys.readouterr().out) == first


def test_a_folder_without_data_is_one_clear_line(tmp_path: Path) -> None:
    done = run(tmp_path / "absent", "--out", tmp_path)

    assert done.returncode == 1
    assert done.stderr.startswith("error: ")
    assert "Traceback" not in done.stderr
    assert done.stdout == ""
