"""Where a split's store lies: a new place, or a store of an earlier version, which is taken over.

Earlier versions didn't record all that makes an embedding. Some pictures of such a store are embedded again, and where they
agree its attributes are completed, in one step. It keeps its fingerprint and its place, by which runs know it; nothing else is
computed. Killed at any moment, the same command goes on.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from geo_embed.backbones import backbone as backbones
from geo_embed.cache.find import is_of_old_kind, stores_made_by
from geo_embed.cache.locks import exclusive, only_writer
from geo_embed.cache.storage import has_store, superseded_paths
from geo_embed.cache.store import (
    OK,
    Store,
    metadata_faults,
    open_store,
    read_ids,
    read_status,
    rewrite_attributes,
)
from geo_embed.cache.verify import DEEP_IMAGES, SAME_COSINE, EmbeddedAgain, embed_again
from geo_embed.config import Model
from geo_embed.console import say
from geo_embed.data.samples import SPLITS, Samples
from geo_embed.errors import GeoError

if TYPE_CHECKING:
    import torch

# How alike an embedding made again must be, by the precision it was made in. In float32 what is left is rounding to float16, 2e-8
# off, and a grey level here and there of another version's decoder; GELU in place of its sigmoid approximation is 3e-5 off in a
# small CLIP, another number of heads 0.1. In bfloat16 the same tower on two devices needs the room.
_SAME = {"float32": 1 - 1e-6, "float16": 1 - 1e-4}
_JPEG = (".jpg", ".jpeg")
# Embedding some pictures with the largest towers on an old processor takes minutes.
_WAIT_SECONDS = 3600.0


@dataclass(frozen=True)
class Wanted:
    """The store that an extraction wants.

    Attributes:
        path, attrs: where it would lie if it were new, and everything that makes its embeddings, with the fingerprint over it.
        samples: whose pictures it is of.
        model, device, dtype: the backbone, where it runs and in which precision.
    """

    path: Path
    attrs: dict[str, Any]
    samples: Samples
    model: Model
    device: "torch.device"
    dtype: "torch.dtype"


def settle(wanted: Wanted) -> tuple[Path, str]:
    """Where the store lies or is to lie, and its fingerprint: a store of an earlier version that agrees is taken over.

    Where there is none, or none agrees, every store stays as it is, and what was found is said.

    Raises:
        GeoError: somebody writes to such a store, or the disk says no.
    """
    split, fingerprint = wanted.path.stem, wanted.attrs["fingerprint"]
    if has_store(wanted.path):
        return wanted.path, fingerprint
    store = _complete_store(wanted, split)
    if store is None:
        store = _take_over(wanted)
    if store is not None:
        return store.path, store.fingerprint
    # Beside the other split, whose embeddings are copied where pictures are the same.
    for other in SPLITS:
        beside = _complete_store(wanted, other)
        if beside is not None and not wanted.path.parent.exists():
            path = beside.path.with_name(wanted.path.name)
            if not has_store(path):
                return path, beside.fingerprint
    return wanted.path, fingerprint


def _complete_store(wanted: Wanted, split: str) -> Store | None:
    """A store that says all that made it, and was made by what is wanted."""
    stores = stores_made_by(wanted.path.parents[1], split, wanted.attrs)
    return next((store for store in stores if not is_of_old_kind(store)), None)


def _take_over(wanted: Wanted) -> Store | None:
    """The first store of the old kind whose pictures, embedded again, agree with it, once its attributes are complete."""
    backbone = None
    for store in stores_made_by(wanted.path.parents[1], wanted.path.stem, wanted.attrs):
        with exclusive(
            store.path.with_suffix(".takeover.lock"),
            busy="another command has been checking this store for an hour",
            where=store.path,
            hint="wait until it is done, or stop it; it loses nothing",
            keep=False,
            wait_seconds=_WAIT_SECONDS,
        ):
            # Another part of the same extraction may have done it meanwhile, or found that it can't be done.
            done = _complete_store(wanted, wanted.path.stem)
            if done is not None or has_store(wanted.path):
                return done
            backbone = backbone or backbones.load_backbone(wanted.model, wanted.device, wanted.dtype)
            with only_writer(store.path):
                if _check(store, wanted, backbone):
                    return open_store(store.path)
    return None


def _check(store: Store, wanted: Wanted, backbone: backbones.Backbone) -> bool:
    """Whether a store agrees, and then completed, said either way."""
    why = _disagreement(store, wanted, backbone)
    if why:
        say(f"{store.path} is of an earlier version, and left alone: {why}; a new store is made")
        return False
    # Sources of what the store itself lacks. They come first: once it is complete, nobody looks after them.
    for path in superseded_paths(store.path):
        earlier = open_store(path)
        if not _disagreement(earlier, wanted, backbone):
            _complete(earlier, wanted)
    _complete(store, wanted)
    say(
        f"{store.path} is of an earlier version; pictures embedded again agree with it: it is taken over as it is"
    )
    return True


def _complete(store: Store, wanted: Wanted) -> None:
    kept = ("backbone", "fingerprint")
    rewrite_attributes(
        store, store.attrs | {key: value for key, value in wanted.attrs.items() if key not in kept}
    )


def _disagreement(store: Store, wanted: Wanted, backbone: backbones.Backbone) -> str:
    """Why a store isn't what its pictures give now; empty where those that were embedded again agree."""
    try:
        faults = metadata_faults(store)
        if faults:
            return f"{faults[0][0]}: {faults[0][1]}"
        places = _places(store, wanted.samples)
        least = _SAME.get(str(store.attrs["dtype"]), SAME_COSINE)
        compared = 0
        lacking: EmbeddedAgain | None = None
        for again in embed_again(store, wanted.samples, places, backbone):
            if again.fault:
                lacking = lacking or again
            elif not again.cosine >= least:
                return f"{again.where}, embedded again, has cosine {again.cosine:.6f} to it"
            else:
                compared += 1
            if compared == DEEP_IMAGES:
                break
    except GeoError as error:
        return error.what
    if compared < min(DEEP_IMAGES, len(places)) / 2 or not compared:
        return f"{lacking.where}: {lacking.fault}" if lacking else "none of its pictures is in the CSV"
    return ""


