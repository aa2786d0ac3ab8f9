"""`geo report`: one self-contained HTML file about a run, or about several and what sets them apart."""

from collections.abc import Sequence
from pathlib import Path

from geo_embed.config import Config
from geo_embed.data.outputs import PAGES, check_output
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import replacing
from geo_embed.reporting.findings import findings
from geo_embed.reporting.html import to_html
from geo_embed.runs.run import Run, check_not_replaced, load_run

# More runs side by side are no longer to be read.
_MOST_RUNS = 6


def report(
    config: Config,
    names: Sequence[str | None],
    out: Path | None = None,
    *,
    pictures: bool = False,
    geo: str = "geo",
) -> Path:
    """Write a report, and return where it lies.

    Args:
        config: paths and device.
        names: runs, by name or directory; None is the newest.
        out: the file; default `<reports_dir>/<run>.html`, of several runs `<run>-vs-<run>.html`.
        pictures: whether the views of the samples that it shows are in it: for yourself alone, where their provider forbids rehosting.
        geo: how the commands that it suggests begin, with the settings that they depend on.

    Raises:
        GeoError: a run is absent, damaged, given twice, or was replaced meanwhile; the file can't be written.
    """
    if len(names) > _MOST_RUNS:
        raise GeoError(
            f"{len(names)} runs in one report are too many to read", hint=f"up to {_MOST_RUNS} go together"
        )
    runs = [load_run(config.paths.runs_dir, name) for name in names]
    _check_different(runs)
    path = out or config.paths.reports_dir / f"{'-vs-'.join(run.name for run in runs)[:200]}.html"
    check_output(config.paths, path, PAGES)
    all_findings = findings(config, runs, pictures=pictures, geo=geo)
    page = to_html(" and ".join(run.name for run in runs), all_findings)
    for run in runs:
        check_not_replaced(run)
    with disk_errors(path.parent):
        path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(page, encoding="utf-8")
    return path


def _check_different(runs: Sequence[Run]) -> None:
    seen: set[Path] = set()
    for run in runs:
        if run.path.resolve() in seen:
            raise GeoError("this run is given twice", where=run.path, hint="name every run once")
        seen.add(run.path.resolve())
