"""Every setting of the system: typed, with its unit and default, in five groups under one `Config`.

Layers, later ones win: defaults < TOML file < `GEO_*` environment < `--set` < a command's own options.
Plain pydantic holds the values; the layers are merged here, so that each value can say where it came from
and an unknown key can be refused with the nearest known one.
"""

import difflib
import json
import os
import tomllib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from geo_embed.errors import GeoError

DEFAULT_FILE = Path("geo.toml")
DEFAULT_BACKBONE = "geolocal/StreetCLIP"
ENV_PREFIX = "GEO_"

_TEXTS = (str, str | None, Path, Path | None)


class _Group(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)


class Paths(_Group):
    """Where things lie. Relative paths start at the working directory."""

    data_root: Path = Field(Path("data/raw"), description="folder of the CSVs and the image folders")
    train_csv: Path | None = Field(None, description="default: train_ground_truth.csv under the data root")
    test_csv: Path | None = Field(None, description="default: sample_submission.csv under the data root")
    state_mapping_csv: Path | None = Field(None, description="default: state_mapping.csv under the data root")
    train_images: Path | None = Field(None, description="default: train_images under the data root")
    test_images: Path | None = Field(None, description="default: test_images under the data root")
    cache_dir: Path = Field(Path("cache"), description="embedding stores")
    runs_dir: Path = Field(Path("runs"), description="trained runs")
    submissions_dir: Path = Field(Path("submissions"), description="submission files")

    def csv(self, split: str) -> Path:
        """The CSV of a split: the ground truth for `train`, the submission template for `test`."""
        if split == "train":
            return self.train_csv or self.data_root / "train_ground_truth.csv"
        return self.test_csv or self.data_root / "sample_submission.csv"

    def images(self, split: str) -> Path:
        """The image folder of a split."""
        given = self.train_images if split == "train" else self.test_images
        return given or self.data_root / f"{split}_images"

    def mapping(self) -> Path:
        """The CSV that names the states."""
        return self.state_mapping_csv or self.data_root / "state_mapping.csv"


class GpsBox(_Group):
    """A box of latitudes and longitudes in degrees."""

    lat_min: float = Field(18.0, ge=-90, le=90, description="southern edge (degrees)")
    lat_max: float = Field(72.0, ge=-90, le=90, description="northern edge (degrees)")
    lon_min: float = Field(-180.0, ge=-180, le=180, description="western edge (degrees)")
    lon_max: float = Field(-65.0, ge=-180, le=180, description="eastern edge (degrees)")

    @model_validator(mode="after")
    def _ordered(self) -> "GpsBox":
        if self.lat_min >= self.lat_max or self.lon_min >= self.lon_max:
            raise ValueError("lat_min must lie below lat_max and lon_min below lon_max")
        return self


class Model(_Group):
    """The backbone, its features, and the heads on top."""

    backbone_name: str = Field(
        DEFAULT_BACKBONE, description="hub id, model directory, or the name that an import was given"
    )
    fingerprint: str | None = Field(
        None,
        description="take the store with this fingerprint, where several fit; default: the one that fits",
    )
    feature: Literal["image_embeds", "pooler_output"] = Field(
        "image_embeds", description="what is cached: the projected embedding, or the pooled state before it"
    )
    view_names: tuple[str, ...] = Field(
        ("north", "east", "south", "west"), min_length=1, description="views, in the order of the cached rows"
    )
    exact: bool = Field(
        False, description="resize with PIL, bit-equal to transformers; slower than the default resize"
    )
    dtype: Literal["auto", "float32", "bfloat16", "float16"] = Field(
        "auto",
        description="precision of the backbone; auto: bfloat16 on CUDA, float32 on CPU. "
        "Stored as float16, as float32 only where float32 is asked for by name",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="where models run")
    fusion: Literal["average"] = Field("average", description="how the views of a sample become one vector")
    head_hidden: int = Field(512, ge=1, description="width of the first layer of either head")
    gps_hidden: int = Field(256, ge=1, description="width of the second layer of the GPS head")
    dropout: float = Field(0.1, ge=0, lt=1, description="share of hidden units dropped in training")
    gps_box: GpsBox = Field(
        GpsBox(), description="range of the GPS head; a submission outside it draws a warning (degrees)"
    )

    @field_validator("view_names")
    @classmethod
    def _views_differ(cls, names: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(names)) != len(names):
            raise ValueError("a view is repeated")
        return names


