"""Which store belongs to the settings, whether it fits the CSV, and what says so."""

import shlex
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geo_embed.backbones.function import read_function
from geo_embed.backbones.preprocessing import check_tower_takes, read_preprocessing
from geo_embed.backbones.weights import find_backbone, fingerprint_of, hash_weights, near_directory
from geo_embed.cache.described import describe
from geo_embed.cache.storage import store_paths
from geo_embed.cache.store import Store, list_stores, manifest_sha256, read_ids, rebuild_hint, stored_dtype
from geo_embed.config import Config, Model
from geo_embed.console import counted, say
from geo_embed.data.images import PICTURE_SEMANTICS, Preprocessing
from geo_embed.data.samples import Samples
from geo_embed.data.variants import AS_THEY_ARE, Variant
from geo_embed.devices import dtype_name
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# What made a store, in the order in which a difference is told. Earlier versions recorded neither function nor picture_semantics.
# A store of a variant of its pictures says which under `variant`; no other has that key.
_MADE_BY = (
    *("weights_sha256", "function", "picture_semantics", "preprocessing", "feature", "view_names"),
    *("dtype", "stored"),
)
_LATER = ("function", "picture_semantics")
# Stores that an error lists; `geo cache ls` has them all.
_SHOWN = 5
_noticed: set[Path] = set()


def find_store(config: Config, split: str, fingerprint: str | None = None) -> Store:
    """The store that belongs to the settings; as `choose_store`, of the whole configuration."""
    return choose_store(config.paths.cache_dir, config.model, split, fingerprint)


def choose_store(
    cache_dir: Path,
    model: Model,
    split: str,
    fingerprint: str | None = None,
    variant: Variant = AS_THEY_ARE,
) -> Store:
    """The only store that belongs to the settings.

    Where the backbone's weights are on this machine, the store must have been made by them, whatever it is called;
    where they are not (a laptop that got the cache alone, or an import), its recorded name must be the one asked for.
    Either way views, feature, resize and, where asked for by name, precision must agree. A store that doesn't say by which
    settings of the tower it was made, as those of earlier versions, is taken where none does, and that is said.

    Args:
        cache_dir: where stores lie.
        model: what made it.
        split: `train` or `test`.
        fingerprint: take this store and no other, as a run does whose heads belong to it; or, of it, the store of a variant.
        variant: of its pictures.

    Raises:
        GeoError: no such store, or more than one fits.
    """
    all_stores = list_stores(cache_dir, split)
    stores = [store for store in all_stores if store.variant == variant]
    fingerprint = fingerprint or model.fingerprint
    command = rebuild_hint(Path(split), {"backbone": model.backbone_name, "variant": variant.recorded()})
    if fingerprint:
        named = _by_fingerprint(stores, list_stores(cache_dir, "train"), fingerprint)
        if named is not None:
            return _with_notice(named)
        if variant != AS_THEY_ARE:
            what = f"no {split} store of a variant of the pictures ({variant}) belongs to the one with the fingerprint {fingerprint}"
            raise GeoError(what, where=cache_dir, hint=command)
        other = "".join(
            f", but of the pictures {s.variant}" for s in all_stores if s.fingerprint == fingerprint
        )
        raise GeoError(
            f"no {split} store has the fingerprint {fingerprint}{other}; {_describe_there(stores, split, cache_dir)}",
            where=cache_dir,
            hint=command,
        )

    wanted = _wanted(model, cache_dir)
    differences = {store.path: _difference(store, wanted) for store in stores}
    fitting = [store for store in stores if not differences[store.path]]
    fitting = [store for store in fitting if not is_of_old_kind(store)] or fitting
    if len(fitting) == 1:
        return _with_notice(fitting[0])
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
    damaged = set(store_paths(cache_dir, split)) - {store.path for store in all_stores}
    why += "".join(f"; {path.parent.name} can't be read" for path in sorted(damaged))
    meant = near_directory(model.backbone_name)
    # Of the same views, so that nothing but the backbone's name stands between them and the command.
    others = [s for s in stores if differences[s.path] == "backbone"]
    usable = sorted({s.attrs["backbone"] for s in others if s.attrs["view_names"] == wanted["view_names"]})
    if len(usable) == 1:
        command = f"go on with what is there by --backbone {shlex.quote(usable[0])}; or embed by {model.backbone_name}: {command}"
    raise GeoError(
        f"no embeddings of the {split} split by {model.backbone_name} with these settings{why}; "
        f"{_describe_there(stores, split, cache_dir)}",
        where=cache_dir,
        hint=f"no such directory; did you mean {meant}? Otherwise: {command}" if meant else command,
    )


