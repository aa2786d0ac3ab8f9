"""What a shell offers at the Tab key beside commands and options: runs, and the keys of settings. No heavy library is loaded."""

from contextlib import suppress
from typing import Any

import typer

from geo_embed.errors import GeoError
from geo_embed.settings import known_keys, resolve


def complete_run(ctx: typer.Context, incomplete: str) -> list[str]:
    """Names of the runs in the runs folder of the settings that stand before the command."""
    options: dict[str, Any] = ctx.find_root().params
    with suppress(GeoError, OSError):
        runs_dir = resolve(options.get("config"), list(options.get("settings") or ()))[0].paths.runs_dir
        names = [path.name for path in runs_dir.iterdir() if path.is_dir()]
        return sorted(name for name in names if name.startswith(incomplete) and not name.startswith("."))
    return []


def complete_setting(incomplete: str) -> list[str]:
    """Keys for `--set`, up to the equals sign."""
    return [f"{key}=" for key in known_keys() if key.startswith(incomplete)]
