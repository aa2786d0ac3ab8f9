"""A space is checked before anything is trained, and drawn from with a seed; what has no effect isn't drawn."""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.fitting import space as room
from geo_embed.fitting.space import SPACE, Range, draw, parse_space, read_space
from geo_embed.fitting.sweep import plain
from geo_embed.heads.heads import effective_settings
from geo_embed.registry import FUSIONS, STATE_LOSSES
from geo_embed.settings import known_keys


def test_drawing_is_seeded_and_more_trials_only_add_to_fewer(config: Config) -> None:
    space = parse_space(SPACE, config)
    few, many = draw(space, config, 5), draw(space, config, 40)
    assert few == many[:5]
    assert many[0] == {}
    assert all(changes not in many[:k] for k, changes in enumerate(many))
    other = draw(
        space, config.model_copy(update={"training": config.training.model_copy(update={"seed": 1})}), 5
    )
    assert other[1:] != few[1:]


def test_rates_are_drawn_evenly_in_their_logarithm(config: Config) -> None:
    random = np.random.default_rng(0)
    drawn = np.array([Range(1e-4, 1e-2, log=True).draw(random) for _ in range(2000)])
    assert drawn.min() >= 1e-4
    assert drawn.max() <= 1e-2
    assert (drawn < 1e-3).mean() == pytest.approx(0.5, abs=0.05)
    flat = np.array([Range(0.0, 0.6).draw(random) for _ in range(2000)])
    assert flat.mean() == pytest.approx(0.3, abs=0.02)
    whole = parse_space({"model.cell_samples": {"low": 5, "high": 9}}, config)["model.cell_samples"]
    assert {type(whole.draw(random)) for _ in range(20)} == {int}


def test_every_drawn_setting_has_an_effect_in_its_head(config: Config) -> None:
    drawn = draw(parse_space(SPACE, config), config, 60)
    heads = {changes.get("model.head", "separate") for changes in drawn}
    assert heads == {"separate", "geocells", "dual", "hierarchical", "probe"}
    for changes in drawn:
        head = changes.get("model.head", "separate")
        assert ("training.l2" in changes) <= (head == "probe")
        assert ("training.learning_rate" in changes) <= (head != "probe")
        assert ("model.cells" in changes) <= (head in ("geocells", "probe"))
        assert ("training.gps_loss" in changes) <= (head in ("dual", "hierarchical"))


def test_a_space_that_is_used_up_ends_the_drawing(config: Config, capsys: pytest.CaptureFixture[str]) -> None:
    space = parse_space({"model.fusion": ["average", "evidence"], "model.standardise": [True, False]}, config)
    drawn = draw(space, plain(config), 50)
    assert len(drawn) == 4
    assert "fewer than 50 trials" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("space", "what", "hint"),
    [
        (
            {"training.learning_rat": [1e-3]},
            "unknown setting 'training.learning_rat'",
            "training.learning_rate",
        ),
        ({"learning_rate": [1e-3]}, "unknown setting 'learning_rate'", "training.learning_rate"),
        ({"training": {"tau": [1.0]}}, "unknown setting 'training.tau'", ""),
        ({"training.epochs": [1, 2]}, "training.epochs can't vary", ""),
        ({"model.backbone_name": ["a"]}, "model.backbone_name can't vary", ""),
        ({"paths.cache_dir": ["a"]}, "paths.cache_dir can't vary", ""),
        ({"model.fusion": ["average", "sum"]}, "model.fusion: Input should be", ""),
        ({"model.dropout": {"low": 0.0, "high": 1.5}}, "model.dropout: .*1.5", ""),
        ({"training.learning_rate": {"low": 0, "high": 1, "log": True}}, "low must lie above 0", ""),
        ({"training.learning_rate": {"low": 2, "high": 1}}, "low must lie below high", ""),
        ({"training.learning_rate": {"low": 1e-3, "hi": 1}}, "wants low, high and log", ""),
        ({"training.learning_rate": {"low": "a", "high": "b"}}, "wants low, high and log", ""),
        ({"model.fusion": {"low": 0, "high": 1}}, "model.fusion: isn't a number", ""),
        ({"model.fusion": "average"}, "wants a list of values or a range", ""),
        ({"model.fusion": []}, "wants a list of values or a range", ""),
        ({}, "the space is empty", ""),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(
    config: Config, space: dict[str, Any], what: str, hint: str
) -> None:
    with pytest.raises(GeoError, match=what) as caught:
        parse_space(space, config, where="space.toml")
    assert caught.value.where == "space.toml"
    assert hint in caught.value.hint


def test_a_space_file_may_have_dotted_keys_or_tables(config: Config, tmp_path: Path) -> None:
    (tmp_path / "dotted.toml").write_text(
        '"training.learning_rate" = {low = 1e-4, high = 1e-2, log = true}\n"model.fusion" = ["average"]\n'
    )
    (tmp_path / "tables.toml").write_text(
        '[training]\nlearning_rate = {low = 1e-4, high = 1e-2, log = true}\n[model]\nfusion = ["average"]\n'
    )
    dotted = read_space(tmp_path / "dotted.toml", config)
    assert dotted == read_space(tmp_path / "tables.toml", config)
    assert dotted["training.learning_rate"] == Range(1e-4, 1e-2, log=True)
    (tmp_path / "bad.toml").write_text("model.fusion = [")
    for name, what in (("bad.toml", "not a readable TOML file"), ("absent.toml", "no such file")):
        with pytest.raises(GeoError, match=what):
            read_space(tmp_path / name, config)


def test_which_settings_have_an_effect_in_which_head_is_what_it_always_was() -> None:
    # A sweep that is gone on with draws the configurations that it drew: by the table of the version that began it.
    networks = {"separate", "dual", "hierarchical", "geocells"}
    solved = {"probe", "cell-probe", "discriminant", "view-discriminant"}
    pointed, celled = networks - {"geocells"}, {"geocells"} | solved
    table = {
        "model.head": networks | celled,
        "model.standardise": networks | celled - {"view-discriminant"},
        "model.unit_length": {"probe", "cell-probe"},
        "training.shrinkage": {"discriminant", "view-discriminant"},
        "model.point": pointed,
        "model.gps_hidden": pointed - {"dual"},
        "model.cells": celled,
        "model.cell_samples": celled,
        "model.most_cells": celled,
        "training.l2": {"probe", "cell-probe"},
        "training.gps_loss": pointed,
        "training.gps_weight": pointed,
        "training.gps_normalise": pointed,
        "training.cell_weight": {"geocells", "cell-probe"},
        **dict.fromkeys(
            (
                "training.class_weights",
                "training.state_weight",
                "training.score_weight",
                "training.state_loss",
            ),
            networks | {"cell-probe"},
        ),
        "training.tau_km": networks | {"cell-probe"},
        "training.label_smoothing": networks | {"cell-probe"},
        "training.view_swap": {"geocells"},
    }
    varying = {key for key in known_keys() if key.split(".")[0] in ("model", "training")} - room._FIXED
    for head, fusion, loss in itertools.product(
        [*networks, *solved], FUSIONS.built_in, STATE_LOSSES.built_in
    ):
        names = {"model.head": head, "model.fusion": fusion, "training.state_loss": loss}
        effective = effective_settings({**names, "training.gps_loss": "mse"})
        assert effective == {key for key in varying if head in table.get(key, networks)}
        in_km = effective_settings({**names, "training.gps_loss": "haversine"})
        assert in_km == effective - {"training.gps_normalise"}
