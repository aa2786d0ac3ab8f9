"""`geo data`: the dataset."""

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

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
from geo_embed.console import complain, counted, say, show
from geo_embed.threads import wait_passively

if TYPE_CHECKING:
    from geo_embed.data.table import Problem

# Problems of one kind in one column that a terminal shows.
_SHOWN = 5

data_app = typer.Typer(no_args_is_help=True, help="Look at the dataset, or make one.")


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
    from geo_embed.health.next_step import next_step

    samples = {checked.split: checked.samples for checked in checks}
    print_next(*next_step(config, splits_of(split), samples=samples))


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
    headers = sum(int(look.present.sum()) - decoded[name] for name, look in looks.items())
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


@data_app.command(
    "adopt",
    epilog="Example: `geo data adopt data/train_ground_truth.csv --images data/train_images --out adopted --test-share 0.2`",
)
def _data_adopt(
    source: Annotated[
        Path,
        typer.Argument(help="A folder of pictures, a CSV, Parquet, or the folder of OSV-5M or IM2GPS3k."),
    ],
    out: Annotated[Path, typer.Option("--out", help="A directory that is not there yet.")],
    kind: Annotated[
        Literal["auto", "folder", "csv", "parquet", "osv5m", "im2gps3k"],
        typer.Option("--kind", help="Of the source; auto: by what lies there."),
    ] = "auto",
    label: Annotated[
        str | None,
        typer.Option(
            "--label",
            help="Classes: a column, folder, cells:N, countries, us-states, or FILE.geojson:PROPERTY. Default: the source's own, or cells.",
        ),
    ] = None,
    column: Annotated[
        list[str] | None,
        typer.Option(
            "--column",
            metavar="OURS=THEIRS",
            help="A column without a usual name, as latitude=phi, image=jpg, image_north=n or sample_id=nr; repeatable.",
        ),
    ] = None,
    images: Annotated[
        Path | None, typer.Option("--images", help="A table's pictures; default: the table's folder.")
    ] = None,
    coordinates: Annotated[
        Path | None, typer.Option("--coordinates", help="A CSV with a folder's places; default: EXIF.")
    ] = None,
    pattern: Annotated[
        str | None,
        typer.Option(
            "--pattern", help="How pictures are called, as {id}_{view}.jpg; {class} and * may be in it."
        ),
    ] = None,
    views: Annotated[
        str | None, typer.Option("--views", help="The views to take, in order: north,east,south,west.")
    ] = None,
    test_share: Annotated[
        float | None,
        typer.Option(
            "--test-share",
            min=0,
            max=1,
            help="Hold out so many as the test split, by whole groups of places.",
        ),
    ] = None,
    pictures: Annotated[
        Literal["there", "link", "copy"],
        typer.Option("--pictures", help="there: leave them where they lie; link: hard links; copy."),
    ] = "there",
    keep_incomplete: Annotated[
        bool, typer.Option("--keep-incomplete", help="Keep samples that lack the picture of a view.")
    ] = False,
    seed: Annotated[
        int | None, typer.Option("--seed", help="Of the cells and the split: training.split_seed.")
    ] = None,
    workers: WorkersOption = None,
) -> None:
    """Make a dataset of other people's files, which are only read: CSVs, a geo.toml, and a list of what was left out."""
    wait_passively()
    from geo_embed.adoption.adopt import adopt
    from geo_embed.adoption.candidates import describe_group

    columns = {}
    for entry in column or []:
        field, equals, header = entry.partition("=")
        if not (field and equals and header):
            raise typer.BadParameter(f"--column takes OURS=THEIRS, not {entry!r}")
        columns[field] = header
    adopted = adopt(
        GLOBALS.config(inference__workers=workers, training__split_seed=seed),
        source,
        out,
        kind=kind,
        label=label,
        columns=columns,
        images=images,
        coordinates=coordinates,
        pattern=pattern,
        views=tuple(view.strip() for view in views.split(",")) if views else (),
        test_share=test_share,
        pictures=pictures,
        keep_incomplete=keep_incomplete,
    )
    split = "all" if adopted.train and adopted.test else "train" if adopted.train else "test"
    single = (
        f", {adopted.single:,} of them with one sample: none of it can be held out" if adopted.single else ""
    )
    print_result(
        adopted,
        [
            ("dataset", adopted.directory),
            ("source", adopted.kind),
            ("samples", f"{adopted.train:,} train, {adopted.test:,} test"),
            ("classes", f"{adopted.classes:,}{single}"),
            ("views", ", ".join(adopted.views)),
            *([("test places", adopted.test_truth)] if adopted.test_truth else []),
            *(("read as", note) for note in adopted.notes),
            *(("left out", describe_group(group)) for group in adopted.left_out),
            *([("all of them", adopted.left_out_csv)] if adopted.left_out_csv else []),
        ],
    )
    if not GLOBALS.as_json:
        say(f"next: {shlex.join(['cd', str(out)])} && geo data check --split {split}")


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
    training = ("training", counted(leakage.training, "sample"))
    print_result(
        leakage,
        [
            ("held out", f"{counted(leakage.held_out, 'sample')}, {config.training.validation}"),
            training,
            ("leaking", f"{counted(leakage.leaking, 'held-out sample')}, by {compared}"),
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
