"""A run's answer for samples: full probability vectors, ranked states, a point. From the store, or from pictures."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Predictions, Prior, Truth
from geo_embed.backbones import backbone as backbones
from geo_embed.cache.store import Embeddings, check_fits, find_store, read_store
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data import images
from geo_embed.data.samples import load_samples, natural_ids, text_ids
from geo_embed.devices import pick_device, pick_dtype
from geo_embed.errors import GeoError, disk_errors
from geo_embed.files import save_tensors, write_json
from geo_embed.metrics import RANK_CREDIT, top_states
from geo_embed.prediction.combine import METHODS, Answers, Method, combine
from geo_embed.runs.run import Run, load_run

if TYPE_CHECKING:
    from geo_embed.heads.predictor import Panel

RECIPE, MEMBERS = "recipe.json", "members"

# Rows that pass through the heads at once: bounded memory, no measurable cost.
_ROWS = 2048


@dataclass(frozen=True)
class Mixture:
    """What makes a run an ensemble.

    Attributes:
        method: how its members' answers are combined.
        weights: (M,) of the members, ≥ 0, sum 1.
        members: M runs.
    """

    method: Method
    weights: NDArray[np.float64]
    members: tuple[Run, ...]


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
    path = run.path / f"{split}_predictions.parquet"
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


def load_mixture(run: Run) -> Mixture | None:
    """An ensemble's members; None for a run with heads of its own. Raises GeoError where it is damaged."""
    path = run.path / RECIPE
    try:
        recipe = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "ensemble" not in recipe:
            return None
        described = recipe["ensemble"]
        weights, names = np.array(described["weights"], dtype=np.float64), list(described["members"])
        shares = weights.shape == (len(names),) and (weights >= 0).all() and np.isclose(weights.sum(), 1)
        if described["method"] not in METHODS or not shares:
            raise ValueError(f"{described['method']} of {len(names)} members with weights {weights.tolist()}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GeoError(
            f"the run's heads can't be loaded: {error}".splitlines()[0], where=path, hint="make the run again"
        ) from error
    members = []
    for name in names:
        if not (run.path / MEMBERS / name / "provenance.json").is_file():
            raise GeoError(
                "the ensemble lacks this member",
                where=run.path / MEMBERS / name,
                hint="make it again: geo ensemble",
            )
        members.append(load_run(run.path / MEMBERS, name))
    return Mixture(described["method"], weights, tuple(members))


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


def apply_heads(
    heads: "Panel",
    config: Config,
    prior: Prior,
    labels: LabelEncoder,
    sample_id: NDArray[np.object_],
    values: NDArray[Any],
    present: NDArray[np.bool_],
) -> Predictions:
    """Heads over (N, V, D) embeddings; rows without any view get the prior."""
    import torch

    device = pick_device(config.model.device)
    heads = heads.to(device).eval()
    probabilities = np.tile(prior.probabilities.astype(np.float32), (len(values), 1))
    points = np.tile([prior.latitude, prior.longitude], (len(values), 1))
    seen = np.flatnonzero(present.any(axis=1))
    with torch.inference_mode():
        for start in range(0, len(seen), _ROWS):
            rows = seen[start : start + _ROWS]
            views, there = (
                torch.from_numpy(values[rows]).to(device),
                torch.from_numpy(present[rows]).to(device),
            )
            states, point = heads.predict(views, there)
            probabilities[rows] = states.cpu().numpy()
            points[rows] = point.double().cpu().numpy()
    if not (np.isfinite(probabilities).all() and np.isfinite(points).all()):
        raise GeoError(
            "the heads' answers are NaN or infinite", hint="train again with a lower training.learning_rate"
        )
    return Predictions(sample_id, probabilities, points[:, 0], points[:, 1], labels)


def averaged(said: Sequence[Predictions]) -> Predictions:
    """Several answers for the same samples as one, in the way of a `Panel`'s parts."""
    import torch

    from geo_embed.heads.predictor import together

    points = [torch.from_numpy(np.stack([one.latitude, one.longitude], axis=1)) for one in said]
    p, point = together(
        [(torch.from_numpy(one.probabilities), at) for one, at in zip(said, points, strict=True)]
    )
    return Predictions(said[0].sample_id, p.numpy(), point[:, 0].numpy(), point[:, 1].numpy(), said[0].labels)


def save_heads(panel: "Panel", directory: Path) -> None:
    """Write what `load_heads` reads, into a run's directory that is being written."""
    tensors = {key: value.cpu().contiguous() for key, value in panel.state_dict().items()}
    save_tensors(tensors, directory / "heads.safetensors")
    write_json(directory / RECIPE, panel.description())


