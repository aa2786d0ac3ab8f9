"""What holds of every command there is: its example can be typed, its flags have no type, and a wrong name leads to it."""

from __future__ import annotations

import re
import shlex
import shutil
import urllib.request
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3 import Server
from small import Small, command
from typer.core import TyperGroup
from typer.main import get_command

from geo_embed.cli.app import _spread_images, app, globals_first
from geo_embed.cli.commands import Commands, walk
from geo_embed.cli.show import print_table, twin_rows
from geo_embed.synthetic.backbone import write_backbone

if TYPE_CHECKING:
    from conftest import Country, Geo, Ran

COMMANDS = {" ".join(path): command for path, command in walk(get_command(app))}
EXAMPLES = {
    example: name
    for name, command in COMMANDS.items()
    for example in re.findall("`geo ([^`]+)`", command.epilog or "")
}
# Parsed, and typed elsewhere: they take minutes, or a folder, program or page that is not there.
ELSEWHERE = {
    "demo": "tests/synthetic",
    "bench": "tests/bench",
    "explore": "serves until it is stopped",
    "submission send": "tests with a program of their own",
}
FIRST = ("config init", "extract", "fit-heads", "submit", "cache export", "runs push")


def groups(group: Any) -> list[Any]:
    return [
        group,
        *(
            below
            for subcommand in group.commands.values()
            if hasattr(subcommand, "commands")
            for below in groups(subcommand)
        ),
    ]


def parse(words: list[str]) -> Any:
    """The context of the command that a command line would call."""
    root: Any = get_command(app)
    context = root.make_context("geo", _spread_images(globals_first(words, root)))
    while isinstance(context.command, TyperGroup):
        name, below, rest = context.command.resolve_command(
            context, [*context._protected_args, *context.args]
        )
        context = below.make_context(name, rest, parent=context)
    return context


def test_every_group_gives_advice_and_no_command_takes_an_option_of_geo_itself() -> None:
    root: Any = get_command(app)
    assert [group.name for group in groups(root) if not isinstance(group, Commands)] == []
    assert [group.name for group in groups(root) if "`geo " not in (group.epilog or "")] == []
    root_options = {name for option in root.params for name in option.opts}
    for name, click_command in COMMANDS.items():
        assert root_options.isdisjoint(name for option in click_command.params for name in option.opts), name


@pytest.mark.parametrize("example", EXAMPLES)
def test_an_example_is_understood_and_calls_the_command_that_it_explains(example: str) -> None:
    assert parse(shlex.split(example)).command_path.removeprefix("geo ") == EXAMPLES[example]


@pytest.fixture(scope="module")
def typed(
    country: Country, geo_in: Geo, tmp_path_factory: pytest.TempPathFactory, _server: Server
) -> dict[str, Ran]:
    """Every example, typed where a user would type it: a folder with data, a geo.toml, and what the examples before it have made."""
    few = Small.cut(country, tmp_path_factory.mktemp("examples"), train=64, test=8)
    settings = (
        f'[paths]\ndata_root = "data"\n[model]\nbackbone_name = {str(few.backbone)!r}\n'
        '[training]\npreset = "pigeon"\nepochs = 2\n[finetune]\nepochs = 1\n'
    )
    for view in ("north", "east", "south", "west"):
        picture = few.images("test") / f"img_000003_{view}.jpg"
        shutil.copy(picture, few.root / f"{view[0]}.jpg")
    urllib.request.urlopen(urllib.request.Request(f"{_server.url}/my-bucket", method="PUT"))
    environment = _server.environment | {"XDG_CACHE_HOME": str(few.root / "kept")}
    ran = {}
    for first in FIRST:
        for example, name in EXAMPLES.items():
            if name == first:
                ran[example] = geo_in(few.root, *shlex.split(example), env=environment)
        if first == "config init":
            (few.root / "geo.toml").write_text(settings)
        if first == "extract":
            geo_in(few.root, "extract", "--split", "all")
            shutil.copytree(few.backbone, few.root / "streetclip")
            write_backbone(few.root / "dinov2", seed=1)
            geo_in(few.root, "extract", "--split", "train", "--backbone", "dinov2")
        if first == "fit-heads":
            geo_in(few.root, "fit-heads", "--name", "second", "--fusion", "concat")
        if first == "submit":
            geo_in(few.root, "submit", "first")
            geo_in(few.root, "submit", "second", "--out", "second.csv")
    for example, name in EXAMPLES.items():
        if name not in (*FIRST, *ELSEWHERE):
            ran[example] = geo_in(few.root, *shlex.split(example), env=environment)
    return ran


@pytest.mark.slow
@pytest.mark.parametrize(
    "example", [command_line for command_line, name in EXAMPLES.items() if name not in ELSEWHERE]
)
def test_an_example_does_what_it_says_when_it_is_typed(typed: dict[str, Ran], example: str) -> None:
    assert typed[example].code in (0, 3), typed[example].err
    assert typed[example].out


