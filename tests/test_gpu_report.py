"""`make gpu` without a GPU: it says so and leaves; and what it would write, from outcomes that are made up."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parent.parent


def _tool() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_report", ROOT / "tools" / "gpu_report.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


tool: Any = _tool()
MACHINE = {
    "device": "NVIDIA H100 80GB HBM3",
    "devices": 1,
    "torch": "2.13.0+cu130",
    "cuda": "13.0",
    "capability": "9.0",
    "memory_gb": 85.0,
    "python": "3.12.3",
    "cores": 16,
    "commit": "abc1234",
    "date": "2026-11-25",
}
JUNIT = """<testsuites><testsuite>
<testcase classname="tests.gpu.test_extraction" name="test_a_second_run[x]" time="1.25">
  <properties><property name="least cosine" value="0.9996"/></properties></testcase>
<testcase classname="tests.gpu.test_fitting" name="test_heads" time="2">
  <failure message="AssertionError: 0.9 &lt; 0.99&#10;more | lines">trace</failure></testcase>
<testcase classname="tests.gpu.test_sharding" name="test_two_cards" time="0"><skipped message="needs two GPUs"/></testcase>
</testsuite></testsuites>"""
MEASURED = {"what": "geo extract", "ours": 1480.0, "baseline": 1600.0, "ratio": 0.925, "limit": 2000.0}
MEASURED |= {"unit": "images/s", "against": "the bare model", "bound": "its FLOPs"}


@pytest.fixture
def report() -> Any:
    benches = [
        tool.BenchOutcome("extract", 61.0, [MEASURED]),
        tool.BenchOutcome("heads", 9.0, error="no | room"),
    ]
    return tool.Report(MACHINE, tool.read_junit(JUNIT), benches, 400.0)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_gpu_it_says_so_in_a_line_and_writes_nothing(tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "tools" / "gpu_report.py"), "--out", str(tmp_path / "out")]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert len(done.stdout.splitlines()) == 1
    assert "no GPU" in done.stdout
    assert not list(tmp_path.iterdir())


def test_tests_are_read_with_what_they_measured_and_the_first_line_of_a_failure() -> None:
    passed, failed, skipped = tool.read_junit(JUNIT)
    assert passed == tool.TestOutcome("extraction: a second run [x]", "passed", 1.25, "least cosine 0.9996")
    assert (failed.outcome, failed.note) == ("failed", "AssertionError: 0.9 < 0.99")
    assert (skipped.outcome, skipped.note) == ("skipped", "needs two GPUs")


def test_the_page_has_a_row_for_every_test_bench_and_error(report: Any) -> None:
    page = tool.as_markdown(report)
    assert page.startswith("# NVIDIA H100 80GB HBM3\n")
    assert "torch 2.13.0+cu130, CUDA 13.0" in page
    assert "## Tests: 1 passed, 1 failed, 1 skipped" in page
    assert "| extraction: a second run [x] | passed | 1.2 | least cosine 0.9996 |" in page
    measured = "| extract | geo extract | 1480 | 1600, the bare model | 0.93 | 2000, its FLOPs | images/s |"
    assert measured.replace("0.93", f"{0.925:.2f}") in page
    assert r"| heads | **failed**: no \| room |  |  |  |  |  |" in page
    rows = [line for line in page.splitlines() if line.startswith("|")]
    assert {line.replace(r"\|", "").count("|") for line in rows} == {5, 8}


def test_the_json_holds_the_same(report: Any) -> None:
    read = json.loads(tool.as_json(report))
    assert read["machine"] == MACHINE
    assert [test["outcome"] for test in read["tests"]] == ["passed", "failed", "skipped"]
    assert read["benches"][0]["measurements"] == [MEASURED]
    assert read["benches"][1]["error"] == "no | room"
    assert read["good"] is False


def test_all_is_well_only_where_tests_passed_and_every_bench_gave_figures(report: Any) -> None:
    passed, failed, skipped = report.tests
    bench = report.benches[0]
    assert replace(report, tests=[passed, skipped], benches=[bench]).good
    for tests, benches in (
        ([passed, failed], [bench]),
        ([skipped], [bench]),
        ([passed], [bench, report.benches[1]]),
    ):
        assert not replace(report, tests=tests, benches=benches).good


def test_files_are_named_after_the_device() -> None:
    assert tool.file_name("NVIDIA H100 80GB HBM3") == "nvidia-h100-80gb-hbm3"


def test_what_is_lacking_comes_as_pinned_and_torch_is_left_alone() -> None:
    installed = {"zarr": "3.1.6", "typer": "0.12", "torch": "2.4.0", "pydantic": "2.9.0"}
    requires = {"zarr": ["numcodecs>=0.14", "donfig; extra == 'remote'", "packaging"], "pydantic": ["torch"]}
    pinned = tool.pins("# a comment\nnumcodecs==0.16.6\ntyper==0.29.2\nannotated_types==0.8.0\n")
    lacks = tool.lacking(
        ["zarr>=3.1", "typer>=0.29", "torch>=2.5", "pydantic>=2.7", "Annotated-Types", "torchvision"],
        installed.get,
        lambda name: requires.get(name, []),
        pinned,
    )
    assert lacks == ["annotated-types==0.8.0", "numcodecs==0.16.6", "packaging", "typer==0.29.2"]


def test_tests_that_take_too_long_still_tell_what_they_found(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "test_two.py").write_text(
        "import time\ndef test_quick(): pass\ndef test_slow(): time.sleep(60)\n", encoding="utf-8"
    )
    monkeypatch.setattr(tool, "TESTS", str(tmp_path))
    *_, quick, ended = [test for test in tool._run_tests(10.0) if "slow" not in test.name]
    assert (quick.outcome, ended.outcome, ended.note) == ("passed", "failed", "took longer than 10 s")


def test_a_bench_without_time_left_is_not_begun() -> None:
    assert tool._run_bench("store", 0.2) == tool.BenchOutcome("store", 0.0, error="no time was left for it")


def test_a_command_that_takes_too_long_is_ended_with_its_children(tmp_path: Path) -> None:
    child = "import subprocess, sys; subprocess.run([sys.executable, '-c', 'import time; time.sleep(60)'])"
    code, *_ = tool._run([sys.executable, "-c", child], 1.0, stdout=subprocess.PIPE)
    assert code is None
