"""The store that a run's heads answer from."""

from contextlib import suppress

from geo_embed.cache.exchange import other_source
from geo_embed.cache.find import find_store
from geo_embed.cache.store import Store, holds_sample
from geo_embed.errors import GeoError
from geo_embed.runs.run import Run


def find_store_of(run: Run, split: str) -> Store:
    """A split's store by the backbone that a run was fitted on.

    An import goes by its name and shape. So it is compared with what the run remembers: what its file said of the backbone, and
    some of the train split's embeddings. A run of an earlier version remembers nothing, and a train split that isn't here can't
    be compared; then the name is believed.

    Args:
        run: with heads of its own, no ensemble.
        split: `train` or `test`.

    Raises:
        GeoError: there is no such store, or it is an import that was replaced by another backbone's.
    """
    fitted_on = run.provenance["store"]
    store = find_store(run.config, split, fingerprint=fitted_on["fingerprint"])
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