def fitting_stores(stores: list[Store], model: Model, cache_dir: Path) -> list[Store]:
    """Those that belong to the settings, where `choose_store` may be unable to choose one."""
    wanted = _wanted(model, cache_dir)
    return [store for store in stores if store.variant == AS_THEY_ARE and not _difference(store, wanted)]


def variant_stores(cache_dir: Path, store: Store) -> list[Store]:
    """The stores of variants of the pictures that a store holds as they are, made by the same, of the same split."""
    names = fingerprints_of(store)
    return [
        other
        for other in list_stores(cache_dir, store.split)
        if other.variant != AS_THEY_ARE and not set(names).isdisjoint(fingerprints_of(other))
    ]


def check_fits(store: Store, samples: Samples, *, any_order: bool = False) -> None:
    """Raise GeoError where the store's rows are not the CSV's samples, with the command that mends it.

    Args:
        store: any store.
        samples: of its split.
        any_order: let the rows lie in another order, for who joins them by id.
    """
    if store.attrs["manifest_sha256"] == manifest_sha256(samples):
        return
    ids = read_ids(store)
    if any_order and len(ids) == len(samples) and set(ids) == set(samples.sample_id):
        place = {sample: row for row, sample in enumerate(samples.sample_id)}
        order = np.array([place[sample] for sample in ids], dtype=np.int64)
        reordered = replace(samples, sample_id=samples.sample_id[order], images=samples.images.take(order))
        if store.attrs["manifest_sha256"] == manifest_sha256(reordered):
            return
    if len(ids) != len(samples):
        what = f"the store holds {counted(len(ids), 'sample')}, the CSV {len(samples):,}"
    elif set(ids) != set(samples.sample_id):
        strange = next(i for i in samples.sample_id if i not in set(ids))
        what = f"the CSV's sample {strange!r} is not in the store"
    elif (ids != samples.sample_id).any() and not any_order:
        row = int(np.argmax(ids != samples.sample_id))
        what = f"the order of samples differs from row {samples.row(row)} on"
    else:
        what = "the same samples name other images than when the store was made"
    raise GeoError(
        f"the store no longer fits {samples.csv}: {what}",
        where=store.path,
        hint=rebuild_hint(store.path, store.attrs),
    )


def is_of_old_kind(store: Store) -> bool:
    """Whether an extracted store leaves open by which settings of the tower, or by which reading of pictures, it was made."""
    if store.attrs.get("imported"):
        return False
    return any(store.attrs.get(key) is None for key in _LATER) or _is_earlier(store)


def stores_made_by(cache_dir: Path, split: str, attrs: dict[str, Any]) -> list[Store]:
    """Stores that agree with a new store's attributes in all that they say of how they were made; of the old kind or not."""
    wanted = {key: attrs[key] for key in _MADE_BY}
    variant = Variant.model_validate(attrs.get("variant") or {})
    return [
        store
        for store in list_stores(cache_dir, split)
        if store.variant == variant and not store.attrs.get("imported") and not _difference(store, wanted)
    ]


def is_made_alike(store: Store, other: Store) -> bool:
    """Whether embeddings of one store may stand for the other's: both say that they were made by the same.

    Which views a store has, and in which order, changes no picture's embedding.
    """
    keys = [key for key in _MADE_BY if key not in ("preprocessing", "view_names")]
    return (
        store.variant == other.variant
        and all(store.attrs.get(key) == other.attrs.get(key) for key in keys)
        and same_preprocessing(store.attrs.get("preprocessing"), other.attrs.get("preprocessing"))
    )


