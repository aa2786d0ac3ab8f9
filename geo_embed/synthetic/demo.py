"""`geo demo`: from nothing to a validated submission, through the same code as real data."""

import shlex
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from geo_embed.config import Config
from geo_embed.console import PROGRESS_SECONDS, counted, progress, say
from geo_embed.data.check import check_data
from geo_embed.data.samples import SPLITS
from geo_embed.errors import GeoError, disk_errors
from geo_embed.extraction.extract import extract
from geo_embed.extraction.for_run import extract_for_run
from geo_embed.files import replacing
from geo_embed.finetuning.finetune import finetune
from geo_embed.fitting.fit import fit_heads
from geo_embed.prediction.evaluate import evaluate
from geo_embed.prediction.submission import submit
from geo_embed.reporting.report import report
from geo_embed.runs.run import load_run
from geo_embed.settings import DEFAULT_FILE
from geo_embed.synthetic.backbone import write_backbone
from geo_embed.synthetic.country import write_country

RUN, TUNED = "demo", "demo-finetuned"
_MARK = ".synthetic"

# How the demo is trained, to last about a minute and a half; every rate was measured on it (docs/finetuning.md).
RECIPE: dict[str, float] = {
    "training.budget_seconds": 20.0,
    "finetune.epochs": 5,
    "finetune.patience": 5,
    "finetune.batch_size": 16,
    "finetune.accumulate": 1,
    "finetune.backbone_lr": 1e-3,
}


@dataclass(frozen=True)
class Demo:
    """Where everything lies, and how well it went.

    Attributes:
        run: the heads on the frozen backbone, and `score` and `geoscore` theirs on the held-out places.
        finetuned: the run whose backbone was trained, and `finetuned_score` its.
        submitted: the better of the two; the heads' where they are as good.
        report: a page about both.
    """

    root: Path
    run: str
    score: float
    geoscore: float
    finetuned: str
    finetuned_score: float
    submitted: str
    submission: Path
    report: Path
    seconds: float


def demo_settings(root: Path) -> dict[str, str]:
    """Settings, by dotted key, that point every stage at a demo below `root`."""
    return {
        "paths.data_root": str(root / "data"),
        "paths.cache_dir": str(root / "cache"),
        "paths.runs_dir": str(root / "runs"),
        "paths.submissions_dir": str(root / "submissions"),
        "paths.reports_dir": str(root / "reports"),
        "model.backbone_name": str(root / "backbone"),
    }


def demo(config: Config, root: Path, locations: int, *, command: Sequence[str] = ()) -> Demo:
    """Make a synthetic country and a small random CLIP, then run every stage on them.

    Args:
        config: settings over `demo_settings(root)`, and over `RECIPE` or others.
        root: an empty or new directory, or that of an earlier demo.
        locations: train and test places together.
        command: the command line that asks for it, for the runs' provenance.

    Raises:
        GeoError: `root` holds something else.
    """
    started = time.monotonic()
    make_country(
        root,
        locations,
        seed=config.training.seed,
        workers=config.inference.workers,
        progress_seconds=config.tracking.progress_seconds,
    )
    for split in SPLITS:
        checked = check_data(config, split)
        if checked.problems:
            raise GeoError(checked.problems[0].message, where=checked.problems[0].where)
        say(f"check    {split}: {counted(checked.samples, 'sample')}, no problems")
    for split in SPLITS:
        extraction = extract(config, split)
        speed = f", {extraction.images_per_second:,.0f} computed images/s" if extraction.computed else ""
        say(
            f"extract  {split}: {counted(extraction.computed, 'picture computed', 'pictures computed')}, {extraction.reused:,} reused{speed}"
        )
    fit = fit_heads(config, name=RUN, overwrite=True, command=command)
    say(f"fit      {fit.epochs} epochs in {fit.seconds:.1f} s")
    run = load_run(config.paths.runs_dir, fit.run)
    scores = evaluate(config, run)
    if scores["score"] is None:
        raise GeoError(
            f"{counted(locations, 'place is', 'places are')} too few to hold any out",
            where="--locations",
            hint="try 300",
        )
    say(
        f"evaluate score {scores['score']:.4f}, top-1 {scores['top1']:.3f}, median {scores['median_km']:,.0f} km, "
        f"geoscore {scores['geoscore']:,.0f}"
    )
    tuned = finetune(config, name=TUNED, init=fit.run, overwrite=True, command=command)
    finetuned_score = float(tuned.val["score"])
    say(f"finetune score {finetuned_score:.4f} after {tuned.epochs} epochs in {tuned.seconds:.0f} s")
    if finetuned_score > scores["score"]:
        run = load_run(config.paths.runs_dir, tuned.run)
    submission, verdict = submit(config, run, embed=extract_for_run)
    if not verdict.valid:
        raise GeoError(verdict.errors[0], where=submission)
    say(f"submit   {counted(verdict.rows, 'row')} of {run.name}, valid")
    page = _report(config, run.name, [fit.run, tuned.run])
    say(f"report   {page}")
    seconds = time.monotonic() - started
    return Demo(
        root,
        fit.run,
        scores["score"],
        scores["geoscore"],
        tuned.run,
        finetuned_score,
        run.name,
        submission,
        page,
        seconds,
    )


