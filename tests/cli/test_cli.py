"""stdout carries results and nothing else, exit codes mean what the contract says, and errors are for people."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd
import pytest
from small import Small, hear_signals
from small import command as run_here

if TYPE_CHECKING:
    from conftest import Country, Geo, Ran

REPOSITORY = Path(__file__).parents[2]
METRICS = {
    *("score", "state_score", "gps_score", "geoscore", "top1", "top5", "mean_km", "median_km"),
    *("within_km", "nll", "ece", "samples", "score_interval"),
    *("min_km", "max_km", "std_km", "rank_rates"),
}


@pytest.fixture(scope="module")
def small(copy_country: Callable[[Path], Country], tmp_path_factory: pytest.TempPathFactory) -> Country:
    return copy_country(tmp_path_factory.mktemp("cli") / "country")


@pytest.fixture(scope="module")
def walked(small: Country, geo_in: Geo) -> dict[str, Ran]:
    """Each command once, with --json, in the order a user would take."""
    four = [
        small.data / "test_images" / f"img_000003_{view}.jpg" for view in ("north", "east", "south", "west")
    ]
    commands: dict[str, list[object]] = {
        "config show": ["config", "show"],
        "config init": ["config", "init", "--out", "written.toml"],
        "data check": ["data", "check", "--split", "all"],
        "extract": ["extract", "--split", "train"],
        "extract all": ["extract", "--split", "all"],
        "fit-heads": ["fit-heads", "--name", "first"],
        "evaluate": ["evaluate", "first"],
        "evaluate all": ["evaluate", "--split", "all"],
        "predict": ["predict", "first", "--split", "test"],
        "predict images": ["predict", "first", "--images", *four],
        "submit": ["submit", "first"],
        "report": ["report", "first", "--out", "first.html"],
        "submission validate": ["submission", "validate", small.root / "submissions" / "first.csv"],
    }
    return {
        name: geo_in(small.root, *small.options(), "--json", *command) for name, command in commands.items()
    }


KEYS: dict[str, set[str]] = {
    "config show": {"paths.data_root", "model.backbone_name", "training.seed"},
    "config init": {"config"},
    "data check": {"splits"},
    "extract": {
        *("split", "store", "fingerprint", "samples", "views", "dim"),
        *("computed", "reused", "skipped", "images_per_second", "seconds"),
    },
    "extract all": {"splits"},
    "fit-heads": {"run", "seconds", "epochs", "val"},
    "evaluate": METRICS,
    "evaluate all": {"splits"},
    "predict": {"predictions"},
    "predict images": {"states", "latitude", "longitude"},
    "submit": {"submission", "rows", "valid", "warnings"},
    "report": {"report"},
    "submission validate": {"valid", "errors", "warnings"},
}


@pytest.mark.parametrize("command", KEYS)
def test_json_is_exactly_one_object_with_the_contracts_keys(walked: dict[str, Ran], command: str) -> None:
    ran = walked[command]
    assert ran.code == 0, ran.err
    assert len(ran.out.splitlines()) == 1
    assert KEYS[command] <= ran.json.keys()
    assert "NaN" not in ran.out
    assert "Infinity" not in ran.out


def test_what_the_json_says_is_so(walked: dict[str, Ran], small: Country) -> None:
    extracted = walked["extract"].json
    assert (extracted["split"], extracted["samples"], extracted["views"], extracted["dim"]) == (
        "train",
        128,
        4,
        768,
    )
    assert (extracted["computed"], extracted["reused"], extracted["skipped"]) == (0, 512, [])
    assert Path(extracted["store"]).name == "train.zarr"
    assert [split["split"] for split in walked["extract all"].json["splits"]] == ["train", "test"]
    assert [split["problems"] for split in walked["data check"].json["splits"]] == [[], []]
    fit = walked["fit-heads"].json
    assert fit["run"] == "first"
    assert fit["val"].keys() == METRICS
    assert list(fit["val"]["within_km"]) == ["1", "25", "100", "200", "500", "750", "1000", "2500"]
    evaluated = walked["evaluate"].json
    assert {key: evaluated[key] for key in METRICS} == fit["val"]
    train, val = walked["evaluate all"].json["splits"]
    assert (train["split"], val["split"]) == ("train", "val")
    assert train["samples"] + val["samples"] == 128
    assert (
        Path(walked["predict"].json["predictions"])
        == small.root / "runs" / "first" / "test_predictions.parquet"
    )
    assert walked["submit"].json["rows"] == 32
    assert walked["submit"].json["valid"] is walked["submission validate"].json["valid"] is True
    assert Path(walked["submit"].json["submission"]) == small.root / "submissions" / "first.csv"


def test_pictures_on_the_command_line_get_the_answer_that_the_table_holds(
    walked: dict[str, Ran], small: Country
) -> None:
    answer = walked["predict images"].json
    table = pd.read_parquet(small.root / "runs" / "first" / "test_predictions.parquet").set_index("sample_id")
    # float16 in the store: see test_predict.
    assert answer["states"][0]["probability"] == pytest.approx(max(table.loc[3, "probabilities"]), abs=1e-3)
    assert answer["latitude"] == pytest.approx(table.loc[3, "latitude"], abs=0.05)
    assert len(answer["states"]) == len(table.loc[3, "probabilities"])


def test_without_json_people_get_a_table(walked: dict[str, Ran], small: Country, geo_in: Geo) -> None:
    for command in (
        ["evaluate", "first"],
        ["submission", "validate", "submissions/first.csv"],
        ["config", "show"],
    ):
        ran = geo_in(small.root, *small.options(), *command)
        assert (ran.code, ran.err) == (0, "")
        with pytest.raises(json.JSONDecodeError):
            json.loads(ran.out)
        assert len(ran.out.splitlines()) > 1
        assert "\x1b" not in ran.out


def test_news_goes_to_stderr_and_q_silences_it(small: Country, geo_in: Geo) -> None:
    def check(*options: str) -> Ran:
        often = ["--set", "tracking.progress_seconds=0.000001", "--json", *options]
        return geo_in(small.root, *small.options(), *often, "data", "check", "--split", "test", "--decode")

    loud, quiet = check(), check("-q")
    assert re.search(r"^decode: 1 of 128 images, [\d,]+ images/s, ETA \d+ s$", loud.err, re.MULTILINE)
    assert "\r" not in loud.err
    assert (quiet.code, quiet.err) == (0, "")
    assert quiet.json == loud.json


# ---------------------------------------------------------------- 1: input, data or environment at fault


FAULTS: dict[str, tuple[list[str], str]] = {
    "no dataset": (
        ["--set", "paths.data_root=absent", "extract", "--split", "train"],
        "absent/train_ground_truth.csv",
    ),
    "no weights": (
        ["extract", "--split", "train", "--backbone", "geolocal/StreetCLIP"],
        "geolocal/StreetCLIP",
    ),
    "no store": (["--set", "paths.cache_dir=absent", "fit-heads"], "absent"),
    "no run": (["evaluate", "absent"], "absent"),
    "no runs": (["--set", "paths.runs_dir=absent", "submit"], "absent"),
    "no submission": (["submission", "validate", "absent.csv"], "absent.csv"),
    "no config file": (["--config", "absent.toml", "config", "show"], "absent.toml"),
    "an unknown setting": (["--set", "training.sead=1", "config", "show"], "'training.sead'"),
    "a wrong value": (["--set", "training.epochs=none", "fit-heads"], "training.epochs"),
    "a taken name": (["fit-heads", "--name", "first"], "first"),
    "an impossible name": (["fit-heads", "--name", "../x"], "../x"),
    "too few pictures": (["predict", "first", "--images", "only.jpg"], "north, east, south, west"),
}


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.usefixtures("walked")
def test_a_fault_is_exit_1_one_error_line_a_hint_and_no_traceback(
    fault: str, small: Country, geo_in: Geo
) -> None:
    arguments, named = FAULTS[fault]
    ran = geo_in(small.root, *small.options(), "--json", *arguments)
    assert ran.code == 1
    assert ran.out == ""
    lines = ran.err.splitlines()
    assert len([line for line in lines if line.startswith("error: ")]) == 1
    (error,) = (line for line in lines if line.startswith("error: "))
    assert named in error
    assert lines[lines.index(error) + 1].startswith("hint: ")
    assert "Traceback" not in ran.err


def test_the_hint_for_missing_weights_names_the_command_and_the_other_way(
    small: Country, geo_in: Geo
) -> None:
    options = [part for part in small.options() if not part.startswith("model.backbone_name")]
    del options[options.index("--set", len(options) - 3)]
    ran = geo_in(small.root, "--set", f"paths.data_root={small.data}", "extract", "--split", "train")
    assert ran.code == 1
    hint = ran.err.splitlines()[-1]
    assert "hf download geolocal/StreetCLIP" in hint
    assert "--backbone DIR" in hint


def test_a_hint_can_be_pasted_for_it_has_the_options_that_the_command_had(small: Country, geo: Geo) -> None:
    Path("my settings.toml").write_text(f"[paths]\ndata_root = {str(small.data)!r}\n")
    options = ["--config", "my settings.toml", "--set", 'model.view_names=["north", "south"]']
    options += ["--set", f"model.backbone_name={small.backbone}"]
    refused = geo(*options, "fit-heads", "--set", "paths.cache_dir=empty")
    assert refused.code == 1
    (hint,) = (line for line in refused.err.splitlines() if line.startswith("hint: "))
    pasted = shlex.split(hint.removeprefix("hint: "))
    assert pasted[:9] == ["geo", *options, "--set", "paths.cache_dir=empty"]
    assert pasted[9:12] == ["extract", "--split", "train"]
    # What a faulty option itself is told has it not, and a command line without options needs none.
    assert "`geo config show`" in geo("--set", "zzz.qqqqqq=1", "--set", "training.seed=1", "fit-heads").err
    assert "train one with: geo fit-heads" in geo("evaluate", "first").err


def test_v_shows_the_traceback_above_the_same_error(geo: Geo) -> None:
    plain, verbose = geo("evaluate"), geo("-v", "evaluate")
    assert verbose.code == plain.code == 1
    assert "Traceback (most recent call last)" in verbose.err
    assert verbose.err.endswith(plain.err)


def test_a_fault_of_ours_is_one_line_too(run_copy: Path, geo: Geo) -> None:
    """A file that nobody would think of: the run's predictions are a directory."""
    (run_copy / "val_predictions.parquet").unlink()
    (run_copy / "val_predictions.parquet").mkdir()
    ran = geo("evaluate", run_copy)
    assert ran.code == 1
    assert ran.err.startswith("error: ")
    assert "Traceback" not in ran.err


