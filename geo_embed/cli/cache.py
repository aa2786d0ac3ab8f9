"""`geo cache`: the embedding stores."""

import shlex
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geo_embed.cli.complete import complete_run
from geo_embed.cli.options import (
    CHECK_FAILED,
    GLOBALS,
    BackboneOption,
    DeviceOption,
    SplitOption,
    StoreOption,
)
from geo_embed.cli.show import print_made, print_result, readable_size, with_given_options
from geo_embed.config import Feature
from geo_embed.console import counted, say, show, warn
from geo_embed.threads import wait_passively

cache_app = typer.Typer(no_args_is_help=True, help="Look after the embedding stores.")


@cache_app.command("ls", epilog="Example: `geo cache ls`")
def _cache_ls() -> None:
    """List every store: what --backbone takes for it, how complete it is, which runs were fitted on it."""
    from geo_embed.cache.store import list_stores
    from geo_embed.cache.tidy import summarise
    from geo_embed.cache.verify import unreadable_stores
    from geo_embed.runs.run import run_stores

    config = GLOBALS.config()
    _warn_of_broken_runs(config.paths.runs_dir)
    stores, damaged = summarise(list_stores(config.paths.cache_dir), run_stores(config.paths.runs_dir))
    problems = unreadable_stores(config.paths.cache_dir) + damaged
    rows = [
        (
            f"{s.path.parent.name}/{s.path.name}",
            f"--backbone {shlex.quote(s.backbone)}, {_kind(s.variant)}{s.samples:,} × {s.views} × {s.dim}, {s.complete:.0%} complete, "
            f"{_missing(s.missing)}{_further(s.further)}"
            f"{readable_size(s.bytes)}, "
            f"{s.age_days:.1f} days old, runs: {', '.join(s.runs) or 'none'}",
        )
        for s in stores
    ]
    rows += [(f"{p.store.parent.name}/{p.store.name}", f"can't be read: {p.message}") for p in problems]
    print_result({"stores": stores, "problems": problems}, rows or [("", "the cache is empty")])


