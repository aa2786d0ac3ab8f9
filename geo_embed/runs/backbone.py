"""The backbones that a run's embeddings came from."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.weights import find_backbone, hash_weights
from geo_embed.blocks import Block, blocks_of, label_of
from geo_embed.cache.find import same_preprocessing
from geo_embed.devices import pick_dtype
from geo_embed.errors import GeoError
from geo_embed.runs.recipe import EnsembleOf, answering_runs, load_ensemble
from geo_embed.runs.run import Run

if TYPE_CHECKING:
    import torch


@dataclass(frozen=True)
class Inputs:
    """What a run answers from: embeddings by one or several backbones side by side, and of an ensemble which of them each member takes.

    Attributes:
        by_backbone: the sources, backbone by backbone in the order of the embeddings' columns: of each one or several features.
        places: for each run that answers, by its path, where its own sources stand: the backbone's number, and the feature's.
    """

    by_backbone: list[list[dict[str, Any]]]
    places: dict[Path, list[tuple[int, int]]]

    @property
    def blocks(self) -> tuple[Block, ...]:
        """Which columns of the embeddings are whose."""
        sources = [source for of_one in self.by_backbone for source in of_one]
        labels = [label_of(source["name"], source.get("feature")) for source in sources]
        return blocks_of(labels, (int(source["dim"]) for source in sources))

    @property
    def dim(self) -> int:
        """D, the width of the embeddings."""
        return self.blocks[-1].stop

    def columns_of(self, run: Run) -> list[slice] | None:
        """The columns that a run with heads takes, in the order in which it was fitted on them; None for all as they are."""
        numbers = [(k, j) for k, sources in enumerate(self.by_backbone) for j in range(len(sources))]
        at = dict(zip(numbers, self.blocks, strict=True))
        places = self.places[run.path]
        return None if places == numbers else [slice(at[place].start, at[place].stop) for place in places]

    def take(self, run: Run, values: NDArray[Any]) -> NDArray[Any]:
        """Of embeddings (N, V, D) those that a run with heads takes."""
        columns = self.columns_of(run)
        if columns is None:
            return values
        return np.concatenate([values[..., block] for block in columns], axis=-1)


def load_backbone_of(
    run: Run,
    device: "torch.device",
    name: str | None = None,
    *,
    dtype: str | None = None,
    trainable: bool = False,
) -> backbones.Backbone:
    """The very backbone that a run's embeddings came from, where it is one, for all features of it that the run takes.

    Args:
        run: any run.
        device: where it is to lie.
        name: where it lies, if not under the name that it had in training.
        dtype: its precision; default: as in training.
        trainable: as `load_backbone` has it.

    Raises:
        GeoError: it is not known, not to be had, or has other weights, settings or preprocessing; or there are several.
    """
    by_backbone = inputs_of(run).by_backbone
    if len(by_backbone) > 1:
        names = ", ".join(sources[0]["name"] for sources in by_backbone)
        raise GeoError(
            f"the run was fitted on more than one backbone: {names}",
            where=run.path,
            hint="fit heads on one of them: geo fit-heads --backbone NAME",
        )
    return load_backbone_for(run, by_backbone[0], device, name, dtype=dtype, trainable=trainable)


def check_own_feature_alone(
    run: Run, sources: Sequence[Mapping[str, Any]], what: str, advice: str = "fit heads"
) -> None:
    """Raise GeoError where these sources of a run aren't one backbone's own feature alone: `what` and their labels, and `advice`."""
    if len(sources) > 1 or sources[0].get("feature") is not None:
        labels = ", ".join(label_of(source["name"], source.get("feature")) for source in sources)
        raise GeoError(
            f"{what} {labels}",
            where=run.path,
            hint=f"{advice} on one of them: geo fit-heads --backbone NAME",
        )


def load_backbones_of(
    run: Run, device: "torch.device", names: Sequence[str] = ()
) -> list[backbones.Backbone]:
    """The backbones that a run's embeddings came from, in the order of the embeddings' columns, each for all features of it.

    Args:
        run: any run.
        device: where they are to lie.
        names: where they lie, in any order; one that isn't named lies where it did in training.

    Raises:
        GeoError: as `load_backbone_of`; or one that is named is none of them.
    """
    by_backbone = inputs_of(run).by_backbone
    where = named_for(run, by_backbone, names)
    return [
        load_backbone_for(run, sources, device, name)
        for sources, name in zip(by_backbone, where, strict=True)
    ]


def named_for(
    run: Run, by_backbone: Sequence[Sequence[Mapping[str, Any]]], names: Sequence[str]
) -> list[str | None]:
    """Where each of a run's backbones lies, as `Inputs.by_backbone` has them, of these names in any order; None for one that isn't named.

    Raises:
        GeoError: one that is named is none of them, is named twice, or isn't to be had.
    """
    if len(by_backbone) == 1 and len(names) < 2:
        # Whether it is the one is looked at when it is loaded.
        return [next(iter(names), None)]
    free, where = list(names), list[str | None]()
    for sources in by_backbone:
        matching = next((name for name in free if _is_of(sources[0], name)), None)
        if matching is not None:
            free.remove(matching)
        where.append(matching)
    twice = next((name for name in free if any(_is_of(sources[0], name) for sources in by_backbone)), None)
    if twice is not None:
        raise GeoError(f"backbone {twice} is named twice", where=run.path, hint="name each backbone once")
    if free:
        names_of_run = ", ".join(sources[0]["name"] for sources in by_backbone)
        raise GeoError(
            f"backbone {free[0]} is none of those that this run was fitted on: {names_of_run}",
            where=run.path,
            hint="name the run's own with --backbone",
        )
    return where


def inputs_of(run: Run, ensemble_of: EnsembleOf = load_ensemble) -> Inputs:
    """What a run answers from; of an ensemble what its members do, each backbone and each of its features once.

    Raises:
        GeoError: an ensemble is damaged, or its members look at different views.
    """
    if ensemble_of(run) is None:
        groups = [list(of_one) for _, of_one in groupby(run.sources, key=lambda source: source["name"])]
        return Inputs(
            groups, {run.path: [(k, j) for k, sources in enumerate(groups) for j in range(len(sources))]}
        )
    by_backbone: list[list[dict[str, Any]]] = []
    places: dict[Path, list[tuple[int, int]]] = {}
    views, default_feature = run.config.model.view_names, run.config.model.feature
    for part in answering_runs(run, ensemble_of):
        if part.config.model.view_names != views:
            raise GeoError(
                f"the ensemble's members look at different views, {', '.join(views)} and {', '.join(part.config.model.view_names)}",
                where=part.path,
                hint="cache the pictures' embeddings as a test split by each of them, and predict that",
            )
        # A run's own sources differ, whatever they say of themselves.
        taken: list[tuple[int, int]] = []
        for _, of_one in groupby(part.sources, key=lambda source: source["name"]):
            used = {k for k, _ in taken}
            sources = [
                _by_feature_of(source, part.config.model.feature, default_feature) for source in of_one
            ]
            same = (
                k
                for k, collected_before in enumerate(by_backbone)
                if k not in used and _is_same(collected_before[0], sources[0])
            )
            k = next(same, len(by_backbone))
            collected = by_backbone[k] if k < len(by_backbone) else []
            if not collected:
                by_backbone.append(collected)
            for source in sources:
                features = [other.get("feature") for other in collected]
                if source.get("feature") not in features:
                    collected.append(source)
                    features.append(source.get("feature"))
                taken.append((k, features.index(source.get("feature"))))
        places[part.path] = taken
    return Inputs(by_backbone, places)


def _by_feature_of(source: Mapping[str, Any], feature: str, default_feature: str) -> dict[str, Any]:
    """A source of a run whose own feature is this one, as a run has it whose own is another: None stands for it."""
    named = source.get("feature") or feature
    return dict(source) | {"feature": None if named == default_feature else named}


def _is_of(source: Mapping[str, Any], name: str) -> bool:
    return (
        source["weights_sha256"] is not None and hash_weights(find_backbone(name)) == source["weights_sha256"]
    )


def load_backbone_for(
    run: Run,
    sources: Sequence[Mapping[str, Any]],
    device: "torch.device",
    name: str | None = None,
    *,
    dtype: str | None = None,
    trainable: bool = False,
) -> backbones.Backbone:
    """`load_backbone_of`, of one of several: `sources` are those of it, as `Inputs.by_backbone` has them."""
    made_by = sources[0]
    if made_by["weights_sha256"] is None:
        raise GeoError(
            f"the run was fitted on imported embeddings ({made_by['backbone']}); what made them isn't known here",
            where=run.path,
            hint="embed the pictures as they were, then run.predict(embeddings=…); or import them as a test split, and predict that",
        )
    model = run.config.model.with_backbone(name or look_for(made_by["name"]))
    if "resize" in (made_by["preprocessing"] or {}):
        # An ensemble's members may each have their own.
        model = model.model_copy(update={"exact": made_by["preprocessing"]["resize"] == "pil"})
    precision = pick_dtype(dtype or model.dtype, device)
    further = [source["feature"] for source in sources if source.get("feature") is not None]
    tower = backbones.load_backbone(model, device, precision, trainable=trainable, further=further)
    for what, same in (
        ("weights", tower.weights_sha256 == made_by["weights_sha256"]),
        # Runs of earlier versions don't say it.
        ("settings in its config.json", made_by["function"] in (None, tower.function)),
        ("preprocessing", same_preprocessing(tower.preprocessing.to_dict(), made_by["preprocessing"])),
    ):
        if not same:
            raise GeoError(
                f"backbone {tower.name} has other {what} than the one this run was fitted on, {made_by['backbone']}",
                where=run.path,
                hint="name the run's own with --backbone",
            )
    return tower


def look_for(name: str) -> str:
    """The name of a backbone that a run was fitted on. Raises GeoError where it isn't to be had any more, with what to type."""
    try:
        find_backbone(name)
    except GeoError as error:
        error.hint = f"where it has moved, say so with --backbone DIR; {error.hint}"
        raise
    return name


def _is_same(first: Mapping[str, Any], second: Mapping[str, Any]) -> bool:
    """Whether two runs' stores were made by one backbone, of whatever features of it, as far as they say."""
    functions = [store["function"] for store in (first, second) if store["function"] is not None]
    if first["weights_sha256"] is None and first["fingerprint"] != second["fingerprint"]:
        # Imports tell no weights.
        return False
    return (
        first["weights_sha256"] == second["weights_sha256"]
        and (len(functions) < 2 or functions[0] == functions[1])
        and same_preprocessing(first["preprocessing"], second["preprocessing"])
    )
