"""Settings come in layers, know where they came from, and never swallow a typing error."""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

import geo_embed
from geo_embed.config import Config
from geo_embed.errors import GeoError
from geo_embed.settings import get_config, known_keys, resolve, to_toml, value_at

if TYPE_CHECKING:
    from conftest import Geo


def refused(**layers: object) -> GeoError:
    with pytest.raises(GeoError) as caught:
        resolve(**layers)  # type: ignore[arg-type]
    return caught.value


def test_each_layer_beats_the_one_before_it_and_is_named_as_the_origin(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def seed() -> tuple[int, str]:
        config, origins = resolve(settings=settings, overrides=overrides)
        return config.training.seed, origins["training.seed"]

    settings: list[str] = []
    overrides: dict[str, int] = {}
    assert seed() == (0, "default")
    Path("geo.toml").write_text("[training]\nseed = 1\n")
    assert seed() == (1, "geo.toml")
    monkeypatch.setenv("GEO_TRAINING__SEED", "2")
    assert seed() == (2, "environment GEO_TRAINING__SEED")
    settings.append("training.seed=3")
    assert seed() == (3, "--set")
    overrides["training.seed"] = 4
    assert seed() == (4, "option")


def test_a_later_set_beats_an_earlier_one() -> None:
    assert resolve(settings=["training.seed=1", "training.seed=2"])[0].training.seed == 2


def test_a_named_file_takes_the_place_of_geo_toml(tmp_path: Path) -> None:
    Path("geo.toml").write_text("[training]\nseed = 1\nepochs = 7\n")
    (tmp_path / "other.toml").write_text("[training]\nseed = 5\n")
    config, origins = resolve(tmp_path / "other.toml")
    assert (config.training.seed, config.training.epochs) == (5, 20)
    assert origins["training.seed"] == str(tmp_path / "other.toml")


def test_a_named_file_that_is_not_there_is_an_error_with_a_way_out() -> None:
    error = refused(file=Path("absent.toml"))
    assert error.where == "absent.toml"
    assert "geo config init" in error.hint


def test_a_file_that_is_no_toml_is_named() -> None:
    Path("geo.toml").write_text("[training\nseed = 1\n")
    assert refused().where == "geo.toml"


def test_layers_of_different_keys_add_up(monkeypatch: pytest.MonkeyPatch) -> None:
    Path("geo.toml").write_text('[training]\nepochs = 3\n[paths]\ndata_root = "here"\n')
    monkeypatch.setenv("GEO_PATHS__CACHE_DIR", "there")
    config, _ = resolve(settings=['model.view_names=["a", "b"]'], overrides={"training.seed": 9})
    assert config.training.epochs == 3
    assert config.paths.data_root == Path("here")
    assert config.paths.cache_dir == Path("there")
    assert config.model.view_names == ("a", "b")
    assert config.training.seed == 9


@pytest.mark.parametrize("layer", ["file", "environment", "--set", "option"])
def test_an_unknown_key_is_refused_at_every_layer_with_its_origin_and_the_nearest_name(
    layer: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings: list[str] = []
    overrides: dict[str, object] = {}
    origin = layer
    if layer == "file":
        Path("geo.toml").write_text("[training]\nlearning_rat = 1\n")
        origin = "geo.toml"
    elif layer == "environment":
        monkeypatch.setenv("GEO_TRAINING__LEARNING_RAT", "1")
        origin = "environment GEO_TRAINING__LEARNING_RAT"
    elif layer == "--set":
        settings = ["training.learning_rat=1"]
    else:
        overrides = {"training": {"learning_rat": 1}}
    error = refused(settings=settings, overrides=overrides)
    assert "'training.learning_rat'" in str(error)
    assert error.where == origin
    assert "'training.learning_rate'" in error.hint


def test_a_key_in_the_wrong_group_is_led_to_the_right_one() -> None:
    assert "'training.tau_km'" in refused(settings=["model.tau_km=75"]).hint


def test_a_temperature_and_a_fitted_calibration_are_one_too_many() -> None:
    error = refused(settings=["training.temperature=1.3", "training.calibration=vector"])
    assert "give one of the two" in str(error)
    assert refused(settings=["training.temperature=0"]).where


def test_an_unknown_group_is_refused() -> None:
    assert "'trainning.seed'" in str(refused(settings=["trainning.seed=1"]))


def test_a_variable_that_names_no_group_belongs_to_somebody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO_HOME", "/somewhere")
    assert get_config() == Config()


@pytest.mark.parametrize(
    ("setting", "key"),
    [
        ("training.epochs=many", "training.epochs"),
        ("training.epochs=0", "training.epochs"),
        ("training.epochs=2.5", "training.epochs"),
        ("training.val_split=1", "training.val_split"),
        ("training.val_split=0", "training.val_split"),
        ("training.learning_rate=-1", "training.learning_rate"),
        ("training.learning_rate=NaN", "training.learning_rate"),
        ("training.learning_rate=Infinity", "training.learning_rate"),
        ("training.seed=-1", "training.seed"),
        ("model.dropout=1", "model.dropout"),
        ("model.device=tpu", "model.device"),
        ("model.view_names=[]", "model.view_names"),
        ("model.view_names=[1]", "model.view_names"),
        ('model.view_names=["a", "a"]', "model.view_names"),
        ("model.gps_box.lat_min=-91", "model.gps_box.lat_min"),
        ('model.gps_box={"lat_min": 80, "lat_max": 70}', "model.gps_box.lat_min"),
        ('model.gps_box={"lon_min": -65, "lon_max": -65}', "model.gps_box.lon_min"),
        ("model.fusion=mean", "model.fusion"),
        ("model.head=mlp", "model.head"),
        ("training.folds=0", "training.folds"),
        ("training.group_km=0", "training.group_km"),
        ("inference.workers=0", "inference.workers"),
    ],
)
def test_a_value_of_the_wrong_type_or_out_of_bounds_names_its_key_and_origin(setting: str, key: str) -> None:
    error = refused(settings=["model.backbone_name=x", "training.patience=3", setting])
    assert str(error).startswith(f"{key}: ")
    assert error.where == "--set"
    assert error.hint


def test_a_repeated_view_is_blamed_on_the_layer_that_repeats_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("GEO_MODEL__BACKBONE_NAME", "x")
    error = refused(settings=['model.view_names=["a", "a"]'])
    assert str(error).startswith("model.view_names: ")
    assert error.where == "--set"


def test_a_setting_without_an_equals_sign_is_refused() -> None:
    assert "training.seed" in str(refused(settings=["training.seed"]))


@pytest.mark.parametrize(
    ("key", "text"),
    [
        ("paths.data_root", "2024"),
        ("paths.train_csv", "7"),
        ("model.backbone_name", "7"),
        ("model.fingerprint", "1234567890123456"),
        ("model.fingerprint", "12345678901234e5"),
        ("tracking.note", "1e3"),
        ("tracking.note", "a = b, c"),
    ],
)
def test_a_name_that_looks_like_a_number_stays_a_name(key: str, text: str) -> None:
    assert str(value_at(resolve(settings=[f"{key}={text}"])[0], key)) == text


def test_toml_gives_back_every_setting_it_was_written_from(tmp_path: Path) -> None:
    changed = get_config(
        paths={"data_root": "data with spaces/ä", "train_csv": "a.csv"},
        model={
            "view_names": ["front", 'rück "wärts"'],
            "gps_box": {"lat_min": -10.25, "lat_max": 10, "lon_min": 1e-9, "lon_max": 180},
            "exact": True,
            "fingerprint": "00ff",
        },
        training={"seed": 2**63 - 1, "learning_rate": 1.2345678901234567e-07},
        inference={"batch_size": 3},
        tracking={"note": "two\nlines # and = signs"},
    )
    for config in (Config(), changed):
        for comments in (False, True):
            file = tmp_path / "written.toml"
            file.write_text(to_toml(config, comments=comments), encoding="utf-8")
            assert resolve(file)[0] == config


def test_config_init_writes_a_file_that_documents_every_setting_and_changes_none(
    geo: Geo, tmp_path: Path
) -> None:
    ran = geo("config", "init")
    assert ran.code == 0
    text = (tmp_path / "geo.toml").read_text(encoding="utf-8")
    assert resolve() == (Config(), dict.fromkeys(known_keys(), "default"))
    for key, field in known_keys().items():
        assert f"# {field.description}\n# {key.rsplit('.', 1)[1]} =" in text
    # What is offered is what holds anyway: with every comment that is a setting taken off, nothing changes.
    offered = "\n".join(
        line.removeprefix("# ") if line.split(" = ")[0].removeprefix("# ").isidentifier() else line
        for line in text.splitlines()
    )
    tomllib.loads(offered)
    (tmp_path / "geo.toml").write_text(offered, encoding="utf-8")
    config, origins = resolve()
    assert config == Config()
    assert origins["training.tau_km"] == "geo.toml"


def test_config_init_leaves_a_file_that_is_there_alone(geo: Geo, tmp_path: Path) -> None:
    (tmp_path / "geo.toml").write_text("[training]\nseed = 1\n")
    ran = geo("config", "init")
    assert (ran.code, ran.out) == (1, "")
    assert "geo.toml" in ran.err
    assert (tmp_path / "geo.toml").read_text() == "[training]\nseed = 1\n"


def test_config_show_prints_every_effective_value_with_its_origin(geo: Geo, tmp_path: Path) -> None:
    (tmp_path / "geo.toml").write_text("[training]\nseed = 1\nepochs = 3\n")
    ran = geo("--json", "--set", "training.seed=2", "config", "show", env={"GEO_TRACKING__NOTE": "mine"})
    assert ran.json.keys() == known_keys().keys()
    assert ran.json["training.seed"] == {"value": 2, "from": "--set"}
    assert ran.json["training.epochs"] == {"value": 3, "from": "geo.toml"}
    assert ran.json["tracking.note"] == {"value": "mine", "from": "environment GEO_TRACKING__NOTE"}
    assert ran.json["paths.data_root"] == {"value": "data/raw", "from": "default"}


def test_there_are_six_groups_and_every_setting_says_what_it_is() -> None:
    assert list(Config.model_fields) == ["paths", "model", "training", "finetune", "inference", "tracking"]
    assert not [key for key, field in known_keys().items() if not field.description]
    units = {
        "training.tau_km": "km",
        "tracking.progress_seconds": "seconds",
        "model.gps_box.lat_min": "degrees",
    }
    for key, unit in units.items():
        assert unit in known_keys()[key].description


def test_the_keys_that_scripts_rely_on_have_the_contracts_defaults() -> None:
    config = Config()
    assert config.paths.data_root == Path("data/raw")
    assert config.paths.csv("train") == Path("data/raw/train_ground_truth.csv")
    assert config.paths.csv("test") == Path("data/raw/sample_submission.csv")
    assert config.paths.mapping() == Path("data/raw/state_mapping.csv")
    assert config.paths.images("train") == Path("data/raw/train_images")
    assert config.paths.images("test") == Path("data/raw/test_images")
    directories = (config.paths.cache_dir, config.paths.runs_dir, config.paths.submissions_dir)
    assert directories == (Path("cache"), Path("runs"), Path("submissions"))
    assert config.model.backbone_name == "geolocal/StreetCLIP"
    assert config.model.view_names == ("north", "east", "south", "west")
    assert config.training.val_split == 0.1
    # No edge of any country is built in: the training places give the box.
    assert config.model.gps_box.edges == (None, None, None, None)


def test_edges_of_the_box_may_be_given_one_by_one() -> None:
    config, origins = resolve(settings=["model.gps_box.lat_min=80", "model.gps_box.lon_max=-65"])
    assert config.model.gps_box.edges == (80, None, None, -65)
    assert origins["model.gps_box.lat_min"] == "--set"
    assert origins["model.gps_box.lat_max"] == "default"


def test_paths_given_one_by_one_beat_the_data_root() -> None:
    paths = get_config(
        paths={
            "data_root": "root",
            "train_csv": "t.csv",
            "test_csv": "s.csv",
            "state_mapping_csv": "m.csv",
            "train_images": "ti",
            "test_images": "si",
        }
    ).paths
    assert [paths.csv("train"), paths.csv("test"), paths.mapping()] == [
        Path("t.csv"),
        Path("s.csv"),
        Path("m.csv"),
    ]
    assert [paths.images("train"), paths.images("test")] == [Path("ti"), Path("si")]


def test_get_config_takes_groups_dotted_keys_and_whole_groups() -> None:
    by_group = get_config(training={"seed": 5}, paths={"data_root": "x"})
    by_key = get_config(**{"training.seed": 5, "paths.data_root": Path("x")})
    by_model = get_config(training=by_group.training, paths=by_group.paths)
    assert by_group == by_key == by_model
    assert by_group.training.seed == 5
    assert geo_embed.get_config(training={"seed": 5}).training.seed == 5


def test_a_config_does_not_change_under_those_who_hold_it() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().training.seed = 1  # type: ignore[misc]


def test_a_configuration_goes_through_json_and_comes_back_the_same() -> None:
    config = Config.model_validate({"paths": {"data_root": Path("some where"), "train_csv": "a.csv"}})
    assert Config.model_validate_json(config.model_dump_json()) == config
