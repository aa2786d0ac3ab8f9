"""`make gpu`: every test that needs CUDA and every bench on it, in a few minutes, and a table of what came of it.

It runs in a Python whose torch sees a GPU, and leaves that torch alone: what else is lacking goes into a folder beside the
repository's files (`.gpu`), at the versions of constraints.txt, from the package index or, without a network, from wheels in `.wheels`.
Only the standard library is imported here, since nothing else may be there yet.

    python tools/gpu_report.py                          what `make gpu` does
    python tools/gpu_report.py --lacks                  what would have to be installed, one name==version a line
    python tools/gpu_report.py --fetch 3.12 NAME==VERSION …   wheels of these into .wheels, for that Python on x86-64 Linux
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
import tomllib
import xml.etree.ElementTree as ET
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PACKAGES, WHEELS = ROOT / ".gpu", ROOT / ".wheels"
# What the tests use beyond the package's own requirements.
FOR_TESTS = ("peft", "pytest>=8.2", "pytest-timeout>=2.3")
# Built for one another and for the card's driver: whatever is there stays.
UNTOUCHED = re.compile(r"torch|torchvision|torchaudio|triton|nvidia-.*|cuda-.*")
TESTS = "tests/gpu"
# The quick ones first: if time runs out, it runs out for the last.
BENCHES = ("store", "extract", "finetune", "heads")
# Where the default would take too long beside the others.
SAMPLES = {"heads": 33_000}
# Of the whole time, the tests' share at most.
TESTS_SHARE = 0.45
# glibc of the oldest Linux that torch's own CUDA wheels run on, and older ones.
PLATFORMS = (
    "manylinux_2_28_x86_64",
    "manylinux_2_27_x86_64",
    "manylinux_2_24_x86_64",
    "manylinux_2_17_x86_64",
)
PLATFORMS += ("manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64")

_LOOK = """
import json, platform, sys
import torch
if not torch.cuda.is_available():
    sys.exit(3)
print(json.dumps({
    "device": torch.cuda.get_device_name(), "devices": torch.cuda.device_count(), "torch": torch.__version__,
    "cuda": torch.version.cuda, "capability": ".".join(map(str, torch.cuda.get_device_capability())),
    "memory_gb": round(torch.cuda.get_device_properties(0).total_memory / 1e9, 1),
    "python": platform.python_version(),
}))
"""


@dataclass(frozen=True)
class TestOutcome:
    """One test: `passed`, `failed` or `skipped`; the first line of what it said where it didn't pass, else what it measured."""

    __test__ = False

    name: str
    outcome: str
    seconds: float
    note: str = ""


@dataclass(frozen=True)
class BenchOutcome:
    """One `geo bench`: its measurements as the command prints them, or the first line of its error."""

    name: str
    seconds: float
    measurements: list[dict[str, Any]] = field(default_factory=list)
    error: str = ""


@dataclass(frozen=True)
class Report:
    """What ran where, and what came of it."""

    machine: Mapping[str, Any]
    tests: list[TestOutcome]
    benches: list[BenchOutcome]
    seconds: float

    @property
    def good(self) -> bool:
        """Whether tests ran, none failed, and every bench gave figures."""
        outcomes = [test.outcome for test in self.tests]
        return "passed" in outcomes and "failed" not in outcomes and not any(b.error for b in self.benches)


# What is lacking


def pins(constraints: str) -> dict[str, str]:
    """Normalised name → version, of constraints.txt."""
    matches = (re.fullmatch(r"([\w.-]+)==(\S+)", line.strip()) for line in constraints.splitlines())
    return {normal(match[1]): match[2] for match in matches if match}


def normal(name: str) -> str:
    """A distribution's name as PEP 503 compares it."""
    return re.sub(r"[-_.]+", "-", name).lower()


