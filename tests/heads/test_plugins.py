"""A file of one's own, or an installed package, adds a fusion, a head, losses and a calibration; a stranger's run adds nothing."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.fitting.sweep import parse_space, sweep
from geo_embed.heads.heads import step_flop
from geo_embed.prediction.predict import predict_split
from geo_embed.registry import REGISTRIES
from geo_embed.runs.recipe import load_heads
from geo_embed.runs.run import load_run
from geo_embed.settings import resolve

if TYPE_CHECKING:
    from conftest import Country, Geo

PLUGIN = '''
import torch
from torch import nn

from geo_embed.heads.calibration import Calibration
from geo_embed.heads.fusion import FusionModule, shares
from geo_embed.heads.heads import POINTED, TRAINED, PointHeads
from geo_embed.heads.layers import keep
from geo_embed.registry import CALIBRATIONS, FUSIONS, GPS_LOSSES, HEADS, STATE_LOSSES


@FUSIONS.register("largest", flop=lambda size: 0)
class Largest(FusionModule):
    """The largest value of each feature among the views that are there."""

    def __init__(self, size):
        super().__init__(size.dim)

    def forward(self, views, present, drop=keep):
        return views.masked_fill(~present[..., None], -torch.inf).amax(dim=1), shares(present, views.dtype)


@HEADS.register("linear", settings=TRAINED | POINTED, flop=lambda size: 4 * size.dim * (size.classes + 2))
class Linear(PointHeads):
    """One linear layer for the states and one for the point."""

    def add_layers(self, size):
        self.states = nn.Linear(size.dim, size.classes)
        self.gps = nn.Linear(size.dim, 2)
        self.add_box()

    def read(self, vector, drop=keep):
        points = self.middle + self.reach * torch.tanh(self.gps(vector))
        return {"logits": self.states(vector), "vector": vector, "points": points}


@STATE_LOSSES.register("focal")
def focal(logits, labels, points, tables):
    """Focal loss (Lin et al., ICCV 2017), gamma = 2."""
    p = torch.softmax(logits, dim=1).gather(1, labels[:, None])[:, 0]
    return -((1 - p) ** 2) * p.clamp_min(1e-9).log()


@GPS_LOSSES.register("log_cosh")
def log_cosh(points, truth):
    """Smooth, and linear far away."""
    return torch.log(torch.cosh((points - truth).clamp(-20, 20))).mean()


@CALIBRATIONS.register("halved")
def halved(log_probabilities, labels):
    """A temperature of two, whatever the rows say."""
    classes = log_probabilities.shape[1]
    return Calibration("halved", (0.5,) * classes, (0.0,) * classes)
'''

NAMES = {
    "model.fusion": "largest",
    "model.head": "linear",
    "training.state_loss": "focal",
    "training.gps_loss": "log_cosh",
    "training.calibration": "halved",
}


def _forget() -> None:
    for name in [name for name in sys.modules if name.startswith("geo_embed_plugin_") or name == "my_heads"]:
        for registry in REGISTRIES:
            registry.forget(name)
        del sys.modules[name]


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    yield
    _forget()


@pytest.fixture
def plugin(tmp_path: Path) -> Path:
    file = tmp_path / "my_heads.py"
    file.write_text(PLUGIN, encoding="utf-8")
    return file


@pytest.fixture
def package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An installed package with an entry point for each name."""
    site = tmp_path / "site"
    described = site / "my_heads-1.0.dist-info"
    described.mkdir(parents=True)
    (site / "my_heads.py").write_text(PLUGIN, encoding="utf-8")
    (described / "METADATA").write_text("Metadata-Version: 2.1\nName: my-heads\nVersion: 1.0\n")
    groups = {
        "fusions": ["largest"],
        "heads": ["linear"],
        "losses": ["focal", "log_cosh"],
        "calibrations": ["halved"],
    }
    lines = [
        line
        for group, names in groups.items()
        for line in (f"[geo_embed.{group}]", *(f"{name} = my_heads" for name in names))
    ]
    (described / "entry_points.txt").write_text("\n".join(lines) + "\n")
    monkeypatch.syspath_prepend(str(site))
    return site


