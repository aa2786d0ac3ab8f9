"""A run's answer for places from their pictures, in whatever form these are at hand, or from embeddings in memory."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeAlias

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.answers import Predictions
from geo_embed.backbones import backbone as backbones
from geo_embed.blocks import Block
from geo_embed.cache.arrays import check_sources
from geo_embed.config import Augment, Config, OnDamagedImage
from geo_embed.console import counted, progress, warn
from geo_embed.data.samples import text_ids
from geo_embed.devices import default_batch_size, pick_device, with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.heads.predictor import apply_heads, averaged
from geo_embed.prediction.embedding import FORMS, Picture, as_items, embed_pixels, is_picture, read_pixels
from geo_embed.prediction.predict import predict_by_members
from geo_embed.runs.backbone import Inputs, inputs_of, load_backbones_of
from geo_embed.runs.recipe import EnsembleOf, load_ensemble, load_heads
from geo_embed.runs.run import Run

if TYPE_CHECKING:
    import torch

    from geo_embed.heads.predictor import Panel

# One place's V pictures, in the order of a run's views; None where one is missing.
Place: TypeAlias = Sequence[Picture | None]

# Embeddings (B, V, D), and which are there (B, V).
Embedded: TypeAlias = tuple[NDArray[np.float32], NDArray[np.bool_]]


@with_torch_switches
def predict_images(
    config: Config,
    run: Run,
    given: Any,
    *,
    backbone: str | Sequence[str] | backbones.Backbone | Sequence[backbones.Backbone] | None = None,
) -> Predictions:
    """Predict places from their pictures; one without any gets the run's prior, and a warning.

    Args:
        config: the device; `inference.batch_size` pictures per pass, what to do with damaged ones; and `inference.tta`, whether to
            average over variants, those of the run's own augmentation.
        run: whose heads answer.
        given: one place or many, as `arrange` takes them.
        backbone: where the run's backbone lies, or several do, if not under the name that it had in training; or themselves, as
            `load_backbones_of` gives them.

    Returns:
        N predictions, whose ids are the places' numbers from 0.

    Raises:
        GeoError: the wrong number of pictures, one that can't be read or is damaged and may not be, or a backbone that isn't the run's.
    """
    device = pick_device(config.model.device)
    places = arrange(given, run.config.model.view_names)
    return predict_embedded(config, run, embed_places(config, run, places, _towers(run, device, backbone)))


def embed_places(
    config: Config,
    run: Run,
    places: Sequence[Place],
    towers: Sequence[backbones.Backbone],
    by_backbone: Sequence[Sequence[Mapping[str, Any]]] | None = None,
) -> list[Embedded]:
    """Places' pictures through a run's backbones, `inference.batch_size` in a pass.

    Args:
        config: as of `predict_images`.
        run: whose views they are.
        places: N of them.
        towers: as `load_backbones_of` gives them.
        by_backbone: as `Inputs.by_backbone` has them; for who keeps them in memory.

    Returns:
        The embeddings of the pictures as they are, by all backbones side by side; with `inference.tta` of several variants of them.

    Raises:
        GeoError: as `predict_images`.
    """
    views = run.config.model.view_names
    by_backbone = inputs_of(run).by_backbone if by_backbone is None else by_backbone
    variants_by = run.config.finetune.augment if config.inference.tta else None
    size = max(1, (config.inference.batch_size or default_batch_size(towers[0].device)) // len(views))
    batches: list[list[Embedded]] = []
    with progress("predict", len(places), "places", config.tracking.progress_seconds) as advance:
        for start in range(0, len(places), size):
            part = places[start : start + size]
            by_tower = []
            read, present = _read_places(towers, part, start, views, config.inference.with_damaged)
            for tower, sources, pixels in zip(towers, by_backbone, read, strict=True):
                features = [source.get("feature") for source in sources]
                by_tower.append(_embed(tower, features, pixels, present, views, variants_by))
            batches.append([_side_by_side(variant) for variant in zip(*by_tower, strict=True)])
            advance(len(part))
    return [
        (np.concatenate([values for values, _ in parts]), np.concatenate([seen for _, seen in parts]))
        for parts in zip(*batches, strict=True)
    ]


@with_torch_switches
def predict_arrays(
    config: Config,
    run: Run,
    embeddings: ArrayLike | Mapping[str, ArrayLike],
    present: ArrayLike | None = None,
) -> Predictions:
    """Predict places from embeddings by the backbone that a run was fitted on; one without any view gets the run's prior, and a warning.

    Args:
        config: the device.
        run: whose heads answer.
        embeddings: (N, V, D) floats, or (N, D) of one view; of a run over several sources such an array by the name of each, or
            one with their columns in the order of the names.
        present: (N, V) bool, False where a view is missing; default: all are there.

    Returns:
        N predictions, whose ids are the places' numbers from 0.

    Raises:
        GeoError: another shape than that of the run's views and its backbone's embeddings, or one that is there isn't finite.
    """
    return predict_embedded(config, run, [read_arrays(run, embeddings, present, inputs_of(run))])


def read_arrays(
    run: Run,
    embeddings: ArrayLike | Mapping[str, ArrayLike],
    present: ArrayLike | None,
    inputs: Inputs,
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Embeddings as `predict_arrays` takes them, by all that a run answers from side by side (N, V, D), and which are there (N, V).

    Raises:
        GeoError: as `check_sources`, or arrays by other names or of other widths than the run was fitted on.
    """
    values, seen, blocks = check_sources(embeddings, present, dtype=run.config.model.dtype)
    wanted = inputs.blocks
    if not blocks or len(wanted) == 1:
        return values, seen
    if sorted(map(_by_name_and_width, blocks)) != sorted(map(_by_name_and_width, wanted)):
        raise GeoError(
            f"embeddings by {_named(blocks)}, where {run.name} was fitted on {_named(wanted)}",
            where="embeddings",
        )
    at = {block.name: block for block in blocks}
    order = [at[block.name] for block in wanted]
    if list(blocks) != order:
        values = np.concatenate([values[..., block.start : block.stop] for block in order], axis=-1)
    return values, seen