def _places(store: Store, samples: Samples) -> list[tuple[int, int, int]]:
    """Row of the store, view and row of the samples of pictures to embed again, most telling first: four times what is needed.

    Spread evenly, and half of them no JPEGs where there are such: what versions make of a picture differs in rare kinds.
    """
    row_of = {sample_id: row for row, sample_id in enumerate(samples.sample_id)}
    ids = read_ids(store)
    places = [
        (int(i), int(v), row_of[ids[i]])
        for i, v in np.argwhere(read_status(store) == OK)
        if ids[i] in row_of and samples.images[row_of[ids[i]], v]
    ]
    is_rare = [not str(samples.images[row, v]).lower().endswith(_JPEG) for _, v, row in places]
    rare = _spread([place for place, unusual in zip(places, is_rare, strict=True) if unusual])
    usual = _spread([place for place, unusual in zip(places, is_rare, strict=True) if not unusual])
    mixed = [place for pair in zip(rare, usual, strict=False) for place in pair]
    rest = rare[len(usual) :] or usual[len(rare) :]
    return (mixed + rest)[: 4 * DEEP_IMAGES]


def _spread(places: Sequence[tuple[int, int, int]]) -> list[tuple[int, int, int]]:
    """Of many places `4 · DEEP_IMAGES` at even distances, in four rounds over the whole length."""
    picked = np.unique(np.linspace(0, len(places) - 1, min(4 * DEEP_IMAGES, len(places))).astype(int))
    return [places[k] for start in range(4) for k in picked[start::4]]
