"""The commands: parse, call one function, print. No logic lives here.

stdout carries results only; everything else goes to stderr.
"""

import json
import os
import shutil
import signal
import sys
import traceback
from collections.abc import Callable, Iterable
from dataclasses import asdict, dataclass, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Annotated, Any, Literal, NoReturn

import typer

from geo_embed import __version__
from geo_embed.cli.threads import spin_briefly, wait_passively
from geo_embed.config import Config, Device, Dtype, EnsembleMethod, OnBadImage, Preset
from geo_embed.console import set_quiet
from geo_embed.errors import GeoError
from geo_embed.registry import FUSIONS
from geo_embed.settings import DEFAULT_FILE, resolve, to_toml, value_at

FAULT, CHECK_FAILED = 1, 3

app = typer.Typer(
    no_args_is_help=True, add_completion=False, pretty_exceptions_enable=False, rich_markup_mode="markdown"
)
data_app = typer.Typer(no_args_is_help=True, help="Look at the dataset.")
cache_app = typer.Typer(no_args_is_help=True, help="Look after the embedding stores.")
config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")
submission_app = typer.Typer(no_args_is_help=True, help="Look at submissions, wherever they came from.")
app.add_typer(data_app, name="data")
app.add_typer(cache_app, name="cache")
app.add_typer(config_app, name="config")
app.add_typer(submission_app, name="submission")

Split = Literal["train", "test", "all"]
SplitOption = Annotated[Split, typer.Option("--split", help="Which samples.")]
BackboneOption = Annotated[
    str | None, typer.Option("--backbone", help="Hub id, model directory, or the name of an import.")
]
DeviceOption = Annotated[Device | None, typer.Option("--device", help="Where models run.")]
DtypeOption = Annotated[
    Dtype | None,
    typer.Option("--dtype", help="Precision of the backbone."),
]
SeedOption = Annotated[int | None, typer.Option("--seed", help="Seed of everything random.")]
BatchOption = Annotated[int | None, typer.Option("--batch-size", help="Items per step.")]
WorkersOption = Annotated[int | None, typer.Option("--workers", help="Decoding threads.")]
LimitOption = Annotated[
    int | None, typer.Option("--limit", min=1, help="Only the first samples of the split.")
]
StoreOption = Annotated[
    Path | None, typer.Option("--store", help="A store by its path, whatever the settings.")
]
RunArgument = Annotated[str | None, typer.Argument(help="A run's name or directory; the newest if left out.")]
NameOption = Annotated[str | None, typer.Option("--name", help="Name of the run to write.")]
OverwriteOption = Annotated[bool, typer.Option("--overwrite", help="Replace a run of this name.")]


class _By(Enum):
    """The tables of `evaluate`; a repeatable option can't be a Literal."""

    CLASS = "class"
    VIEW = "view"
    BORDER = "border"
    DISTANCE = "distance"
    CALIBRATION = "calibration"


@dataclass
class _Globals:
    file: Path | None
    settings: list[str]
    as_json: bool
    verbose: bool

    def config(self, **overrides: Any) -> Config:
        """The effective settings under a command's own options, written group__key."""
        return resolve(self.file, self.settings, {k.replace("__", "."): v for k, v in overrides.items()})[0]


_globals = _Globals(None, [], False, False)


def _known_fusion(name: str | None) -> str | None:
    """A fusion's name: a built-in one, or one that the settings' plugins or a package bring."""
    if name is not None and name not in FUSIONS:
        _globals.config()
    if name is not None and name not in FUSIONS:
        raise typer.BadParameter(f"{name!r} is not one of {', '.join(map(repr, FUSIONS.names()))}.")
    return name


def _version(asked: bool) -> None:
    if asked:
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
    global _globals
    _globals = _Globals(config, settings or [], as_json, verbose)
    set_quiet(quiet)