def _by_name_and_width(block: Block) -> tuple[str, int]:
    return block.name, block.stop - block.start


def _named(blocks: Sequence[Block]) -> str:
    return ", ".join(f"{block.name} ({block.stop - block.start})" for block in blocks)


def predict_embedded(
    config: Config,
    run: Run,
    variants: Sequence[tuple[NDArray[Any], NDArray[np.bool_]]],
    heads_of: Callable[[Run], "Panel"] = load_heads,
    ensemble_of: EnsembleOf = load_ensemble,
    inputs: Inputs | None = None,
) -> Predictions:
    """Predictions for embeddings (N, V, D), of which some are there (N, V): the average over several variants of them.

    Args:
        config: the device.
        run: whose heads answer.
        variants: one or more.
        heads_of: a run's heads; for who keeps them in memory.
        ensemble_of: what makes a run an ensemble; likewise.
        inputs: what the run answers from; likewise. The embeddings are then of all of it.
    """
    wanted = inputs or inputs_of(run, ensemble_of)
    values, seen = variants[0]
    # Where nothing says what made them, one array may be right for members that were fitted on several, as of other samples.
    unknown = all(source["weights_sha256"] is None for of_one in wanted.by_backbone for source in of_one)
    joined = inputs is not None or not unknown or values.shape[2] == wanted.dim
    without = int((~seen.any(axis=1)).sum())
    if without:
        have, get = ("has", "it gets") if without == 1 else ("have", "they get")
        warn(
            f"{without:,} of {counted(len(values), 'place')} {have} no picture; {get} the training set's prior"
        )
    device = pick_device(config.model.device, float64=True)
    ids = text_ids(range(len(values)))

    def predict(member: Run) -> Predictions:
        views = member.config.model.view_names
        fitted, dim = (run, wanted.dim) if joined else (member, member.dim)
        if values.shape[1:] != (len(views), dim):
            raise GeoError(
                f"{values.shape[1]} × {values.shape[2]} numbers a place, where {fitted.name} was fitted on {len(views)} × {dim}",
                where="embeddings",
                hint=f"give (places, views, numbers) by the backbone that it was fitted on, the views as {', '.join(views)}",
            )
        heads = heads_of(member)
        taken = [(wanted.take(member, x) if joined else x, seen) for x, seen in variants]
        return averaged(
            [apply_heads(heads, device, member.prior, member.labels, ids, x, seen) for x, seen in taken]
        )

    return predict_by_members(run, predict, ensemble_of)


def _towers(
    run: Run,
    device: "torch.device",
    backbone: str | Sequence[str] | backbones.Backbone | Sequence[backbones.Backbone] | None,
) -> list[backbones.Backbone]:
    named = [backbone] if isinstance(backbone, str | backbones.Backbone) else list(backbone or ())
    loaded = [tower for tower in named if isinstance(tower, backbones.Backbone)]
    return loaded or load_backbones_of(run, device, [name for name in named if isinstance(name, str)])


