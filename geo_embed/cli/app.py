"""The command line: parse, call one function, print. No logic lives here.

stdout carries results only; everything else goes to stderr.
"""

import signal
import sys
import traceback
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer

from geo_embed import __version__
from geo_embed.cli import cache, data, prediction, tools, training
from geo_embed.cli.options import FAULT, GLOBALS
from geo_embed.console import set_quiet
from geo_embed.errors import GeoError

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
for commands in (training.app, prediction.app, tools.app):
    app.add_typer(commands)
app.add_typer(data.data_app, name="data")
app.add_typer(cache.cache_app, name="cache")
app.add_typer(tools.config_app, name="config")
app.add_typer(prediction.submission_app, name="submission")


def _version(requested: bool) -> None:
    if requested:
        print(__version__)
        raise typer.Exit


@app.callback(epilog="First time here: `geo demo`")
def _main(
    config: Annotated[
        Path | None, typer.Option("--config", help="TOML file; default geo.toml, if there.")
    ] = None,
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", metavar="KEY=VALUE", help="One setting, by dotted key; repeatable."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="Errors and warnings only.")] = False,
    verbose: Annotated[bool, typer.Option("--verbose", "-v", help="Show tracebacks.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Geolocate street-view images: embed once, train heads in seconds."""
    GLOBALS.file, GLOBALS.settings = config, settings or []
    GLOBALS.as_json, GLOBALS.verbose = as_json, verbose
    set_quiet(quiet)


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit as the contract says."""
    words = sys.argv[1:] if arguments is None else arguments
    GLOBALS.command = ("geo", *words)
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        app(_spread_images(words), prog_name="geo")
    except GeoError as error:
        _complain(str(error), error.hint)
    except Exception as error:
        # A fault of ours: still one clear line, and the traceback for whoever asks.
        _complain(
            f"unexpected {type(error).__name__}: {error}", "run it again with -v and report what it prints"
        )
    sys.exit(FAULT)


def _interrupt(number: int, frame: Any) -> NoReturn:
    """SIGTERM ends a command as Ctrl-C does: what is in flight is written, then it exits with 130."""
    raise KeyboardInterrupt


def _complain(what: str, hint: str) -> None:
    if GLOBALS.verbose:
        traceback.print_exc()
    print(f"error: {what}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _spread_images(arguments: list[str]) -> list[str]:
    """`--images a b c` to `--images a --images b --images c`, the form that the parser knows."""
    spread: list[str] = []
    inside = False
    for argument in arguments:
        if argument == "--images":
            inside = True
        elif inside and not argument.startswith("-"):
            spread += ["--images", argument]
        else:
            inside = False
            spread.append(argument)
    return spread