def load_heads(run: Run) -> "Panel":
    """A run's heads, on the CPU, in eval mode. Raises GeoError where a file is absent or doesn't fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from geo_embed.heads.predictor import build_panel

    path = run.path / RECIPE
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if "ensemble" in described:
            raise GeoError(
                "an ensemble has no heads of its own",
                where=run.path,
                hint="name one of the runs it is made of",
            )
        heads = build_panel(described, run.dim, len(run.config.model.view_names), len(run.labels))
        path = run.path / "heads.safetensors"
        heads.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise GeoError(
            f"the run's heads can't be loaded: {error}".splitlines()[0],
            where=path,
            hint="train the run again",
        ) from error
    return heads.eval()


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
    tower = load_backbone_of(config, run, backbone)
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


def load_backbone_of(
    config: Config, run: Run, name: str | None = None, *, dtype: str | None = None
) -> backbones.Backbone:
    """The very backbone that a run's embeddings came from.

    Args:
        config: the device.
        run: any run.
        name: where it lies, if not under the name that it had in training.
        dtype: its precision; default: as in training.

    Raises:
        GeoError: it is not known, not to be had, or has other weights or preprocessing.
    """
    made_by = _only_backbone(run)
    if made_by["weights_sha256"] is None:
        raise GeoError(
            f"the run was fitted on imported embeddings ({made_by['backbone']}); what made them isn't known here",
            where=run.path,
            hint="embed the pictures as they were, import them as a test split, and predict that",
        )
    own = run.config.model
    model = own.model_copy(update={"backbone_name": name or own.backbone_name, "device": config.model.device})
    device = pick_device(model.device)
    tower = backbones.load_backbone(model, device, pick_dtype(dtype or model.dtype, device))
    for what, have, wanted in (
        ("weights", tower.weights_sha256, made_by["weights_sha256"]),
        ("preprocessing", tower.preprocessing.to_dict(), made_by["preprocessing"]),
    ):
        if have != wanted:
            raise GeoError(
                f"backbone {tower.name} has other {what} than the one this run was fitted on, {made_by['backbone']}",
                where=run.path,
                hint="name the run's own with --backbone",
            )
    return tower


def _only_backbone(run: Run) -> dict[str, Any]:
    """The store that a run was fitted on. Raises GeoError for an ensemble whose members look at pictures differently."""
    mixture = load_mixture(run)
    if mixture is None:
        return dict(run.provenance["store"])
    stores = [_only_backbone(member) for member in mixture.members]
    looks = [(one.config.model.feature, one.config.model.view_names) for one in mixture.members]
    keys = ("weights_sha256", "preprocessing")
    for member, store, look in zip(mixture.members, stores, looks, strict=True):
        if look != looks[0] or any(store[key] != stores[0][key] for key in keys):
            raise GeoError(
                f"the ensemble's members were fitted on different backbones, {stores[0]['backbone']} and "
                f"{store['backbone']}, or on different views",
                where=member.path,
                hint="cache the pictures' embeddings as a test split by each of them, and predict that",
            )
    return stores[0]


def write_predictions(path: Path, predictions: Predictions, truth: Truth | None) -> None:
    """A prediction table, as the contract describes it, in one piece."""
    ranked = top_states(predictions.probabilities)
    table: dict[str, Any] = {
        "sample_id": natural_ids(predictions.sample_id),
        "probabilities": list(predictions.probabilities),
    }
    for rank in range(1, len(RANK_CREDIT) + 1):
        named = (
            predictions.labels.decode(ranked[:, rank - 1])
            if rank <= ranked.shape[1]
            else np.full(len(ranked), -1)
        )
        table[f"state_idx_{rank}"] = named
    table |= {"latitude": predictions.latitude, "longitude": predictions.longitude}
    if truth is not None:
        table |= {
            "true_state_idx": truth.state_idx,
            "true_latitude": truth.latitude,
            "true_longitude": truth.longitude,
        }
    with disk_errors(path):
        temporary = path.with_name(f".{path.name}.writing")
        pd.DataFrame(table).to_parquet(temporary, index=False)
        temporary.replace(path)


def read_predictions(path: Path, labels: LabelEncoder) -> tuple[Predictions, Truth | None]:
    """A prediction table of a run with these labels. Raises GeoError where it is absent or damaged."""
    try:
        table = pd.read_parquet(path)
        predictions = Predictions(
            text_ids(table["sample_id"]),
            np.stack(table["probabilities"].to_list()) if len(table) else np.zeros((0, 0), dtype=np.float32),
            table["latitude"].to_numpy(dtype=np.float64),
            table["longitude"].to_numpy(dtype=np.float64),
            labels,
        )
        if "true_state_idx" not in table:
            return predictions, None
        return predictions, Truth(
            table["true_state_idx"].to_numpy(dtype=np.int64),
            table["true_latitude"].to_numpy(dtype=np.float64),
            table["true_longitude"].to_numpy(dtype=np.float64),
        )
    except FileNotFoundError as error:
        raise GeoError(
            "there are no such predictions", where=path, hint="make them with: geo predict"
        ) from error
    except (OSError, ValueError, KeyError) as error:
        raise GeoError(
            f"not a readable prediction table: {error}".splitlines()[0],
            where=path,
            hint="predict, or train the run, again",
        ) from error
