"""Beside the stages: `geo demo`, `config`, `bench`."""

import json
import os
import shlex
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geo_embed.cli.options import (
    CHECK_FAILED,
    GLOBALS,
    BatchOption,
    DeviceOption,
    SeedOption,
    WorkersOption,
)
from geo_embed.cli.show import (
    plain,
    print_result,
    print_table,
    with_given_options,
)
from geo_embed.config import Config
from geo_embed.console import counted, show
from geo_embed.errors import GeoError
from geo_embed.files import replacing
from geo_embed.settings import DEFAULT_FILE, resolve, to_toml, value_at
from geo_embed.threads import spin_briefly, wait_passively

app = typer.Typer()
config_app = typer.Typer(no_args_is_help=True, help="Look at the settings.")


@app.command("demo", epilog="Example: `geo demo --root demo`")
def _demo(
    root: Annotated[Path, typer.Option(help="Where the demo lives.")] = Path("demo"),
    locations: Annotated[int, typer.Option(min=40, help="Places to paint, four pictures each.")] = 1200,
    seed: SeedOption = None,
) -> None:
    """Run everything on a small synthetic country: no data, no weights, no GPU needed."""
    wait_passively()
    from geo_embed.synthetic.demo import RECIPE, demo, demo_settings

    recipe, places = (
        [f"{key}={json.dumps(value)}" for key, value in settings.items()]
        for settings in (RECIPE, demo_settings(root))
    )
    config = resolve(GLOBALS.file, [*recipe, *GLOBALS.settings, *places], {"training.seed": seed})[0]
    result = demo(config, root, locations, command=GLOBALS.command)
    print_result(
        result,
        [
            ("frozen", f"{result.score:.4f} on held-out places, geoscore {result.geoscore:,.0f}"),
            ("finetuned", f"{result.finetuned_score:.4f} on the same"),
            ("submission", f"{result.submission}, of {result.submitted}"),
            ("report", f"{result.report}: open it in a browser"),
        ],
    )
    if not GLOBALS.as_json:
        # `make demo` leaves the virtual environment's `geo` off the PATH.
        script = Path(sys.executable).with_name("geo")
        geo, inside = ("geo", "geo") if shutil.which("geo") else (os.path.relpath(script), str(script))
        show()
        show("Look around in it; its geo.toml holds the settings:")
        show()
        show(f"    cd {shlex.quote(str(result.root))} && {inside} runs")
        show()
        show(
            f"That was a synthetic country and a random backbone, in {result.seconds:.0f} s. With your own data:"
        )
        show()
        for command in ("data check --split all", "extract --split all", "fit-heads", "submit"):
            show(f"    {geo} --set paths.data_root=YOUR_DATA {command}")


@config_app.command("show", epilog="Example: `geo --set training.seed=1 config show`")
def _config_show() -> None:
    """Print every setting, its value, and where it came from."""
    config, origins = resolve(GLOBALS.file, GLOBALS.settings)
    values = {key: plain(value_at(config, key)) for key in origins}
    result = {key: {"value": value, "from": origins[key]} for key, value in values.items()}
    print_result(result, [(key, f"{json.dumps(value)}  ({origins[key]})") for key, value in values.items()])


@config_app.command("init", epilog="Example: `geo config init`")
def _config_init(
    out: Annotated[Path, typer.Option("--out", help="The file to write.")] = DEFAULT_FILE,
) -> None:
    """Write a commented geo.toml to start from."""
    with replacing(out, overwrite=False) as temporary:
        if os.path.lexists(out):
            raise GeoError("this file exists", where=out, hint="name another one with --out, or remove it")
        temporary.write_text(to_toml(Config(), comments=True, only_hints=True), encoding="utf-8")
    print_result({"config": out}, [("config", out)])


@app.command("doctor", epilog="Example: `geo doctor`")
def _doctor() -> None:
    """Say what is there, what is missing and what to type: versions, device, disk, data, weights, stores. Exits with 3 where something needed is missing."""
    wait_passively()
    from geo_embed.health.checks import diagnose

    checks = diagnose(lambda: resolve(GLOBALS.file, GLOBALS.settings))
    print_result({"checks": checks}, [])
    if not GLOBALS.as_json:
        width = max(len(check.name) for check in checks)
        for check in checks:
            show(f"{'ok' if check.ok else 'NO'}  {check.name:<{width}}  {check.message}")
            if check.hint:
                show(f"    {'':<{width}}  → {with_given_options(check.hint)}")
    if not all(check.ok for check in checks):
        raise typer.Exit(CHECK_FAILED)


