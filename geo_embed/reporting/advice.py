"""What to do next, as commands: what a run's own numbers speak for."""

import shlex
from typing import Any

from geo_embed.console import counted
from geo_embed.data.samples import Samples, missing_images
from geo_embed.errors import GeoError
from geo_embed.reporting.evidence import Evidence

# More near twins than this share of the held-out samples, and a random split says little of new places.
_MANY_TWINS = 0.02
# What a temperature must take off the negative log-likelihood to be worth a command.
_LEAST_GAIN = 0.005


def advice(evidence: Evidence, findings: dict[str, Any], geo: str) -> list[dict[str, str]]:
    """Commands that the findings speak for, the most useful first, each with why.

    Args:
        evidence: of the run.
        findings: what `findings` found of it.
        geo: how the command begins, with the settings that it depends on.
    """
    run, name = evidence.run, shlex.quote(evidence.run.name)
    rows: list[dict[str, str]] = []

    # The run's own settings, so that only what is set on top differs.
    recipe = f"--config {shlex.quote(str(run.settings_path))}"

    def suggest(why: str, command: str) -> None:
        rows.append({"why": why, "command": f"{geo} {command}"})

    validation = findings.get("validation") or {}
    trainable = evidence.kind == "heads"
    twins = max((column["twins"] or 0 for column in validation.get("columns", [])), default=0)
    if trainable and validation.get("lacking") == "spatial":
        why = "How well does it do at places it has never been near? Hold whole places out"
        if len(evidence) and twins > _MANY_TWINS * len(evidence):
            why = f"{counted(twins, 'held-out sample has', 'held-out samples have')} a near twin in training, so the score flatters. Hold whole places out"
        suggest(why, f"{recipe} --set training.validation=spatial fit-heads --name {name}-spatial")
    if trainable and validation.get("lacking") == "random":
        suggest(
            "Compare with samples held out at random",
            f"{recipe} --set training.validation=random fit-heads --name {name}-random",
        )
    curves = (findings.get("reliability") or {}).get("curves", [])
    if (
        trainable
        and len(curves) == 2
        and not findings["reliability"]["calibrated"]
        and curves[0]["nll"] - curves[1]["nll"] > _LEAST_GAIN
    ):
        gain = f"NLL {curves[0]['nll']:.3f} → {curves[1]['nll']:.3f}"
        suggest(f"Its confidence is off; one temperature would help ({gain})", f"calibrate {name}")
    pairs = (findings.get("confusion") or {}).get("pairs", [])
    if pairs:
        worst = pairs[0]
        suggest(
            f"{worst['true']} is taken for {worst['predicted']} most often. Every sample, worst first, as a table",
            f"evaluate {name} --by worst --out {name}-worst.csv",
        )
    if trainable and evidence.samples is not None and _has_pictures(evidence.samples):
        suggest("Train the backbone too: slower, mostly better", f"finetune --init {name}")
    if evidence.kind != "ensemble":
        suggest(
            "See whether another seed agrees, then combine both",
            f"{recipe} --set training.seed={run.config.training.seed + 1} fit-heads --name {name}-2",
        )
        rows[-1]["then"] = f"{geo} ensemble {name} {name}-2 --method average"
    suggest("Write a submission and check it", f"submit {name}")
    return rows


def _has_pictures(samples: Samples) -> bool:
    """Whether the first sample's pictures are at hand."""
    try:
        return not missing_images(samples, slice(0, 1))
    except GeoError:
        return False
