"""The stores that a run's heads answer from."""

import shlex
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from geo_embed.cache.exchange import other_source
from geo_embed.cache.find import choose_store
from geo_embed.cache.join import Source
from geo_embed.cache.store import Store, holds_sample, rebuild_hint
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.errors import GeoError
from geo_embed.runs.run import Run


def find_sources_of(run: Run, split: str, variant: Variant = AS_THEY_ARE) -> tuple[Source, ...]:
    """A split's stores by the backbones that a run was fitted on, in the order of its embeddings' columns, of a variant of its pictures.

    Args:
        run: with heads of its own, no ensemble.
        split: `train` or `test`.
        variant: of its pictures; an import has none.

    Raises:
        GeoError: one of them isn't there, or is an import that was replaced by another backbone's.
    """
    return tuple(find_source_of(run, fitted_on, split, variant) for fitted_on in run.sources)


def find_source_of(
    run: Run, fitted_on: Mapping[str, Any], split: str, variant: Variant = AS_THEY_ARE
) -> Source:
    """`find_sources_of`, of one of `run.sources`."""
    store = _find_store(run, fitted_on, split, variant)
    return Source(fitted_on["name"], store, fitted_on.get("feature"))


def _find_store(run: Run, fitted_on: Mapping[str, Any], split: str, variant: Variant) -> Store:
    """A split's store by one of the backbones that a run was fitted on.

    An import goes by its name and shape. So it is compared with what the run remembers: what its file said of the backbone, and
    some of the train split's embeddings. A run of an earlier version remembers nothing, and a train split that isn't here can't
    be compared; then the name is believed.
    """
    if is_fitted_on_arrays(run):
        raise GeoError(
            f"the run was fitted on arrays: there is no {split} split of these embeddings in the cache",
            where=run.path,
            hint="run.predict(embeddings=…) answers for arrays; for all else import both splits' embeddings (geo cache import) and fit on those",
        )
    is_import = fitted_on["weights_sha256"] is None
    if variant != AS_THEY_ARE and is_import:
        raise GeoError(
            f"the run was fitted on imported embeddings ({fitted_on['backbone']}): what made them isn't known here, "
            "so variants of the pictures can't be embedded",
            where=run.path,
            hint="do without --tta",
        )
    cache_dir, fingerprint = run.config.paths.cache_dir, fitted_on["fingerprint"]
    model = run.config.model.with_backbone(fitted_on["name"])
    try:
        store = choose_store(cache_dir, model, split, fingerprint, variant)
    except GeoError as error:
        if is_import:
            error.hint = rebuild_hint(Path(split), {"backbone": fitted_on["backbone"], "imported": True})
        if len(run.sources) > 1:
            error.what = f"of {fitted_on['name']}, one of {len(run.sources)} that {run.name} was fitted on, {error.what}"
        raise
    if not store.attrs.get("imported"):
        return store
    other = other_source(fitted_on.get("source_made_by"), store.attrs.get("source_made_by"))
    if not other and fitted_on.get("content_sample"):
        # What can't be read is no other backbone's: damage is for whoever reads it.
        with suppress(GeoError):
            train = choose_store(cache_dir, model, "train", fingerprint)
            if not holds_sample(train, fitted_on["content_sample"]):
                other = "the train split holds other embeddings"
    if other:
        name = fitted_on["backbone"]
        backbones = " ".join(f"--backbone {shlex.quote(str(source['name']))}" for source in run.sources)
        raise GeoError(
            f"the import {name!r} was replaced since the run {run.name} was fitted on it: {other}",
            where=store.path,
            hint=f"fit it again: geo fit-heads {backbones} --name {run.name} --overwrite; "
            "or import what it was fitted on again, with --overwrite, and the other backbone's under another name",
        )
    return store


def is_fitted_on_arrays(run: Run) -> bool:
    """Whether a run, or a member of an ensemble, was fitted on plain arrays: there is neither a store nor a CSV of its samples."""
    stores = [*run.sources, *(run.provenance.get("stores") or ())]
    return any(store.get("arrays") for store in stores)