@cache_app.command("info", epilog="Example: `geo cache info --split train`")
def _cache_info(
    split: SplitOption = "all",
    backbone: BackboneOption = None,
    store: StoreOption = None,
) -> None:
    """Print what made the store that the settings choose, and where it stands."""
    wait_passively()
    from geo_embed.cache.tidy import summarise
    from geo_embed.cache.verify import choose_stores
    from geo_embed.errors import GeoError
    from geo_embed.runs.run import run_stores

    config = GLOBALS.config(model__backbone_name=backbone)
    chosen, problems = choose_stores(config.paths.cache_dir, config.model, split, store)
    _warn_of_broken_runs(config.paths.runs_dir)
    summaries, damaged = summarise(chosen, run_stores(config.paths.runs_dir))
    problems += damaged
    if problems and not summaries:
        raise GeoError(
            problems[0].message, where=problems[0].store, hint="geo cache verify says what is damaged"
        )
    attrs = {opened.path: opened.attrs for opened in chosen}
    described = [asdict(summary) | {"attrs": attrs[summary.path]} for summary in summaries]
    print_result({"stores": described, "problems": problems}, [])
    if not GLOBALS.as_json:
        for summary in described:
            print_result(
                summary,
                [
                    *((key, value) for key, value in summary.items() if key != "attrs"),
                    *summary["attrs"].items(),
                ],
            )
        for problem in problems:
            show(f"can't be read: {problem.message} ({problem.store})")


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
        bool,
        typer.Option(
            "--repair",
            help="Make damaged metadata (zarr.json) again from the chunks and the CSV, and let damaged rows be pending again, for `geo extract`.",
        ),
    ] = False,
    parts: Annotated[
        int | None,
        typer.Option(
            min=1,
            help="How many parts the stores were divided into, as `--part K/N` has it: name those that are missing.",
        ),
    ] = None,
) -> None:
    """Read every byte of the stores of the settings' backbones against its checksum. Exits with 3 where something is damaged."""
    wait_passively()
    from geo_embed.cache.layout import ARRAYS
    from geo_embed.cache.rebuild import Rebuilt, rebuild_stores
    from geo_embed.cache.store import Store, add_hint, open_store
    from geo_embed.cache.verify import (
        choose_stores,
        damaged_features,
        find_lacking,
        find_missing,
        find_pending,
        other_stores,
        verify,
        verify_deep,
    )
    from geo_embed.errors import GeoError

    config = GLOBALS.config(model__backbone_name=backbone, model__device=device)
    stores, problems = choose_stores(config.paths.cache_dir, config.model, split, store)
    rebuilt: list[Rebuilt] = []
    if repair:
        stores, problems, rebuilt = rebuild_stores(config, stores, problems)
    whole: list[Store] = []
    for opened in stores:
        damage = verify(opened, repair=repair)
        problems += damage
        whole += [] if damage else [opened]
    # What forbids to embed one store again is said once all others are done.
    refusals: list[GeoError] = []
    for opened in whole if deep else []:
        try:
            problems += verify_deep(config, opened)
        except GeoError as error:
            refusals.append(error)
    pending = [left for left in (find_pending(opened, parts) for opened in whole) if left is not None]
    missing = [gap for opened in whole if (gap := find_missing(opened)) is not None]
    lacks = [left for opened in whole for left in find_lacking(opened)]
    # Who names a backbone or a store means no other.
    looked_at = [opened.path for opened in stores] + [problem.store for problem in problems]
    others = [] if backbone or store else other_stores(config.paths.cache_dir, split, looked_at)
    result = {
        "stores": [opened.path for opened in stores],
        "problems": problems,
        "rebuilt": rebuilt,
        "pending": pending,
        "missing": missing,
        "lacking": lacks,
        "not_looked_at": others,
    }
    absent = {gap.store: f", {counted(gap.pictures, 'picture')} missing" for gap in missing}
    print_result(
        result,
        [
            (
                str(s.path),
                f"{_kind(s.variant.recorded())}{counted(s.shape[0], 'sample')}{absent.get(s.path, '')}",
            )
            for s in stores
        ],
    )
    if not GLOBALS.as_json:
        for problem in problems:
            show(f"{problem.where}: {problem.message} ({problem.store})")
        for left in pending:
            parts_left = f", parts {', '.join(left.missing_parts)}" if left.missing_parts else ""
            count = counted(left.samples, "sample is", "samples are")
            show(f"{left.store}: {count} not extracted yet{parts_left}. Next:")
            for next_command in left.commands:
                show(with_given_options(f"    {next_command}"))
        for lack in lacks:
            show(
                f"{lack.store}: {counted(lack.pictures, 'picture has', 'pictures have')} no {lack.feature} yet. Next:"
            )
            show(with_given_options(f"    {lack.command}"))
        for made in rebuilt:
            changed = (
                f"; {counted(made.forgotten, 'sample whose pictures changed since is', 'samples whose pictures changed since are')} pending again"
                if made.forgotten
                else ""
            )
            show(f"{', '.join(made.files)} made again{changed} ({made.store})")
        damaged = any(problem.where.partition(",")[0] in ARRAYS for problem in problems)
        if repair:
            for path, features in damaged_features(problems).items():
                command = add_hint(open_store(path), features)
                show("The rows of damaged chunks lack the feature again. Next:")
                show(with_given_options(f"    {command}"))
        if repair and (damaged or any(made.forgotten for made in rebuilt)):
            show(with_given_options("The rows of damaged chunks are pending again. Next: geo extract"))
        show(counted(len(problems), "problem"))
        if others:
            show(f"{counted(len(others), 'other store')} not looked at:")
            for path in others:
                show(with_given_options(f"    geo cache verify --store {shlex.quote(str(path))}"))
    if refusals:
        raise refusals[0]
    if problems:
        raise typer.Exit(CHECK_FAILED)


@cache_app.command("gc", epilog="Example: `geo cache gc --yes`")
def _cache_gc(
    unused: Annotated[
        bool, typer.Option("--unused", help="Also stores that no run and not the present settings use.")
    ] = False,
    imports: Annotated[
        list[str] | None,
        typer.Option(
            "--import",
            metavar="NAME",
            help="With --unused: also this import, which only its file can make again. Repeatable.",
        ),
    ] = None,
    yes: Annotated[bool, typer.Option("--yes", help="Delete, instead of only listing.")] = False,
) -> None:
    """List what nothing needs any more; delete it with --yes."""
    from geo_embed.cache.tidy import collect_garbage
    from geo_embed.runs.run import broken_runs, run_stores

    if imports and not unused:
        raise typer.BadParameter("goes together with --unused", param_hint="--import")
    config = GLOBALS.config()
    broken = broken_runs(config.paths.runs_dir) if unused else []
    for path, why in broken:
        warn(f"what this run was fitted on isn't known, so no store passes for unused: {why} ({path})")
    runs = run_stores(config.paths.runs_dir) if unused and not broken else None
    garbage = collect_garbage(config, runs=runs, imports=imports or (), delete=yes)
    for item in garbage.kept:
        say(
            f"kept: {item['path']}, an import that no run was fitted on; with --import {item['backbone']} it goes, too"
        )
    rows = [(readable_size(item["bytes"]), f"{item['path']}: {item['reason']}") for item in garbage.stores]
    end = "deleted" if yes else "can go; delete with --yes"
    print_result(
        garbage, [*rows, (readable_size(garbage.bytes), end)] if rows else [("", "nothing to delete")]
    )


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
    """Bring in embeddings computed elsewhere; then go on with --backbone NAME, without a single image.

    The file holds one array of shape (samples, views, numbers per view). A `.npy` has a row for each row of the split's CSV, in its
    order, and the views in the order of `model.view_names`. In `.npz` and `.safetensors` the array is called `embeddings`; the ids of
    its rows, `sample_id` (samples,), and the names of its views, `view_names`, may stand beside it, and then any order will do. A
    `.parquet` has a row for each view, with columns `sample_id`, `view` and `embedding` (a list), in any order.
    """
    wait_passively()
    from geo_embed.cache.exchange import cache_import
    from geo_embed.health.next_step import next_step
    from geo_embed.runs.run import run_stores

    config = GLOBALS.config(model__dtype=dtype)
    runs = run_stores(config.paths.runs_dir) if overwrite else None
    imported = cache_import(config, file, split, backbone, overwrite=overwrite, runs=runs)
    of_import = config.model_copy(update={"model": config.model.with_backbone(backbone)})
    print_made(
        imported,
        [
            ("store", imported.store),
            ("samples", f"{imported.samples:,} × {counted(imported.views, 'view')} × {imported.dim}"),
        ],
        *next_step(of_import, [split], named=[backbone], fresh=[split]),
    )