@pytest.fixture
def run_copy(fitted: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(fitted, tmp_path / "copied"))


# ---------------------------------------------------------------- 2: wrong usage


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["nonsense"],
        ["extract"],
        ["extract", "--split", "everything"],
        ["extract", "--split", "train", "--limit", "0"],
        ["fit-heads", "--seed", "many"],
        ["fit-heads", "--no-such-option"],
        ["data"],
        ["submission", "validate"],
        ["predict"],
        ["predict", "--split", "test", "--images", "a.jpg"],
        ["demo", "--locations", "3"],
    ],
    ids=lambda arguments: " ".join(arguments) or "nothing",
)
def test_wrong_usage_is_exit_2_with_nothing_on_stdout(geo: Geo, arguments: list[str], tmp_path: Path) -> None:
    ran = geo(*arguments)
    assert ran.code == 2
    assert "Usage: geo" in ran.err + ran.out
    assert "\x1b" not in ran.err + ran.out
    # Help is what was asked for where nothing was; everything else is a complaint.
    if arguments not in ([], ["data"]):
        assert ran.out == ""
    assert "Traceback" not in ran.err
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- 3: a check said no


def test_data_check_says_no_with_3_and_its_findings_on_stdout(own: Country, geo: Geo) -> None:
    (own.data / "train_images" / "img_000002_south.jpg").unlink()
    ran = geo(*own.options(), "--json", "data", "check", "--split", "train")
    assert ran.code == 3
    assert ran.json["split"] == "train"
    assert ran.json["samples"] == 128
    (problem,) = ran.json["problems"]
    assert problem["kind"] == "missing-image"
    assert problem["where"].endswith("sample 2, column image_south")
    assert "img_000002_south.jpg" in problem["message"]
    ran_for_people = geo(*own.options(), "data", "check", "--split", "train")
    assert ran_for_people.code == 3
    assert "img_000002_south.jpg" in ran_for_people.out