@app.command("demo", epilog="Example: `geo demo --root demo`")
def _demo(
    root: Annotated[Path, typer.Option(help="Where the demo lives.")] = Path("demo"),
    locations: Annotated[int, typer.Option(min=40, help="Places to paint, four pictures each.")] = 1200,
    seed: SeedOption = None,
) -> None:
    """Run everything on a small synthetic country: no data, no weights, no GPU needed."""
    wait_passively()
    from geo_embed.synthetic.demo import RECIPE, demo, demo_settings

    recipe, given = (
        [f"{key}={json.dumps(value)}" for key, value in some.items()]
        for some in (RECIPE, demo_settings(root))
    )
    config = resolve(_globals.file, [*recipe, *_globals.settings, *given], {"training.seed": seed})[0]
    done = demo(config, root, locations)
    _print(
        done,
        [
            ("frozen", f"{done.score:.4f} on held-out places"),
            ("finetuned", f"{done.finetuned_score:.4f} on the same"),
            ("submission", f"{done.submission}, of {done.submitted}"),
        ],
    )
    if not _globals.as_json:
        print(
            f"\nThat was a synthetic country and a random backbone, in {done.seconds:.0f} s. With your own data:\n"
        )
        # `make demo` leaves the virtual environment's `geo` off the PATH.
        geo = "geo" if shutil.which("geo") else os.path.relpath(Path(sys.executable).with_name("geo"))
        for command in ("data check --split all", "extract --split all", "fit-heads", "submit"):
            print(f"    {geo} --set paths.data_root=YOUR_DATA {command}")


@data_app.command("check", epilog="Example: `geo data check --split train --decode`")
def _data_check(
    split: SplitOption = "all",
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture, too.")] = False,
    workers: WorkersOption = None,
) -> None:
    """Validate CSVs and images. Exits with 3 where there are problems."""
    from geo_embed.data.check import check_data

    config = _globals.config(inference__workers=workers)
    found = [check_data(config, one, decode=decode) for one in _splits(split)]
    _print_splits(
        split, found, lambda c: [("samples", f"{c.samples:,}"), ("problems", f"{len(c.problems):,}")]
    )
    if not _globals.as_json:
        for checked in found:
            for problem in checked.problems:
                print(f"{problem.kind}: {problem.message} ({problem.where})")
    if any(checked.problems for checked in found):
        raise typer.Exit(CHECK_FAILED)


@data_app.command("leaks", epilog="Example: `geo --set training.validation=spatial data leaks`")
def _data_leaks(
    backbone: BackboneOption = None,
    seed: SeedOption = None,
    km: Annotated[float, typer.Option(min=0, help="Places closer than this are the same (km).")] = 0.1,
    cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="Embeddings at least this similar are the same picture.")
    ] = 0.999,
) -> None:
    """Look for held-out samples that training samples give away. Exits with 3 where there are some."""
    wait_passively()
    from geo_embed.fitting.leaks import check_leaks

    config = _globals.config(model__backbone_name=backbone, training__seed=seed)
    found = check_leaks(config, km=km, cosine=cosine)
    compared = "places and embeddings" if found.embeddings else "places"
    _print(
        found,
        [
            ("held out", f"{found.held_out:,} samples, {config.training.validation}"),
            ("training", f"{found.training:,} samples"),
            ("leaking", f"{found.leaking:,} held-out samples, by {compared}"),
        ],
    )
    if not _globals.as_json:
        for kind in dict.fromkeys(leak["kind"] for leak in found.leaks):
            alike = [leak for leak in found.leaks if leak["kind"] == kind]
            print(f"same {kind}: {len(alike):,}")
            for leak in alike[:5]:
                how = f"{leak['value']:.3f} km" if kind == "place" else f"cosine {leak['value']:.4f}"
                print(f"  {leak['held_out']} is held out, {leak['training']} is not ({how})")
    if found.leaks:
        if config.training.validation == "random":
            print("hint: hold whole places out with --set training.validation=spatial", file=sys.stderr)
        raise typer.Exit(CHECK_FAILED)


@app.command("extract", epilog="Example: `geo extract --split train`")
def _extract(
    split: SplitOption,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    dtype: DtypeOption = None,
    exact: Annotated[
        bool | None, typer.Option("--exact", help="PIL's resize, bit-equal to transformers; slower.")
    ] = None,
    on_bad_image: Annotated[
        OnBadImage | None, typer.Option(help="What to do with pictures that can't be read.")
    ] = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
) -> None:
    """Stage 1: images to the embedding store. Run it again at any time: what is there is not computed twice."""
    wait_passively()
    from geo_embed.extraction.extract import extract

    config = _globals.config(
        model__backbone_name=backbone,
        model__device=device,
        model__dtype=dtype,
        model__exact=exact,
        inference__on_bad_image=on_bad_image,
        inference__batch_size=batch_size,
        inference__workers=workers,
        training__seed=seed,
    )
    done = [extract(config, one, limit=limit) for one in _splits(split)]
    _print_splits(
        split,
        done,
        lambda e: [
            ("store", e.store),
            ("samples", f"{e.samples:,} × {e.views} views × {e.dim}"),
            ("pictures", f"{e.computed:,} computed, {e.reused:,} reused, {len(e.skipped):,} skipped"),
            ("speed", f"{e.images_per_second:,.0f} images/s, {e.seconds:.1f} s"),
        ],
    )
    if not _globals.as_json:
        for extraction in done:
            for bad in extraction.skipped:
                print(f"skipped: sample {bad.sample_id}, view {bad.view}: {bad.reason} ({bad.path})")


