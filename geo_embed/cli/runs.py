"""`geo runs`: look at all runs, compare two, and say what is to be kept of them."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geo_embed.cli.commands import Commands
from geo_embed.cli.complete import complete_run
from geo_embed.cli.options import GLOBALS, BackbonesOption, RunArgument
from geo_embed.cli.show import metric_rows, print_made, print_result, print_table, readable_size
from geo_embed.config import RunOrder
from geo_embed.console import counted, harmless, show
from geo_embed.errors import GeoError
from geo_embed.threads import wait_passively

if TYPE_CHECKING:
    from geo_embed.prediction.difference import Compared, Comparison
    from geo_embed.runs.listing import Listing
    from geo_embed.runs.transfer import Transferred


class ListsByDefault(Commands):
    """`geo runs`, alone or with options, is `geo runs ls`."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        """As `Commands`, with `ls` in front of options that belong to no command."""
        if not args or (args[0].startswith("-") and args[0] not in ctx.help_option_names):
            args = ["ls", *args]
        return super().parse_args(ctx, args)


app = typer.Typer()
runs_app = typer.Typer(help="Look at runs: all of them, one, or the difference of two.")

NamedRun = Annotated[
    str, typer.Argument(metavar="RUN", help="A run's name or directory.", autocompletion=complete_run)
]


@app.command("calibrate", epilog="Example: `geo calibrate first`")
def _calibrate(
    run: RunArgument = None,
    kind: Annotated[
        str,
        typer.Option(
            "--kind",
            help="temperature: one for all states; vector: a factor and an offset per state; none: take it away again.",
        ),
    ] = "temperature",
) -> None:
    """Make a finished run as sure as it is right, by the samples that it held out; predict and submit use it from then on."""
    wait_passively()
    from geo_embed.prediction.calibrate import calibrate

    done = calibrate(GLOBALS.config(), run, kind=kind, command=GLOBALS.command)
    now = done.kind if done.changed else f"{done.kind}, as before: nothing was changed"

    def text(values: dict[str, float]) -> str:
        return f"{values['before']:.3f} → {values['after']:.3f}"

    print_result(
        done,
        [
            ("run", done.run),
            ("calibration", now),
            ("nll", text(done.nll)),
            ("ece", text(done.ece)),
            ("samples", f"{done.samples:,} held out, each calibrated by the others"),
        ],
    )


@runs_app.command("ls", epilog="Example: `geo runs ls 'heads-*' --sort score`")
def _ls(
    pattern: Annotated[
        str | None, typer.Argument(metavar="PATTERN", help="Only names like this, as 'heads-*'.")
    ] = None,
    tag: Annotated[
        list[str] | None, typer.Option("--tag", help="Only runs with this tag; repeatable.")
    ] = None,
    sort: Annotated[RunOrder, typer.Option("--sort", help="The newest, best, or nearest first.")] = "age",
) -> None:
    """List every run with its score, recipe, data and age; and what lies among them and is none."""
    from geo_embed.runs.listing import list_runs

    listing = list_runs(GLOBALS.config().paths.runs_dir, pattern, tags=tag or [], sort=sort)
    if GLOBALS.as_json:
        print_result(listing, [])
        return
    _print_listing(listing)


def _print_listing(listing: "Listing") -> None:
    if listing.runs or not listing.broken:
        print_table([_as_line(run) for run in listing.runs])
    if listing.broken:
        show()
        show("[no runs]")
        print_table([{"directory": str(broken.path), "why": broken.reason} for broken in listing.broken])


def _as_line(run: Any) -> dict[str, Any]:
    low, high = run.score_interval
    return {
        "run": run.run,
        "score": "–" if run.score is None else f"{run.score:.4f}",
        "95 %": "–" if low is None else f"{low:.3f}–{high:.3f}",
        "recipe": _recipe_text(run.kind, run.recipe),
        "embeddings": f"{run.backbone.rstrip('/').rpartition('/')[2]}-{run.store[:8]}"
        + (f", +{len(run.stores) - 1}" if len(run.stores) > 1 else ""),
        "held out": f"{run.samples:,} {_validation_text(run.validation)}",
        "age": _age_text(run.age_seconds),
        "tags": ", ".join(run.tags),
    }


def _recipe_text(kind: str, recipe: dict[str, Any]) -> str:
    if kind == "ensemble":
        return f"{recipe['method']} of {len(recipe['members'])} runs"
    chosen = recipe.get("chosen")
    parts = chosen if chosen else [recipe["head"], recipe["fusion"]]
    listed = ", ".join(parts[:2]) + (f", +{len(parts) - 2}" if len(parts) > 2 else "")
    text = f"{recipe['preset']}: {listed}"
    return f"tuned {recipe['init']}" if kind == "finetuned" else text


def _validation_text(validation: dict[str, Any]) -> str:
    folds = f", {validation['folds']} folds" if validation["folds"] > 1 else ""
    kind = f"spatial {validation['group_km']:g} km" if validation["kind"] == "spatial" else validation["kind"]
    return kind + folds


def _age_text(seconds: float) -> str:
    for unit, length in (("d", 86_400), ("h", 3_600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.0f} {unit}"
    return f"{seconds:.0f} s"


@runs_app.command("show", epilog="Example: `geo runs show first`")
def _show(run: RunArgument = None) -> None:
    """Print all that a run says of itself: scores, recipe, data, settings, command, files."""
    from geo_embed.runs.listing import describe_run

    described = describe_run(GLOBALS.config().paths.runs_dir, run)
    size = sum(described["files"].values())
    data = described["data"]
    rows = [
        ("run", described["run"]),
        ("directory", described["path"]),
        *metric_rows(described["val"]),
        ("recipe", _recipe_text(described["kind"], described["recipe"])),
        *(
            (key, ", ".join(described["recipe"][key]))
            for key in ("chosen", "members")
            if key in described["recipe"]
        ),
        ("calibrated by", described["calibration"] or "nothing"),
        ("held out", f"{described['samples']:,} {_validation_text(described['validation'])}"),
        ("embeddings", f"{described['backbone']}, store {described['store']}"),
        ("data", f"{data['train_csv'] or 'unknown'}, {counted(data['samples'] or 0, 'sample')}"),
        *([("settings", "")] if described["settings"] else []),
        *((f"  {key}", value) for key, value in described["settings"].items()),
        ("made", f"{described['created'] or 'unknown'}, by {' '.join(described['command'] or ['Python'])}"),
        ("tags", ", ".join(described["tags"]) or "none"),
        ("note", described["note"] or "none"),
        ("files", f"{len(described['files']):,}, {readable_size(size)}"),
    ]
    print_result(described, rows)


@runs_app.command("compare", epilog="Example: `geo runs compare first second`")
def _compare(first: NamedRun, second: NamedRun) -> None:
    """Say which of two runs is better, and whether that is more than chance, on the samples that both held out."""
    from geo_embed.prediction.difference import compare_runs

    comparison = compare_runs(GLOBALS.config().paths.runs_dir, first, second)
    if GLOBALS.as_json:
        print_result(comparison, [])
        return
    columns = ("score", "state_score", "gps_score", "mean_km")
    print_table(
        [{"run": run.run, **{name: getattr(run, name) for name in columns}} for run in comparison.runs]
    )
    show()
    print_result({}, _difference_rows(comparison))


def _difference_rows(comparison: "Comparison") -> list[tuple[str, str]]:
    def text(difference: float, interval: tuple[float | None, float | None]) -> str:
        low, high = interval
        return f"{difference:+.4f}" + ("" if low is None else f" ({low:+.4f} to {high:+.4f})")

    first, second = (harmless(run.run) for run in comparison.runs)
    low, high = comparison.interval
    if low is None or high is None:
        verdict = "too few samples for an interval"
    elif low <= 0 <= high:
        verdict = "no difference that these samples can tell: the interval holds 0"
    else:
        verdict = f"{first if low > 0 else second} is better"
    drawn = "" if comparison.groups is None else f", drawn by {counted(comparison.groups, 'place')}"
    return [
        ("difference", f"{text(comparison.difference, comparison.interval)}, {first} less {second}"),
        ("of states", text(comparison.state_score.difference, comparison.state_score.interval)),
        ("of GPS", text(comparison.gps_score.difference, comparison.gps_score.interval)),
        ("verdict", verdict),
        ("samples", f"{comparison.samples:,} that both held out{drawn}"),
        *(("left out", _left_out_text(run)) for run in comparison.runs if run.left_out),
        *_unlike_rows(comparison),
    ]


def _unlike_rows(comparison: "Comparison") -> list[tuple[str, str]]:
    """What makes the comparison unfair: one of two runs may have trained next door to the samples."""
    if len({run.validation for run in comparison.runs}) < 2:
        return []
    random = next(harmless(run.run) for run in comparison.runs if run.validation == "random")
    return [
        (
            "careful",
            f"{random} was split at random, the other by place: it may have trained next to these samples",
        )
    ]


def _left_out_text(run: "Compared") -> str:
    trained = f"; the other run was trained on {run.trained_on_by_other:,}" if run.trained_on_by_other else ""
    return f"{run.left_out:,} of {run.held_out:,} that {harmless(run.run)} held out and the other didn't{trained}"


@runs_app.command("tag", epilog="Example: `geo runs tag first good`")
def _tag(
    run: NamedRun,
    tags: Annotated[list[str], typer.Argument(metavar="TAG", help="Words without blanks and commas.")],
    remove: Annotated[bool, typer.Option("--remove", help="Take these tags away.")] = False,
) -> None:
    """Give a run tags, by which `geo runs --tag` finds it."""
    from geo_embed.runs.tags import tag_run

    tagged = tag_run(GLOBALS.config().paths.runs_dir, run, tags, remove=remove)
    print_result(
        {"run": run, "tags": tagged.tags}, [("run", run), ("tags", ", ".join(tagged.tags) or "none")]
    )


@runs_app.command("note", epilog="Example: `geo runs note first 'the one to beat'`")
def _note(
    run: NamedRun,
    text: Annotated[str, typer.Argument(metavar="TEXT", help="Of any length; empty takes the note away.")],
) -> None:
    """Write a note on a run, in the place of the one that it has."""
    from geo_embed.runs.tags import note_run

    tagged = note_run(GLOBALS.config().paths.runs_dir, run, text)
    print_result({"run": run, "note": tagged.note}, [("run", run), ("note", tagged.note or "none")])


@runs_app.command("rm", epilog="Example: `geo runs rm swept --yes`")
def _rm(
    names: Annotated[
        list[str],
        typer.Argument(metavar="RUN", help="Names of runs, broken ones too.", autocompletion=complete_run),
    ],
    yes: Annotated[bool, typer.Option("--yes", help="Don't ask.")] = False,
    force: Annotated[
        bool, typer.Option("--force", help="Also runs that an ensemble or a training was made of.")
    ] = False,
) -> None:
    """Delete runs for good; asks first."""
    from geo_embed.runs.remove import find_removable, remove_runs

    runs_dir = GLOBALS.config().paths.runs_dir
    paths = [find_removable(runs_dir, name) for name in names]
    if not yes:
        listed = ", ".join(harmless(path.name) for path in paths)
        if not sys.stdin.isatty():
            raise GeoError(
                f"nobody can be asked whether to delete {listed}", where=runs_dir, hint="say so with --yes"
            )
        if not _confirmed(f"Delete {listed} for good?"):
            raise GeoError("nothing was deleted", where=runs_dir)
    gone = remove_runs(runs_dir, names, force=force)
    print_result(gone, [("removed", ", ".join(gone.removed)), ("freed", readable_size(gone.bytes))])


@app.command("export", epilog="Example: `geo export first --out first-export`")
def _export(
    out: Annotated[
        Path,
        typer.Option("--out", metavar="DIR", help="The directory: a new one, or an export to be replaced."),
    ],
    run: RunArgument = None,
    onnx: Annotated[
        bool,
        typer.Option("--onnx", help="Also as ONNX, run by ONNX Runtime and compared with torch."),
    ] = False,
    heads_only: Annotated[
        bool, typer.Option("--heads-only", help="Without the backbone: the export takes embeddings.")
    ] = False,
    push: Annotated[
        str | None,
        typer.Option(
            "--push", metavar="REPO", help="Also to the Hugging Face hub: USER/REPO; a new one is private."
        ),
    ] = None,
    backbone: BackbonesOption = None,
) -> None:
    """Make one directory that predicts by itself: backbone, heads, classes, and a model card.

    Read by `GeoPredictor.from_pretrained(DIR)`. Nothing in it says where it was made, and nothing of single samples but what the heads look up.
    """
    wait_passively()
    from geo_embed.exports.export import export
    from geo_embed.runs.run import use_run

    config = GLOBALS.config()
    done = use_run(
        config.paths.runs_dir,
        run,
        lambda loaded: export(
            config, loaded, out, onnx=onnx, heads_only=heads_only, push=push, backbone=backbone
        ),
    )
    checks, neighbours = done.onnx, done.neighbours
    rows: list[tuple[str, Any]] = [
        ("directory", done.directory),
        ("files", f"{len(done.files):,}, {readable_size(done.bytes)}"),
        ("backbone", f"{done.base_model}, licence {done.license}"),
    ]
    if neighbours["samples"]:
        size = readable_size(neighbours["bytes"])
        rows.append(("neighbours", f"{counted(neighbours['samples'], 'training sample')}, {size}"))
    if checks is not None:
        errors = f"{checks['probability_error']:.1e} in a probability, {checks['point_error_km'] * 1000:.2g} m in a point"
        rows.append(
            (
                checks["file"],
                f"at most {errors} from torch, on {counted(checks['places'], 'place')} ({checks['of']})",
            )
        )
    if done.pushed is not None:
        rows.append(("pushed", done.pushed))
    rows.append(("in Python", f"GeoPredictor.from_pretrained({str(done.directory)!r}): docs/export.md"))
    print_made(done, rows)


@runs_app.command("push", epilog="Example: `geo runs push first s3://my-bucket/runs`")
def _push(
    run: NamedRun,
    address: Annotated[
        str, typer.Argument(help="Where runs lie: s3://BUCKET/PREFIX, gs://…, az://…, or hf://USER/REPO.")
    ],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
) -> None:
    """Copy a run into a bucket or a repository of the Hugging Face hub, without its checkpoints."""
    from geo_embed.runs.run import load_run
    from geo_embed.runs.transfer import push_run

    pushed = push_run(load_run(GLOBALS.config().paths.runs_dir, run), address, overwrite=overwrite)
    _show_transferred(pushed)


@runs_app.command("pull", epilog="Example: `geo runs pull s3://my-bucket/runs/first --name theirs`")
def _pull(
    address: Annotated[
        str, typer.Argument(help="Of the run: s3://BUCKET/PREFIX/RUN, gs://…, az://…, or hf://USER/REPO/RUN.")
    ],
    name: Annotated[str | None, typer.Option("--name", help="What to call it here; default its own.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")] = False,
) -> None:
    """Copy a run from a bucket or the hub into the runs of this machine."""
    from geo_embed.runs.transfer import pull_run

    runs_dir = GLOBALS.config().paths.runs_dir
    _show_transferred(pull_run(address, runs_dir, name=name, overwrite=overwrite))


def _show_transferred(run: "Transferred") -> None:
    print_result(run, [("run", run.place), ("files", f"{run.files:,}, {readable_size(run.bytes)}")])


def _confirmed(question: str) -> bool:
    """Whether somebody at the terminal says yes; the end of input says no, and Ctrl-C ends the command as it does everywhere."""
    try:
        return typer.confirm(question, err=True)
    except typer.Abort as abort:
        if isinstance(abort.__context__, KeyboardInterrupt):
            raise KeyboardInterrupt from None
        return False