def lacking(
    wanted: Iterable[str],
    version_of: Callable[[str], str | None],
    requires_of: Callable[[str], Sequence[str]],
    pinned: Mapping[str, str],
) -> list[str]:
    """Requirements, and those of what is there, that nothing installed meets: `name==version` as pinned, sorted.

    Args:
        wanted: requirements as pyproject.toml writes them.
        version_of: of an installed distribution, None where it isn't.
        requires_of: an installed distribution's own requirements.
        pinned: name → version.
    """
    requirement = _requirement_class()
    missing: set[str] = set()
    seen: set[str] = set()
    waiting = list(wanted)
    while waiting:
        asked = requirement(waiting.pop())
        name = normal(asked.name)
        if UNTOUCHED.fullmatch(name) or (asked.marker and not asked.marker.evaluate({"extra": ""})):
            continue
        version = version_of(name)
        if version is None or not asked.specifier.contains(version, prereleases=True):
            missing.add(f"{name}=={pinned[name]}" if name in pinned else f"{name}{asked.specifier}")
        elif name not in seen:
            seen.add(name)
            waiting += requires_of(name)
    return sorted(missing)


def _requirement_class() -> Any:
    try:
        from packaging.requirements import Requirement
    except ImportError:
        from pip._vendor.packaging.requirements import Requirement  # type: ignore[assignment]
    return Requirement


def _lacking_here() -> list[str]:
    """`lacking`, of this very Python."""
    from importlib import metadata

    def version_of(name: str) -> str | None:
        try:
            return metadata.version(name)
        except metadata.PackageNotFoundError:
            return None

    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    pinned = pins((ROOT / "constraints.txt").read_text(encoding="utf-8"))
    wanted = [*project["dependencies"], *FOR_TESTS]
    return lacking(wanted, version_of, lambda name: metadata.requires(name) or [], pinned)


def _install() -> str:
    """Bring what is lacking into `PACKAGES`; an error's last line, empty where all is there."""
    tried: set[str] = set()
    while True:
        listed = subprocess.run(
            [sys.executable, __file__, "--lacks"], env=_env(), capture_output=True, text=True
        )
        if listed.returncode:
            return _last_line(listed.stderr)
        lacks = listed.stdout.split()
        if not lacks:
            return ""
        # What was brought may ask for more; what is still asked for, though it was brought, won't get better.
        if set(lacks) <= tried:
            return f"still lacking: {', '.join(lacks)}"
        tried |= set(lacks)
        print(f"installing into {PACKAGES.name}: {', '.join(lacks)}", flush=True)
        source = ["--no-index", "--find-links", str(WHEELS)] if WHEELS.is_dir() else []
        command = [*_PIP, "install", "--quiet", "--no-deps", "--upgrade", "--target", str(PACKAGES), *source]
        done = subprocess.run([*command, *lacks], stderr=subprocess.PIPE, text=True)
        if done.returncode:
            return _last_line(done.stderr)


_PIP = (sys.executable, "-m", "pip", "--disable-pip-version-check")


def _fetch(python: str, names: Sequence[str]) -> int:
    """Wheels of `name==version` for another machine's Python, into `WHEELS`."""
    platforms = [part for platform in PLATFORMS for part in ("--platform", platform)]
    only = ["--no-deps", "--only-binary=:all:", "--implementation", "cp", "--python-version", python]
    return subprocess.run([*_PIP, "download", *only, *platforms, "--dest", str(WHEELS), *names]).returncode


def _env() -> dict[str, str]:
    """This process's, with the repository and `PACKAGES` before all that is installed."""
    paths = [str(ROOT), str(PACKAGES), *filter(None, [os.environ.get("PYTHONPATH")])]
    return os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1", "HF_HUB_OFFLINE": "1"}


# Running

# Seconds that an interrupted process has to end by itself.
_GRACE = 15


def _look() -> dict[str, Any] | None:
    """The card, and the torch that sees it; None where there is none."""
    looked = subprocess.run([sys.executable, "-c", _LOOK], capture_output=True, text=True)
    return json.loads(looked.stdout) if looked.returncode == 0 else None


