"""The backbone that a run's embeddings came from."""

from typing import TYPE_CHECKING, Any

from geo_embed.backbones import backbone as backbones
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
    """The very backbone that a run's embeddings came from.

    Args:
        run: any run.
        device: where it is to lie.
        name: where it lies, if not under the name that it had in training.
        dtype: its precision; default: as in training.
        trainable: as `load_backbone` has it.

    Raises:
        GeoError: it is not known, not to be had, or has other weights, settings or preprocessing.
    """
    made_by = _only_backbone(run)
    if made_by["weights_sha256"] is None:
        raise GeoError(
            f"the run was fitted on imported embeddings ({made_by['backbone']}); what made them isn't known here",
            where=run.path,
            hint="embed the pictures as they were, then run.predict(embeddings=…); or import them as a test split, and predict that",
        )
    model = run.config.model
    model = model.model_copy(update={"backbone_name": name or model.backbone_name})
    precision = pick_dtype(dtype or model.dtype, device)
    tower = backbones.load_backbone(model, device, precision, trainable=trainable)
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


def _only_backbone(run: Run) -> dict[str, Any]:
    """The store that a run was fitted on. Raises GeoError for an ensemble whose members take other features or views, or have other backbones."""
    ensemble = load_ensemble(run)
    if ensemble is None:
        return dict(run.provenance["store"]) | {"function": run.provenance.get("function")}
    stores = [_only_backbone(member) for member in ensemble.members]
    models = [member.config.model for member in ensemble.members]
    inputs = [(model.feature, model.view_names) for model in models]
    for member, store, takes in zip(ensemble.members, stores, inputs, strict=True):
        if takes != inputs[0] or not _is_same(store, stores[0]):
            raise GeoError(
                f"the ensemble's members were fitted on different backbones, {stores[0]['backbone']} and "
                f"{store['backbone']}, or on different views",
                where=member.path,
                hint="cache the pictures' embeddings as a test split by each of them, and predict that",
            )
    return stores[0]


def _is_same(first: dict[str, Any], second: dict[str, Any]) -> bool:
    """Whether two runs' stores were made by one backbone, as far as they say."""
    functions = [store["function"] for store in (first, second) if store["function"] is not None]
    return (
        first["weights_sha256"] == second["weights_sha256"]
        and (len(functions) < 2 or functions[0] == functions[1])
        and same_preprocessing(first["preprocessing"], second["preprocessing"])
    )