def test_submission_validate_says_no_with_3_and_its_findings_on_stdout(
    country: Country, geo: Geo, tmp_path: Path
) -> None:
    template = pd.read_csv(country.template)
    template.assign(predicted_state_idx_1=50, predicted_latitude=40, predicted_longitude=-100).to_csv(
        "bad.csv"
    )
    ran = geo(*country.options(tmp_path), "--json", "submission", "validate", "bad.csv")
    assert ran.code == 3
    assert ran.json["valid"] is False
    assert len(ran.json["errors"]) == 1
    assert "predicted_state_idx_1 lies outside [0, 49]" in ran.json["errors"][0]
    ran_for_people = geo(*country.options(tmp_path), "submission", "validate", "bad.csv")
    assert ran_for_people.code == 3
    assert "error: 32 rows where predicted_state_idx_1 lies outside [0, 49]\n" in ran_for_people.out
    assert "    row 2  sample 0  '50'\n" in ran_for_people.out
    assert "    … and 24 more: --json names them all\n" in ran_for_people.out
    assert "error:" not in ran_for_people.err
    (error,) = (finding for finding in ran.json["findings"] if finding["severity"] == "error")
    assert error["rows"] == [*range(2, 34)]
    assert error["sample_ids"] == template["sample_id"].astype(str).tolist()
    assert error["values"] == ["50"] * 32


