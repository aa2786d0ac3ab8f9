"""A run's answer for samples: full probability vectors, ranked states, a point. From the store; from pictures see pictures.py."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from geo_embed.answers import Predictions, Truth
from geo_embed.cache.find import check_fits
from geo_embed.cache.join import JoinedEmbeddings, read_joined, warn_of_lacking
from geo_embed.cache.store import content_digest
from geo_embed.config import Config, Paths
from geo_embed.console import counted, progress, warn
from geo_embed.data.samples import Samples, load_samples
from geo_embed.data.variants import AS_THEY_ARE, Variant, scene_order, variants_of
from geo_embed.devices import pick_device, with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.heads.calibration import calibrated
from geo_embed.heads.predictor import apply_heads, averaged
from geo_embed.prediction.combine import by_state, combine
from geo_embed.runs.recipe import EnsembleOf, load_ensemble, load_heads
from geo_embed.runs.run import Run, check_not_replaced, on_this_machine
from geo_embed.runs.samples import load_samples_of
from geo_embed.runs.store import find_sources_of
from geo_embed.runs.table import write_predictions

# Makes the stores that a run needs of a split and the cache lacks: settings, run, split. `extraction.for_run` has one.
Embed = Callable[[Config, Run, str], object]


@with_torch_switches
def predict_split(
    config: Config, run: Run, split: str, *, embed: Embed | None = None
) -> tuple[Predictions, Path]:
    """Predict a whole split from its stores, and write `<split>_predictions.parquet` into the run.

    Args:
        config: paths and device, and `inference.tta`, whether to average over variants of the pictures; the model settings are the run's own.
        run: whose heads answer.
        split: `train` or `test`.
        embed: makes what the cache lacks first; without it that is an error.

    Raises:
        GeoError: the split isn't extracted with the run's backbone, or no longer fits its CSV; or the run was replaced meanwhile.
    """
    tta = config.inference.tta
    if embed is not None:
        embed(config, run, split)
    predictions, truth, stores = predict_cached(run, split, config.paths, config.model.device, tta=tta)
    path = run.predictions_path(split)
    # Written aside into the directory that has the run's name now: if that is another run's when the table is to get its name,
    # there is no such file in it. So the check decides once and for all whose table it is.
    write_predictions(path, predictions, truth, stores, lambda: check_not_replaced(run), tta=tta)
    return predictions, path


def predict_cached(
    run: Run, split: str, paths: Paths, device: str, *, tta: bool = False
) -> tuple[Predictions, Truth | None, dict[str, str]]:
    """Predict a whole split from its stores; nothing is written.

    Args:
        run: whose heads answer.
        split: `train` or `test`.
        paths: of the stores and the CSVs.
        device: where heads run.
        tta: average over the variants of the pictures that the run's own augmentation allows for, each from a store of its own.

    Returns:
        The predictions, the truth of the same samples where it is known, and of every store that was read the fingerprint and
        the `content_digest`.

    Raises:
        GeoError: as `predict_split`; or stores of variants hold other pictures than those of the pictures as they are.
    """
    samples = load_samples_of(on_this_machine(run, paths, device), split)
    stores: dict[str, str] = {}

    def predict(member: Run) -> Predictions:
        member = on_this_machine(member, paths, device)
        if "init" in member.provenance and member.config.inference.tta and not tta:
            warn(
                f"{member.name} was scored on variants of its held-out pictures (inference.tta), and answers here "
                "by the pictures as they are: what it scored may be too good for that (--tta answers as it was scored)"
            )
        view_names = member.config.model.view_names
        member_samples = samples if view_names == samples.view_names else load_samples(member.config, split)
        read = partial(_predict_variant, member, split, member_samples, stores, asked=run.name)
        if not tta:
            return read(AS_THEY_ARE)
        variants = variants_of(run.config.finetune.augment, view_names)
        if len(variants) == 1:
            warn("the run's finetune.augment neither crops nor flips: --tta has no variants to average over")
        return averaged([read(variant) for variant in variants])

    return predict_by_members(run, predict), samples.truth, stores


def _predict_variant(
    member: Run, split: str, samples: Samples, stores: dict[str, str], variant: Variant, *, asked: str
) -> Predictions:
    """A run's answers to one variant of a split's pictures, whose stores are entered among the `stores` that were read.

    `asked` is the run that people asked for answers, where `member` is a part of it.
    """
    try:
        sources = find_sources_of(member, split, variant)
        for source in sources:
            check_fits(source.store, samples, any_order=True)
        # Before the embeddings: if somebody writes meanwhile, the predictions count as stale, not as fresh.
        digests = [content_digest(source.store) for source in sources]
        embeddings = read_joined(sources, samples.sample_id)
        warn_of_lacking(embeddings)
    except GeoError as error:
        error.hint = error.hint.replace("geo predict RUN ", f"geo predict {asked} ")
        raise
    for source, fitted_on, digest in zip(sources, member.sources, digests, strict=True):
        store, fingerprint = source.store, fitted_on["fingerprint"]
        if variant != AS_THEY_ARE and stores.get(fingerprint) != digest:
            raise GeoError(
                f"this store is of other pictures ({variant}) than that of the pictures as they are: some changed, or were left out of one",
                where=store.path,
                hint=f"geo extract --split {split} --backbone {store.attrs['backbone']}, then geo predict {asked} --split {split} --tta",
            )
        # By the name that the run has for it, which the store itself may have grown out of.
        stores[fingerprint if variant == AS_THEY_ARE else store.fingerprint] = digest
    if variant.mirror:
        order = list(scene_order(variant, samples.view_names))
        embeddings = replace(
            embeddings, values=embeddings.values[:, order], present=embeddings.present[:, order]
        )
    return predict_embeddings(member, embeddings)


def predict_by_members(
    run: Run, predict: Callable[[Run], Predictions], ensemble_of: EnsembleOf = load_ensemble
) -> Predictions:
    """The predictions of a run with heads of its own, or of an ensemble's members, combined.

    Args:
        run: any run.
        predict: the predictions of a run with heads, each time for the same samples.
        ensemble_of: what makes a run an ensemble; for who keeps it in memory.
    """
    ensemble = ensemble_of(run)
    if ensemble is None:
        return predict(run)
    # An ensemble's classes ascend by state, whatever their order in a member.
    members = [by_state(predict_by_members(member, predict, ensemble_of)) for member in ensemble.members]
    combined = combine(ensemble.method, ensemble.weights, members, ensemble.point)
    if ensemble.calibration is not None:
        combined = replace(combined, probabilities=calibrated(ensemble.calibration, combined.probabilities))
    return replace(combined, labels=run.labels)


def predict_embeddings(run: Run, embeddings: JoinedEmbeddings) -> Predictions:
    """The run's heads over embeddings in memory. A sample without a view gets the run's prior, and a warning."""
    if embeddings.values.shape[2] != run.dim:
        raise GeoError(
            f"embeddings of {embeddings.values.shape[2]} numbers, where the run was fitted on {run.dim}",
            where=embeddings.where,
            hint="train the run again: geo fit-heads",
        )
    heads = load_heads(run)
    without_views = int((~embeddings.present.any(axis=1)).sum())
    if without_views:
        of, least = embeddings.split, embeddings.least
        singular = f"sample of {of} has no {least}; it gets"
        plural = f"samples of {of} have no {least}; they get"
        warn(f"{counted(without_views, singular, plural)} the training set's prior")
    with progress(
        f"predict {embeddings.split}", len(embeddings.values) - without_views, "samples"
    ) as advance:
        return apply_heads(
            heads,
            pick_device(run.config.model.device, float64=True),
            run.prior,
            run.labels,
            embeddings.sample_id,
            embeddings.values,
            embeddings.present,
            advance,
        )
