"""Which store belongs to the settings, whether it fits the CSV, and what says so."""

import contextlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geo_embed.backbones.preprocessing import check_tower_takes, read_preprocessing
from geo_embed.backbones.weights import find_backbone, fingerprint_of, hash_weights
from geo_embed.cache.storage import store_paths
from geo_embed.cache.store import Store, list_stores, manifest_sha256, rebuild_hint, stored_dtype
from geo_embed.config import Config, Model
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch


def find_store(config: Config, split: str, fingerprint: str | None = None) -> Store:
    """The store that belongs to the settings; as `choose_store`, of the whole configuration."""
    return choose_store(config.paths.cache_dir, config.model, split, fingerprint)


def choose_store(cache_dir: Path, model: Model, split: str, fingerprint: str | None = None) -> Store:
    """The only store that belongs to the settings.

    Where the backbone's weights are on this machine, the store must have been made by them, whatever it is called;
    where they are not (a laptop that got the cache alone, or an import), its recorded name must be the one asked for.
    Either way views, feature, resize and, where asked for by name, precision must agree.

    Args:
        cache_dir: where stores lie.
        model: what made it.
        split: `train` or `test`.
        fingerprint: take this store and no other, as a run does whose heads belong to it.

    Raises:
        GeoError: no such store, or more than one fits.
    """
    stores = list_stores(cache_dir, split)
    fingerprint = fingerprint or model.fingerprint
    command = rebuild_hint(Path(split), {"backbone": model.backbone_name})
    if fingerprint:
        exact = [store for store in stores if store.fingerprint == fingerprint]
        if exact:
            return exact[0]
        raise GeoError(f"no {split} store has the fingerprint {fingerprint}", where=cache_dir, hint=command)

    wanted = _wanted(model)
    differences = {store.path: _difference(store, wanted) for store in stores}
    fitting = [store for store in stores if not differences[store.path]]
    if len(fitting) == 1:
        return fitting[0]
    if fitting:
        listed = ", ".join(
            f"{s.fingerprint} ({s.attrs.get('dtype')}, {s.attrs['backbone']})" for s in fitting
        )
        raise GeoError(
            f"{len(fitting)} {split} stores fit the settings: {listed}",
            where=cache_dir,
            hint="choose one with --set model.fingerprint=…",
        )
    near = [path for path, difference in differences.items() if difference != "backbone"]
    why = f"; {near[0].parent.name} differs in {differences[near[0]]}" if near else ""
    damaged = set(store_paths(cache_dir, split)) - set(differences)
    why += "".join(f"; {path.parent.name} can't be read" for path in sorted(damaged))
    raise GeoError(
        f"no embeddings of the {split} split by {model.backbone_name} with these settings{why}",
        where=cache_dir,
        hint=command,
    )


def check_fits(store: Store, samples: Samples) -> None:
    """Raise GeoError where the store's rows are not the CSV's samples, with the command that mends it."""
    if store.attrs["manifest_sha256"] == manifest_sha256(samples):
        return
    ids = store.sample_id
    if len(ids) != len(samples):
        what = f"the store holds {len(ids):,} samples, the CSV {len(samples):,}"
    elif set(ids) != set(samples.sample_id):
        strange = next(i for i in samples.sample_id if i not in set(ids))
        what = f"the CSV's sample {strange!r} is not in the store"
    elif (ids != samples.sample_id).any():
        row = int(np.argmax(ids != samples.sample_id))
        what = f"the order of samples differs from row {samples.row(row)} on"
    else:
        what = "the same samples name other images than when the store was made"
    raise GeoError(
        f"the store no longer fits {samples.csv}: {what}",
        where=store.path,
        hint=rebuild_hint(store.path, store.attrs),
    )


def _wanted(model: Model) -> dict[str, Any]:
    """What a store's attributes must say to belong to the settings."""
    wanted: dict[str, Any] = {"backbone": model.backbone_name, "view_names": list(model.view_names)}
    wanted["feature"] = model.feature
    wanted["resize"] = "pil" if model.exact else "torch"
    if model.dtype != "auto":
        wanted |= {"dtype": model.dtype, "stored": stored_dtype(model.dtype)}
    # The name decides only where the weights themselves can't.
    with contextlib.suppress(GeoError):
        directory = find_backbone(model.backbone_name, download=False)
        wanted["weights_sha256"] = hash_weights(directory)
        wanted["preprocessing"] = read_preprocessing(directory, exact=model.exact).to_dict()
    return wanted


def _difference(store: Store, wanted: dict[str, Any]) -> str:
    """The first thing in which a store is not what is wanted; empty where it is."""
    # An import has a name and views, and nothing else is known of it.
    keys = ["backbone", "view_names"] if store.attrs.get("imported") else list(wanted)
    if "weights_sha256" in keys:
        keys.remove("backbone")
    have = dict(store.attrs)
    have["resize"] = (store.attrs.get("preprocessing") or {}).get("resize")
    for key in sorted(keys, key=["backbone", "weights_sha256"].__contains__, reverse=True):
        if have.get(key) != wanted[key]:
            same = key in ("backbone", "weights_sha256")
            return "backbone" if same else f"{key}: {have.get(key)!r}, not {wanted[key]!r}"
    return ""


def store_attributes(model: Model, directory: Path, dtype: "torch.dtype") -> dict[str, Any]:
    """Everything that changes an embedding, and the fingerprint over it; without loading the model."""
    preprocessing = read_preprocessing(directory, exact=model.exact)
    check_tower_takes(directory, preprocessing)
    made_by = {
        "weights_sha256": hash_weights(directory),
        "preprocessing": preprocessing.to_dict(),
        "feature": model.feature,
        "view_names": list(model.view_names),
        "dtype": str(dtype).removeprefix("torch."),
        "stored": stored_dtype(model.dtype),
    }
    return {"backbone": model.backbone_name, "fingerprint": fingerprint_of(made_by)} | made_by
