"""Progress is a bar that moves and ends clean on a terminal, plain lines elsewhere, and nothing where nobody wants it."""

from __future__ import annotations

import os
import pty
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from geo_embed import console
from geo_embed.console import counted, duration, progress, set_progress_seconds, set_quiet

WORK = """
import sys, time
from geo_embed.console import counted, progress, say, set_quiet
set_quiet("-q" in sys.argv)
with progress("outer", 2, "fits") as fitted:
    for k in range(2):
        with progress("inner", 30, "epochs") as trained:
            for epoch in range(30):
                time.sleep(0.03)
                trained(1, f"best 0.{epoch:02}")
                if "interrupt" in sys.argv and k and epoch == 10:
                    raise KeyboardInterrupt
        say(f"fit {k} is done")
        print(f"result {k}", flush=True)
        fitted(1)
"""


def on_terminal(tmp_path: Path, *arguments: str, **environment: str) -> tuple[str, str]:
    """What a program writes to a terminal on stderr, and to a file on stdout."""
    leader, follower = pty.openpty()
    out = tmp_path / "out"
    with out.open("w") as stdout:
        process = subprocess.Popen(
            [sys.executable, "-c", WORK, *arguments],
            stdout=stdout,
            stderr=follower,
            env={key: value for key, value in os.environ.items() if key != "NO_COLOR"}
            | {"TERM": "xterm-256color", "COLUMNS": "100"}
            | environment,
        )
    os.close(follower)
    written = b""
    # The end of a terminal that nobody writes to any more is an error.
    with suppress(OSError):
        while part := os.read(leader, 1 << 16):
            written += part
    os.close(leader)
    process.wait(timeout=60)
    return written.decode(), out.read_text()


def screen(written: str) -> list[str]:
    """What stands on a terminal after it has obeyed: carriage returns, erased lines and moves up."""
    lines, row = [""], 0
    for token in re.findall(r"\x1b\[[?\d;]*[A-Za-z]|\r|\n|[^\x1b\r\n]+", written):
        if token == "\n":
            row += 1
            lines += [""] * (row + 1 - len(lines))
        elif token.endswith("A") and token.startswith("\x1b"):
            row -= int(token[2:-1])
        elif token == "\x1b[2K":
            lines[row] = ""
        elif not token.startswith(("\x1b", "\r")):
            lines[row] += token
    return [line.rstrip() for line in lines if line.strip()]


def test_bars_move_and_end_clean(tmp_path: Path) -> None:
    written, out = on_terminal(tmp_path)
    # It moved: the same bar with several counts.
    assert len(set(re.findall(r"(\d+)/30", written))) > 5
    assert "best 0.2" in written
    assert "epochs/s, ETA" in written
    # At the end the news stand above one whole bar, and the cursor is back.
    first, second, last = screen(written)
    assert (first, second) == ("fit 0 is done", "fit 1 is done")
    assert last.startswith("outer")
    assert "2/2" in last
    assert "in 2 s" in last
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert written.count("\x1b[?25h") == written.count("\x1b[?25l")
    # Results are results, wherever the bar is.
    assert out == "result 0\nresult 1\n"


def test_an_interrupted_bar_leaves_the_terminal_as_it_was(tmp_path: Path) -> None:
    written, _ = on_terminal(tmp_path, "interrupt")
    assert written.rindex("\x1b[?25h") > written.rindex("\x1b[?25l")
    assert "KeyboardInterrupt" in written


def test_no_color_is_honoured_and_a_terminal_that_can_do_nothing_gets_lines(tmp_path: Path) -> None:
    coloured = re.compile(r"\x1b\[[\d;]*[1-9]\d*m")
    assert coloured.search(on_terminal(tmp_path)[0])
    written, _ = on_terminal(tmp_path, NO_COLOR="1")
    assert "epochs/s" in written
    assert not coloured.search(written)
    assert "\x1b" not in on_terminal(tmp_path, TERM="dumb")[0]


def test_quiet_is_quiet_on_a_terminal_too(tmp_path: Path) -> None:
    assert on_terminal(tmp_path, "-q") == ("", "result 0\nresult 1\n")