@cache_app.command("ls", epilog="Example: `geo cache ls`")
def _cache_ls() -> None:
    """List every store: what made it, how complete it is, which runs were fitted on it."""
    from geo_embed.cache.tidy import summarise
    from geo_embed.cache.verify import unreadable_stores
    from geo_embed.runs.run import run_stores

    config = _globals.config()
    stores = summarise(config.paths.cache_dir, run_stores(config.paths.runs_dir))
    problems = unreadable_stores(config.paths.cache_dir)
    rows = [
        (
            f"{s.path.parent.name}/{s.path.name}",
            f"{s.samples:,} × {s.views} × {s.dim}, {s.complete:.0%} complete, {_size(s.bytes)}, "
            f"{s.age_days:.1f} days old, runs: {', '.join(s.runs) or 'none'}",
        )
        for s in stores
    ]
    rows += [(f"{p.store.parent.name}/{p.store.name}", f"can't be opened: {p.message}") for p in problems]
    _print({"stores": stores, "problems": problems}, rows or [("", "the cache is empty")])


@cache_app.command("info", epilog="Example: `geo cache info --split train`")
def _cache_info(
    split: SplitOption = "all",
    backbone: BackboneOption = None,
    store: StoreOption = None,
) -> None:
    """Print what made the store that the settings choose, and where it stands."""
    wait_passively()
    from geo_embed.cache.tidy import summarise_store
    from geo_embed.cache.verify import choose_stores
    from geo_embed.runs.run import run_stores

    config = _globals.config(model__backbone_name=backbone)
    users = run_stores(config.paths.runs_dir)
    found = [(summarise_store(one, users), one.attrs) for one in choose_stores(config, split, store)[0]]
    described = [asdict(summary) | {"attrs": attrs} for summary, attrs in found]
    _print({"stores": described}, [])
    if not _globals.as_json:
        for one in described:
            _print(
                one, [*((key, value) for key, value in one.items() if key != "attrs"), *one["attrs"].items()]
            )


@cache_app.command("verify", epilog="Example: `geo cache verify --split train --deep`")
def _cache_verify(
    split: SplitOption = "all",
    backbone: BackboneOption = None,
    store: StoreOption = None,
    device: DeviceOption = None,
    deep: Annotated[
        bool, typer.Option("--deep", help="Embed a sample of pictures again, and compare.")
    ] = False,
    repair: Annotated[
        bool, typer.Option("--repair", help="Let damaged rows be pending again, for `geo extract`.")
    ] = False,
) -> None:
    """Read every byte against its checksum. Exits with 3 where something is damaged."""
    wait_passively()
    from geo_embed.cache.verify import choose_stores, verify, verify_deep

    config = _globals.config(model__backbone_name=backbone, model__device=device)
    stores, problems = choose_stores(config, split, store)
    for one in stores:
        found = verify(one, repair=repair)
        problems += found
        if deep and not found:
            problems += verify_deep(config, one)
    result = {"stores": [one.path for one in stores], "problems": problems}
    _print(result, [(str(one.path), f"{one.shape[0]:,} samples") for one in stores])
    if not _globals.as_json:
        for problem in problems:
            print(f"{problem.where}: {problem.message} ({problem.store})")
        if problems and repair:
            print("The rows of damaged chunks are pending again. Next: geo extract")
        print(f"{len(problems):,} problems")
    if problems:
        raise typer.Exit(CHECK_FAILED)