def _side_by_side(parts: Sequence[Embedded]) -> Embedded:
    """What several backbones embedded of the same variant of the same pictures, joined."""
    return np.concatenate([values for values, _ in parts], axis=-1), parts[0][1]


def arrange(pictures: Any, views: Sequence[str]) -> list[Place]:
    """N places of V pictures each.

    Args:
        pictures: one place, or many. A place is V pictures in the order of the views, None where one is missing; or a mapping from
            views to those pictures that are there. Where there is one view, a place may also be its picture itself.
        views: V names.

    Raises:
        GeoError: none at all, a place of another number of pictures, an unknown view, or what is no picture.
    """
    if isinstance(pictures, Mapping):
        return [_by_name(pictures, views, "")]
    items = as_items(pictures, "")
    if not items:
        raise GeoError(f"0 pictures, where the run looks at {_numbered(views)}", hint=f"a picture is {FORMS}")
    if all(item is None or is_picture(item) for item in items):
        return [[item] for item in items] if len(views) == 1 else [_in_order(items, views, "")]
    places: list[Place] = []
    for number, item in enumerate(items):
        where = f"place {number}" if len(items) > 1 else ""
        if isinstance(item, Mapping):
            places.append(_by_name(item, views, where))
        else:
            places.append(_in_order([item] if item is None else as_items(item, where), views, where))
    return places


def _in_order(pictures: list[Any], views: Sequence[str], where: str) -> Place:
    if len(pictures) != len(views):
        raise GeoError(
            f"{counted(len(pictures), 'picture')}, where the run looks at {_numbered(views)}",
            where=where,
            hint="give one picture per view, in this order; in Python None where one is missing, and several places as a list of such lists",
        )
    return pictures


def _by_name(place: Mapping[Any, Any], views: Sequence[str], where: str) -> Place:
    unknown = [name for name in place if name not in views]
    if unknown:
        raise GeoError(
            f"there is no view {unknown[0]!r:.80}: the run looks at {_numbered(views)}", where=where
        )
    return [place.get(name) for name in views]


def _numbered(views: Sequence[str]) -> str:
    return f"{counted(len(views), 'view')}: {', '.join(views)}"


def _read_places(
    towers: Sequence[backbones.Backbone],
    places: Sequence[Place],
    first: int,
    views: Sequence[str],
    with_damaged: OnDamagedImage,
) -> tuple[list[NDArray[np.uint8]], NDArray[np.bool_]]:
    """Pixels (B, V, 3, H, W) for each tower of the places from number `first` on, and which are there (B, V): a damaged picture may be
    skipped.

    Raises:
        GeoError: a picture can't be read, or is damaged and may not be; or every one of a place is damaged.
    """
    specs = [tower.preprocessing for tower in towers]
    shape = len(places), len(views)
    pixels = [np.zeros((*shape, 3, spec.height, spec.width), dtype=np.uint8) for spec in specs]
    present = np.zeros(shape, dtype=bool)
    for row, place in enumerate(places):
        for view, picture in enumerate(place):
            if picture is None:
                continue
            read = read_pixels(picture, f"place {first + row}, view {views[view]}", specs, with_damaged)
            if read is not None:
                for of_tower, resized in zip(pixels, read, strict=True):
                    of_tower[row, view] = resized
                present[row, view] = True
        if not present[row].any() and any(picture is not None for picture in place):
            raise GeoError(
                "every picture is damaged", where=f"place {first + row}", hint="--on-damaged-image accept"
            )
    return pixels, present


def _embed(
    tower: backbones.Backbone,
    features: Sequence[str | None],
    pixels: NDArray[np.uint8],
    present: NDArray[np.bool_],
    views: Sequence[str],
    variants_by: Augment | None,
) -> list[Embedded]:
    """The embeddings (B, V, D), by these features, of places' pictures (B, V, 3, H, W), and which are there (B, V); of several variants of them, if there are settings to make these by."""
    import torch

    from geo_embed.data.augment import tta_views

    batch = torch.from_numpy(pixels).to(tower.device)
    present_tensor = torch.from_numpy(present).to(tower.device)
    variants = [(batch, present_tensor)]
    if variants_by is not None:
        variants = tta_views(batch, present_tensor, variants_by, views)
    embeddings = []
    with torch.inference_mode():
        for changed, seen in variants:
            embedded = embed_pixels(tower, changed.flatten(0, 1), features)
            embeddings.append((embedded.reshape(*present.shape, -1), seen.cpu().numpy()))
    return embeddings
