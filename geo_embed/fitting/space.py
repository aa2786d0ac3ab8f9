"""What a sweep draws from: the values that each setting may have, as TOML gives them, checked before anything is trained."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from geo_embed.config import Config
from geo_embed.console import counted, say
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import read_toml
from geo_embed.heads.heads import effective_settings
from geo_embed.registry import FUSIONS, GPS_LOSSES, HEADS, STATE_LOSSES
from geo_embed.settings import dotted, known_keys, value_at, with_changes

# Digits of a drawn number: what it does to a score can't be told from its neighbour's, and a command stays readable.
_DIGITS = 3
# Draws without a new configuration after which a space counts as used up.
_FRUITLESS = 1000
# Settings that say what is compared, not how heads are fitted.
_FIXED = {
    *("model.backbone_name", "model.fingerprint", "model.feature", "model.view_names", "model.exact"),
    *(
        "model.backbones",
        "model.features",
        "model.head_features",
        "model.dtype",
        "model.device",
        "model.deterministic",
        "model.tf32",
    ),
    *("training.preset", "training.budget_seconds", "training.seed"),
    *(
        "training.split_seed",
        "training.val_split",
        "training.epochs",
        "training.validation",
        "training.group_km",
        "training.folds",
    ),
    *("training.seeds", "training.calibration", "training.temperature", "training.refine", "model.plugins"),
}
# Settings by which a configuration's parts are chosen: what each declares has an effect.
_PARTS = tuple(registry.setting for registry in (HEADS, FUSIONS, STATE_LOSSES, GPS_LOSSES))


@dataclass(frozen=True)
class Range:
    """Numbers from `low` to `high`, drawn evenly, or evenly in their logarithm; whole ones for a setting that is whole."""

    low: float
    high: float
    log: bool = False
    whole: bool = False

    def draw(self, random: np.random.Generator) -> float | int:
        """A number of the range, rounded to a few digits."""
        ends = (math.log(self.low), math.log(self.high)) if self.log else (self.low, self.high)
        value = random.uniform(*ends)
        value = float(f"{math.exp(value) if self.log else value:.{_DIGITS}g}")
        value = min(max(value, self.low), self.high)
        return round(value) if self.whole else value


@dataclass(frozen=True)
class Choice:
    """Values, each as likely as the others."""

    values: tuple[Any, ...]

    def draw(self, random: np.random.Generator) -> Any:
        """A value of the choice."""
        return self.values[int(random.integers(len(self.values)))]


Space = Mapping[str, Range | Choice]

# What differs most between data sets, over the values that won somewhere (docs/heads.md).
SPACE: dict[str, Any] = {
    # Averaging wins on weak features, gated evidence where views differ in worth. The transformer is left to spaces that
    # users write: as good as the gate, at several times the cost, it would take most of a sweep's time on a CPU.
    "model.fusion": ["average", "concat", "attention", "evidence"],
    # Cells won back most of the distance wherever places are dense; a probe wins where samples are few.
    "model.head": ["geocells", "dual", "hierarchical", "probe"],
    "model.standardise": [True, False],
    "model.point": ["head", "median"],
    # Narrow, with much dropout, for few samples; wide for many.
    "model.head_hidden": [256, 512, 1024],
    "model.head_depth": [1, 2],
    "model.dropout": {"low": 0.0, "high": 0.6},
    "model.cells": ["kmeans", "quad", "voronoi"],
    # Below a dozen samples a cell learns little; above sixty a point is vague.
    "model.cell_samples": {"low": 8, "high": 60, "log": True},
    "training.learning_rate": {"low": 3e-4, "high": 1e-2, "log": True},
    "training.weight_decay": {"low": 1e-3, "high": 0.5, "log": True},
    "training.batch_size": [128, 256, 512],
    # The plain recipe's 300 km oversmooths states; cells want some 40, sparse data wider ones.
    "training.tau_km": {"low": 20.0, "high": 400.0, "log": True},
    "training.state_loss": ["haversine", "pigeon", "cross_entropy"],
    "training.gps_loss": ["mse", "smooth_l1", "haversine"],
    # The losses of the point have scales of their own, degrees² to km ÷ 5000.
    "training.gps_weight": {"low": 0.02, "high": 2.0, "log": True},
    "training.l2": {"low": 1e-4, "high": 0.1, "log": True},
    # Pays after some ten epochs, on views that a network could learn by heart.
    "training.view_dropout": [0.0, 0.15, 0.3],
    "training.view_swap": [0.0, 0.5],
}


def read_space(path: Path, config: Config) -> Space:
    """A space from TOML: dotted keys (or tables) to a list of values, or `{low = …, high = …, log = true}`."""
    try:
        table = read_toml(path)
    except AbsentError as error:
        raise GeoError(
            "there is no such file",
            where=path,
            hint='a space is lines such as "training.learning_rate" = {low = 1e-4, high = 1e-2, log = true}',
        ) from error
    return parse_space(table, config, where=str(path))


def parse_space(table: Mapping[str, Any], config: Config, *, where: str = "the space") -> Space:
    """Check a space, every value of it, before anything is trained.

    Args:
        table: dotted keys, or nested tables of them, to a list of values or `{"low", "high", "log"}`.
        config: the settings that a value must go with.
        where: what an error names.

    Raises:
        GeoError: an unknown key, with the nearest known one; a setting that can't vary; a value that isn't allowed.
    """
    space: dict[str, Range | Choice] = {}
    for key, spec in dotted(table, where).items():
        if key.split(".")[0] not in ("model", "training") or key in _FIXED:
            raise GeoError(
                f"{key} can't vary in a sweep: it doesn't say how heads are fitted",
                where=where,
                hint="settings of model.* and training.* that do: " + ", ".join(list(SPACE)[:3]) + ", …",
            )
        space[key] = _range(key, spec, where) if isinstance(spec, Mapping) else _choice(key, spec, where)
        options = space[key]
        ends = (options.low, options.high) if isinstance(options, Range) else options.values
        for value in ends:
            with_changes(config, {key: round(value) if getattr(options, "whole", False) else value}, where)
    if not space:
        raise GeoError("the space is empty", where=where, hint='"model.fusion" = ["average", "evidence"]')
    return space


def draw(space: Space, config: Config, trials: int) -> list[dict[str, Any]]:
    """Different configurations, as what each changes in `config`: nothing first, then at random from `training.seed`.

    A setting without effect in a configuration, by what its head, fusion and losses declare, is left as it is. The first n
    of more trials are the n of fewer.
    """
    random = np.random.default_rng(config.training.seed)
    drawn: list[dict[str, Any]] = [{}]
    fruitless = 0
    while len(drawn) < trials and fruitless < _FRUITLESS:
        values = {key: options.draw(random) for key, options in space.items()}
        effective = effective_settings({key: values.get(key, value_at(config, key)) for key in _PARTS})
        changes = {
            key: value for key, value in values.items() if key in effective and value != value_at(config, key)
        }
        fruitless = 0 if changes not in drawn else fruitless + 1
        if not fruitless:
            drawn.append(changes)
    if len(drawn) < trials:
        say(
            f"sweep: the space holds {counted(len(drawn), 'configuration that differs', 'configurations that differ')}, fewer than {trials:,} trials"
        )
    return drawn


def _range(key: str, spec: Mapping[str, Any], where: str) -> Range:
    low, high, log = spec.get("low"), spec.get("high"), spec.get("log", False)
    numbers = all(isinstance(end, int | float) and not isinstance(end, bool) for end in (low, high))
    wrong = ""
    if not spec.keys() <= {"low", "high", "log"} or not numbers or not isinstance(log, bool):
        wrong = f"wants low, high and log, got {dict(spec)!r}"
    elif not (math.isfinite(low) and math.isfinite(high) and low < high):  # type: ignore[arg-type, operator]
        wrong = f"low must lie below high, got {low} and {high}"
    elif log and low <= 0:  # type: ignore[operator]
        wrong = f"low must lie above 0 where log is true, got {low}"
    kind = known_keys()[key].annotation
    if not wrong and kind not in (int, float) and kind != float | None:
        wrong = "isn't a number, and wants a list of values"
    if wrong:
        raise GeoError(
            f"{key}: {wrong}", where=where, hint=f'"{key}" = {{low = 1e-4, high = 1e-2, log = true}}'
        )
    return Range(low, high, log, kind is int)  # type: ignore[arg-type]


def _choice(key: str, spec: Any, where: str) -> Choice:
    if not isinstance(spec, list | tuple) or not spec:
        raise GeoError(
            f"{key}: wants a list of values or a range, got {spec!r}",
            where=where,
            hint=f'"{key}" = [first, second], or {{low = …, high = …}}',
        )
    return Choice(tuple(spec))