@cache_app.command("gc", epilog="Example: `geo cache gc --yes`")
def _cache_gc(
    unused: Annotated[
        bool, typer.Option("--unused", help="Also stores that no run and not the present settings use.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, instead of only listing.")] = False,
) -> None:
    """List what nothing needs any more; delete it with --yes."""
    from geo_embed.cache.tidy import collect_garbage
    from geo_embed.runs.run import run_stores

    config = _globals.config()
    runs = run_stores(config.paths.runs_dir) if unused else None
    garbage = collect_garbage(config, runs=runs, delete=yes)
    rows = [(_size(one["bytes"]), f"{one['path']}: {one['reason']}") for one in garbage.stores]
    end = "deleted" if yes else "can go; delete with --yes"
    _print(garbage, [*rows, (_size(garbage.bytes), end)] if rows else [("", "nothing to delete")])


@cache_app.command("import", epilog="Example: `geo cache import train.npy --split train --backbone my-vit`")
def _cache_import(
    file: Annotated[Path, typer.Argument(help=".npy, .npz, .safetensors or .parquet")],
    split: Annotated[Literal["train", "test"], typer.Option("--split", help="Whose samples they are.")],
    backbone: Annotated[str, typer.Option("--backbone", help="What to call the backbone that made them.")],
    dtype: Annotated[
        Literal["float16", "float32"] | None, typer.Option(help="Stored as; default float16.")
    ] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an import of this name.")] = False,
) -> None:
    """Bring in embeddings computed elsewhere; then go on with --backbone NAME, without a single image."""
    wait_passively()
    from geo_embed.cache.exchange import import_embeddings

    config = _globals.config(model__dtype=dtype)
    done = import_embeddings(config, file, split, backbone, overwrite=overwrite)
    _print(done, [("store", done.store), ("samples", f"{done.samples:,} × {done.views} views × {done.dim}")])


@cache_app.command("export", epilog="Example: `geo cache export --split train --out train.npy`")
def _cache_export(
    split: Annotated[Literal["train", "test"], typer.Option("--split", help="Which samples.")],
    out: Annotated[Path, typer.Option("--out", help="A .npy, .npz, .safetensors or .parquet file.")],
    backbone: BackboneOption = None,
) -> None:
    """Write a split's embeddings to a file for other tools."""
    wait_passively()
    from geo_embed.cache.exchange import export_embeddings

    embeddings = export_embeddings(_globals.config(model__backbone_name=backbone), split, out)
    samples, views, dim = embeddings.values.shape
    store = embeddings.store
    result = {
        "store": store.path,
        "fingerprint": store.fingerprint,
        "samples": samples,
        "views": views,
        "dim": dim,
    }
    _print(result | {"out": out}, [("file", out), ("samples", f"{samples:,} × {views} views × {dim}")])


@app.command("fit-heads", epilog="Example: `geo fit-heads --name first`")
def _fit_heads(
    name: NameOption = None,
    preset: Annotated[Preset | None, typer.Option(help="Recipe.")] = None,
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
            callback=_known_fusion,
        ),
    ] = None,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    batch_size: BatchOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Stage 2: store to heads, in seconds. Reads no image."""
    spin_briefly()
    from geo_embed.fitting.fit import fit_heads

    config = _globals.config(
        model__backbone_name=backbone,
        model__device=device,
        model__fusion=fusion,
        training__preset=preset,
        training__seeds=seeds,
        training__folds=folds,
        training__batch_size=batch_size,
        training__seed=seed,
    )
    fit = fit_heads(config, name=name, limit=limit, overwrite=overwrite)
    alone = [part["score"] for part in fit.parts if "score" in part]
    spread = [("each alone", f"{min(alone):.4f} to {max(alone):.4f}, {len(alone)} fits")] if alone else []
    _print(
        fit,
        [
            ("run", fit.run),
            ("time", f"{fit.epochs} epochs, {fit.seconds:.1f} s"),
            *_metric_rows(fit.val),
            *spread,
        ],
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
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Forget what was tried, and replace a run of this name.")
    ] = False,
) -> None:
    """Try many heads of the plain recipe, the good ones longer; then fit the best as a run.

    Run it again at any time: it goes on from what was tried. Held-out samples don't choose; they say how good the winner is.
    """
    spin_briefly()
    from geo_embed.fitting.sweep import read_space, sweep

    config = _globals.config(model__backbone_name=backbone, model__device=device, training__seed=seed)
    found = sweep(
        config,
        space=None if space is None else read_space(space, config),
        trials=trials,
        eta=eta,
        name=name,
        limit=limit,
        fresh=fresh,
    )
    best = found.best
    _print(
        found,
        [
            ("run", best["run"]),
            ("trials", f"{len(found.trials):,}, {found.computed:,} trainings, {found.reused:,} made before"),
            ("winner", f"trial {best['trial']}, {best['score']:.4f} on the samples that chose it"),
            *((key, json.dumps(value)) for key, value in best["settings"].items()),
            *_metric_rows(best["val"]),
            ("again", found.command),
        ],
    )


@app.command("finetune", epilog="Example: `geo finetune --init first --name tuned`")
def _finetune(
    name: NameOption = None,
    init: Annotated[
        str | None, typer.Option("--init", help="The run to start from; default: heads fitted on the spot.")
    ] = None,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
    epochs: Annotated[int | None, typer.Option(min=1, help="Most epochs to train.")] = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    limit: LimitOption = None,
    seed: SeedOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Stage 3: images to an unfrozen backbone and heads. Interrupted, the same command goes on from its last checkpoint."""
    spin_briefly()
    from geo_embed.finetuning.finetune import finetune
    from geo_embed.finetuning.team import speaks

    config = _globals.config(
        model__backbone_name=backbone,
        model__device=device,
        finetune__epochs=epochs,
        finetune__batch_size=batch_size,
        inference__workers=workers,
        training__seed=seed,
    )
    tuned = finetune(config, name=name, init=init, limit=limit, overwrite=overwrite)
    if not speaks():
        return
    _print(
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
            *_metric_rows(tuned.val),
            ("backbone", tuned.backbone),
        ],
    )