def settings_of(country: Country, work: Path, **more: Any) -> Config:
    short = {"training.epochs": 2, "finetune.epochs": 1, "finetune.batch_size": 8}
    return resolve(overrides=country.settings(work) | short | NAMES | more)[0]


def test_a_file_adds_one_of_each_that_fits_saves_loads_predicts_finetunes_and_sweeps(
    country: Country, tmp_path: Path, plugin: Path
) -> None:
    config = settings_of(country, tmp_path, **{"model.plugins": str(plugin)})
    fit_heads(config, name="mine")
    run = load_run(config.paths.runs_dir, "mine")
    assert run.config.model.plugins == (str(plugin),)
    heads = load_heads(run).parts[0]
    assert type(heads).__name__ == "Linear"
    assert type(heads.fusion).__name__ == "Largest"
    predictions, _ = predict_split(config, run, "test")
    assert len(predictions.sample_id) == len(country_rows(country))

    tuned = finetune(config, name="tuned", init="mine", limit=16)
    assert tuned.epochs == 1
    assert load_run(config.paths.runs_dir, "tuned").config.model.fusion == "largest"

    space = parse_space({"model.fusion": ["average", "largest"], "model.head": ["linear", "dual"]}, config)
    swept = sweep(config, space=space, trials=4, eta=2, name="swept")
    assert swept.trials[0]["score"] is not None
    assert {"linear", "dual"} <= {trial["settings"].get("model.head", "linear") for trial in swept.trials}


def country_rows(country: Country) -> list[str]:
    return country.template.read_text(encoding="utf-8").splitlines()[1:]


def test_a_package_adds_them_by_entry_points_with_no_setting_but_the_names(
    country: Country, tmp_path: Path, package: Path
) -> None:
    assert "my_heads" not in sys.modules
    config = settings_of(country, tmp_path)
    assert "my_heads" not in sys.modules, "a name is judged without importing anything"
    fit_heads(config, name="mine")
    assert Path(sys.modules["my_heads"].__file__ or "").parent == package
    _forget()
    run = load_run(config.paths.runs_dir, "mine")
    assert type(load_heads(run).parts[0]).__name__ == "Linear"


def test_best_lets_a_plugins_fusion_race_and_prices_it(
    country: Country, tmp_path: Path, plugin: Path
) -> None:
    more = {
        "model.plugins": str(plugin),
        "training.preset": "best",
        "training.budget_seconds": 0.05,
        "model.head": "geocells",
    }
    config = settings_of(country, tmp_path, **more)
    fit_heads(config, name="best")
    recipe = json.loads((config.paths.runs_dir / "best" / "recipe.json").read_text(encoding="utf-8"))
    members = recipe["parts"][0]["best"]["members"]
    assert {member["model"]["fusion"] for member in members} == {"largest"}
    model = config.model.model_copy(update={"head_hidden": 8})
    largest, concat = (
        step_flop(model.model_copy(update={"fusion": name}), 16, 4, 5, 9) for name in ("largest", "concat")
    )
    assert concat - largest == 4 * 6 * 16**2


def test_nothing_of_a_strangers_run_is_executed(country: Country, tmp_path: Path, plugin: Path) -> None:
    config = settings_of(country, tmp_path, **{"model.plugins": str(plugin)})
    fit_heads(config, name="theirs")
    _forget()
    plugin.write_text(f"open({str(tmp_path / 'executed')!r}, 'w')", encoding="utf-8")
    with pytest.raises(GeoError, match="isn't loaded") as caught:
        load_run(config.paths.runs_dir, "theirs")
    assert not (tmp_path / "executed").exists()
    assert str(plugin) in str(caught.value)
    assert f"--set 'model.plugins=[\"{plugin}\"]'" in caught.value.hint

    plugin.write_text(PLUGIN, encoding="utf-8")
    resolve(overrides={"model.plugins": [str(plugin)]})
    assert type(load_heads(load_run(config.paths.runs_dir, "theirs")).parts[0]).__name__ == "Linear"

    _forget()
    plugin.unlink()
    with pytest.raises(GeoError, match="is gone") as caught:
        load_run(config.paths.runs_dir, "theirs")
    assert str(plugin) in str(caught.value)


