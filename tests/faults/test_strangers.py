"""A run that a stranger hands over, damaged or made up: every verb works on it or says in one line what is wrong with which file.

Never another exception, a hang, or memory for what a file merely claims. The runs are those of `tests/old`: small, and of every
kind.
"""

from __future__ import annotations

import copy
import json
import os
import resource
import shutil
import signal
import struct
import tarfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow as pa
import pytest
import torch
from pyarrow import parquet
from safetensors.torch import load_file, save_file

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.prediction.ensemble import ensemble
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.predict import predict_split
from geo_embed.prediction.submission import submit
from geo_embed.runs.run import Run, load_run, run_stores
from geo_embed.settings import get_config, resolve

ARCHIVE = Path(__file__).parents[1] / "old" / "before-the-house.tar.xz"

SECONDS = 20
# On top of what the process has mapped already.
MEMORY = 2 << 30

JSON = ("labels.json", "provenance.json", "recipe.json", "metrics.json")
TABLES = ("val_predictions.parquet", "test_predictions.parquet", "split.parquet")
FILES = (*JSON, *TABLES, "config.toml", "heads.safetensors", "haversine_matrix.npy")


@pytest.fixture(scope="session")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("old")
    with tarfile.open(ARCHIVE) as opened:
        opened.extractall(root, filter="data")
    return root


