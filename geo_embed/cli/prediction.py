"""From a run to answers: `geo evaluate`, `ensemble`, `predict`, `submit`."""

from enum import Enum
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.cli.complete import complete_run
from geo_embed.cli.options import (
    CHECK_FAILED,
    GLOBALS,
    BackbonesOption,
    BadImageOption,
    BatchOption,
    DamagedOption,
    DeviceOption,
    NameOption,
    NoExtractOption,
    OverwriteOption,
    RunArgument,
    Split,
    TtaOption,
    WorkersOption,
    splits_of,
)
from geo_embed.cli.show import (
    detailed_rows,
    metric_rows,
    print_findings,
    print_made,
    print_result,
    print_splits,
    print_table,
    protocol_rows,
    sample_rows,
    twin_rows,
)
from geo_embed.config import Config, EnsembleMethod, PointChoice
from geo_embed.console import counted, is_quiet, show
from geo_embed.threads import wait_passively

app = typer.Typer()


class By(Enum):
    """The tables of `evaluate`; a repeatable option can't be a Literal."""

    CLASS = "class"
    VIEW = "view"
    BORDER = "border"
    DISTANCE = "distance"
    CALIBRATION = "calibration"
    WORST = "worst"
    CONFUSION = "confusion"


@app.command("evaluate", epilog="Example: `geo evaluate first --by worst --out worst.geojson`")
def _evaluate(
    run: RunArgument = None,
    split: Annotated[
        Literal["val", "train", "all"],
        typer.Option("--split", help="The samples held out, or those learnt from."),
    ] = "val",
    by: Annotated[
        list[By] | None,
        typer.Option(
            "--by",
            help="Also a table by this, repeatable; worst: samples, the lowest score first; confusion: states taken for others.",
        ),
    ] = None,
    limit: Annotated[
        int | None,
        typer.Option("--limit", min=1, help="First rows of a table; default: 20 of worst and confusion."),
    ] = None,
    out: Annotated[
        Path | None,
        typer.Option(
            "--out", help="A file for the whole table: .csv, .parquet, or a map of the samples, .geojson."
        ),
    ] = None,
    protocol: Annotated[
        Literal["im2gps3k", "osv5m"] | None,
        typer.Option("--protocol", help="Instead a benchmark's own table, to stand beside published ones."),
    ] = None,
    truth: Annotated[
        Path | None,
        typer.Option(
            "--truth",
            help="With --protocol: answer the test split, whose places are in this CSV (sample_id, latitude, longitude).",
        ),
    ] = None,
) -> None:
    """Print the metrics of a run, and tables of where it errs."""
    wait_passively()
    if protocol is not None:
        if by or limit or out or split != "val":
            raise typer.BadParameter(
                "--protocol has a table of its own: no --by, --limit, --out or --split goes with it"
            )
        _print_protocol(run, protocol, truth)
        return
    if truth is not None:
        raise typer.BadParameter("--truth goes with --protocol")
    from geo_embed.prediction.evaluate import evaluate
    from geo_embed.runs.run import Run, use_run

    config = GLOBALS.config()
    splits = ["train", "val"] if split == "all" else [split]
    tables: list[Any] = [table.value for table in dict.fromkeys(by or [])]
    if out is not None and (len(tables) != 1 or split == "all"):
        raise typer.BadParameter("--out takes one table: one --by, and one split")

    def measured(loaded: Run) -> tuple[Path, list[dict[str, Any]]]:
        return loaded.path, [
            {
                "run": loaded.name,
                "split": part,
                **evaluate(config, loaded, part, tables, limit=limit, out=out),
            }
            for part in splits
        ]

    path, scores = use_run(config.paths.runs_dir, run, measured)
    print_splits(
        split,
        scores,
        lambda score: [
            *detailed_rows(score),
            *(sample_rows(path, score["samples"], run) if score["split"] == "val" and not tables else ()),
        ],
    )
    if not GLOBALS.as_json:
        for score in scores:
            for name in tables:
                show()
                show(f"[{score['split']}, by {name}]")
                print_table([_as_line(row) for row in score[name]] if name == "worst" else score[name])
                if name == "worst" and len(score[name]) < score["samples"] and out is None:
                    show(f"… of {counted(score['samples'], 'sample')}; --out FILE.csv has them all")
        if out is not None:
            show()
            print_result({}, [("table", out)])