@cache_app.command(
    "export",
    epilog="Example: `geo cache export --split train --out train.npy`, or `geo cache export --split train --atlas train.parquet`",
)
def _cache_export(
    split: Annotated[Literal["train", "test"], typer.Option("--split", help="Which samples.")],
    out: Annotated[
        Path | None, typer.Option("--out", help="A .npy, .npz, .safetensors or .parquet file.")
    ] = None,
    atlas: Annotated[
        Path | None,
        typer.Option(
            "--atlas",
            help="A .parquet with a plane, neighbours and what is known of each sample, for Apple's Embedding Atlas.",
        ),
    ] = None,
    run: Annotated[
        str | None,
        typer.Option(
            "--run",
            help="With --atlas: a run's learnt space and answers, in place of raw embeddings.",
            autocompletion=complete_run,
        ),
    ] = None,
    backbone: BackboneOption = None,
    feature: Annotated[
        Feature | None,
        typer.Option("--feature", help="A further feature that the store has; default: its embeddings."),
    ] = None,
) -> None:
    """Write a split's embeddings, or another feature of the same pass, to a file for other tools."""
    wait_passively()
    config = GLOBALS.config(model__backbone_name=backbone)
    if (out is None) == (atlas is None):
        raise typer.BadParameter("one of the two says where to", param_hint="--out, --atlas")
    if run is not None and atlas is None:
        raise typer.BadParameter("goes together with --atlas", param_hint="--run")
    if atlas is not None:
        from geo_embed.explorer.atlas import export_atlas

        made = export_atlas(config, split, atlas, run)
        opened = f"embedding-atlas {shlex.quote(str(atlas))} --x projection_x --y projection_y --neighbors neighbors"
        rows = [("file", atlas), ("samples", f"{made.samples:,}"), ("space", made.space), ("open it", opened)]
        print_made(made, rows)
        return
    assert out is not None
    from geo_embed.cache.exchange import cache_export

    embeddings = cache_export(config, split, out, feature=feature)
    samples, views, dim = embeddings.values.shape
    store = embeddings.store
    result = {
        "store": store.path,
        "fingerprint": store.fingerprint,
        "samples": samples,
        "views": views,
        "dim": dim,
        "feature": embeddings.feature,
    }
    print_made(
        result | {"out": out},
        [("file", out), ("samples", f"{samples:,} × {counted(views, 'view')} × {dim}, {embeddings.feature}")],
    )


def _missing(pictures: int) -> str:
    return f"{counted(pictures, 'picture')} missing, " if pictures else ""


def _further(further: dict[str, dict[str, int]]) -> str:
    """Which features a store has beside its embeddings."""
    return "".join(
        f"+ {name} × {of['dim']}"
        + (f" (not of {counted(of['lacking'], 'picture')}), " if of["lacking"] else ", ")
        for name, of in further.items()
    )


def _kind(variant: dict[str, Any]) -> str:
    """What was done to a store's pictures, before the rest of its line; nothing to nearly all."""
    from geo_embed.data.variants import Variant

    return f"{Variant.model_validate(variant)}, " if variant else ""


def _warn_of_broken_runs(runs_dir: Path) -> None:
    """Say which runs may have been fitted on a store without being named beside it."""
    from geo_embed.runs.run import broken_runs

    for path, why in broken_runs(runs_dir):
        warn(f"what this run was fitted on isn't known: {why} ({path})")