class Training(_Group):
    """How heads are fitted."""

    preset: Literal["pigeon", "best"] = Field(
        "pigeon",
        description="pigeon: the plain recipe, which the settings below belong to; "
        "best: chooses its own by inner validation, within budget_seconds",
    )
    budget_seconds: float = Field(
        150.0, gt=0, description="what `best` may cost, about, on a two-core machine (seconds)"
    )
    seed: int = Field(0, ge=0, lt=2**63, description="seed of the split, the initial weights and the batches")
    val_split: float = Field(0.1, gt=0, lt=1, description="share of the training samples held out")
    epochs: int = Field(20, ge=1, description="most epochs to train")
    batch_size: int = Field(128, ge=1, description="samples per step")
    learning_rate: float = Field(1e-3, gt=0, description="peak rate of AdamW")
    weight_decay: float = Field(0.01, ge=0, description="decoupled decay of AdamW, on weight matrices only")
    warmup: float = Field(0.05, ge=0, lt=1, description="share of all steps with a linearly rising rate")
    clip_norm: float = Field(1.0, gt=0, description="largest norm of a step's gradient")
    patience: int = Field(5, ge=1, description="epochs without a better validation score before stopping")
    tau_km: float = Field(300.0, gt=0, description="temperature of the haversine soft labels (km)")
    state_weight: float = Field(0.8, ge=0, description="weight of the classification loss")
    gps_weight: float = Field(
        0.2, ge=0, description="weight of the GPS loss (mean squared error in degrees²)"
    )


class Inference(_Group):
    """Extraction, prediction, submission."""

    batch_size: int | None = Field(
        None, ge=1, description="images per pass through the backbone; default: 256 on CUDA, 32 on CPU"
    )
    workers: int | None = Field(None, ge=1, description="decoding threads; default: one per core")
    chunk_rows: int = Field(512, ge=1, description="samples per chunk of a new store: the unit of commit")
    on_bad_image: Literal["fail", "skip"] = Field(
        "fail", description="fail: list bad pictures and stop; skip: record them in the store and go on"
    )
    max_state_idx: int = Field(
        49, ge=0, description="largest state_idx a submission may name; a larger one in the mapping raises it"
    )


class Tracking(_Group):
    """What is said while working, and kept about a run."""

    progress_seconds: float = Field(10.0, gt=0, description="between progress lines off a terminal (seconds)")
    note: str = Field("", description="free text for a run's provenance")


class Config(_Group):
    """All settings. Immutable; build one with `get_config`."""

    paths: Paths = Paths()
    model: Model = Model()
    training: Training = Training()
    inference: Inference = Inference()
    tracking: Tracking = Tracking()


def known_keys(model: type[BaseModel] = Config, prefix: str = "") -> dict[str, Any]:
    """Dotted names of all settings and their pydantic fields, in declaration order."""
    keys: dict[str, Any] = {}
    for name, field in model.model_fields.items():
        kind = field.annotation
        if isinstance(kind, type) and issubclass(kind, BaseModel):
            keys |= known_keys(kind, f"{prefix}{name}.")
        else:
            keys[prefix + name] = field
    return keys


def value_at(config: Config, key: str) -> Any:
    """The value of a dotted key."""
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value


def get_config(**overrides: Any) -> Config:
    """The effective configuration: defaults, `geo.toml` if present, `GEO_*` environment, then `overrides`.

    Args:
        overrides: values by group (`training={"seed": 1}`), or by dotted key through `**{"training.seed": 1}`.

    Raises:
        GeoError: an unknown key or a value of the wrong type, with the key and where it was set.
    """
    return resolve(overrides=overrides)[0]