@pytest.fixture(autouse=True)
def _beside_the_archive(archive: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The old runs name their data relative to where they were made."""
    for name in ("data", "cache"):
        (tmp_path / name).symlink_to(archive / name)
    for name in ("separate", "geocells", "best", "stacked", "dual"):
        shutil.copytree(archive / "runs" / name, tmp_path / "runs" / name)
    monkeypatch.chdir(tmp_path)


@contextmanager
def bounded() -> Iterator[None]:
    """End a hang, and refuse memory beyond what any of these files is worth."""

    def hung(number: int, frame: object) -> None:
        raise AssertionError(f"no answer within {SECONDS} s")

    limits = resource.getrlimit(resource.RLIMIT_AS)
    mapped = int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGESIZE")
    before = signal.signal(signal.SIGALRM, hung)
    signal.alarm(SECONDS)
    resource.setrlimit(resource.RLIMIT_AS, (mapped + MEMORY, limits[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, limits)
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def settings() -> Config:
    return get_config(
        paths={"data_root": "data"},
        model={"view_names": ("left", "ahead", "right"), "backbone_name": "mine", "device": "cpu"},
    )


def verbs(name: str) -> dict[str, Callable[[], object]]:
    config, runs = settings(), Path("runs")

    def run() -> Run:
        return load_run(runs, name)

    return {
        "newest": lambda: load_run(runs, None),
        "stores": lambda: run_stores(runs),
        "metrics": lambda: run().read_metrics(),
        "split": lambda: run().read_split(),
        "classes": lambda: run().read_classes(),
        "evaluate": lambda: evaluate(config, run(), "val", ("class", "calibration")),
        "predict": lambda: predict_split(config, run(), "train"),
        "submit": lambda: submit(config, run()),
        "ensemble": lambda: ensemble(config, [name, "dual"], method="weighted", name="both", overwrite=True),
    }


def refused(name: str, *, only: tuple[str, ...] = ()) -> dict[str, GeoError]:
    """What each verb says of a run; a verb that works is left out."""
    complaints = {}
    with bounded():
        for verb, act in verbs(name).items():
            if only and verb not in only:
                continue
            try:
                act()
            except GeoError as error:
                complaints[verb] = error
    assert not [error for error in complaints.values() if "\n" in str(error) or len(str(error)) > 1500]
    return complaints


def test_what_is_whole_works_and_so_every_complaint_below_is_of_the_damage() -> None:
    for name in ("separate", "geocells", "best", "stacked"):
        assert refused(name) == {}


# ---------------------------------------------------------------- any file


def _pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def _directory(path: Path) -> None:
    path.unlink()
    path.mkdir()


def _link(path: Path, to: str) -> None:
    path.unlink()
    path.symlink_to(to)


def _sparse(path: Path) -> None:
    with path.open("wb") as file:
        file.truncate(1 << 36)


DAMAGE: dict[str, Callable[[Path], object]] = {
    "gone": Path.unlink,
    "empty": lambda path: path.write_bytes(b""),
    "cut": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "nulls": lambda path: path.write_bytes(bytes(5000)),
    "text": lambda path: path.write_text("not what it should be\n" * 50),
    "bytes": lambda path: path.write_bytes(np.random.default_rng(0).bytes(5000)),
    "64 GB of nothing": _sparse,
    "pipe": _pipe,
    "directory": _directory,
    "device": lambda path: _link(path, "/dev/zero"),
    "loop": lambda path: _link(path, path.name),
}

USED_BY = {
    "labels.json": {"evaluate", "predict", "submit", "ensemble", "classes"},
    "provenance.json": {"metrics", "evaluate", "predict"},
    "recipe.json": {"predict"},
    "metrics.json": {"metrics"},
    "config.toml": {"evaluate", "predict", "submit"},
    "heads.safetensors": {"predict"},
    "haversine_matrix.npy": {"classes", "ensemble"},
    "val_predictions.parquet": {"evaluate", "ensemble"},
    "test_predictions.parquet": set(),
    "split.parquet": {"split"},
}


@pytest.mark.parametrize("damage", DAMAGE)
@pytest.mark.parametrize("file", FILES)
def test_a_file_that_is_none_is_named_by_every_verb_that_needs_it(file: str, damage: str) -> None:
    path = Path("runs/separate") / file
    DAMAGE[damage](path)
    os.utime("runs/separate", (2e9, 2e9))
    if (provenance := Path("runs/separate/provenance.json")).is_file() and file != "provenance.json":
        os.utime(provenance, (2e9, 2e9))
    complaints = refused("separate")
    # One broken run is in nobody's way who asks about all of them.
    assert not {"stores", "newest"} & complaints.keys()
    if file == "config.toml" and damage in ("empty", "cut"):
        # What it doesn't say is as by default.
        return
    assert USED_BY[file] <= complaints.keys()
    if file != "provenance.json":
        assert all(
            error.where.startswith(str(path)) for verb, error in complaints.items() if verb in USED_BY[file]
        )


@pytest.mark.parametrize("file", FILES)
def test_another_runs_file_works_or_is_refused(file: str) -> None:
    shutil.copyfile(Path("runs/geocells") / file, Path("runs/separate") / file)
    complaints = refused("separate")
    assert ("predict" in complaints) == (file in ("recipe.json", "heads.safetensors"))


# ---------------------------------------------------------------- JSON and TOML, key by key

VALUES: tuple[Any, ...] = (
    *(None, True, -1, 0, 0.5, 10**9, 10**30, -(10**400), 1e308, "", "x" * 100_000, "\0", "\x1b[31m\n"),
    *([], {}, [[]], [None] * 3, {"x": 1}, [-1.0], [10**12] * 2, {"weights": [1.0]}),
)


def _places(content: Any, at: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Every key of every table, and the first entry of every list."""
    if isinstance(content, dict):
        for key, inner in content.items():
            yield (*at, key)
            yield from _places(inner, (*at, key))
    elif isinstance(content, list) and content:
        yield (*at, 0)
        yield from _places(content[0], (*at, 0))


def _changed(content: Any, at: tuple[Any, ...], value: Any) -> Any:
    changed = copy.deepcopy(content)
    place = changed
    for key in at[:-1]:
        place = place[key]
    if value is ...:
        del place[at[-1]]
    else:
        place[at[-1]] = value
    return changed


@pytest.mark.parametrize(
    ("name", "file"),
    [("separate", file) for file in JSON]
    + [(name, "recipe.json") for name in ("geocells", "best", "stacked")],
)
def test_whatever_stands_under_whatever_key_a_run_works_or_is_refused(name: str, file: str) -> None:
    path = Path("runs") / name / file
    content = json.loads(path.read_text())
    places = [at for at in _places(content) if not {"finetune", "machine", "versions", "command"} & set(at)]
    random = np.random.default_rng(len(name) + len(file))
    only = ("metrics",) if file == "metrics.json" else ("predict", "classes")
    counts = 0
    for at in places:
        # Every key changes its value; by what is drawn, since all of both are too many.
        drawn = [VALUES[k] for k in random.choice(len(VALUES), size=2, replace=False)]
        for value in (..., *drawn) if len(places) < 30 else drawn[:1]:
            path.write_text(json.dumps(_changed(content, at, value)))
            counts += bool(refused(name, only=only))
    assert counts


@pytest.mark.parametrize(
    ("text", "match"),
    [
        ('{"val": ' * 100_000, "nested too deep"),
        ('{"val": {"score": NaN}}', "NaN is no number"),
        ('{"val": {"score": 1e999}}', "beyond any number"),
        ('{"val": {"score": "\\ud800"}}', "surrogates not allowed"),
        ('{"val": {"score": ' + "9" * 5000 + "}}", "integer string conversion"),
    ],
)
def test_json_that_python_alone_would_take_is_refused(text: str, match: str) -> None:
    Path("runs/separate/metrics.json").write_text(text)
    with bounded(), pytest.raises(GeoError, match=match):
        load_run(Path("runs"), "separate").read_metrics()


def _class(key: str, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda labels: labels["classes"][1].update({key: value})


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (_class("state_idx", 3), "state_idx 3 is repeated"),
        (_class("state_idx", 2**63), "classes.1.state_idx"),
        (_class("samples", -1), "classes.1.samples"),
        (lambda labels: labels["classes"].pop(), "3 classes, 4 prior probabilities"),
        (lambda labels: labels["prior"]["probabilities"].__setitem__(0, -0.1), "prior.probabilities.0"),
        (lambda labels: labels["prior"]["probabilities"].__setitem__(0, 0.9), "sum to 1.66"),
        (lambda labels: labels["prior"].update(latitude=91), "prior.latitude"),
        (lambda labels: labels["prior"].update(longitude=-180.5), "prior.longitude"),
        (
            lambda labels: labels.update(classes=labels["classes"] * 30_000),
            "classes: List should have at most",
        ),
    ],
)
def test_classes_that_contradict_each_other_are_refused(
    change: Callable[[dict[str, Any]], object], match: str
) -> None:
    path = Path("runs/separate/labels.json")
    labels = json.loads(path.read_text())
    change(labels)
    path.write_text(json.dumps(labels))
    with bounded(), pytest.raises(GeoError, match=match):
        load_run(Path("runs"), "separate")


