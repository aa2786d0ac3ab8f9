"""Everything that a report shows, as plain values: runs in, a dict of JSON's types out. Nothing here knows HTML."""

from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from typing import Any

from geo_embed import __version__
from geo_embed.config import Config
from geo_embed.console import harmless
from geo_embed.errors import GeoError
from geo_embed.reporting import figures
from geo_embed.reporting.advice import advice
from geo_embed.reporting.cases import cases
from geo_embed.reporting.evidence import Evidence, gather, why
from geo_embed.reporting.places import atlas, journeys
from geo_embed.reporting.scores import comparison, facts, headline, validations
from geo_embed.runs.run import Run

NOTHING = "the run held nothing out: there is nothing to measure"


def findings(
    config: Config, runs: Sequence[Run], *, pictures: bool = False, geo: str = "geo"
) -> dict[str, Any]:
    """What is to be said of runs, and of two of them what sets them apart.

    Args:
        config: paths and device.
        runs: one or more.
        pictures: whether the samples' views are in it.
        geo: how a suggested command begins, with the settings that it depends on.

    Returns:
        `runs`: of each name, kind, facts, and the findings by the names of scores.py, figures.py, places.py and cases.py; one that
        can't be had is `{"missing": why}`. `comparisons`: of the first run with every later one. `made`, `version`, `pictures`.

    Raises:
        GeoError: a run's held-out predictions are absent or damaged.
    """
    gathered = [gather(config, run) for run in runs]
    return {
        "made": f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC",
        "version": __version__,
        "pictures": pictures,
        "runs": [_of_run(config, evidence, pictures, geo) for evidence in gathered],
        "comparisons": [comparison(config.paths.runs_dir, gathered[0], other) for other in gathered[1:]],
    }


def _of_run(config: Config, evidence: Evidence, pictures: bool, geo: str) -> dict[str, Any]:
    run_findings: dict[str, Any] = {
        "name": harmless(evidence.run.name),
        "kind": evidence.kind,
        "note": harmless(str(evidence.run.provenance.get("note") or "")),
        "facts": [[name, harmless(value)] for name, value in facts(evidence, evidence.names)],
        "samples": len(evidence),
        "names": list(evidence.names),
        "training": _or_why(lambda: figures.training(evidence)),
    }
    parts: dict[str, Callable[[], Any]] = {
        "headline": lambda: headline(evidence),
        "validation": lambda: validations(evidence, config),
        "classes": lambda: figures.by_class(evidence),
        "map": lambda: _map(evidence),
        "confusion": lambda: figures.confusion(evidence),
        "reliability": lambda: figures.reliability(evidence),
        "errors": lambda: figures.errors(evidence),
        "views": lambda: figures.views(evidence),
        "cases": lambda: cases(evidence, pictures=pictures),
    }
    for name, make in parts.items():
        run_findings[name] = _or_why(make) if len(evidence) else {"missing": NOTHING}
    run_findings["next"] = advice(evidence, run_findings, geo)
    return run_findings


def _map(evidence: Evidence) -> dict[str, Any]:
    shown, projection = atlas(evidence)
    return shown | journeys(evidence, projection)


def _or_why(make: Callable[[], Any]) -> Any:
    """What a part gives, or why it can't: a file of the run that is lost takes one figure away, and not the report."""
    try:
        return make()
    except GeoError as error:
        return {"missing": why(error)}