def test_work_that_is_soon_done_shows_no_bar(tmp_path: Path) -> None:
    leader, follower = pty.openpty()
    script = "from geo_embed.console import progress\nwith progress('a', 3, 'images') as done: done(3)"
    subprocess.run([sys.executable, "-c", script], stderr=follower, check=True, timeout=60)
    os.close(follower)
    with pytest.raises(OSError, match="Input/output error"):
        os.read(leader, 1 << 16)
    os.close(leader)


def test_elsewhere_it_is_plain_lines_seconds_apart(capsys: pytest.CaptureFixture[str]) -> None:
    with progress("decode", 4000, "images", 0.0) as advance:
        advance(1000)
        advance(2000, "best 0.5")
        advance(1000)
    first, second, third = capsys.readouterr().err.splitlines()
    assert re.fullmatch(r"decode: 1,000 of 4,000 images, [\d,]+ images/s, ETA 0 s", first)
    assert re.fullmatch(r"decode: 3,000 of 4,000 images, [\d,]+ images/s, ETA 0 s, best 0.5", second)
    # A note stays until there is another.
    assert third.endswith("best 0.5")
    with progress("decode", 4000, "images", 60.0) as advance:
        advance(4000)
    assert capsys.readouterr().err == ""


def test_who_names_no_seconds_goes_by_the_settings(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(console, "_progress_seconds", console.PROGRESS_SECONDS)
    with progress("a", 2, "images") as advance:
        advance(1)
    assert capsys.readouterr().err == ""
    set_progress_seconds(0)
    with progress("a", 2, "images") as advance:
        advance(1)
    assert capsys.readouterr().err.startswith("a: 1 of 2 images")
    set_quiet(True)
    try:
        with progress("a", 2, "images") as advance:
            advance(1)
    finally:
        set_quiet(False)
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (0.2, "0 s"),
        (59, "59 s"),
        (119.4, "119 s"),
        (120, "2 min"),
        (3570, "1 h 0 min"),
        (90_000, "25 h 0 min"),
        (1e6, "11 d 13 h"),
    ],
)
def test_a_duration_has_the_units_that_matter(seconds: float, text: str) -> None:
    assert duration(seconds) == text


@pytest.mark.parametrize(
    "standing",
    [
        "console.progress('load', 2, 'images')",
        "sweep._board([{}], 1, 1, sweep._State(pathlib.Path('sweep.json'), {}, False))",
    ],
    ids=["bar", "sweep"],
)
def test_a_killing_signal_while_libraries_load_gives_the_cursor_back(standing: str) -> None:
    """A bar stands there while transformers are imported, or a sweep's table, and a signal ends the process without a word."""
    script = (
        "import pathlib, sys, time\n"
        "from geo_embed import cli, console\n"
        "from geo_embed.fitting import sweep\n"
        f"with {standing}:\n"
        "    time.sleep(1)\n"
        "    print('ready', flush=True)\n"
        "    time.sleep(0.2)\n"
        "    cli._leave(15, None)\n"
    )
    leader, follower = pty.openpty()
    with subprocess.Popen([sys.executable, "-c", script], stderr=follower, stdout=subprocess.PIPE) as process:
        os.close(follower)
        written = b""
        with suppress(OSError):
            while part := os.read(leader, 1 << 16):
                written += part
        assert process.wait(timeout=60) == 130
    os.close(leader)
    assert written.count(b"\x1b[?25l") == 1
    assert written.rindex(b"\x1b[?25h") > written.index(b"\x1b[?25l")


def test_an_interrupt_before_a_table_has_begun_gives_the_cursor_back() -> None:
    script = (
        "import sys\n"
        "from geo_embed import console\n"
        "with console.standing():\n"
        "    sys.stderr.write('\\x1b[?25l')\n"
        "    sys.stderr.flush()\n"
        "    raise KeyboardInterrupt\n"
    )
    ended = subprocess.run([sys.executable, "-c", script], capture_output=True, check=False)
    assert ended.stderr.startswith(b"\x1b[?25l\x1b[?25h")


def test_one_of_a_thing_is_said_in_the_singular() -> None:
    assert [counted(count, "sample") for count in (0, 1, 2000)] == ["0 samples", "1 sample", "2,000 samples"]
    assert [counted(count, "class has", "classes have") for count in (1, 2)] == [
        "1 class has",
        "2 classes have",
    ]