def _print_protocol(run: str | None, protocol: Literal["im2gps3k", "osv5m"], truth: Path | None) -> None:
    """A benchmark's table of a run."""
    from geo_embed.extraction.for_run import extract_for_run
    from geo_embed.prediction.protocol import BENCHMARK_SAMPLES, evaluate_protocol
    from geo_embed.runs.run import use_run

    config = GLOBALS.config()
    result = use_run(
        config.paths.runs_dir,
        run,
        lambda loaded: evaluate_protocol(config, loaded, protocol, truth=truth, embed=extract_for_run),
    )
    count = f"{result['samples']:,} {result['rows']}; {protocol} itself has {BENCHMARK_SAMPLES[protocol]:,}"
    print_result(result, [("run", result["run"]), ("samples", count)])
    if not GLOBALS.as_json and result["samples"]:
        show()
        print_table(protocol_rows(result))
        if protocol == "osv5m" and not result["areas"]:
            show()
            show(
                "no areas: none of the columns country, region, sub-region, city is in both the training CSV and the truth"
            )


def _as_line(row: dict[str, Any]) -> dict[str, Any]:
    """A sample's result as one line of a terminal."""
    ranks = (k for k in range(1, 6) if f"state_{k}" in row)
    return {
        "sample": str(row["sample_id"]),
        **{name: row[name] for name in ("score", "km")},
        "truth": row["true_state"],
        "rank": row["true_rank"],
        "top 5": ", ".join(f"{row[f'state_{k}']} {row[f'probability_{k}']:.2f}" for k in ranks),
    }


