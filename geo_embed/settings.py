"""The layers of settings, merged: where a value came from, dotted keys, TOML.

Layers, later ones win: defaults < TOML file < `GEO_*` environment < `--set` < a command's own options.
Plain pydantic holds the values; the layers are merged here, so that each value can say where it came from
and an unknown key can be refused with the nearest known one.
"""

import difflib
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ValidationError

from geo_embed.config import Config
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import is_deep, read_toml
from geo_embed.plugins import load_plugins

DEFAULT_FILE = Path("geo.toml")
ENV_PREFIX = "GEO_"

_TEXTS = (str, str | None, Path, Path | None)


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

    Plugins that the settings name are loaded before names are judged: see `plugins.py`.

    Returns:
        The configuration, and for each dotted key where its value came from.
    """
    values: dict[str, Any] = {}
    origins = dict.fromkeys(known_keys(), "default")
    for origin, layer in _layers(file, settings, overrides or {}):
        for key, value in dotted(layer, origin).items():
            _check_plain(key, value, origin)
            values[key] = value
            origins[key] = origin
    named = values.get("model.plugins", ())
    plugins = [named] if isinstance(named, str) else named
    if isinstance(plugins, list | tuple) and all(isinstance(plugin, str) for plugin in plugins):
        load_plugins(plugins, where=origins["model.plugins"])
    try:
        return Config.model_validate(_nest(values)), origins
    except ValidationError as error:
        first, *others = error.errors()
        # Of what may be a word or a list: of a list that was given, the item that is wrong.
        first = next((e for e in others if e["loc"][:2] == first["loc"][:2] and len(e["loc"]) > 3), first)
        located = ".".join(str(part) for part in first["loc"])
        key = next(
            (k for k in values if located == k or located.startswith(k + ".") or k.startswith(located)), ""
        )
        raise GeoError(
            f"{key or located}: {first['msg'].removeprefix('Value error, ')}, got {values.get(key)!r:.80}",
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
    options = {key: value for key, value in overrides.items() if value is not None}
    if options:
        layers.append(("option", options))
    return layers


def _check_plain(key: str, value: Any, where: str) -> None:
    """Raise GeoError for what no file name, TOML or JSON can hold: later it would fail far from here."""
    fault = "is nested too deep" if is_deep(value) else ""
    for text in map(str, value if isinstance(value, list | tuple) and not fault else (value,)):
        if "\0" in text:
            fault = "holds a NUL character"
        elif not text.isascii() and text != text.encode("utf-8", "replace").decode("utf-8"):
            fault = "isn't UTF-8 text"
    if fault:
        raise GeoError(f"{key}: the value {fault}", where=where, hint="correct it, or leave it out")


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return read_toml(path)
    except AbsentError as error:
        raise GeoError(
            "there is no such configuration file", where=path, hint="write one with: geo config init"
        ) from error


def _parse(key: str, text: str) -> Any:
    try:
        value = json.loads(text)
    # Also of a number too long, or lists too deep.
    except (ValueError, RecursionError):
        return text
    field = known_keys().get(key)
    # A directory named 2024 or a backbone named 7 stays a name.
    if isinstance(value, int | float) and field is not None and field.annotation in _TEXTS:
        return text
    return value


def nearest_key(key: str, keys: list[str]) -> str:
    """A hint for an unknown key: the known one that was probably meant."""
    name = key.rsplit(".", 1)[-1]
    by_leaf = {k.rsplit(".", 1)[-1]: k for k in keys}
    elsewhere = [k for k in keys if k.rsplit(".", 1)[-1] == name]
    best = (
        difflib.get_close_matches(key, elsewhere, n=1, cutoff=0)
        or difflib.get_close_matches(key, keys, n=1, cutoff=0.5)
        or [by_leaf[leaf] for leaf in difflib.get_close_matches(name, list(by_leaf), n=1)]
    )
    return f"did you mean {best[0]!r}?" if best else "`geo config show` lists the known ones"


def _nest(flat: Mapping[str, Any], within: dict[str, Any] | None = None) -> dict[str, Any]:
    """Dotted keys to nested tables, entered into those of `within`."""
    nested = {} if within is None else within
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


def dotted(table: Mapping[str, Any], where: str, prefix: str = "") -> dict[str, Any]:
    """Nested tables, or groups of settings, to dotted keys. Raises GeoError for an unknown one, with the nearest."""
    keys = known_keys()
    leaves: dict[str, Any] = {}
    for name, value in table.items():
        key = prefix + name
        if isinstance(value, BaseModel):
            value = value.model_dump()
        if key in keys:
            leaves[key] = value
        elif isinstance(value, Mapping) and any(other.startswith(key + ".") for other in keys):
            leaves |= dotted(value, where, key + ".")
        else:
            raise GeoError(f"unknown setting {key!r}", where=where, hint=nearest_key(key, list(keys)))
    return leaves


def with_changes(config: Config, changes: Mapping[str, Any], where: str = "the space") -> Config:
    """The settings with changes by dotted key. Raises GeoError for a value that isn't allowed."""
    try:
        # What nobody has set stays so.
        return Config.model_validate(_nest(changes, config.model_dump(exclude_unset=True)))
    except ValidationError as error:
        first = error.errors()[0]
        located = ".".join(str(part) for part in first["loc"])
        key = next((key for key in changes if located.startswith(key)), located)
        message = first["msg"].removeprefix("Value error, ")
        raise GeoError(f"{key}: {message}, got {changes.get(key)!r:.80}", where=where) from error


def is_set(config: Config, key: str) -> bool:
    """Whether a setting was set by anybody, be it to its default."""
    group, _, leaf = key.rpartition(".")
    return leaf in value_at(config, group).model_fields_set


def as_text(value: Any) -> str:
    """A value as `--set` reads it."""
    if isinstance(value, Path):
        value = str(value)
    if isinstance(value, str):
        try:
            json.loads(value)
        except ValueError:
            return value
    return json.dumps(value)
