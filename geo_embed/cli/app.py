"""The command line: parse, call one function, print. No logic lives here.

stdout carries results only; everything else goes to stderr.
"""

import errno
import re
import sys
import traceback
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from typer.main import get_command

from geo_embed import __version__
from geo_embed.cli import cache, data, prediction, reporting, runs, submission, tools, training
from geo_embed.cli.commands import Commands
from geo_embed.cli.complete import complete_setting
from geo_embed.cli.options import FAULT, GLOBALS, PIPE_CLOSED
from geo_embed.cli.show import with_given_options
from geo_embed.console import complain, forget_stream, never_fail_at_letters, news_lost, set_quiet
from geo_embed.errors import PlainError

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode="markdown",
    context_settings={"help_option_names": ["-h", "--help"]},
)
for commands in (training.app, prediction.app, runs.app, reporting.app, tools.app):
    app.add_typer(commands)
for name, group in {
    "data": data.data_app,
    "cache": cache.cache_app,
    "config": tools.config_app,
    "submission": submission.submission_app,
}.items():
    app.add_typer(group, name=name, cls=Commands)
app.add_typer(runs.runs_app, name="runs", cls=runs.ListsByDefault)


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
        typer.Option(
            "--set",
            metavar="KEY=VALUE",
            help="One setting, by dotted key; repeatable.",
            autocompletion=complete_setting,
        ),
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


def run(arguments: list[str] | None = None) -> NoReturn:
    """Run a command, say what went wrong, and exit as the contract says."""
    words = sys.argv[1:] if arguments is None else arguments
    GLOBALS.command = ("geo", *words)
    GLOBALS.commands = frozenset(get_command(app).commands)  # type: ignore[attr-defined]
    never_fail_at_letters()
    code: int | str | None = FAULT
    try:
        app(_spread_images(globals_first(words, get_command(app))), prog_name="geo")
    except SystemExit as end:
        # The parser has its own way with a pipe that is closed, which says nothing of it.
        code = PIPE_CLOSED if isinstance(end.__context__, BrokenPipeError) else end.code
    except BrokenPipeError:
        code = PIPE_CLOSED
    except PlainError as error:
        _complain(str(error), error.hint)
    except MemoryError:
        _complain(
            "not enough memory", "close other programs, or ask for less: --batch-size, --workers, --limit"
        )
    except Exception as error:
        # A fault of ours, or of the disk that stdout goes to: still one clear line, and the traceback for whoever asks.
        _complain(*_unexpected(error))
    sys.exit(_flushed(code))


def _unexpected(error: Exception) -> tuple[str, str]:
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return f"can't write: {error.strerror}", "free the disk, or send the output elsewhere"
    if isinstance(error, OSError) and error.filename is not None:
        return f"{error.strerror} ({error.filename!s:.200})", "name another file or folder, or mend this one"
    if isinstance(error, UnicodeEncodeError):
        return (
            f"this locale has no letters for a name: {error}",
            "choose one that has: export LC_ALL=C.UTF-8, or PYTHONUTF8=1",
        )
    return f"unexpected {type(error).__name__}: {error}", "run it again with -v and report what it prints"


def _flushed(code: int | str | None) -> int | str | None:
    """The exit code, once all that was printed is where it goes, or can't go there."""
    if sys.stdout is not None:
        try:
            sys.stdout.flush()
        except BrokenPipeError:
            forget_stream(sys.stdout)
            code = code or PIPE_CLOSED
        except (OSError, ValueError) as error:
            forget_stream(sys.stdout)
            if not code:
                _complain(f"can't write to stdout: {error}", "free the disk, or send the output elsewhere")
                code = FAULT
    return FAULT if news_lost() and not code else code


def _complain(what: str, hint: str) -> None:
    if GLOBALS.verbose:
        with suppress(OSError):
            traceback.print_exc()
    complain(f"error: {what}")
    if hint:
        complain(f"hint: {with_given_options(hint)}")


def globals_first(arguments: list[str], command: Any) -> list[str]:
    """The options of `geo` itself, moved before the command wherever they stand; what follows `--`, and values, stay.

    Args:
        arguments: the command line without `geo`.
        command: `geo`, as the parser knows it.
    """
    # What only answers and ends, as --version and the shell's completion, stays where it is: alone before the command.
    ending = {"version", "install_completion", "show_completion"}
    global_options = {
        name: option for option in command.params if option.name not in ending for name in option.opts
    }
    first: list[str] = []
    rest: list[str] = []
    words = iter(arguments)
    for word in words:
        if word == "--":
            rest += [word, *words]
            break
        if re.fullmatch("-[qv]{2,}", word):
            # Several in one word, as -qv.
            first.append(word)
            continue
        name, equals, _ = word.partition("=")
        options = {known: option for option in command.params for known in option.opts}
        option = global_options.get(name) or options.get(name)
        if option is not None and not equals and not getattr(option, "is_flag", True):
            # The option's value, whatever it looks like; of an option that has none the parser says so, where it comes last.
            value = next(words, None)
            if value is None:
                return [*first, word] if name in global_options else [*first, *rest, word]
            (first if name in global_options else rest).extend((word, value))
            continue
        (first if name in global_options else rest).append(word)
        if option is None and not word.startswith("-"):
            command = getattr(command, "commands", {}).get(word, command)
    return first + rest


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
