"""Whatever names hold and wherever output goes: nothing a terminal would obey, one line, the exit code of the contract."""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from small import command, hear_signals
from typer.main import get_command

from geo_embed.cli.app import app, globals_first
from geo_embed.cli.options import GLOBALS
from geo_embed.cli.show import chosen_rows, print_result, print_table
from geo_embed.console import harmless, harmless_json, progress, say, warn

if TYPE_CHECKING:
    from conftest import Geo

GEO = (sys.executable, "-m", "geo_embed")
# Ends of lines, colours, a bell, C1's own escape, letters turned around, nothing at all, half a character, markup of rich.
WICKED = "a\n\r\t\0\x07\x1b[31m\x7f\x9b2J\u202eb\u2066\u200b\u200d\u2028\ufeff\xad\U000e0041\udcff[red]é東"
TAMED = r"a\n\r\t\x00\x07\x1b[31m\x7f\x9b2J\u202eb\u2066\u200b\u200d\u2028\ufeff\xad\U000e0041\udcff[red]é東"


def test_a_text_is_one_line_that_shows_what_it_holds() -> None:
    assert harmless(WICKED) == TAMED
    for plain in ("Hawaiʻi", "São Paulo", "नई दिल्ली", "東京", "[red]", r"a\n", "🏔️", ""):
        assert harmless(plain) == plain


def test_json_means_what_it_meant_and_holds_nothing_to_obey() -> None:
    text = harmless_json(json.dumps({"name": WICKED, WICKED: 1}, ensure_ascii=False))
    assert json.loads(text) == {"name": WICKED, WICKED: 1}
    assert harmless(text) == text


@pytest.mark.parametrize("as_json", [True, False])
def test_results_warnings_and_progress_are_harmless(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, as_json: bool
) -> None:
    monkeypatch.setattr(GLOBALS, "as_json", as_json)
    print_result({"state": WICKED}, [(WICKED, WICKED)])
    if not as_json:
        print_table([{"state": WICKED, "km": 1.5}, {"state": "b", "km": 22.5}])
    say(WICKED)
    warn(WICKED)
    with progress(WICKED, 2, "pictures", 0.0) as advance:
        advance(1)
    captured = capsys.readouterr()
    lines = (captured.out + captured.err).splitlines()
    assert len(lines) == (4 if as_json else 7)
    assert all(harmless(line) == line for line in lines)
    if as_json:
        assert json.loads(captured.out) == {"state": WICKED}
    else:
        assert captured.out.splitlines()[0] == f"{TAMED}  {TAMED}"


@pytest.mark.parametrize(
    "arguments",
    [
        ("evaluate", WICKED.replace("\0", "")),
        ("fit-heads", "--name", WICKED.replace("\0", "")),
        ("--config", WICKED.replace("\0", ""), "config", "show"),
        ("--set", f"training.seed={WICKED}", "config", "show"),
        ("--set", f"{WICKED}=1", "config", "show"),
        ("submission", "validate", WICKED.replace("\0", "")),
        ("data", "check", "--set", "paths.data_root=a\x1b[31m\nb"),
        ("cache", "import", "\x1b[31m\n.npy", "--split", "train", "--backbone", "x"),
        *((verb, "--name", "a" * 300) for verb in ("fit-heads", "sweep", "finetune")),
        ("ensemble", "x", "y", "--name", "a" * 300),
        ("evaluate", "a" * 300),
        ("evaluate", "a/" * 3000),
        ("submit", "a" * 300, "--out", "b" * 300),
        ("--config", "a" * 300, "config", "show"),
        ("evaluate", "a\0b"),
    ],
)
def test_an_odd_name_is_one_line_and_exit_1(
    capsys: pytest.CaptureFixture[str], arguments: tuple[str, ...]
) -> None:
    ran = command(capsys, *arguments)
    assert ran.code in (1, 3)
    lines = (ran.err + ran.out).splitlines()
    assert all(harmless(line) == line for line in lines)
    assert not [line for line in lines if "Traceback" in line or "unexpected" in line]
    assert len(lines) <= 8