# ---------------------------------------------------------------- 130: interrupted


def test_ctrl_c_ends_with_130_and_what_is_committed_stays(country: Country, tmp_path: Path) -> None:
    """A process begun as a user begins it; faults/test_kill.py has SIGTERM, and the store to the last bit."""
    from geo_embed.extraction.extract import extract

    few = Small.cut(country, tmp_path / "few", train=40)
    process = subprocess.Popen(
        [
            *(sys.executable, "-m", "geo_embed", *few.options()),
            *("--set", "tracking.progress_seconds=0.000001", "extract", "--split", "train"),
            *("--batch-size", "1", "--workers", "1"),
        ],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=hear_signals,
    )
    try:
        assert process.stderr is not None
        for line in process.stderr:
            if re.search(r"extract train: [3-9]\d of 160", line):
                break
        process.send_signal(signal.SIGINT)
        out, err = process.communicate(timeout=60)
    finally:
        process.kill()
    assert process.returncode == 130
    assert out == ""
    assert "Traceback" not in err
    again = extract(few.config(), "train")
    assert 24 <= again.reused < 160
    assert again.reused + again.computed == 160


# ---------------------------------------------------------------- help


def commands() -> Iterator[list[str]]:
    import typer

    from geo_embed.cli.app import app

    def below(group: Any, path: list[str]) -> Iterator[list[str]]:
        for name, command in sorted(group.commands.items()):
            if hasattr(command, "commands"):
                yield from below(command, [*path, name])
            else:
                yield [*path, name]

    yield from below(typer.main.get_command(app), [])