def fingerprints_of(store: Store) -> tuple[str, ...]:
    """The names that a store goes by: the recorded one, the one that it would get today, and the one of earlier versions.

    A store of an earlier version keeps its name when it is taken over, and runs of that version know no other. A store of a
    variant goes by the names of the store of the same pictures as they are: no run is fitted on it, and every run that is
    fitted on that one may answer by it.
    """
    return fingerprints_by(store.attrs)


def fingerprints_by(attrs: Mapping[str, Any]) -> tuple[str, ...]:
    """`fingerprints_of` a store with these attributes."""
    formerly = tuple(key for key in _MADE_BY if key not in _LATER)
    recorded = () if attrs.get("variant") else (str(attrs["fingerprint"]),)
    names = (*recorded, _fingerprint_by(attrs, _MADE_BY), _fingerprint_by(attrs, formerly))
    return tuple(dict.fromkeys(names))


def is_meant(attrs: Mapping[str, Any], train_stores: Iterable[Store], fingerprint: str) -> bool:
    """Whether a store that says all that made it goes by a fingerprint, which is the train store's that a run was fitted on.

    Where that one is among the `train_stores` and says all that made it, both must say the same: of two stores with one earlier
    name, one may have been made by other settings.
    """
    train = [
        _fingerprint_by(store.attrs, _MADE_BY)
        for store in train_stores
        if store.variant == AS_THEY_ARE
        and fingerprint in fingerprints_of(store)
        and not is_of_old_kind(store)
    ]
    return _fingerprint_by(attrs, _MADE_BY) in train if train else fingerprint in fingerprints_by(attrs)


def store_attributes(
    model: Model, directory: Path, dtype: "torch.dtype", variant: Variant = AS_THEY_ARE
) -> dict[str, Any]:
    """Everything that changes an embedding, and the fingerprint over it; without loading the model."""
    preprocessing = read_preprocessing(directory, exact=model.exact)
    check_tower_takes(directory, preprocessing)
    made_by = {
        "weights_sha256": hash_weights(directory),
        "function": read_function(directory).to_dict(),
        "picture_semantics": PICTURE_SEMANTICS,
        "preprocessing": preprocessing.to_dict(),
        "feature": model.feature,
        "view_names": list(model.view_names),
        "dtype": dtype_name(dtype),
        "stored": stored_dtype(model.dtype),
    }
    if variant != AS_THEY_ARE:
        made_by["variant"] = variant.recorded()
    return {"backbone": model.backbone_name, "fingerprint": fingerprint_of(made_by)} | made_by


def attributes_with(attrs: dict[str, Any], **made_by: Any) -> dict[str, Any]:
    """The attributes of `store_attributes` with some of what made the embeddings replaced, and the fingerprint that follows."""
    changed = attrs | made_by
    keys = (*_MADE_BY, *(("variant",) if "variant" in changed else ()))
    return changed | {"fingerprint": fingerprint_of({key: changed[key] for key in keys})}


def import_attributes(name: str, view_names: list[str], stored: str, dim: int) -> dict[str, Any]:
    """What is known of embeddings computed elsewhere, and the fingerprint over it."""
    made_by = {
        "imported": True,
        "backbone": name,
        "view_names": view_names,
        "stored": stored,
        "dim": dim,
    }
    unknown = {"feature": None, "weights_sha256": None, "preprocessing": None}
    return made_by | unknown | {"fingerprint": fingerprint_of(made_by), "dtype": stored}


def same_preprocessing(first: Any, second: Any) -> bool:
    """Whether two recorded preprocessings are the same, though one was recorded before the other's fields existed."""
    try:
        return Preprocessing(**first) == Preprocessing(**second)
    # An import has none; a later version's may have more to it.
    except TypeError:
        return bool(first == second)


def _fingerprint_by(attrs: Mapping[str, Any], keys: tuple[str, ...]) -> str:
    """The fingerprint over some of what made a store, whatever its variant; the recorded one where it doesn't say all of it."""
    if attrs.get("imported") or any(attrs.get(key) is None for key in keys):
        return str(attrs["fingerprint"])
    return fingerprint_of({key: attrs[key] for key in keys})


