"""The three stages: `geo extract`, `fit-heads`, `sweep`, `finetune`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from geo_embed.cli.complete import complete_run
from geo_embed.cli.options import (
    GLOBALS,
    BackboneOption,
    BackbonesOption,
    BadImageOption,
    BatchOption,
    DamagedOption,
    DeviceOption,
    DtypeOption,
    EngineOption,
    FeaturesOption,
    LimitOption,
    NameOption,
    OverwriteOption,
    RayAddressOption,
    SeedOption,
    SplitOption,
    TrackOption,
    WorkersOption,
    chosen_engine,
    splits_of,
)
from geo_embed.cli.show import (
    chosen_rows,
    metric_rows,
    print_made,
    print_next,
    print_splits,
    sample_rows,
    twin_rows,
)
from geo_embed.config import Preset
from geo_embed.console import counted, is_quiet, say, show
from geo_embed.fitting.outlook import command_outlook
from geo_embed.registry import FUSIONS
from geo_embed.threads import spin_briefly, wait_passively

if TYPE_CHECKING:
    from geo_embed.extraction.extract import Extraction

app = typer.Typer()


@app.command("extract", epilog="Example: `geo extract --split train`")
def _extract(
    split: SplitOption,
    backbone: BackbonesOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="PIL's resize, bit-equal to transformers; slower.")
    ] = None,
    on_bad_image: BadImageOption = None,
    on_damaged_image: DamagedOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    part: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            help="Only the K-th of N parts, K from 1; in any order or at once, they make the store of one run.",
        ),
    ] = None,
    tta: Annotated[
        bool | None,
        typer.Option(
            "--tta",
            help="Also the variants of each picture that finetune.augment allows for, as submit --tta needs them; stores of their own.",
        ),
    ] = None,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
    seed: SeedOption = None,
) -> None:
    """Stage 1: images to the embedding store. Run it again at any time: what is there is not computed twice.

    `--part $SLURM_ARRAY_TASK_ID/8` in an array of jobs 1-8 divides the work; a part that was killed is begun again.
    """
    wait_passively()
    from geo_embed.data.variants import AS_THEY_ARE, variants_of
    from geo_embed.devices import is_torchrun
    from geo_embed.extraction.extract import extract
    from geo_embed.extraction.plan import parse_part

    config = GLOBALS.config(
        model__backbone_name=backbone,
        model__device=device,
        model__dtype=dtype,
        model__exact=exact,
        inference__on_bad_image=on_bad_image,
        inference__on_damaged_image=on_damaged_image,
        inference__batch_size=batch_size,
        inference__workers=workers,
        training__seed=seed,
    )
    # `inference.tta` alone is about answers.
    variants = variants_of(config.finetune.augment, config.model.view_names) if tta else [AS_THEY_ARE]
    # One backbone after the other, each with all that it has to embed.
    configs = [
        config.model_copy(update={"model": config.model.with_backbone(name)})
        for name in config.model.backbone_names
    ]
    todo = [(name, variant) for name in splits_of(split) for variant in variants]
    if chosen_engine(engine, ray_address) == "ray":
        from geo_embed.scale.cluster import ray_cluster
        from geo_embed.scale.extract_on_ray import extract_on_ray

        if part is not None:
            raise typer.BadParameter("Ray deals out parts by itself", param_hint="--part")
        with ray_cluster(ray_address) as cluster:
            extractions = [
                extract_on_ray(of_one, name, cluster, limit=limit, variant=variant)
                for of_one in configs
                for name, variant in todo
            ]
    elif is_torchrun():
        from geo_embed.finetuning.team import speaks
        from geo_embed.scale.extract_in_team import extract_in_team

        if part is not None or limit is not None:
            raise typer.BadParameter(
                "each process of torchrun takes its part of all samples", param_hint="--part, --limit"
            )
        extractions = [done for of_one in configs for done in extract_in_team(of_one, todo)]
        if not speaks():
            return
    else:
        extractions = [
            extract(of_one, name, part=parse_part(part), limit=limit, variant=variant)
            for of_one in configs
            for name, variant in todo
        ]
    if GLOBALS.as_json or not is_quiet():
        print_splits("all" if tta or len(configs) > 1 else split, extractions, _extraction_rows)
    if not GLOBALS.as_json:
        for extraction in extractions:
            for bad in extraction.skipped:
                show(f"skipped: sample {bad.sample_id}, view {bad.view}: {bad.reason} ({bad.path})")
            for bad in extraction.damaged:
                show(f"accepted: sample {bad.sample_id}, view {bad.view}: {bad.reason} ({bad.path})")
    if limit is None and part is None:
        from geo_embed.health.next_step import next_step

        fresh = {extraction.split for extraction in extractions if extraction.computed}
        print_next(*next_step(config, splits_of(split), named=backbone or (), fresh=fresh))


def _extraction_rows(e: "Extraction") -> list[tuple[str, Any]]:
    from geo_embed.data.variants import AS_THEY_ARE

    speed = f"{e.images_per_second:,.0f} computed images/s over {e.working_seconds:.2f} s, without loading the backbone"
    return [
        ("store", e.store),
        *([] if e.variant == str(AS_THEY_ARE) else [("variant", e.variant)]),
        ("samples", f"{e.samples:,} × {counted(e.views, 'view')} × {e.dim}"),
        *([("features", ", ".join(e.features))] if len(e.features) > 1 else []),
        ("pictures", f"{e.computed:,} computed, {e.reused:,} reused, {len(e.skipped):,} skipped"),
        *([("speed", speed)] if e.computed else []),
        ("time", f"{e.seconds:.1f} s in all"),
    ]


def known_fusion(name: str | None) -> str | None:
    """A fusion's name: a built-in one, or one that the settings' plugins or a package bring."""
    if name is not None and name not in FUSIONS:
        GLOBALS.config()
    if name is not None and name not in FUSIONS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, FUSIONS.names()))}.")
    return name


@app.command(
    "fit-heads",
    epilog="Example: `geo fit-heads --name first`, or `geo fit-heads --backbone streetclip --backbone dinov2 --name two`",
)
def _fit_heads(
    name: NameOption = None,
    preset: Annotated[Preset | None, typer.Option(help="Recipe.")] = None,
    budget: Annotated[
        float | None,
        typer.Option(
            min=0.001, metavar="SECONDS", help="What `best` may cost, about, on two cores; more tries more."
        ),
    ] = None,
    seeds: Annotated[
        int | None, typer.Option(min=1, help="Fit so many times from other seeds, and average.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=1, help="Hold every sample out once, in so many parts.")
    ] = None,
    fusion: Annotated[
        str | None,
        typer.Option(
            help="How views become one vector; a plugin's name, too.",
            metavar=f"[{'|'.join(FUSIONS.built_in)}]",
            callback=known_fusion,
        ),
    ] = None,
    backbone: BackbonesOption = None,
    feature: FeaturesOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    track: TrackOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Stage 2: store to heads, in seconds. Reads no image."""
    spin_briefly()
    config = GLOBALS.config(
        model__backbone_name=backbone,
        model__head_features=feature,
        model__device=device,
        model__fusion=fusion,
        training__preset=preset,
        training__budget_seconds=budget,
        training__seeds=seeds,
        training__folds=folds,
        training__batch_size=batch_size,
        training__seed=seed,
        tracking__tracker=track,
    )
    # Before imports that take seconds.
    if ahead := command_outlook(config.paths.csv("train"), config.training, limit):
        say(ahead)
    from geo_embed.fitting.fit import describe_comparison, fit_heads

    fit = fit_heads(config, name=name, limit=limit, overwrite=overwrite, command=GLOBALS.command)
    alone = [part["score"] for part in fit.parts if "score" in part]
    spread = (
        [("each alone", f"{min(alone):.4f} to {max(alone):.4f}, {counted(len(alone), 'fit')}")]
        if alone
        else []
    )
    print_made(
        fit,
        [
            ("run", fit.run),
            ("time", f"{fit.epochs} epochs, {fit.seconds:.1f} s"),
            *metric_rows(fit.val),
            *chosen_rows(fit.chosen_score, fit.val["score"]),
            *twin_rows(fit.twins, fit.val["samples"]),
            *sample_rows(config.paths.runs_dir / fit.run, fit.val["samples"]),
            *spread,
            *[
                (
                    "sources",
                    describe_comparison(part["sources"], fit.val["samples"]).removeprefix("sources: "),
                )
                for part in fit.parts
                if "sources" in part and len(fit.parts) == 1
            ],
        ],
        *("submit", fit.run),
    )