def _report(config: Config, first: str, runs: Sequence[str]) -> Path:
    """A page about both runs, the one that was submitted first; the commands on it point at the demo."""
    # Like the options of the demo that was asked for, whatever the backbone is that was submitted.
    root = config.paths.data_root.parent
    settings = [word for key, value in demo_settings(root).items() for word in ("--set", f"{key}={value}")]
    others = [name for name in runs if name != first]
    out = config.paths.reports_dir / f"{RUN}.html"
    return report(config, [first, *others], out, geo=shlex.join(["geo", *settings]))


def make_country(
    root: Path,
    locations: int,
    *,
    seed: int = 0,
    workers: int | None = None,
    progress_seconds: float = PROGRESS_SECONDS,
) -> None:
    """Write the pictures, CSVs and backbone of a demo, unless these very ones are there, and a geo.toml for commands typed in `root`.

    Args:
        root: an empty or new directory, or that of an earlier demo.
        locations: train and test places together.
        seed: of the places and the backbone.
        workers: processes that paint; default: one per core.
        progress_seconds: between two lines of news.

    Raises:
        GeoError: `root` holds something that no demo put there.
    """
    mark, content = root / _MARK, f"{locations} locations, seed {seed}\n"
    with disk_errors(root):
        root.mkdir(parents=True, exist_ok=True)
        if mark.is_file() and mark.read_text(encoding="utf-8") == content:
            say(f"country  {locations:,} synthetic places are there already, in {root}")
            return
        if not mark.is_file() and any(root.iterdir()):
            raise GeoError(
                "this directory is neither empty nor a demo's",
                where=root,
                hint="name another one: --root DIR",
            )
        # Written first and empty: an interrupted demo is known as one, and painted again.
        mark.write_text("", encoding="utf-8")
        with progress("country", locations, "places", progress_seconds) as advance:
            write_country(
                root / "data",
                locations=locations,
                seed=seed,
                workers=workers,
                progress=lambda _painted, total: advance(1),
            )
        write_backbone(root / "backbone", seed=seed)
        with replacing(root / DEFAULT_FILE) as temporary:
            temporary.write_text(_settings_file(), encoding="utf-8")
        with replacing(mark) as temporary:
            temporary.write_text(content, encoding="utf-8")
    say(f"country  {locations:,} synthetic places painted in {root}")


def _settings_file() -> str:
    """`demo_settings` for whoever works in the demo's directory, as TOML."""
    import tomlkit

    document: dict[str, dict[str, str]] = {}
    for key, value in demo_settings(Path()).items():
        group, leaf = key.split(".")
        document.setdefault(group, {})[leaf] = value
    return tomlkit.dumps(document)