def test_the_order_of_the_classes_is_the_tables_and_changes_no_score() -> None:
    """A table's probabilities stand in the order of labels.json, whichever that is."""
    before = evaluate(settings(), load_run(Path("runs"), "separate"))
    path, order = Path("runs/separate/labels.json"), [2, 0, 3, 1]
    labels = json.loads(path.read_text())
    labels["classes"] = [labels["classes"][k] for k in order]
    labels["prior"]["probabilities"] = [labels["prior"]["probabilities"][k] for k in order]
    path.write_text(json.dumps(labels))
    table = pd.read_parquet("runs/separate/val_predictions.parquet")
    table["probabilities"] = [shares[order] for shares in table["probabilities"]]
    table.to_parquet("runs/separate/val_predictions.parquet")
    assert evaluate(settings(), load_run(Path("runs"), "separate")) == before


# ---------------------------------------------------------------- numbers in tables


def _first(column: str, value: Any) -> Callable[[pd.DataFrame], pd.DataFrame]:
    return lambda table: table.assign(**{column: [value, *table[column][1:]]})


TABLE_DAMAGE: dict[str, tuple[Callable[[pd.DataFrame], Any], str]] = {
    "NaN": (_first("probabilities", [np.nan, 0.5, 0.5, 0.0]), r"negative, NaN or infinite \(row 0; 1 row\)"),
    "negative": (_first("probabilities", [-0.5, 0.5, 0.5, 0.5]), "negative, NaN or infinite"),
    "infinite": (_first("probabilities", [np.inf, 0.0, 0.0, 0.0]), "negative, NaN or infinite"),
    "sum": (_first("probabilities", [0.5, 0.4, 0.0, 0.0]), "don't sum to 1"),
    "zero": (_first("probabilities", [0.0] * 4), "don't sum to 1"),
    "short": (_first("probabilities", [0.5, 0.5]), "2 probabilities a sample|4 probabilities a sample"),
    "all short": (lambda t: t.assign(probabilities=[[0.5, 0.5]] * len(t)), "2 probabilities a sample"),
    "null": (_first("probabilities", None), "missing values"),
    "text": (lambda t: t.assign(probabilities="0.25"), "where lists of numbers are wanted"),
    "texts": (lambda t: t.assign(probabilities=[["a"] * 4] * len(t)), "where lists of numbers are wanted"),
    "twice": (lambda t: pd.concat([t, t.head(1)]), "a sample_id is repeated"),
    "no id": (_first("sample_id", None), "missing values"),
    "odd id": (lambda t: t.assign(sample_id=[1.5] * len(t)), "its ids are double"),
    "pole": (_first("latitude", 90.5), r"90.5 lies outside \[-90, 90\]"),
    "around": (_first("longitude", 181.0), r"181 lies outside"),
    "nowhere": (_first("latitude", np.nan), "missing values"),
    "truth nowhere": (_first("true_longitude", np.inf), "inf lies outside"),
    "half a state": (_first("true_state_idx", 3.5), "no whole number"),
    "no state": (_first("true_state_idx", np.nan), "missing values"),
    "text state": (lambda t: t.assign(true_state_idx="three"), "where numbers are wanted"),
    "half the truth": (lambda t: t.drop(columns="true_latitude"), "not the rest of the truth"),
    "no column": (lambda t: t.drop(columns="longitude"), "no column 'longitude'"),
    "dates": (lambda t: t.assign(latitude=pd.Timestamp("2026-01-01")), "where numbers are wanted"),
}