@app.command("ensemble", epilog="Example: `geo ensemble first second --method stacking --name both`")
def _ensemble(
    runs: Annotated[
        list[str],
        typer.Argument(
            metavar="RUN", help="Two runs or more, by name or directory.", autocompletion=complete_run
        ),
    ],
    method: Annotated[
        EnsembleMethod,
        typer.Option(
            help="average: of the probabilities; weighted: by squared validation score; voting: top-5 lists; "
            "majority: first choices, ties by mean probability; rrf: reciprocal rank fusion; stacking: weights that maximise the score."
        ),
    ] = "average",
    point: Annotated[
        PointChoice,
        typer.Option(
            help="median: the point of least distance to the runs' points, deaf to outliers; mean: their weighted mean on the "
            "sphere, which heeds a lighter run; auto: what scores better on held-out samples."
        ),
    ] = "auto",
    name: NameOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Combine runs, made anywhere on the same held-out samples, into a run of its own."""
    wait_passively()
    from geo_embed.prediction.ensemble import ensemble

    config = GLOBALS.config()
    ensembled = ensemble(
        config,
        runs,
        method=method,
        point=point,
        name=name,
        overwrite=overwrite,
        command=GLOBALS.command,
    )
    chosen = ", chosen on the held-out samples" if point == "auto" else ""
    members = [(m.run, f"weight {m.weight:.3f}, score {m.score:.4f} alone") for m in ensembled.members]
    print_made(
        ensembled,
        [
            ("run", ensembled.run),
            *members,
            ("point", f"{ensembled.point} of the runs' points{chosen}"),
            *metric_rows(ensembled.val),
            *twin_rows(ensembled.twins, ensembled.val["samples"]),
            *sample_rows(config.paths.runs_dir / ensembled.run, ensembled.val["samples"]),
        ],
        *("submit", ensembled.run),
    )


def _config_of_answers(
    device: DeviceOption,
    tta: TtaOption,
    on_bad_image: BadImageOption,
    on_damaged_image: DamagedOption,
    batch_size: BatchOption,
    workers: WorkersOption,
) -> Config:
    """The settings of a command that embeds what it lacks and answers."""
    return GLOBALS.config(
        model__device=device,
        inference__tta=tta,
        inference__on_bad_image=on_bad_image,
        inference__on_damaged_image=on_damaged_image,
        inference__batch_size=batch_size,
        inference__workers=workers,
    )


@app.command(
    "predict",
    epilog="Example: `geo predict first --images n.jpg e.jpg s.jpg w.jpg`, or `geo predict first --split test --tta`",
)
def _predict(
    run: RunArgument = None,
    split: Annotated[Split | None, typer.Option("--split", help="A whole split.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="N E S W", help="One place's pictures, view by view."),
    ] = None,
    tta: TtaOption = None,
    no_extract: NoExtractOption = False,
    backbone: BackbonesOption = None,
    device: DeviceOption = None,
    on_bad_image: BadImageOption = None,
    on_damaged_image: DamagedOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
) -> None:
    """Predict a split into the run's prediction table, or one place from its pictures.

    Pictures of a split whose embeddings by the run's backbone are not cached are embedded first. --backbone says where that lies now.
    """
    wait_passively()
    from geo_embed.extraction.for_run import extract_for_run
    from geo_embed.prediction.pictures import predict_images
    from geo_embed.prediction.predict import predict_split
    from geo_embed.runs.run import use_run

    if (split is None) == (not images):
        raise typer.BadParameter("give either --split or --images")
    if split is not None and no_extract and backbone:
        raise typer.BadParameter(
            "--backbone says what embeds the split's pictures, and --no-extract that nothing does"
        )
    config = _config_of_answers(device, tta, on_bad_image, on_damaged_image, batch_size, workers)
    embed = None if no_extract else partial(extract_for_run, backbone=backbone)
    runs_dir = config.paths.runs_dir
    if split is not None:
        parts = splits_of(split)
        written = use_run(
            runs_dir,
            run,
            lambda loaded: [
                {"split": part, "predictions": predict_split(config, loaded, part, embed=embed)[1]}
                for part in parts
            ],
        )
        if GLOBALS.as_json or not is_quiet():
            print_splits(split, written, lambda row: [("predictions", row["predictions"])])
        return
    answer = use_run(
        runs_dir, run, lambda loaded: predict_images(config, loaded, [images], backbone=backbone)
    ).describe()
    best = [(s["state"], f"{s['probability']:.3f}") for s in answer["states"][:5]]
    print_result(answer, [*best, ("point", f"{answer['latitude']:.4f}, {answer['longitude']:.4f}")])


@app.command("submit", epilog="Example: `geo submit first --out first.csv`")
def _submit(
    run: RunArgument = None,
    written: Annotated[
        Path | None,
        typer.Option(
            "--out",
            help="Default: submissions/RUN.csv; for s3://, gs:// and az:// a copy goes into the bucket.",
        ),
    ] = None,
    tta: TtaOption = None,
    calibrated: Annotated[
        bool,
        typer.Option(
            "--calibrate",
            help="First calibrate the run by temperature, as `geo calibrate` does; a calibration that it has is kept.",
        ),
    ] = False,
    no_extract: NoExtractOption = False,
    device: DeviceOption = None,
    on_bad_image: BadImageOption = None,
    on_damaged_image: DamagedOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
) -> None:
    """Write a competition file and validate it.

    Test pictures whose embeddings by the run's backbone are not cached are embedded first.
    """
    wait_passively()
    from geo_embed.extraction.for_run import extract_for_run
    from geo_embed.prediction.calibrate import calibrate, is_calibrated
    from geo_embed.prediction.submission import submit
    from geo_embed.runs.run import use_run

    config = _config_of_answers(device, tta, on_bad_image, on_damaged_image, batch_size, workers)
    address = written if isinstance(written, Address) else None
    out = config.paths.submissions_dir / address.name if address is not None else written
    if calibrated and not is_calibrated(config, run):
        done = calibrate(config, run, command=GLOBALS.command)
        run = run or done.run
    embed = None if no_extract else extract_for_run
    path, verdict = use_run(
        config.paths.runs_dir, run, lambda loaded: submit(config, loaded, out, embed=embed)
    )
    if address is not None:
        buckets.put(address, path.read_bytes())
    result: dict[str, Any] = {
        "submission": path,
        "rows": verdict.rows,
        "valid": verdict.valid,
        "warnings": verdict.warnings,
    }
    if address is not None:
        result["copy"] = address
    file = str(path)
    # Without a competition's name there is nowhere to send it to.
    look = ["submission", "analyze", file]
    then = ["submission", "send", file, "-m", path.stem] if config.inference.competition else look
    print_made(
        result,
        [
            ("submission", path),
            *([("copy", address)] if address is not None else []),
            ("rows", f"{verdict.rows:,}"),
            ("valid", "yes" if verdict.valid else "no"),
        ],
        *(then if verdict.valid else []),
    )
    print_findings(verdict.errors, verdict.warnings)
    if not verdict.valid:
        raise typer.Exit(CHECK_FAILED)