@pytest.mark.parametrize("command", [*commands()], ids=" ".join)
def test_every_command_explains_itself_with_an_example_of_itself(
    command: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("NO_COLOR", "1")
    monkeypatch.setenv("COLUMNS", "200")
    ran = run_here(capsys, *command, "--help")
    assert ran.code == 0
    assert ran.err == ""
    (example,) = (line for line in ran.out.splitlines() if "Example:" in line)
    assert example.split("Example:")[1].split()[0] == "geo"
    assert " ".join(command) in example
    assert "\x1b" not in ran.out


def test_the_commands_of_the_mission_are_there() -> None:
    names = {" ".join(command) for command in commands()}
    assert {
        *("demo", "data check", "extract", "fit-heads", "evaluate", "predict", "submit"),
        *("submission validate", "config show", "config init"),
    } <= names


def test_help_does_not_wait_for_heavy_libraries(geo: Geo) -> None:
    script = (
        "import sys\n"
        "from geo_embed.cli import main\n"
        "try:\n"
        "    main(sys.argv[1:])\n"
        "finally:\n"
        "    print('|'.join(sorted(sys.modules)), file=sys.stderr)\n"
    )
    for arguments in (["--help"], ["extract", "--help"], ["--version"], ["config", "show"]):
        ran = geo(*arguments, command=[sys.executable, "-c", script])
        loaded = set(ran.err.splitlines()[-1].split("|"))
        assert ran.code == 0
        assert "geo_embed.cli.app" in loaded
        heavy = {
            "torch",
            "transformers",
            "zarr",
            "pandas",
            "numpy",
            "PIL",
            "sklearn",
            "pyarrow",
            "huggingface_hub",
        }
        assert not heavy & loaded, arguments


def test_the_first_line_of_fit_heads_says_how_long_it_takes_and_waits_for_no_heavy_library(
    small: Country, geo: Geo
) -> None:
    script = (
        "import sys\n"
        "from geo_embed.cli import main, training\n"
        "def say(text):\n"
        "    print(text, {'torch', 'transformers', 'zarr', 'pandas'} & sys.modules.keys())\n"
        "    sys.exit()\n"
        "training.say = say\n"
        "main()\n"
    )
    options = ["--set", f"paths.data_root={small.data}", "--set", "training.preset=best"]
    fit = ["fit-heads", "--folds", "3", "--limit", "7"]
    first = geo(*options, *fit, command=[sys.executable, "-c", script])
    assert (
        first.out == "best: some 7 samples of train_ground_truth.csv; 3 times about 4 s on two cores set()\n"
    )


def test_importing_the_package_does_not_wait_for_them_either(geo: Geo) -> None:
    heavy = "{'torch', 'transformers', 'zarr', 'pandas', 'numpy', 'PIL'}"
    script = f"import sys, geo_embed, geo_embed.synthetic; print({heavy} & sys.modules.keys())"
    assert geo(command=[sys.executable, "-c", script]).out == "set()\n"


def test_the_version_is_the_packages(geo: Geo) -> None:
    from importlib.metadata import version

    assert geo("--version").out == version("geo-embed") + "\n"


def test_all_three_ways_to_call_it_are_the_same(geo: Geo) -> None:
    usual = geo("--json", "config", "show")
    installed = Path(sys.executable).with_name("geo")
    for command in ([sys.executable, REPOSITORY / "cli.py"], [installed]):
        ran = geo("--json", "config", "show", command=command)
        assert (ran.code, ran.out, ran.err) == (0, usual.out, usual.err)
        wrong = geo("--nonsense", command=command)
        assert (wrong.code, wrong.err) == (2, geo("--nonsense").err)


def test_geo_toml_in_the_working_directory_is_used(geo: Geo, tmp_path: Path) -> None:
    (tmp_path / "geo.toml").write_text('[paths]\nruns_dir = "elsewhere"\n')
    assert "elsewhere" in geo("evaluate").err
