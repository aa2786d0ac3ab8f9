"""Beside the stages: `geo demo`, `config`, `bench`."""

import json
import os
import shutil
import sys
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any, Literal

import typer

from geo_embed.cli.options import (
    GLOBALS,
    BatchOption,
    DeviceOption,
    SeedOption,
    WorkersOption,
)
from geo_embed.cli.show import (
    plain,
    print_result,
)
from geo_embed.cli.threads import spin_briefly, wait_passively
from geo_embed.config import Config
from geo_embed.console import show
from geo_embed.errors import GeoError
from geo_embed.files import replacing
from geo_embed.settings import DEFAULT_FILE, resolve, to_toml, value_at

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
        ],
    )
    if not GLOBALS.as_json:
        show()
        show(
            f"That was a synthetic country and a random backbone, in {result.seconds:.0f} s. With your own data:"
        )
        show()
        # `make demo` leaves the virtual environment's `geo` off the PATH.
        geo = "geo" if shutil.which("geo") else os.path.relpath(Path(sys.executable).with_name("geo"))
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

    config = GLOBALS.config(
        model__device=device, inference__batch_size=batch_size, inference__workers=workers
    )
    size = {} if samples is None else {"count" if name == "extract" else "samples": samples}
    benches: dict[str, Callable[..., Any]] = {
        "store": bench_store,
        "extract": bench_extract,
        "heads": bench_heads,
        "finetune": bench_finetune,
    }
    bench = benches[name](config, **size)
    first = asdict(bench.measurements[0])
    headline = {key: first[key] for key in ("ours", "baseline", "ratio", "limit")}
    print_result({**asdict(bench), **headline}, [("machine", bench.machine)])
    if not GLOBALS.as_json:
        for m in bench.measurements:
            show()
            show(m.what)
            show(f"  ours      {m.ours:10,.3g} {m.unit}")
            show(f"  baseline  {m.baseline:10,.3g} {m.unit}  {m.against}")
            show(f"  ratio     {m.ratio:10,.2f}")
            show(f"  limit     {m.limit:10,.3g} {m.unit}  {m.bound}")