def resolve(
    file: Path | None = None, settings: Sequence[str] = (), overrides: Mapping[str, Any] | None = None
) -> tuple[Config, dict[str, str]]:
    """Merge all layers.

    Args:
        file: a TOML file; default `geo.toml` in the working directory, if there.
        settings: `dotted.key=value` texts; the value is JSON where it parses as JSON, else a string.
        overrides: values by group or dotted key; None values are skipped.

    Returns:
        The configuration, and for each dotted key where its value came from.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known_keys(), "default")
    for origin, layer in _layers(file, settings, overrides or {}):
        for key, value in _flatten(layer, origin).items():
            values[key] = value
            origins[key] = origin
    try:
        return Config.model_validate(_nest(values)), origins
    except ValidationError as error:
        first = error.errors()[0]
        located = ".".join(str(part) for part in first["loc"])
        key = next(
            (k for k in values if located == k or located.startswith(k + ".") or k.startswith(located)), ""
        )
        raise GeoError(
            f"{key or located}: {first['msg'].removeprefix('Value error, ')}, got {values.get(key)!r}",
            where=origins.get(key, "configuration"),
            hint="`geo config show` prints every setting, its value and where it came from",
        ) from error


def _layers(
    file: Path | None, settings: Sequence[str], overrides: Mapping[str, Any]
) -> list[tuple[str, Mapping[str, Any]]]:
    layers: list[tuple[str, Mapping[str, Any]]] = []
    if file is not None or DEFAULT_FILE.is_file():
        path = file or DEFAULT_FILE
        layers.append((str(path), _read_toml(path)))
    for name, text in sorted(os.environ.items()):
        key = name.removeprefix(ENV_PREFIX).lower().replace("__", ".")
        # One underscore alone, as in GEO_HOME, names no group: such a variable belongs to somebody else.
        if name.startswith(ENV_PREFIX) and "." in key:
            layers.append((f"environment {name}", {key: _parse(key, text)}))
    for setting in settings:
        key, equals, text = setting.partition("=")
        if not equals:
            raise GeoError(f"--set wants dotted.key=value, got {setting!r}", hint="--set training.seed=1")
        layers.append(("--set", {key.strip(): _parse(key.strip(), text)}))
    given = {key: value for key, value in overrides.items() if value is not None}
    if given:
        layers.append(("option", given))
    return layers


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise GeoError(
            "there is no such configuration file", where=path, hint="write one with: geo config init"
        ) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, OSError) as error:
        raise GeoError(f"not a readable TOML file: {error}", where=path) from error


def _parse(key: str, text: str) -> Any:
    try:
        value = json.loads(text)
    except json.JSONDecodeError:
        return text
    field = known_keys().get(key)
    # A directory named 2024 or a backbone named 7 stays a name.
    if isinstance(value, int | float) and field is not None and field.annotation in _TEXTS:
        return text
    return value


def _flatten(layer: Mapping[str, Any], origin: str, prefix: str = "") -> dict[str, Any]:
    known = known_keys()
    flat: dict[str, Any] = {}
    for name, value in layer.items():
        key = prefix + name
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if key in known:
            flat[key] = value
        elif isinstance(value, Mapping) and any(k.startswith(key + ".") for k in known):
            flat |= _flatten(value, origin, key + ".")
        else:
            raise GeoError(f"unknown setting {key!r}", where=origin, hint=_nearest(key, list(known)))
    return flat


def _nearest(key: str, known: list[str]) -> str:
    name = key.rsplit(".", 1)[-1]
    by_leaf = {k.rsplit(".", 1)[-1]: k for k in known}
    elsewhere = [k for k in known if k.rsplit(".", 1)[-1] == name]
    best = (
        difflib.get_close_matches(key, elsewhere, n=1, cutoff=0)
        or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
        or [by_leaf[leaf] for leaf in difflib.get_close_matches(name, list(by_leaf), n=1)]
    )
    return f"did you mean {best[0]!r}?" if best else "`geo config show` lists the known ones"


def _nest(flat: Mapping[str, Any]) -> dict[str, Any]:
    nested: dict[str, Any] = {}
    for key, value in flat.items():
        *groups, leaf = key.split(".")
        place = nested
        for group in groups:
            place = place.setdefault(group, {})
        place[leaf] = value
    return nested


def to_toml(config: Config, *, comments: bool = False, only_hints: bool = False) -> str:
    """The configuration as TOML.

    Args:
        comments: put each setting's description above it.
        only_hints: write every setting commented out, as a file to start from.
    """
    import tomlkit

    document = tomlkit.document()
    tables: dict[str, Any] = {}
    for key, field in known_keys().items():
        group, leaf = key.rsplit(".", 1)
        if group not in tables:
            tables[group] = tomlkit.table()
        table = tables[group]
        value = value_at(config, key)
        plain = str(value) if isinstance(value, Path) else list(value) if isinstance(value, tuple) else value
        if comments and field.description:
            table.add(tomlkit.comment(field.description))
        if plain is None:
            if comments:
                table.add(tomlkit.comment(f"{leaf} ="))
        elif only_hints:
            table.add(tomlkit.comment(f"{leaf} = {tomlkit.item(plain).as_string()}"))
        else:
            table.add(leaf, plain)
    for group, table in tables.items():
        place: Any = document
        *parents, name = group.split(".")
        for parent in parents:
            place = place[parent]
        place.add(name, table)
    return tomlkit.dumps(document)