@app.command("evaluate", epilog="Example: `geo evaluate first --by class --by view`")
def _evaluate(
    run: RunArgument = None,
    split: Annotated[
        Literal["val", "train", "all"],
        typer.Option("--split", help="The samples held out, or those learnt from."),
    ] = "val",
    by: Annotated[list[_By] | None, typer.Option("--by", help="Also a table by this; repeatable.")] = None,
) -> None:
    """Print the metrics of a run."""
    wait_passively()
    from geo_embed.prediction.evaluate import evaluate
    from geo_embed.runs.run import load_run

    config = _globals.config()
    loaded = load_run(config.paths.runs_dir, run)
    splits = ["train", "val"] if split == "all" else [split]
    tables: list[Any] = [one.value for one in dict.fromkeys(by or [])]
    scores = [{"run": loaded.name, "split": one, **evaluate(config, loaded, one, tables)} for one in splits]
    _print_splits(split, scores, _metric_rows)
    if not _globals.as_json:
        for one in scores:
            for name in tables:
                print(f"\n[{one['split']}, by {name}]")
                _print_table(one[name])


@app.command("ensemble", epilog="Example: `geo ensemble first second --method stacking --name both`")
def _ensemble(
    runs: Annotated[list[str], typer.Argument(metavar="RUN", help="Two runs or more, by name or directory.")],
    method: Annotated[
        EnsembleMethod,
        typer.Option(
            help="average: of the probabilities; weighted: by squared validation score; voting: top-5 lists; "
            "rrf: reciprocal rank fusion; stacking: weights that maximise the score."
        ),
    ] = "average",
    name: NameOption = None,
    overwrite: OverwriteOption = False,
) -> None:
    """Combine runs, made anywhere on the same held-out samples, into a run of its own."""
    wait_passively()
    from geo_embed.prediction.ensemble import ensemble

    made = ensemble(_globals.config(), runs, method=method, name=name, overwrite=overwrite)
    members = [(m.run, f"weight {m.weight:.3f}, score {m.score:.4f} alone") for m in made.members]
    _print(made, [("run", made.run), *members, *_metric_rows(made.val)])


@app.command("predict", epilog="Example: `geo predict first --images n.jpg e.jpg s.jpg w.jpg`")
def _predict(
    run: RunArgument = None,
    split: Annotated[Split | None, typer.Option("--split", help="A cached split.")] = None,
    images: Annotated[
        list[Path] | None,
        typer.Option("--images", metavar="N E S W", help="One place's pictures, view by view."),
    ] = None,
    backbone: BackboneOption = None,
    device: DeviceOption = None,
) -> None:
    """Predict a cached split into the run's prediction table, or one place from its pictures."""
    wait_passively()
    from geo_embed.prediction.predict import predict_images, predict_split
    from geo_embed.runs.run import load_run

    if (split is None) == (not images):
        raise typer.BadParameter("give either --split or --images")
    config = _globals.config(model__device=device)
    loaded = load_run(config.paths.runs_dir, run)
    if split is not None:
        written = [
            {"split": one, "predictions": predict_split(config, loaded, one)[1]} for one in _splits(split)
        ]
        _print_splits(split, written, lambda row: [("predictions", row["predictions"])])
        return
    answer = predict_images(config, loaded, images or [], backbone=backbone).describe()
    best = [(s["state"], f"{s['probability']:.3f}") for s in answer["states"][:5]]
    _print(answer, [*best, ("point", f"{answer['latitude']:.4f}, {answer['longitude']:.4f}")])