def test_the_command_line_takes_a_plugins_fusion_and_refuses_an_unknown_one(
    country: Country, tmp_path: Path, plugin: Path, geo: Geo
) -> None:
    options = [*country.options(tmp_path), "--set", f"model.plugins={plugin}", "--set", "training.epochs=1"]
    done = geo(*options, "fit-heads", "--fusion", "largest", "--name", "mine")
    assert done.code == 0, done.err
    refused = geo(*options, "fit-heads", "--fusion", "largets")
    assert refused.code == 2
    assert "'largest'" in refused.err
    listed = geo(*country.options(tmp_path), "evaluate", "mine")
    assert listed.code == 1
    assert str(plugin) in listed.err


@pytest.mark.parametrize(
    ("code", "message", "where"),
    [
        ("x = 1\nraise ValueError('boom')", "ValueError: boom", "line 2"),
        ("def f(:\n", "SyntaxError", "line 1"),
        ("import nowhere_to_be_found", "No module named 'nowhere_to_be_found'", "line 1"),
        (
            "from geo_embed.registry import FUSIONS\nFUSIONS.register('x')(lambda size: None)",
            "doesn't say what it costs",
            "bad.py",
        ),
        (
            "from geo_embed.registry import FUSIONS\n"
            "FUSIONS.register('average', flop=lambda size: 0)(lambda size: None)",
            "a fusion 'average' already",
            "bad.py",
        ),
    ],
)
def test_a_plugin_that_fails_is_one_line_with_its_file(
    tmp_path: Path, code: str, message: str, where: str
) -> None:
    (tmp_path / "bad.py").write_text(code, encoding="utf-8")
    with pytest.raises(GeoError) as caught:
        resolve(overrides={"model.plugins": ["bad.py"]})
    assert message in caught.value.what
    assert "bad.py" in caught.value.where
    assert where in caught.value.where
    assert "\n" not in str(caught.value)


def test_a_plugin_that_is_not_there_names_what_asked_for_it(tmp_path: Path) -> None:
    with pytest.raises(GeoError, match=r"gone\.py") as caught:
        resolve(settings=["model.plugins=gone.py"])
    assert "--set" in caught.value.hint
    with pytest.raises(GeoError, match="no module 'not_a_module'"):
        resolve(settings=["model.plugins=not_a_module"])


def test_a_plugin_that_failed_half_way_leaves_nothing_behind(tmp_path: Path, plugin: Path) -> None:
    plugin.write_text(PLUGIN + "\nraise RuntimeError", encoding="utf-8")
    with pytest.raises(GeoError, match="RuntimeError"):
        resolve(overrides={"model.plugins": [str(plugin)]})
    with pytest.raises(GeoError, match=r"model\.fusion"):
        resolve(overrides={"model.fusion": "largest"})


def test_the_file_in_the_documentation_works(country: Country, tmp_path: Path) -> None:
    text = (Path(__file__).parents[2] / "docs" / "heads.md").read_text(encoding="utf-8")
    code = text.split("```python\n", 1)[1].split("```", 1)[0]
    assert code.startswith("# my_heads.py\n")
    (tmp_path / "my_heads.py").write_text(code, encoding="utf-8")
    more = {"model.plugins": "my_heads.py", "training.gps_loss": "mse", "training.calibration": "none"}
    fit_heads(settings_of(country, tmp_path, **more), name="documented")
    assert type(load_heads(load_run(tmp_path / "runs", "documented")).parts[0]).__name__ == "Linear"