def test_a_table_with_odd_names_is_checked_in_harmless_lines(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    (tmp_path / "data").mkdir()
    header = "sample_id,image_a,state,state_idx,latitude,longitude"
    row = '"s\x1b[31m\u202e","p\x1b[2J\x9b.jpg","A\x07[red]",0,95,-100'
    (tmp_path / "data" / "train_ground_truth.csv").write_text(f"{header}\n{row}\n", encoding="utf-8")
    (tmp_path / "data" / "state_mapping.csv").write_text("state_idx,state\n0,A\x07[red]\n")
    options = ("--set", "paths.data_root=data", "--set", 'model.view_names=["a"]')
    ran = command(capsys, *options, "data", "check", "--split", "train")
    assert ran.code == 3
    assert all(harmless(line) == line for line in ran.out.splitlines())
    again = command(capsys, *options, "--json", "data", "check", "--split", "train")
    assert harmless(again.out.rstrip("\n")) == again.out.rstrip("\n")
    assert again.json["problems"]


# ---------------------------------------------------------------- locales, disks, pipes


def shell(line: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """A line of bash, with `geo` in it."""
    return subprocess.run(
        ["bash", "-c", line.replace("geo ", f"{' '.join(GEO)} ")],
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=100,
        check=False,
    )


def test_a_locale_of_ascii_is_no_error_and_its_json_is_json() -> None:
    ascii_only = {"LC_ALL": "C", "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    note = json.dumps("東京 é ʻ \U0001f3d4")
    ran = shell(f"geo --set 'tracking.note={note}' --json config show", **ascii_only)
    assert ran.returncode == 0
    assert json.loads(ran.stdout)["tracking.note"]["value"] == json.loads(note)
    ran = shell("geo --set tracking.note=東京é config show; geo evaluate 東é; geo --help", **ascii_only)
    assert "UnicodeEncodeError" not in ran.stderr
    assert r"there is no run '\udce6\udc9d\udcb1\udcc3\udca9'" in ran.stderr
    assert "Commands" in ran.stdout


@pytest.mark.parametrize("line", ["geo config show", "geo --json config show", "geo --help", "geo --version"])
def test_a_full_disk_under_stdout_is_one_line_and_exit_1(line: str) -> None:
    ran = shell(f"{line} > /dev/full")
    assert ran.returncode == 1
    assert ran.stderr.splitlines()[0].startswith("error: can't write")
    assert len(ran.stderr.splitlines()) == 2


def test_a_full_disk_under_stderr_is_exit_1_and_no_traceback() -> None:
    assert shell("geo evaluate 2> /dev/full").returncode == 1
    assert shell("geo config show > /dev/full 2> /dev/full").returncode == 1


@pytest.mark.parametrize(
    "line", ["geo -h", "geo --version", "geo config show", "geo --json config show", "geo fit-heads --help"]
)
def test_a_closed_pipe_ends_a_command_in_silence(line: str) -> None:
    for reader in ("head -1", "true"):
        ran = shell(f"set -o pipefail; {line} | {reader}")
        assert ran.returncode in (0, 141)
        assert ran.stderr == ""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("part", range(6))
def test_a_signal_at_any_moment_also_while_things_are_imported_is_exit_130(
    number: signal.Signals, part: int, tmp_path: Path
) -> None:
    # Python itself needs some hundredths of a second before anything of ours is there to hear a signal.
    delay = 0.15 + (part + random.Random(part).random()) * 0.45
    with subprocess.Popen(
        [*GEO, "demo", "--root", str(tmp_path / "demo"), "--locations", "20000"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    ) as process:
        time.sleep(delay)
        process.send_signal(number)
        out, err = process.communicate(timeout=60)
    assert process.returncode == 130, (delay, err)
    assert out == ""
    assert "Traceback" not in err


# ---------------------------------------------------------------- options of geo itself


@pytest.mark.parametrize(
    ("words", "moved"),
    [
        ("config show --json", "--json config show"),
        ("config --set a=1 show -q --set=b=2 -v", "--set a=1 -q --set=b=2 -v config show"),
        ("--json config show --config x.toml", "--json --config x.toml config show"),
        ("fit-heads --name --json -q", "-q fit-heads --name --json"),
        ("fit-heads --name=x --quiet", "--quiet fit-heads --name=x"),
        ("evaluate -- --json -q", "evaluate -- --json -q"),
        ("evaluate --set training.seed=1 -- --set", "--set training.seed=1 evaluate -- --set"),
        ("predict r --images a b --json", "--json predict r --images a b"),
        ("evaluate r --split val --verbose", "--verbose evaluate r --split val"),
        ("config show --set", "--set"),
        ("fit-heads --name", "fit-heads --name"),
        ("nonsense --json --else", "--json nonsense --else"),
        ("", ""),
    ],
)
def test_options_of_geo_itself_are_found_behind_the_command_and_values_are_none(
    words: str, moved: str
) -> None:
    assert globals_first(words.split(), get_command(app)) == moved.split()


def test_they_work_there_as_before_the_command(geo: Geo, tmp_path: Path) -> None:
    (tmp_path / "other.toml").write_text("[training]\nseed = 5\n")

    def seed(*arguments: str) -> Any:
        return geo(*arguments).json["training.seed"]

    assert seed("config", "show", "--json", "--set", "training.seed=3") == {"value": 3, "from": "--set"}
    assert seed("config", "--json", "show", "--config", "other.toml")["value"] == 5
    without_value = geo("config", "show", "--set")
    assert (without_value.code, without_value.out) == (2, "")
    assert "requires an argument" in without_value.err


@pytest.mark.parametrize("words", [(), ("fit-heads",), ("config",), ("config", "show")])
def test_h_is_help(capsys: pytest.CaptureFixture[str], words: tuple[str, ...]) -> None:
    short, long = (command(capsys, *words, option) for option in ("-h", "--help"))
    assert short == long
    assert short.code == 0
    assert "Usage" in short.out


def test_a_choice_that_scores_what_is_reported_is_not_called_too_good() -> None:
    assert chosen_rows(0.5273, 0.5273) == []
    assert chosen_rows(None, None) == []
    assert [name for name, _ in chosen_rows(0.5373, 0.5273)] == ["as chosen"]
