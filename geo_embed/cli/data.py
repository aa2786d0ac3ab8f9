"""`geo data`: the dataset."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from geo_embed.cli.options import (
    CHECK_FAILED,
    GLOBALS,
    BackboneOption,
    DamagedOption,
    SplitOption,
    WorkersOption,
    splits_of,
)
from geo_embed.cli.show import print_next, print_result, print_splits, with_given_options
from geo_embed.cli.threads import wait_passively
from geo_embed.console import complain, show

if TYPE_CHECKING:
    from geo_embed.data.table import Problem

# Problems of one kind in one column that a terminal shows.
_SHOWN = 5

data_app = typer.Typer(no_args_is_help=True, help="Look at the dataset.")


@data_app.command("check", epilog="Example: `geo data check --split train --decode`")
def _data_check(
    split: SplitOption = "all",
    decode: Annotated[bool, typer.Option("--decode", help="Decode every picture, too.")] = False,
    on_damaged_image: DamagedOption = None,
    workers: WorkersOption = None,
) -> None:
    """Validate CSVs and images. Exits with 3 where there are problems."""
    from geo_embed.data.check import check_data

    config = GLOBALS.config(inference__on_damaged_image=on_damaged_image, inference__workers=workers)
    checks = [check_data(config, name, decode=decode) for name in splits_of(split)]
    print_splits(
        split, checks, lambda c: [("samples", f"{c.samples:,}"), ("problems", f"{len(c.problems):,}")]
    )
    if not GLOBALS.as_json:
        for checked in checks:
            _print_problems(checked.problems)
            for warning in checked.warnings:
                show(f"warning: {warning.kind}: {warning.message} ({warning.where})")
    if any(checked.problems for checked in checks):
        for hint in dict.fromkeys(checked.hint for checked in checks if checked.hint):
            complain(f"hint: {hint}")
        raise typer.Exit(CHECK_FAILED)
    print_next("extract", "--split", split)


def _print_problems(problems: list["Problem"]) -> None:
    """The first problems of each kind in each column, and how many more there are."""
    groups: dict[tuple[str, str], list[Problem]] = {}
    for problem in problems:
        groups.setdefault((problem.kind, problem.where.partition(", column ")[2]), []).append(problem)
    for (kind, column), alike in groups.items():
        for problem in alike[:_SHOWN]:
            show(f"{kind}: {problem.message} ({problem.where})")
        if len(alike) > _SHOWN:
            where = f" in column {column}" if column else ""
            show(f"… and {len(alike) - _SHOWN:,} more {kind}{where}: --json names them all")


@data_app.command("explore", epilog="Example: `geo data explore --split train --out dataset.html`")
def _data_explore(
    split: SplitOption = "all",
    out: Annotated[Path | None, typer.Option("--out", help="Default: dataset.html, here.")] = None,
    pictures: Annotated[
        bool,
        typer.Option(
            "--pictures",
            help="Put a few small pictures into the page. Street-view providers forbid to pass theirs on.",
        ),
    ] = False,
    limit: Annotated[
        int | None,
        typer.Option(
            "--limit",
            min=1,
            help="Decode the pictures of so many samples of a split only, evenly through its CSV; of the others read the headers.",
        ),
    ] = None,
    backbone: BackboneOption = None,
    workers: WorkersOption = None,
) -> None:
    """Write one HTML page about the dataset, before any training: counts, map, sizes, duplicates, leaks, odd files."""
    wait_passively()
    from geo_embed.reporting.data_page import count_decoded, explore_data

    config = GLOBALS.config(inference__workers=workers, model__backbone_name=backbone)
    page, dataset = explore_data(config, splits_of(split), out, pictures=pictures, limit=limit)
    samples = {part.name: 0 if part.samples is None else len(part.samples) for part in dataset.parts}
    problems = sum(len(part.checked.problems) for part in dataset.parts)
    looks = {part.name: part.looks for part in dataset.parts if part.looks is not None}
    decoded = {name: count_decoded(look) for name, look in looks.items()}
    headers = sum(int(look.there.sum()) - decoded[name] for name, look in looks.items())
    listed = f"; {with_given_options('geo data check lists them')}" if problems else ""
    print_result(
        {
            "page": page,
            "samples": samples,
            "decoded": decoded,
            "problems": problems,
            "near_duplicates": len(dataset.twins),
        },
        [
            ("page", page),
            ("samples", ", ".join(f"{count:,} {name}" for name, count in samples.items())),
            (
                "pictures",
                f"{sum(decoded.values()):,} decoded{f', of {headers:,} the headers read' if headers else ''}",
            ),
            ("problems", f"{problems:,}{listed}"),
            ("near duplicates", f"{len(dataset.twins):,}"),
        ],
    )


@data_app.command("leaks", epilog="Example: `geo --set training.validation=spatial data leaks`")
def _data_leaks(
    backbone: BackboneOption = None,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Seed of the split: training.split_seed.")
    ] = None,
    km: Annotated[float, typer.Option(min=0, help="Places closer than this are the same (km).")] = 0.1,
    cosine: Annotated[
        float, typer.Option(min=-1, max=1, help="Embeddings at least this similar are the same picture.")
    ] = 0.999,
) -> None:
    """Look for held-out samples that training samples give away. Exits with 3 where there are some."""
    wait_passively()
    from geo_embed.fitting.leaks import check_leaks

    config = GLOBALS.config(model__backbone_name=backbone, training__split_seed=seed)
    leakage = check_leaks(config, km=km, cosine=cosine)
    compared = "places and embeddings" if leakage.embeddings else "places"
    training = ("training", f"{leakage.training:,} samples")
    print_result(
        leakage,
        [
            ("held out", f"{leakage.held_out:,} samples, {config.training.validation}"),
            training,
            ("leaking", f"{leakage.leaking:,} held-out samples, by {compared}"),
        ]
        if leakage.held_out
        else [("held out", "0 samples: nothing is held out, so there is nothing to check"), training],
    )
    if not GLOBALS.as_json:
        for kind in dict.fromkeys(leak["kind"] for leak in leakage.leaks):
            alike = [leak for leak in leakage.leaks if leak["kind"] == kind]
            show(f"same {kind}: {len(alike):,}")
            for leak in alike[:5]:
                similarity = f"{leak['value']:.3f} km" if kind == "place" else f"cosine {leak['value']:.4f}"
                show(f"  {leak['held_out']} is held out, {leak['training']} is not ({similarity})")
    if leakage.leaks:
        if config.training.validation == "random":
            complain("hint: hold whole places out with --set training.validation=spatial")
        raise typer.Exit(CHECK_FAILED)