@app.command("bench", epilog="Example: `geo bench store`, or `geo bench real my-embeddings`")
def _bench(
    name: Annotated[
        Literal["store", "extract", "heads", "finetune", "scale", "real"],
        typer.Argument(help="What to measure."),
    ],
    folder: Annotated[
        Path | None,
        typer.Argument(help="Of `real`: embeddings and their CSVs, as docs/heads.md says.", metavar="[DIR]"),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(min=1, help="Samples, of extract pictures; default: enough to tell.")
    ] = None,
    folds: Annotated[
        int | None, typer.Option(min=2, help="Of `real`: parts that hold each training sample out once.")
    ] = None,
    device: DeviceOption = None,
    batch_size: BatchOption = None,
    workers: WorkersOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of `real`: seed of everything random, folds among it.")
    ] = None,
) -> None:
    """Measure speed on this machine, against baselines timed in the same run; or on your own embeddings what heads are worth."""
    spin_briefly() if name in ("heads", "finetune", "real") else wait_passively()
    if (name == "real") != (folder is not None):
        raise typer.BadParameter("`geo bench real DIR` takes a folder, and no other benchmark does.")
    if name != "real" and not (folds is None and seed is None):
        raise typer.BadParameter("--folds and --seed are options of `geo bench real DIR`.")
    if name == "real" and samples is not None:
        raise typer.BadParameter("`geo bench real DIR` takes all samples.")
    config = GLOBALS.config(
        model__device=device,
        inference__batch_size=batch_size,
        inference__workers=workers,
        training__seed=seed,
        training__split_seed=seed,
    )
    if folder is not None:
        _bench_real(config, folder, {} if folds is None else {"folds": folds})
        return
    from geo_embed.bench.extract import bench_extract
    from geo_embed.bench.finetune import bench_finetune
    from geo_embed.bench.heads import bench_heads
    from geo_embed.bench.scale import bench_scale
    from geo_embed.bench.store import bench_store

    size = {} if samples is None else {"count" if name == "extract" else "samples": samples}
    benches: dict[str, Callable[..., Any]] = {
        "store": bench_store,
        "extract": bench_extract,
        "heads": bench_heads,
        "finetune": bench_finetune,
        "scale": bench_scale,
    }
    bench = benches[name](config, **size)
    print_result(_with_headline(bench), [("machine", bench.machine)])
    if not GLOBALS.as_json:
        for m in bench.measurements:
            show()
            show(m.what)
            show(f"  ours      {m.ours:10,.3g} {m.unit}")
            show(f"  baseline  {m.baseline:10,.3g} {m.unit}  {m.against}")
            show(f"  ratio     {m.ratio:10,.2f}")
            show(f"  limit     {m.limit:10,.3g} {m.unit}  {m.bound}")


def _with_headline(bench: Any) -> dict[str, Any]:
    """A benchmark as plain values, the figures of its first measurement on top."""
    values = asdict(bench)
    first = values["measurements"][0]
    return values | {key: first[key] for key in ("ours", "baseline", "ratio", "limit")}


def _bench_real(config: Config, folder: Path, options: dict[str, int]) -> None:
    from geo_embed.bench.real import bench_real

    bench = bench_real(config, folder, **options)
    print_result(
        _with_headline(bench),
        [
            ("machine", bench.machine),
            (
                "data",
                f"{bench.folder}, {bench.backbone}: {bench.samples:,} × {bench.views} × {bench.dim}, {counted(bench.states, 'state')}",
            ),
            (
                "held out",
                f"places closer than {bench.group_km:.3g} km, and the same pictures, on one side of every split",
            ),
        ],
    )
    if GLOBALS.as_json:
        return
    shown = ("name", "score", "state_score", "gps_score", "geoscore", "median_km", "seconds")
    for c in bench.comparisons:
        show()
        show(
            f"{c.samples:,} {c.held_out}: {c.twins:,} have a near twin among those fitted on, {c.unseen:,} a state that those lack"
        )
        print_table([{key: getattr(rival, key) for key in shown} for rival in c.rivals])
        low, high = c.interval
        between = "" if low is None else f" ({low:+.4f} to {high:+.4f})"
        show(f"best − {c.baseline}: {c.difference:+.4f}{between}")
        show(
            f"best took {c.times_pigeon:.2f} × the seconds of pigeon, {c.times_logistic:.2f} × those of logistic regression"
        )