@app.command("submit", epilog="Example: `geo submit first --out first.csv`")
def _submit(
    run: RunArgument = None,
    out: Annotated[Path | None, typer.Option("--out", help="Default: submissions/RUN.csv")] = None,
) -> None:
    """Write a competition file and validate it."""
    wait_passively()
    from geo_embed.prediction.submission import submit
    from geo_embed.runs.run import load_run

    config = _globals.config()
    path, verdict = submit(config, load_run(config.paths.runs_dir, run), out)
    result = {"submission": path, "rows": verdict.rows, "valid": verdict.valid, "warnings": verdict.warnings}
    _print(
        result,
        [("submission", path), ("rows", f"{verdict.rows:,}"), ("valid", "yes" if verdict.valid else "no")],
    )
    _print_findings(verdict.errors, verdict.warnings)
    if not verdict.valid:
        raise typer.Exit(CHECK_FAILED)


@submission_app.command("validate", epilog="Example: `geo submission validate submissions/first.csv`")
def _submission_validate(file: Annotated[Path, typer.Argument(help="A CSV.")]) -> None:
    """Check a submission against the template. Exits with 3 where the competition would refuse it."""
    from geo_embed.prediction.submission import validate

    verdict = validate(_globals.config(), file)
    result = {"submission": file, "valid": verdict.valid, **asdict(verdict)}
    _print(result, [("rows", f"{verdict.rows:,}"), ("valid", "yes" if verdict.valid else "no")])
    _print_findings(verdict.errors, verdict.warnings)
    if not verdict.valid:
        raise typer.Exit(CHECK_FAILED)


@config_app.command("show", epilog="Example: `geo --set training.seed=1 config show`")
def _config_show() -> None:
    """Print every setting, its value, and where it came from."""
    config, origins = resolve(_globals.file, _globals.settings)
    values = {key: _plain(value_at(config, key)) for key in origins}
    result = {key: {"value": value, "from": origins[key]} for key, value in values.items()}
    _print(result, [(key, f"{json.dumps(value)}  ({origins[key]})") for key, value in values.items()])


@config_app.command("init", epilog="Example: `geo config init`")
def _config_init(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = DEFAULT_FILE,
) -> None:
    """Write a commented geo.toml to start from."""
    if out.exists():
        raise GeoError("this file exists", where=out, hint="name another one with --out, or remove it")
    try:
        out.write_text(to_toml(Config(), comments=True, only_hints=True), encoding="utf-8")
    except OSError as error:
        raise GeoError(f"can't write: {error.strerror}", where=out) from error
    _print({"config": out}, [("config", out)])


@app.command("bench", epilog="Example: `geo bench store`")
def _bench(
    name: Annotated[
        Literal["store", "extract", "heads", "finetune"], typer.Argument(help="What to measure.")
    ],
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples, of extract pictures; default: enough to tell.")
    ] = None,
    device: DeviceOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
) -> None:
    """Measure speed on this machine, against baselines timed in the same run."""
    spin_briefly() if name in ("heads", "finetune") else wait_passively()
    from geo_embed.bench.extract import bench_extract
    from geo_embed.bench.finetune import bench_finetune
    from geo_embed.bench.heads import bench_heads
    from geo_embed.bench.store import bench_store

    config = _globals.config(
        model__device=device, inference__batch_size=batch_size, inference__workers=workers
    )
    size = {} if samples is None else {"pictures" if name == "extract" else "samples": samples}
    benches: dict[str, Callable[..., Any]] = {
        "store": bench_store,
        "extract": bench_extract,
        "heads": bench_heads,
        "finetune": bench_finetune,
    }
    bench = benches[name](config, **size)
    first = asdict(bench.measurements[0])
    headline = {key: first[key] for key in ("ours", "baseline", "ratio", "limit")}
    _print({**asdict(bench), **headline}, [("machine", bench.machine)])
    if not _globals.as_json:
        for m in bench.measurements:
            print(f"\n{m.what}")
            print(f"  ours      {m.ours:10,.3g} {m.unit}")
            print(f"  baseline  {m.baseline:10,.3g} {m.unit}  {m.against}")
            print(f"  ratio     {m.ratio:10,.2f}")
            print(f"  limit     {m.limit:10,.3g} {m.unit}  {m.bound}")