@pytest.mark.parametrize("damage", TABLE_DAMAGE)
def test_a_table_that_is_no_prediction_is_refused_and_not_scored(damage: str) -> None:
    change, match = TABLE_DAMAGE[damage]
    path = Path("runs/separate/val_predictions.parquet")
    table = change(pd.read_parquet(path))
    parquet.write_table(pa.Table.from_pandas(table, preserve_index=False), path)
    complaints = refused("separate", only=("evaluate", "ensemble"))
    assert complaints.keys() == {"evaluate", "ensemble"}
    for error in complaints.values():
        with pytest.raises(GeoError, match=match):
            raise error


@pytest.mark.parametrize("damage", ["NaN", "negative", "twice", "pole", "short"])
def test_a_table_of_the_test_split_that_is_none_is_no_submission(damage: str) -> None:
    """It is made anew, or refused."""
    path = Path("runs/separate/test_predictions.parquet")
    whole = path.read_bytes()
    _, before = submit(settings(), load_run(Path("runs"), "separate"))
    assert before.valid
    expected = Path("submissions/separate.csv").read_bytes()
    path.write_bytes(whole)
    note = parquet.read_schema(path).metadata
    table = TABLE_DAMAGE[damage][0](pd.read_parquet(path))
    parquet.write_table(pa.Table.from_pandas(table, preserve_index=False).replace_schema_metadata(note), path)
    Path("submissions/separate.csv").unlink()
    if not refused("separate", only=("submit",)):
        assert Path("submissions/separate.csv").read_bytes() == expected


# ---------------------------------------------------------------- claims


def _header(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    data = path.read_bytes()
    stop = 8 + struct.unpack("<Q", data[:8])[0]
    header = json.loads(data[8:stop])
    change(header)
    text = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + data[stop:])


@pytest.mark.parametrize("rows", [10**12, 2**62])
def test_tensors_that_claim_more_than_there_is_are_refused(rows: int) -> None:
    def claim(header: dict[str, Any]) -> None:
        name = next(name for name in header if name != "__metadata__")
        header[name] = {"dtype": "F32", "shape": [rows], "data_offsets": [0, 4 * rows]}

    _header(Path("runs/separate/heads.safetensors"), claim)
    assert "not a readable safetensors file" in refused("separate")["predict"].what


@pytest.mark.parametrize(
    ("key", "value", "match"),
    [
        ("head_hidden", 10**9, "less than or equal to 65536"),
        ("head_hidden", 65536, "where the run's recipe and labels make it"),
        ("head_depth", 10**7, "less than or equal to 256"),
        ("gps_hidden", 65536, "where the run's recipe and labels make it"),
        ("view_names", ["left"] * 10**5, "a view is repeated"),
    ],
)
def test_heads_that_claim_to_be_huge_are_refused_before_they_are_built(
    key: str, value: Any, match: str
) -> None:
    path = Path("runs/separate/recipe.json")
    recipe = json.loads(path.read_text())
    recipe["parts"][0]["heads"]["model"][key] = value
    path.write_text(json.dumps(recipe))
    with pytest.raises(GeoError, match=match):
        raise refused("separate")["predict"]