def _by_fingerprint(stores: list[Store], train_stores: list[Store], fingerprint: str) -> Store | None:
    """The store of a split, of one variant, that goes by a fingerprint; of the old kind, it has to be of that very name."""
    complete = [store for store in stores if not is_of_old_kind(store)]
    named = [store for store in complete if is_meant(store.attrs, train_stores, fingerprint)]
    named.sort(key=lambda store: store.fingerprint != fingerprint)
    named += [store for store in stores if is_of_old_kind(store) and store.fingerprint == fingerprint]
    return named[0] if named else None


def _describe_there(stores: list[Store], split: str, cache_dir: Path) -> str:
    """Which stores of a split there are, or of other splits where it has none."""
    candidates = stores or [store for store in list_stores(cache_dir) if store.variant == AS_THEY_ARE]
    names = [
        f"{store.attrs['backbone']} ({store.fingerprint}{'' if stores else f', {store.split} alone'})"
        for store in candidates
    ]
    more = f" and {len(names) - _SHOWN:,} more" if len(names) > _SHOWN else ""
    if not names:
        return "there are no others"
    return f"--backbone takes what is there: {', '.join(names[:_SHOWN])}{more}"


def _with_notice(store: Store) -> Store:
    """The store itself, once it is said that it is of the old kind."""
    if is_of_old_kind(store) and store.path not in _noticed:
        _noticed.add(store.path)
        say(
            f"{store.path} was made by an earlier version, which didn't record all that made it: used as it is; "
            f"where its pictures are, {rebuild_hint(store.path, store.attrs)} checks some of them and takes it over"
        )
    return store


def _is_earlier(store: Store) -> bool:
    semantics = store.attrs.get("picture_semantics")
    return isinstance(semantics, int) and semantics < PICTURE_SEMANTICS


def _wanted(model: Model, cache_dir: Path) -> dict[str, Any]:
    """What a store's attributes must say to belong to the settings."""
    wanted: dict[str, Any] = {"backbone": model.backbone_name, "view_names": list(model.view_names)}
    wanted["feature"] = model.feature
    wanted["resize"] = "pil" if model.exact else "torch"
    wanted["picture_semantics"] = PICTURE_SEMANTICS
    if model.dtype != "auto":
        wanted |= {"dtype": model.dtype, "stored": stored_dtype(model.dtype)}
    try:
        directory = find_backbone(model.backbone_name, download=False)
    except GeoError:
        # The name decides only where the weights themselves can't: where there are none. A folder may share an import's name.
        return wanted
    # Weights that are there and can't be read are an error: they could be any store's.
    wanted["weights_sha256"] = hash_weights(directory)
    return wanted | describe(directory, cache_dir, exact=model.exact)


def _difference(store: Store, wanted: dict[str, Any]) -> str:
    """The first thing in which a store is not what is wanted; empty where it is."""
    # An import has a name and views, and nothing else is known of it.
    keys = ["backbone", "view_names"] if store.attrs.get("imported") else list(wanted)
    if "weights_sha256" in keys and "backbone" in keys:
        keys.remove("backbone")
    have = dict(store.attrs)
    have["resize"] = (store.attrs.get("preprocessing") or {}).get("resize")
    for key in sorted(keys, key=["backbone", "weights_sha256"].__contains__, reverse=True):
        # What a store of the old kind leaves open is no difference.
        if key in _LATER and (have.get(key) is None or (key == "picture_semantics" and _is_earlier(store))):
            continue
        same = (
            same_preprocessing(have.get(key), wanted[key])
            if key == "preprocessing"
            else have.get(key) == wanted[key]
        )
        if not same:
            other = key in ("backbone", "weights_sha256")
            return "backbone" if other else f"{key}: {_first_difference(have.get(key), wanted[key])}"
    return ""


def _first_difference(have: Any, wanted: Any) -> str:
    """`'a', not 'b'`; of two groups of settings, the first setting in which they differ."""
    if isinstance(have, dict) and isinstance(wanted, dict):
        for key in sorted(have.keys() | wanted.keys()):
            if have.get(key) != wanted.get(key):
                return f"{key} {have.get(key)!r}, not {wanted.get(key)!r}"
    return f"{have!r}, not {wanted!r}"