def main(arguments: list[str] | None = None) -> NoReturn:
    """Run a command and exit as the contract says."""
    words = sys.argv[1:] if arguments is None else arguments
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
    if _globals.verbose:
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


def _splits(split: str) -> list[str]:
    from geo_embed.data.samples import SPLITS

    return list(SPLITS) if split == "all" else [split]


def _size(count: float) -> str:
    from rich.filesize import decimal

    return decimal(int(count))


def _print(result: Any, rows: Iterable[tuple[str, Any]]) -> None:
    """A command's result: JSON of `result`, or `rows` as a table for people."""
    if _globals.as_json:
        print(json.dumps(_plain(result), allow_nan=False, ensure_ascii=False))
        return
    shown = [(name, str(value)) for name, value in rows]
    width = max((len(name) for name, _ in shown), default=0)
    for name, value in shown:
        print(f"{name:<{width}}  {value}")


def _print_splits(split: str, results: list[Any], rows: Callable[[Any], Iterable[tuple[str, Any]]]) -> None:
    """One result, or with `all` one per split: `{"splits": […]}`."""
    if _globals.as_json:
        _print({"splits": results} if split == "all" else results[0], [])
        return
    for result in results:
        if split == "all":
            name = result["split"] if isinstance(result, dict) else result.split
            print(f"[{name}]")
        _print(result, rows(result))


def _print_table(rows: list[dict[str, Any]]) -> None:
    """Rows as columns: kilometres with one digit, shares with four, what isn't known as a dash."""

    def text(name: str, value: Any) -> str:
        if value is None:
            return "–"
        if isinstance(value, float):
            return f"{value:,.1f}" if name.endswith("km") else f"{value:.4f}"
        return f"{value:,}" if isinstance(value, int) else str(value)

    cells = [list(rows[0]), *([text(name, value) for name, value in row.items()] for row in rows)]
    widths = [max(len(row[k]) for row in cells) for k in range(len(cells[0]))]
    numbers = [not isinstance(value, str) for value in rows[0].values()]
    for row in cells:
        columns = zip(row, widths, numbers, strict=True)
        print("  ".join(f"{cell:{'>' if right else '<'}{width}}" for cell, width, right in columns).rstrip())


def _print_findings(errors: list[str], warnings: list[str]) -> None:
    if not _globals.as_json:
        for finding in errors:
            print(f"error: {finding}")
        for finding in warnings:
            print(f"warning: {finding}")


def _metric_rows(scores: dict[str, Any]) -> list[tuple[str, str]]:
    if not scores["samples"]:
        return [("samples", "0: nothing was held out")]
    within = ", ".join(f"{share:.0%} within {km} km" for km, share in scores["within_km"].items() if share)
    low, high = scores.get("score_interval", (None, None))
    between = "" if low is None else f" ({low:.3f}–{high:.3f})"
    parts = f"states {scores['state_score']:.4f}, GPS {scores['gps_score']:.4f}"
    return [
        ("score", f"{scores['score']:.4f}{between}, {parts}"),
        ("states", f"top-1 {scores['top1']:.1%}, top-5 {scores['top5']:.1%}"),
        ("distance", f"median {scores['median_km']:,.0f} km, mean {scores['mean_km']:,.0f} km"),
        ("", within),
        ("calibration", f"nll {scores['nll']:.3f}, ece {scores['ece']:.3f}"),
        ("samples", f"{scores['samples']:,}"),
    ]


def _plain(value: Any) -> Any:
    """Dataclasses, settings and paths as what JSON knows."""
    if is_dataclass(value) and not isinstance(value, type):
        value = asdict(value)
    if isinstance(value, dict):
        return {key: _plain(entry) for key, entry in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(entry) for entry in value]
    return str(value) if isinstance(value, Path) else value
