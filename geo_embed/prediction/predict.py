"""A run's answer for samples: full probability vectors, ranked states, a point. From the store, or from pictures."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np

from geo_embed.answers import Predictions
from geo_embed.backbones import backbone as backbones
from geo_embed.cache.find import check_fits, find_store
from geo_embed.cache.store import Embeddings, read_store
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data import images
from geo_embed.data.samples import load_samples, text_ids
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.heads.predictor import apply_heads, averaged
from geo_embed.prediction.combine import Answers, combine
from geo_embed.runs.backbone import load_backbone_of
from geo_embed.runs.recipe import load_heads, load_mixture
from geo_embed.runs.run import Run
from geo_embed.runs.table import write_predictions


def predict_split(config: Config, run: Run, split: str) -> tuple[Predictions, Path]:
    """Predict a whole split from its store, and write `<split>_predictions.parquet` into the run.

    Args:
        config: paths; the model settings are the run's own.
        run: whose heads answer.
        split: `train` or `test`.

    Raises:
        GeoError: the split isn't extracted with the run's backbone, or no longer fits its CSV.
    """
    samples = load_samples(here(config, run).config, split)

    def ask(one: Run) -> Predictions:
        one = here(config, one)
        same = one.config.model.view_names == samples.view_names
        store = find_store(one.config, split, fingerprint=one.provenance["store"]["fingerprint"])
        check_fits(store, samples if same else load_samples(one.config, split))
        return predict_embeddings(one, read_store(store))

    predictions = answer(run, ask)
    path = run.predictions_path(split)
    write_predictions(path, predictions, samples.truth)
    return predictions, path


def answer(run: Run, ask: Callable[[Run], Predictions]) -> Predictions:
    """The answer of a run with heads of its own, or of an ensemble's members, combined.

    Args:
        run: any run.
        ask: answers for a run with heads, each time for the same samples.
    """
    mixture = load_mixture(run)
    if mixture is None:
        return ask(run)
    answers = [answer(member, ask) for member in mixture.members]
    # An ensemble's classes ascend by state, whatever their order in a member.
    ordered = [
        given.probabilities[:, np.argsort(one.labels.state_idx)]
        for one, given in zip(mixture.members, answers, strict=True)
    ]
    combined = combine(
        mixture.method,
        mixture.weights,
        Answers.of(ordered, [one.latitude for one in answers], [one.longitude for one in answers]),
    )
    return Predictions(answers[0].sample_id, *combined, run.labels)


def here(config: Config, run: Run) -> Run:
    """A run, wherever it was made, with the paths and the device of this machine."""
    model = run.config.model.model_copy(update={"device": config.model.device})
    return replace(run, config=run.config.model_copy(update={"paths": config.paths, "model": model}))


def predict_embeddings(run: Run, embeddings: Embeddings) -> Predictions:
    """The run's heads over embeddings in memory. A sample without a view gets the run's prior, and a warning."""
    if embeddings.values.shape[2] != run.dim:
        raise GeoError(
            f"embeddings of {embeddings.values.shape[2]} numbers, where the run was fitted on {run.dim}",
            where=embeddings.store.path,
            hint="train the run again: geo fit-heads",
        )
    heads = load_heads(run)
    bare = int((~embeddings.present.any(axis=1)).sum())
    if bare:
        warn(
            f"{bare:,} samples of {embeddings.store.split} have no picture; they get the training set's prior"
        )
    return apply_heads(
        heads, run.config, run.prior, run.labels, embeddings.sample_id, embeddings.values, embeddings.present
    )


def predict_images(
    config: Config, run: Run, paths: list[Path], *, backbone: str | None = None
) -> Predictions:
    """Predict one place from its pictures, one per view in the order of the run's views.

    Args:
        config: the device; and `inference.tta`, whether to average over variants, those of the run's own augmentation.
        run: whose heads answer.
        paths: V pictures.
        backbone: where the run's backbone lies, if not under the name that it had in training.

    Raises:
        GeoError: the wrong number of pictures, one that can't be read, or a backbone that isn't the run's.
    """
    import torch

    from geo_embed.data.augment import tta_views

    views = run.config.model.view_names
    if len(paths) != len(views):
        raise GeoError(
            f"{len(paths)} pictures, where the run looks at {len(views)} views: {', '.join(views)}",
            where="--images",
            hint="give one picture per view, in this order",
        )
    tower = load_backbone_of(run, pick_device(config.model.device), backbone)
    pixels = []
    for path in paths:
        try:
            pixels.append(images.resize(images.decode(path.read_bytes()), tower.preprocessing))
        except OSError as error:
            raise GeoError(f"can't read the picture: {error.strerror}", where=path) from error
        except images.UnreadableImage as error:
            raise GeoError(f"can't read the picture: {error}", where=path) from error
    batch = torch.from_numpy(np.stack(pixels)).to(tower.device)[None]
    there = torch.ones(batch.shape[:2], dtype=torch.bool, device=tower.device)
    variants = [(batch, there)]
    if config.inference.tta:
        variants = tta_views(batch, there, run.config.finetune.augment, views)
    embedded = []
    with torch.inference_mode():
        for changed, _ in variants:
            normal = images.normalise(changed[0], tower.preprocessing, tower.dtype)
            embedded.append(backbones.embed(tower, normal).float().cpu().numpy()[None])
    present = np.ones((1, len(views)), dtype=bool)
    ids = text_ids(["images"])

    def ask(one: Run) -> Predictions:
        heads = load_heads(one)
        return averaged(
            [apply_heads(heads, config, one.prior, one.labels, ids, x, present) for x in embedded]
        )

    return answer(run, ask)