def _run(command: Sequence[str], seconds: float, **options: Any) -> tuple[int | None, str, str]:
    """Exit code, None where it took longer than `seconds`; stdout and stderr. Nothing of it is left running.

    What takes too long is interrupted first, so that pytest can still tell what it had found.
    """
    # What a shell starts in the background ignores SIGINT, and so would its children.
    listen = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    process = subprocess.Popen(
        command,
        preexec_fn=listen,
        cwd=ROOT,
        env=_env(),
        text=True,
        encoding="utf-8",
        start_new_session=True,
        **options,
    )
    try:
        out, err = process.communicate(timeout=seconds)
        return process.returncode, out or "", err or ""
    except subprocess.TimeoutExpired:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.send_signal(signal.SIGINT)
            process.wait(_GRACE)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        out, err = process.communicate()
        return None, out or "", err or ""


def _run_tests(seconds: float) -> list[TestOutcome]:
    with tempfile.TemporaryDirectory(prefix="geo-gpu-") as folder:
        results = Path(folder) / "results.xml"
        started = time.monotonic()
        # Options of the project's own that need more than pytest are left out; what is slow is named at the end.
        options = [
            "-o",
            "addopts=",
            "--import-mode=importlib",
            "-p",
            "no:cacheprovider",
            "-q",
            f"--junitxml={results}",
            "--durations=5",
        ]
        code, *_ = _run([sys.executable, "-m", "pytest", *options, TESTS], seconds)
        took = time.monotonic() - started
        outcomes = read_junit(results.read_text(encoding="utf-8")) if results.is_file() else []
        if code is None:
            return [*outcomes, TestOutcome(TESTS, "failed", took, f"took longer than {seconds:.0f} s")]
        return outcomes or [TestOutcome(TESTS, "failed", took, f"pytest ended with {code} and ran nothing")]


def read_junit(text: str) -> list[TestOutcome]:
    """Tests out of pytest's JUnit XML."""
    outcomes = []
    for case in ET.fromstring(text).iter("testcase"):
        module = case.get("classname", "").removeprefix("tests.gpu.").removeprefix("test_")
        bad = [part for part in case if part.tag in ("failure", "error")]
        skipped = case.find("skipped")
        properties = [f"{p.get('name')} {p.get('value')}" for p in case.iter("property")]
        note = "; ".join(properties)
        outcome = "passed"
        if bad:
            outcome, note = "failed", _first_line(bad[0].get("message") or bad[0].text or "")
        elif skipped is not None:
            outcome, note = "skipped", _first_line(skipped.get("message") or "")
        outcomes.append(
            TestOutcome(
                f"{module}: {_spoken(case.get('name', ''))}", outcome, float(case.get("time", 0)), note
            )
        )
    return outcomes


def _spoken(name: str) -> str:
    what, bracket, parameters = name.removeprefix("test_").partition("[")
    return what.replace("_", " ") + (f" [{parameters}" if bracket else "")


def _run_bench(name: str, seconds: float) -> BenchOutcome:
    if seconds < 1:
        return BenchOutcome(name, 0.0, error="no time was left for it")
    started = time.monotonic()
    options = [] if name == "store" else ["--device", "cuda"]
    options += ["--samples", str(SAMPLES[name])] if name in SAMPLES else []
    command = [sys.executable, "-m", "geo_embed", "--json", "bench", name, *options]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE}
    code, out, err = _run(command, seconds, **pipes)
    took = time.monotonic() - started
    if code is None:
        return BenchOutcome(name, took, error=f"took longer than {seconds:.0f} s")
    try:
        if code == 0:
            return BenchOutcome(name, took, json.loads(out)["measurements"])
        why = next((line for line in err.splitlines() if line.startswith("error:")), _last_line(err))
        return BenchOutcome(name, took, error=_first_line(why) or f"exit code {code}")
    except (ValueError, KeyError) as error:
        return BenchOutcome(name, took, error=f"no JSON: {error}")


def _first_line(text: str) -> str:
    return next((line.strip() for line in text.splitlines() if line.strip()), "")


def _last_line(text: str) -> str:
    return next((line.strip() for line in reversed(text.splitlines()) if line.strip()), "")


# Telling


def file_name(device: str) -> str:
    """A device's name for a file: NVIDIA H100 80GB HBM3 → nvidia-h100-80gb-hbm3."""
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def as_json(report: Report) -> str:
    """The whole report."""
    return json.dumps({**asdict(report), "good": report.good}, indent=1, ensure_ascii=False) + "\n"