@pytest.mark.parametrize("value", [True, 10**30, "5", -1, None, [2]])
@pytest.mark.parametrize(
    ("name", "kind", "keys"),
    [
        ("geocells", "refiner", ("cells", "neighbours", "temperature", "max_km", "samples")),
        ("best", "decision", ("head_share", "cell_temperature", "state_temperature", "weights")),
    ],
)
def test_what_only_looks_like_a_number_or_overflows_is_refused(
    name: str, kind: str, keys: tuple[str, ...], value: object
) -> None:
    path = Path("runs") / name / "recipe.json"
    whole = path.read_text()
    for key in keys:
        recipe = json.loads(whole)
        (entry,) = recipe["parts"][0].values()
        entry[kind][key] = value
        path.write_text(json.dumps(recipe))
        assert "can't be loaded" in refused(name, only=("predict",))["predict"].what


@pytest.mark.parametrize("cells", [10**9, 2**31 - 1])
def test_cells_beyond_those_in_the_file_are_refused(cells: int) -> None:
    path = Path("runs/geocells/recipe.json")
    recipe = json.loads(path.read_text())
    recipe["parts"][0]["heads"]["cells"] = cells
    path.write_text(json.dumps(recipe))
    assert "can't be loaded" in refused("geocells")["predict"].what


def test_an_embedding_a_billion_wide_or_a_run_of_many_parts_is_refused() -> None:
    path = Path("runs/separate/provenance.json")
    provenance = json.loads(path.read_text())
    provenance["store"]["dim"] = 10**9
    path.write_text(json.dumps(provenance))
    assert "store.dim" in refused("separate")["predict"].what
    path = Path("runs/geocells/recipe.json")
    recipe = json.loads(path.read_text())
    recipe["parts"] *= 900
    path.write_text(json.dumps(recipe))
    assert "can't be loaded" in refused("geocells")["predict"].what


@pytest.mark.parametrize("shape", [(10**6, 10**6), (2**62,), (4,), (0, 0), (4, 4, 4)])
def test_distances_of_another_shape_than_the_classes_are_refused(shape: tuple[int, ...]) -> None:
    path = Path("runs/separate/haversine_matrix.npy")
    with path.open("wb") as file:
        np.lib.format.write_array_header_1_0(file, {"descr": "<f8", "fortran_order": False, "shape": shape})
        file.write(bytes(8 * min(64, int(np.prod(shape, dtype=object)))))
    assert {"classes", "ensemble"} <= refused("separate").keys()


@pytest.mark.parametrize("value", [np.nan, np.inf])
@pytest.mark.parametrize("name", ["separate", "geocells", "best"])
def test_heads_with_a_weight_that_is_no_number_are_refused(name: str, value: float) -> None:
    path = Path("runs") / name / "heads.safetensors"
    tensors = load_file(path)
    wild = [key for key, tensor in tensors.items() if tensor.is_floating_point() and tensor.numel()][-1]
    tensors[wild].view(-1)[0] = value
    save_file(tensors, path)
    assert "NaN or infinity" in refused(name)["predict"].what


@pytest.mark.parametrize("value", [1e38, -1e38, 0.0])
def test_heads_of_absurd_weights_answer_with_numbers_or_are_refused(value: float) -> None:
    for name in ("separate", "geocells", "best"):
        path = Path("runs") / name / "heads.safetensors"
        tensors = load_file(path)
        save_file(
            {
                key: torch.full(tensor.shape, value).to(tensor.dtype).nan_to_num()
                if tensor.is_floating_point()
                else tensor
                for key, tensor in tensors.items()
            },
            path,
        )
        refused(name, only=("predict",))


# ---------------------------------------------------------------- an ensemble's members


def test_an_ensemble_that_is_its_own_member_or_reaches_elsewhere_is_refused() -> None:
    member = Path("runs/stacked/members/1-separate")
    shutil.rmtree(member)
    member.symlink_to("..")
    assert "this member is a link" in refused("stacked")["predict"].what
    path = Path("runs/stacked/recipe.json")
    recipe = json.loads(path.read_text())
    for name in ("../../separate", "..", "/etc", "a\0b", "", ".hidden", "x" * 300):
        recipe["ensemble"]["members"][0] = name
        path.write_text(json.dumps(recipe))
        assert "can't be loaded" in refused("stacked")["predict"].what


