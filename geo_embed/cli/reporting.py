"""What a person looks at: `geo report`, `geo plot`, `geo explore`."""

import shlex
from pathlib import Path
from typing import Annotated, Literal

import typer

from geo_embed.cli.complete import complete_run
from geo_embed.cli.options import GLOBALS, DeviceOption, RunArgument
from geo_embed.cli.show import flush, given_options, print_result
from geo_embed.threads import wait_passively

app = typer.Typer()

Name = Literal[
    "map",
    "accuracy",
    "confusion",
    "states",
    "places",
    "curves",
    "attention",
    "soft-labels",
    "sample",
    "samples",
]


@app.command("plot", epilog="Example: `geo plot map first --out map.svg`")
def _plot(
    name: Annotated[
        Name,
        typer.Argument(
            help="map: from true to predicted points; accuracy: by class, on a map; confusion: classes ordered by geography; "
            "states: how often each is answered, true, and in training; places: where training samples lie, and how many of each class; "
            "curves: the training; attention: what each view weighs; soft-labels: one class's, at several temperatures; "
            "sample: its views, answers and points; samples: a grid of them."
        ),
    ],
    run: RunArgument = None,
    out: Annotated[
        Path | None, typer.Option("--out", help="A .png, .svg or .pdf; default: RUN-NAME.png, here.")
    ] = None,
    split: Annotated[
        Literal["val", "train", "test"], typer.Option("--split", help="The samples; val: those held out.")
    ] = "val",
    sample: Annotated[
        str | None,
        typer.Option("--sample", help="Of the plot sample: which, by its id; default: the first by --order."),
    ] = None,
    order: Annotated[
        Literal["worst", "best", "least-certain"], typer.Option("--order", help="Which samples come first.")
    ] = "worst",
    limit: Annotated[int, typer.Option("--limit", min=1, max=60, help="Of the plot samples: how many.")] = 12,
    state: Annotated[
        str | None,
        typer.Option("--state", help="Of soft-labels: the true class; default: the most central."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Draw a figure of a run."""
    wait_passively()
    from geo_embed.reporting.plot import Choice, plot
    from geo_embed.runs.run import use_run

    config = GLOBALS.config(model__device=device)
    choice = Choice(sample, order, limit, state)
    drawn = use_run(
        config.paths.runs_dir,
        run,
        lambda loaded: {
            "run": loaded.name,
            "name": name,
            "plot": plot(config, loaded, name, out, split=split, choice=choice),
        },
    )
    print_result(drawn, [("plot", drawn["plot"])])


@app.command("report", epilog="Example: `geo report first`, or `geo report second first`")
def _report(
    runs: Annotated[
        list[str] | None,
        typer.Argument(
            autocompletion=complete_run,
            metavar="[RUN]...",
            help="Runs by name or directory; the newest if left out. The first is what the others are compared with.",
        ),
    ] = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: reports/RUN.html")] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures",
            help="With the views of the samples it shows. Street-view providers forbid rehosting: for yourself alone.",
        ),
    ] = False,
    device: DeviceOption = None,
) -> None:
    """Write one HTML file about a run, or several: score, maps, mistakes, samples, what to do next. It needs no network."""
    wait_passively()
    from geo_embed.reporting.report import report

    config = GLOBALS.config(model__device=device)
    geo = shlex.join(["geo", *given_options()])
    path = report(config, runs or [None], out, pictures=pictures, geo=geo)
    print_result({"report": path}, [("report", path)])


@app.command("explore", epilog="Example: `geo explore first`, or `geo explore second --compare first`")
def _explore(
    run: RunArgument = None,
    port: Annotated[
        int | None, typer.Option("--port", min=1, max=65535, help="Default: one that is free.")
    ] = None,
    host: Annotated[
        str,
        typer.Option(
            "--host", help="Where to listen; 0.0.0.0 for other machines as well, which then need the token."
        ),
    ] = "127.0.0.1",
    compare: Annotated[
        str | None,
        typer.Option(
            "--compare", autocompletion=complete_run, help="Another run, whose answers stand beside."
        ),
    ] = None,
    split: Annotated[
        Literal["val", "test"] | None,
        typer.Option("--split", help="The samples shown first; default: those held out."),
    ] = None,
    device: DeviceOption = None,
) -> None:
    """Serve a page over a run: its samples on a map, its mistakes, its answers to your own pictures, a game. Ends on Ctrl-C."""
    wait_passively()
    from geo_embed.explorer.explore import listening
    from geo_embed.explorer.serving import leaving_at_once, serve

    def announce(url: str) -> None:
        print_result({"url": url}, [("url", url), ("end it", "Ctrl-C")])
        flush()

    config = GLOBALS.config(model__device=device)
    with (
        leaving_at_once(),
        listening(config, run, host=host, port=port, compare=compare, split=split) as page,
    ):
        serve(page, announce)