@pytest.mark.parametrize("words", [(), *(tuple(name.split()) for name in COMMANDS)], ids=" ".join)
def test_help_shows_no_type_behind_a_flag(
    words: tuple[str, ...], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = command(capsys, *words, "-h")
    assert ran.code == 0
    assert "bool" not in ran.out


@pytest.mark.parametrize(
    ("words", "meant"),
    [
        ("fit", "'geo fit-heads'"),
        ("fitheads", "'geo fit-heads'"),
        ("train", "'geo fit-heads' or 'geo finetune'"),
        ("version", "'geo --version'"),
        ("help", "'geo --help'"),
        ("embed", "'geo extract'"),
        ("eval", "'geo evaluate'"),
        ("evalute first", "'geo evaluate'"),
        ("sub", "'geo submit' or 'geo submission'"),
        ("gc", "'geo cache gc'"),
        ("cache-verify", "'geo cache verify'"),
        ("cache list", "'geo cache ls'"),
        ("runs list", "'geo runs ls'"),
        ("runs delete first", "'geo runs rm'"),
        ("list", "'geo runs ls' or 'geo cache ls'"),
        ("config shw", "'geo config show'"),
        ("submission check", "'geo submission validate'"),
        ("--json cache list", "'geo cache ls'"),
    ],
)
def test_a_wrong_name_leads_to_the_right_command(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, words: str, meant: str
) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    ran = command(capsys, *words.split())
    assert (ran.code, ran.out) == (2, "")
    assert f"Did you mean {meant}?" in ran.err


def test_a_word_that_means_nothing_is_told_no_command(capsys: pytest.CaptureFixture[str]) -> None:
    ran = command(capsys, "zzzz")
    assert ran.code == 2
    assert "Did you mean" not in ran.err


def test_ids_are_names_and_counts_are_numbers(capsys: pytest.CaptureFixture[str]) -> None:
    print_table([{"state": "Iowa", "state_idx": 1234, "sample_id": 56789, "samples": 1234, "km": 1234.5}])
    assert capsys.readouterr().out.splitlines()[1].split() == ["Iowa", "1234", "56789", "1,234", "1,234.5"]


def test_one_twin_is_not_several() -> None:
    (several,), (single,) = (twin_rows({"samples": n, "score_without": 0.5}, 51) for n in (2, 1))
    assert several[1].startswith("2 held-out samples have one in training")
    assert single[1].startswith("1 held-out sample has one in training")


def test_a_fit_tells_at_once_what_it_will_try_and_then_where_to_look(
    country: Country, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    options = [*country.options(tmp_path), "--set", "training.epochs=2"]
    ran = command(capsys, *options, "fit-heads", "--name", "first")
    assert ran.err.splitlines()[0] == "pigeon: some 128 samples of train_ground_truth.csv; at most 2 epochs"
    (page,) = (line for line in ran.out.splitlines() if line.startswith("as a page"))
    assert shlex.split(page.removeprefix("as a page")) == ["geo", *options, "report", "first"]


def test_what_makes_something_tells_the_next_command_and_is_silent_with_q(
    country: Country, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    """As pasted: with the settings that this command had."""
    few = Small.cut(country, tmp_path / "few", train=64, test=8)
    options = [*few.options(), "--set", "training.preset=pigeon", "--set", "training.epochs=2"]
    steps = {
        ("data", "check", "--split", "train"): ["extract", "--split", "train"],
        ("extract", "--split", "train"): ["fit-heads"],
        # No run could answer it yet.
        ("extract", "--split", "test"): ["fit-heads"],
        ("fit-heads", "--name", "first"): ["submit", "first"],
        ("extract", "--split", "test", "--workers", "1"): ["submit"],
        ("data", "check"): ["submit"],
        ("submit", "first"): ["submission", "analyze", "submissions/first.csv"],
    }
    for words, then in steps.items():
        ran = command(capsys, *options, *words)
        assert ran.code == 0, ran.err
        next_words = shlex.split(ran.err.splitlines()[-1].removeprefix("next: "))
        assert next_words[0] == "geo"
        assert next_words[1 : len(options) + 1] == [str(option) for option in options]
        assert [word.removeprefix(f"{few.root}/") for word in next_words[len(options) + 1 :]] == then
    named = (*options, "--set", "inference.competition=places")
    sent = command(capsys, *named, "submit", "first")
    assert sent.err.splitlines()[-1].endswith(f"submission send {few.root}/submissions/first.csv -m first")
    for words in steps:
        if "check" not in words:
            named = ["--overwrite"] if "fit-heads" in words else []
            out = ["--out", str(tmp_path / "again.csv")] if "submit" in words else []
            ran = command(capsys, "-q", *options, *words, *named, *out)
            assert (ran.code, ran.out, ran.err) == (0, "", ""), words
    as_json = command(capsys, "--json", *options, "extract", "--split", "train")
    assert (as_json.err, as_json.json["split"]) == ("", "train")
