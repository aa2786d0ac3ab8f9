"""The store that a run's heads answer from."""

from contextlib import suppress
from pathlib import Path

from geo_embed.cache.exchange import other_source
from geo_embed.cache.find import choose_store, find_store
from geo_embed.cache.store import Store, holds_sample, rebuild_hint
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.errors import GeoError
from geo_embed.runs.run import Run


def find_store_of(run: Run, split: str, variant: Variant = AS_THEY_ARE) -> Store:
    """A split's store by the backbone that a run was fitted on, of a variant of its pictures.

    An import goes by its name and shape. So it is compared with what the run remembers: what its file said of the backbone, and
    some of the train split's embeddings. A run of an earlier version remembers nothing, and a train split that isn't here can't
    be compared; then the name is believed.

    Args:
        run: with heads of its own, no ensemble.
        split: `train` or `test`.
        variant: of its pictures; an import has none.

    Raises:
        GeoError: there is no such store, or it is an import that was replaced by another backbone's.
    """
    fitted_on = run.provenance["store"]
    if is_fitted_on_arrays(run):
        raise GeoError(
            f"the run was fitted on arrays: there is no {split} split of these embeddings in the cache",
            where=run.path,
            hint="run.predict(embeddings=…) answers for arrays; for all else import both splits' embeddings (geo cache import) and fit on those",
        )
    if variant != AS_THEY_ARE and is_fitted_on_import(run):
        raise GeoError(
            f"the run was fitted on imported embeddings ({fitted_on['backbone']}): what made them isn't known here, "
            "so variants of the pictures can't be embedded",
            where=run.path,
            hint="do without --tta",
        )
    model = run.config.model
    try:
        store = choose_store(run.config.paths.cache_dir, model, split, fitted_on["fingerprint"], variant)
    except GeoError as error:
        if is_fitted_on_import(run):
            error.hint = rebuild_hint(Path(split), {"backbone": fitted_on["backbone"], "imported": True})
        raise
    if not store.attrs.get("imported"):
        return store
    other = other_source(fitted_on.get("source_made_by"), store.attrs.get("source_made_by"))
    if not other and fitted_on.get("content_sample"):
        # What can't be read is no other backbone's: damage is for whoever reads it.
        with suppress(GeoError):
            train = find_store(run.config, "train", fingerprint=fitted_on["fingerprint"])
            if not holds_sample(train, fitted_on["content_sample"]):
                other = "the train split holds other embeddings"
    if other:
        name = fitted_on["backbone"]
        raise GeoError(
            f"the import {name!r} was replaced since the run {run.name} was fitted on it: {other}",
            where=store.path,
            hint=f"fit it again: geo fit-heads --backbone {name} --name {run.name} --overwrite; "
            "or import what it was fitted on again, with --overwrite, and the other backbone's under another name",
        )
    return store


def is_fitted_on_import(run: Run) -> bool:
    """Whether a run with heads of its own was fitted on embeddings that were made elsewhere."""
    return run.provenance["store"]["weights_sha256"] is None


def is_fitted_on_arrays(run: Run) -> bool:
    """Whether a run, or a member of an ensemble, was fitted on plain arrays: there is neither a store nor a CSV of its samples."""
    stores = [run.provenance["store"], *(run.provenance.get("stores") or ())]
    return any(store.get("arrays") for store in stores)