@app.command("sweep", epilog="Example: `geo sweep --trials 27 --name swept`")
def _sweep(
    name: Annotated[str, typer.Option("--name", help="Name of the run to write.")] = "sweep",
    space: Annotated[
        Path | None, typer.Option("--space", help="TOML: settings, and the values that they may have.")
    ] = None,
    trials: Annotated[int, typer.Option(min=1, help="Configurations to try.")] = 27,
    eta: Annotated[
        int, typer.Option(min=2, help="Of each rung, one in so many goes on, for so many times the epochs.")
    ] = 3,
    backbone: BackbonesOption = None,
    feature: FeaturesOption = None,
    device: DeviceOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    track: TrackOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what was tried, and replace a run of this name.")
    ] = False,
    engine: EngineOption = "local",
    ray_address: RayAddressOption = None,
) -> None:
    """Try many heads of the plain recipe, the good ones longer; then fit the best as a run.

    Run it again at any time: it goes on from what was tried. Held-out samples don't choose; they say how good the winner is.
    """
    spin_briefly()
    from geo_embed.fitting.space import read_space
    from geo_embed.fitting.sweep import state_path, sweep

    config = GLOBALS.config(
        model__backbone_name=backbone,
        model__head_features=feature,
        model__device=device,
        training__seed=seed,
        tracking__tracker=track,
    )
    options: dict[str, Any] = {
        "space": None if space is None else read_space(space, config),
        "trials": trials,
        "eta": eta,
        "name": name,
        "limit": limit,
        "fresh": fresh,
        "command": GLOBALS.command,
    }
    if chosen_engine(engine, ray_address) == "ray":
        from geo_embed.scale.cluster import ray_cluster
        from geo_embed.scale.sweep_on_ray import sweep_on_ray

        with ray_cluster(ray_address) as cluster:
            result = sweep_on_ray(config, cluster, **options)
    else:
        result = sweep(config, **options)
    winner = result.best
    print_made(
        result,
        [
            ("run", winner["run"]),
            (
                "trials",
                f"{len(result.trials):,}, {result.computed:,} trainings, {result.reused:,} made before; each in "
                f"{state_path(config.paths.runs_dir, name)}",
            ),
            ("winner", f"trial {winner['trial']}, {winner['score']:.4f} on the samples that chose it"),
            *((key, json.dumps(value)) for key, value in winner["settings"].items()),
            *metric_rows(winner["val"]),
            *twin_rows(winner["twins"], winner["val"]["samples"]),
            *sample_rows(config.paths.runs_dir / winner["run"], winner["val"]["samples"]),
            ("again", result.command),
        ],
        *("submit", winner["run"]),
    )