def test_a_copy_of_a_run_brings_nothing_along_from_elsewhere(tmp_path: Path) -> None:
    """No device, which would fill the disk, no pipe, which would wait, and nothing through a link to a folder."""
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "secret").touch()
    Path("runs/separate/elsewhere").symlink_to(tmp_path / "private")
    assert refused("separate", only=("ensemble",)) == {}
    assert not list(Path("runs/both").rglob("secret"))
    for make in (lambda path: os.mkfifo(path), lambda path: path.symlink_to("/dev/zero")):
        path = Path("runs/separate/history.parquet")
        path.unlink()
        make(path)
        assert "where a file is wanted" in refused("separate", only=("ensemble",))["ensemble"].what


# ---------------------------------------------------------------- settings


@pytest.mark.parametrize("damage", [name for name in DAMAGE if name not in ("empty", "gone")])
def test_a_configuration_file_that_is_none_is_refused(damage: str) -> None:
    path = Path("geo.toml")
    path.write_text("[training]\nbatch_size = 1\n")
    DAMAGE[damage](path)
    with bounded(), pytest.raises(GeoError) as caught:
        resolve(path)
    assert caught.value.where == "geo.toml"
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "text",
    [
        *(
            "a = " + "[" * 100_000,
            "[" + "a." * 100_000 + "b]",
            "a" + ".a" * 50_000 + " = 1",
            "x = " + "9" * 5000,
        ),
        *(
            "[training]\nseed = " + "9" * 30,
            "[training]\nseed = 1979-05-27",
            "[training]\nlearning_rate = nan",
        ),
        *("[training]\nlearning_rate = inf", "[training]\nepochs = 1_000_000_000_000", "training = 1"),
        *("[[training]]\nseed = 1", "[training.seed]\nx = 1", '[paths]\ndata_root = "a\\u0000b"'),
        *(
            '[model]\nhead = ["separate"]',
            "[model]\nhead_hidden = 1_000_000_000",
            "[model]\nhead_depth = 1e7",
        ),
        *(
            '[model]\nview_names = [["a"], "b"]',
            "[model]\nview_names = []",
            '[model]\nplugins = "\\u0000.py"',
        ),
        *('[model]\nview_names = ["a\\u0000"]', "[model]\nplugins = [1]", "[model]\ngps_box = 3"),
        *("[inference]\nworkers = 1_000_000_000", '"\\u001b[31m" = 1', "[training]\nseeds = 1e99"),
        '[model]\nhead = "' + "x" * 900_000 + '"',
    ],
)
def test_a_configuration_that_is_none_is_refused_in_one_short_line(text: str) -> None:
    Path("geo.toml").write_text(text)
    with bounded(), pytest.raises(GeoError) as caught:
        resolve()
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1500


@pytest.mark.parametrize(
    "setting",
    [
        *("", "=", "x", "=1", "a=1", "training=1", "training.seed", "training.seed=", "training.seed.x=1"),
        *(
            "training.seed=" + "9" * 5000,
            "training.seed=" + "[" * 100_000,
            "training.seed=" + "[" * 900 + "]" * 900,
        ),
        *(
            "training.seed=NaN",
            "training.learning_rate=Infinity",
            "training.learning_rate=NaN",
            "training.seed=1e400",
        ),
        *('paths.data_root="a\\u0000b"', 'paths.data_root="\\ud800"', 'model.view_names=["\\ud800"]'),
        *("paths.data_root=[1]", "model.view_names={}", "model.view_names=3", "model.head=\x1b[31m"),
        *(
            "." * 10_000 + "=1",
            "model.head_hidden=1e9",
            "training.folds=99999",
            "model.gps_box.lat_min=1e300",
        ),
        *("model.plugins=\udcff.py", "tracking.note=\udcff"),
    ],
)
def test_a_setting_that_is_none_is_refused_in_one_short_line(
    setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    with bounded(), pytest.raises(GeoError) as caught:
        resolve(settings=[setting])
    assert len(str(caught.value)) < 1500 + len(setting.partition("=")[0])
    key, equals, value = setting.partition("=")
    group, _, leaf = key.partition(".")
    if (
        group in ("training", "model", "paths", "tracking")
        and equals
        and leaf.isidentifier()
        and "\0" not in value
    ):
        monkeypatch.setenv(f"GEO_{group}__{leaf}".upper(), value)
        with bounded(), pytest.raises(GeoError) as caught:
            resolve()
