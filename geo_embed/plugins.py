"""A user's own fusions, heads, losses and calibrations: files and modules named by `model.plugins`.

A plugin is a Python file, or an importable module, whose import registers entries (`registry.py`). It is code, and runs as
the user. So plugins are loaded from the settings in force alone: geo.toml, the environment, --set, an option, `get_config`.
A run records in its config.toml what it was made with, but nothing that a run names is imported when it is loaded: nothing
of a stranger's run is executed. Whoever trusts it names the plugin in settings of their own. A geo.toml in the working
directory is such settings: look at a stranger's before running `geo` beside it, as at a Makefile.
"""

import importlib
import importlib.util
import json
import sys
import traceback
import zlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from geo_embed.errors import GeoError
from geo_embed.registry import REGISTRIES


def load_plugins(plugins: Iterable[str], *, where: str = "model.plugins") -> None:
    """Import plugins, each once in a process.

    Args:
        plugins: paths of Python files, relative ones from the working directory, or names of modules.
        where: what named them, for errors.

    Raises:
        GeoError: a file or module isn't there, or fails while it is imported, with the file and the line.
    """
    for plugin in plugins:
        if plugin.endswith(".py") or "/" in plugin or "\\" in plugin:
            _load_file(Path(plugin), where)
        else:
            _load_module(plugin, where)


class PluginError(GeoError):
    """A run is whole, and needs a plugin that isn't loaded."""


def check_names(settings: Mapping[str, Any], where: Path) -> None:
    """Refuse a run whose fusion, head, loss or calibration comes from a plugin that isn't loaded.

    Args:
        settings: of the run, as its config.toml has them.
        where: that file.

    Raises:
        PluginError: with the plugin and the setting that would load it.
    """
    for registry in REGISTRIES:
        group, key = registry.setting.split(".")
        name = settings.get(group, {}).get(key)
        if not isinstance(name, str) or name in registry:
            continue
        plugins = [str(plugin) for plugin in settings.get("model", {}).get("plugins", ())]
        gone = [plugin for plugin in plugins if plugin.endswith(".py") and not Path(plugin).is_file()]
        if gone:
            raise PluginError(
                f"the run's {registry.what} {name!r} comes from a plugin file that is gone: {', '.join(gone)}",
                where=where,
                hint="put it back and name it: --set model.plugins=FILE",
            )
        raise PluginError(
            f"the run's {registry.what} {name!r} comes from a plugin that isn't loaded: "
            + (", ".join(plugins) or "a package that isn't installed"),
            where=where,
            hint="a run's plugins are code, and never loaded unasked; if you trust them: "
            f"--set 'model.plugins={json.dumps(plugins or ['FILE.py'])}'",
        )


def _load_file(file: Path, where: str) -> None:
    path = file.resolve()
    if not path.is_file():
        raise GeoError(
            "there is no such plugin file",
            where=file,
            hint=f"move it back, or correct model.plugins ({where})",
        )
    # Two files of one name are two modules.
    name = f"geo_embed_plugin_{path.stem}_{zlib.crc32(str(path).encode()):08x}"
    if name in sys.modules:
        return
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise GeoError("a plugin is a Python file", where=file, hint="name it with the suffix .py")
    module = importlib.util.module_from_spec(spec)
    # Before it runs: dataclasses and pickle look their module up.
    sys.modules[name] = module
    try:
        spec.loader.exec_module(module)
    except BaseException as error:
        del sys.modules[name]
        for registry in REGISTRIES:
            registry.forget(name)
        if not isinstance(error, Exception):
            raise
        raise _failure(str(file), path, error) from error


def _load_module(name: str, where: str) -> None:
    try:
        importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not name.startswith(error.name):
            raise _failure(name, None, error) from error
        raise GeoError(
            f"there is no module {name!r} to import as a plugin",
            where=where,
            hint="install it, put it on PYTHONPATH, or name a file: ./my_heads.py",
        ) from error
    except Exception as error:
        raise _failure(name, None, error) from error


def _failure(plugin: str, path: Path | None, error: Exception) -> GeoError:
    if isinstance(error, GeoError):
        return GeoError(error.what, where=plugin, hint=error.hint)
    line: int | None = None
    why = (str(error).splitlines() or [""])[0]
    if isinstance(error, SyntaxError):
        line, why = error.lineno, error.msg
    elif path is not None:
        lines = [at.lineno for at in traceback.extract_tb(error.__traceback__) if at.filename == str(path)]
        line = lines[-1] if lines else None
    return GeoError(
        f"the plugin fails: {type(error).__name__}: {why}",
        where=plugin if line is None else f"{plugin}, line {line}",
    )