@app.command("finetune", epilog="Example: `geo finetune --init first --name tuned`")
def _finetune(
    name: NameOption = None,
    init: Annotated[
        str | None,
        typer.Option(
            "--init",
            help="The run to start from; default: heads fitted on the spot.",
            autocompletion=complete_run,
        ),
    ] = None,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs to train.")] = None,
    on_damaged_image: DamagedOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    track: TrackOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Stage 3: images to an unfrozen backbone and heads. Interrupted, the same command goes on from its last checkpoint."""
    spin_briefly()
    from geo_embed.finetuning.finetune import finetune
    from geo_embed.finetuning.team import speaks

    config = GLOBALS.config(
        model__backbone_name=backbone,
        model__device=device,
        finetune__epochs=epochs,
        finetune__batch_size=batch_size,
        inference__on_damaged_image=on_damaged_image,
        inference__workers=workers,
        training__seed=seed,
        tracking__tracker=track,
    )
    tuned = finetune(config, name=name, init=init, limit=limit, overwrite=overwrite, command=GLOBALS.command)
    if not speaks():
        return
    print_made(
        tuned,
        [
            ("run", tuned.run),
            ("time", f"{tuned.epochs} epochs, {tuned.seconds:.1f} s"),
            *(
                [("speed", f"{speed:,.1f} samples/s while training")]
                if (speed := tuned.samples_per_second)
                else []
            ),
            ("frozen", "nothing held out" if tuned.frozen_score is None else f"{tuned.frozen_score:.4f}"),
            *metric_rows(tuned.val),
            *twin_rows(tuned.twins, tuned.val["samples"]),
            *sample_rows(config.paths.runs_dir / tuned.run, tuned.val["samples"]),
            ("backbone", tuned.backbone),
        ],
        *("submit", tuned.run),
    )
