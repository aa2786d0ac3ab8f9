"""The backbones that a run's embeddings came from."""

from collections.abc import Mapping, Sequence
from itertools import groupby
from typing import TYPE_CHECKING, Any

from geo_embed.backbones import backbone as backbones
from geo_embed.backbones.weights import find_backbone, hash_weights
from geo_embed.blocks import label_of
from geo_embed.cache.find import same_preprocessing
from geo_embed.devices import pick_dtype
from geo_embed.errors import GeoError
from geo_embed.runs.recipe import load_ensemble
from geo_embed.runs.run import Run

if TYPE_CHECKING:
    import torch


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
    by_backbone = sources_by_backbone(run)
    check_one_backbone(run, "the run was fitted on more than one backbone:", by_backbone)
    return _load(run, by_backbone[0], device, name, dtype, trainable)


def check_one_backbone(run: Run, what: str, by_backbone: Sequence[Sequence[Mapping[str, Any]]]) -> None:
    """Raise GeoError where these sources of a run, as `sources_by_backbone` gives them, are several backbones': `what` and their names."""
    if len(by_backbone) > 1:
        raise GeoError(
            f"{what} {', '.join(sources[0]['name'] for sources in by_backbone)}",
            where=run.path,
            hint="fit heads on one of them: geo fit-heads --backbone NAME",
        )


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
    by_backbone = sources_by_backbone(run)
    if len(by_backbone) == 1 and len(names) < 2:
        return [_load(run, by_backbone[0], device, next(iter(names), None))]
    free, towers = list(names), []
    for sources in by_backbone:
        mine = next((name for name in free if _is_of(sources[0], name)), None)
        if mine is not None:
            free.remove(mine)
        towers.append(_load(run, sources, device, mine))
    if free:
        own = ", ".join(sources[0]["name"] for sources in by_backbone)
        raise GeoError(
            f"backbone {free[0]} is none of those that this run was fitted on: {own}",
            where=run.path,
            hint="name the run's own with --backbone",
        )
    return towers


def sources_by_backbone(run: Run) -> list[list[dict[str, Any]]]:
    """What a run was fitted on, backbone by backbone in the order of the embeddings' columns: of each one or several features.

    Raises:
        GeoError: as `load_backbone_of`, of an ensemble.
    """
    sources = _only_sources(run)
    return [list(of_one) for _, of_one in groupby(sources, key=lambda source: source["name"])]


def _is_of(source: dict[str, Any], name: str) -> bool:
    return (
        source["weights_sha256"] is not None and hash_weights(find_backbone(name)) == source["weights_sha256"]
    )


def _load(
    run: Run,
    sources: Sequence[dict[str, Any]],
    device: "torch.device",
    name: str | None = None,
    dtype: str | None = None,
    trainable: bool = False,
) -> backbones.Backbone:
    made_by = sources[0]
    if made_by["weights_sha256"] is None:
        raise GeoError(
            f"the run was fitted on imported embeddings ({made_by['backbone']}); what made them isn't known here",
            where=run.path,
            hint="embed the pictures as they were, then run.predict(embeddings=…); or import them as a test split, and predict that",
        )
    model = run.config.model.with_backbone(name or made_by["name"])
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


def _only_sources(run: Run) -> list[dict[str, Any]]:
    """What a run was fitted on. Raises GeoError for an ensemble whose members take other features or views, or have other backbones."""
    ensemble = load_ensemble(run)
    if ensemble is None:
        return run.sources
    every = [_only_sources(member) for member in ensemble.members]
    models = [member.config.model for member in ensemble.members]
    inputs = [(model.feature, model.view_names) for model in models]
    for member, sources, takes in zip(ensemble.members, every, inputs, strict=True):
        same = len(sources) == len(every[0]) and all(map(_is_same, sources, every[0]))
        if takes != inputs[0] or not same:
            first, other = (", ".join(source["backbone"] for source in s) for s in (every[0], sources))
            raise GeoError(
                f"the ensemble's members were fitted on different backbones, {first} and {other}, or on different views",
                where=member.path,
                hint="cache the pictures' embeddings as a test split by each of them, and predict that",
            )
    return every[0]


def _is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs' stores were made by one backbone, as far as they say."""
    functions = [store["function"] for store in (first, second) if store["function"] is not None]
    if first["weights_sha256"] is None and first["fingerprint"] != second["fingerprint"]:
        # Imports tell no weights.
        return False
    return (
        first["weights_sha256"] == second["weights_sha256"]
        and first.get("feature") == second.get("feature")
        and (len(functions) < 2 or functions[0] == functions[1])
        and same_preprocessing(first["preprocessing"], second["preprocessing"])
    )