def as_markdown(report: Report) -> str:
    """The report as a page: the machine, a table of tests, a table of benches."""
    m = report.machine
    counts = [
        f"{sum(t.outcome == kind for t in report.tests)} {kind}" for kind in ("passed", "failed", "skipped")
    ]
    lines = [
        f"# {m['device']}",
        "",
        f"`make gpu`: {report.seconds:.0f} s in all. torch {m['torch']}, CUDA {m['cuda']}, Python {m['python']}; "
        f"compute capability {m['capability']}, {m['memory_gb']} GB; {m['cores']} CPU cores. "
        f"{m['date']}, commit {m['commit']}.",
        "",
        f"## Tests: {', '.join(counts)}",
        "",
        "| test | outcome | seconds | |",
        "|---|---|---|---|",
        *(_row(t.name, t.outcome, f"{t.seconds:.1f}", t.note) for t in report.tests),
        "",
        "## Benches",
        "",
        "| bench | what | ours | baseline | ratio | limit | unit |",
        "|---|---|---|---|---|---|---|",
    ]
    for bench in report.benches:
        lines += [_bench_row(bench.name, measured) for measured in bench.measurements]
        if bench.error:
            lines.append(_row(bench.name, f"**failed**: {bench.error}", "", "", "", "", ""))
    took = ", ".join(f"{bench.name} {bench.seconds:.0f} s" for bench in report.benches)
    return "\n".join([*lines, "", f"They took: {took}.", ""])


def _bench_row(name: str, measured: Mapping[str, Any]) -> str:
    return _row(
        name,
        measured["what"],
        f"{measured['ours']:.4g}",
        f"{measured['baseline']:.4g}, {measured['against']}",
        f"{measured['ratio']:.2f}",
        f"{measured['limit']:.4g}, {measured['bound']}",
        measured["unit"],
    )


def _row(*cells: str) -> str:
    return f"| {' | '.join(cell.replace('|', chr(92) + '|').replace(chr(10), ' ') for cell in cells)} |"


def _commit() -> str:
    done = subprocess.run(["git", "rev-parse", "--short", "HEAD"], cwd=ROOT, capture_output=True, text=True)
    return done.stdout.strip() or "unknown"


def report_on(seconds: float, out: Path) -> int:
    """Install, test, bench, write; the exit code."""
    started = time.monotonic()
    machine = _look()
    if machine is None:
        print(f"make gpu: no GPU that the torch of {sys.executable} sees; nothing was run, nothing written")
        return 0
    lacks = _install()
    if lacks:
        print(f"make gpu: {lacks}", file=sys.stderr)
        return 1
    machine |= {
        "cores": os.cpu_count(),
        "commit": _commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }
    tests = _run_tests(TESTS_SHARE * seconds)
    benches: list[BenchOutcome] = []

    def write() -> Report:
        report = Report(machine, tests, benches, time.monotonic() - started)
        out.mkdir(parents=True, exist_ok=True)
        for text, kind in ((as_json(report), "json"), (as_markdown(report), "md")):
            (out / f"{file_name(machine['device'])}.{kind}").write_text(text, encoding="utf-8")
        return report

    # Written after each: what a killed run had found is not lost.
    report = write()
    for name in BENCHES:
        print(f"geo bench {name}", flush=True)
        benches.append(_run_bench(name, seconds - (time.monotonic() - started)))
        report = write()
    print(as_markdown(report))
    return 0 if report.good else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "gpu", help="where the two files go")
    parser.add_argument("--seconds", type=float, default=570, help="for everything")
    parser.add_argument("--lacks", action="store_true", help="only list what would be installed")
    parser.add_argument("--fetch", metavar="PYTHON", help="only download wheels for that version of Python")
    parser.add_argument("names", nargs="*", metavar="NAME==VERSION", help="with --fetch: of these")
    options = parser.parse_args(arguments)
    if options.lacks:
        print("\n".join(_lacking_here()))
        return 0
    if options.fetch:
        return _fetch(options.fetch, options.names)
    return report_on(options.seconds, options.out.absolute())


if __name__ == "__main__":
    sys.exit(main())
