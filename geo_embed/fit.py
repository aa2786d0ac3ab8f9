"""Stage 2: store to run. Reads embeddings only; whole tensors in memory, no loader."""

import hashlib
import time
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed import backbone as backbones
from geo_embed import geography
from geo_embed.config import Config
from geo_embed.dataset import (
    LabelEncoder,
    Samples,
    label_encoder,
    load_mapping,
    load_samples,
    natural_ids,
    stratified_split,
)
from geo_embed.errors import GeoError
from geo_embed.metrics import metrics
from geo_embed.predict import RECIPE, Truth, apply_heads, write_predictions
from geo_embed.progress import progress, say, warn
from geo_embed.run import (
    Prior,
    check_new_name,
    describe_provenance,
    new_run_name,
    write_description,
    write_json,
    writing_run,
)
from geo_embed.schedule import warmup_cosine
from geo_embed.store import Embeddings, check_fits, find_store, read_store

if TYPE_CHECKING:
    from geo_embed.best import Best
    from geo_embed.heads import Heads


@dataclass(frozen=True)
class Fit:
    """What `fit_heads` made: the run's name, how long it took, and how good it is on the held-out samples."""

    run: str
    seconds: float
    epochs: int
    val: dict[str, Any]


@dataclass(frozen=True)
class _Data:
    """Training samples with at least one view, aligned: N rows."""

    sample_id: NDArray[np.object_]
    values: NDArray[Any]
    present: NDArray[np.bool_]
    labels: NDArray[np.int64]
    truth: Truth
    held_out: NDArray[np.bool_]


def fit_heads(
    config: Config, *, name: str | None = None, limit: int | None = None, overwrite: bool = False
) -> Fit:
    """Fit heads on the cached train split and write a run.

    Args:
        config: all settings.
        name: of the run; default `heads-` and the time.
        limit: use the first samples only.
        overwrite: replace a run of this name.

    Raises:
        GeoError: no store, a store that doesn't fit the CSV, or embeddings that aren't finite.
    """
    from geo_embed.heads import Heads

    started = time.monotonic()
    name = name or new_run_name(config.paths.runs_dir, "heads")
    check_new_name(config.paths.runs_dir, name, overwrite=overwrite)
    samples = load_samples(config, "train")
    store = find_store(config, "train")
    check_fits(store, samples)
    rows = slice(0, len(samples) if limit is None else min(limit, len(samples)))
    embeddings = read_store(store, rows)
    encoder, data = _join(config, samples, rows, embeddings)
    centroids, counts, prior = _describe_classes(data, len(encoder))

    heads: Heads | Best
    if config.training.preset == "best":
        heads, history, epochs = race_heads(config, data, len(encoder))
    else:
        heads, history = train_heads(config, data, centroids, prior)
        epochs = len(history)
    val = data.held_out
    predictions = apply_heads(heads, config, prior, data.sample_id[val], data.values[val], data.present[val])
    truth = Truth(data.truth.state_idx[val], data.truth.latitude[val], data.truth.longitude[val])
    scores = _score(predictions.probabilities, predictions.latitude, predictions.longitude, data, val)

    distances = geography.distance_matrix_km(centroids)
    provenance = describe_provenance(config, store, hashlib.sha256(samples.csv.read_bytes()).hexdigest())
    with writing_run(config.paths.runs_dir, name) as directory:
        from safetensors.torch import save_file

        save_file(
            {key: value.contiguous() for key, value in heads.cpu().state_dict().items()},
            directory / "heads.safetensors",
        )
        if not isinstance(heads, Heads):
            write_json(directory / RECIPE, heads.description())
        np.save(directory / "haversine_matrix.npy", distances)
        states = {
            str(int(index)): {"state": state, "latitude": float(lat), "longitude": float(lon)}
            for index, state, (lat, lon) in zip(encoder.state_idx, encoder.names, centroids, strict=True)
        }
        write_json(directory / "state_centroids.json", states)
        write_json(directory / "metrics.json", {"val": scores})
        history.to_parquet(directory / "history.parquet", index=False)
        split = np.where(data.held_out, "val", "train")
        pd.DataFrame({"sample_id": natural_ids(data.sample_id), "part": split}).to_parquet(
            directory / "split.parquet", index=False
        )
        write_predictions(directory / "val_predictions.parquet", predictions, encoder, truth)
        seconds = time.monotonic() - started
        provenance["seconds"] = seconds
        write_description(directory, config, encoder, counts, prior, provenance)
    return Fit(name, seconds, epochs, scores)


def train_heads(
    config: Config, data: _Data, centroids: NDArray[np.float64], prior: Prior
) -> "tuple[Heads, pd.DataFrame]":
    """Train both heads on the rows that aren't held out, and keep the epoch with the best validation score.

    Without held-out rows there is nothing to choose by: all epochs are run and the last one is kept.

    Returns:
        The heads, and one row per epoch: epoch, learning_rate, train_loss, and val_score, val_state_score,
        val_gps_score, val_mean_km where rows are held out.
    """
    import torch

    from geo_embed import losses
    from geo_embed.fusion import fuse_average
    from geo_embed.heads import Heads

    training = config.training
    device = backbones.pick_device(config.model.device)
    generator = torch.Generator().manual_seed(training.seed)
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(training.seed)
        heads = Heads(data.values.shape[2], len(centroids), config.model).to(device)

        rows = np.flatnonzero(~data.held_out)
        views = torch.from_numpy(data.values[rows]).to(device).float()
        vectors = fuse_average(views, torch.from_numpy(data.present[rows]).to(device))
        del views
        soft = torch.from_numpy(
            geography.soft_labels(geography.distance_matrix_km(centroids), training.tau_km)
        )
        targets = soft.float().to(device)
        labels = torch.from_numpy(data.labels[rows]).to(device)
        points = np.stack([data.truth.latitude[rows], data.truth.longitude[rows]], axis=1)
        truth = torch.from_numpy(points).float().to(device)

        steps = -(-len(rows) // training.batch_size)
        optimizer = torch.optim.AdamW(
            [
                {
                    "params": [p for p in heads.parameters() if p.ndim > 1],
                    "weight_decay": training.weight_decay,
                },
                {"params": [p for p in heads.parameters() if p.ndim <= 1], "weight_decay": 0.0},
            ],
            lr=training.learning_rate,
            fused=True,
        )
        schedule = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: warmup_cosine(step, steps * training.epochs, training.warmup)
        )
        history: list[dict[str, float]] = []
        best: dict[str, torch.Tensor] = {}
        best_score, best_epoch = -1.0, 0
        with progress("fit-heads", training.epochs, "epochs", config.tracking.progress_seconds) as advance:
            for epoch in range(1, training.epochs + 1):
                heads.train()
                # Shuffling once per epoch makes every batch a view of memory already in order.
                order = torch.randperm(len(rows), generator=generator).to(device)
                x, y, t = vectors[order], labels[order], truth[order]
                total = torch.zeros((), device=device)
                for batch in range(0, len(rows), training.batch_size):
                    part = slice(batch, batch + training.batch_size)
                    logits, point = heads(x[part])
                    loss = losses.combined(
                        logits,
                        point,
                        targets[y[part]],
                        t[part],
                        state_weight=training.state_weight,
                        gps_weight=training.gps_weight,
                    )
                    optimizer.zero_grad(set_to_none=True)
                    loss.backward()  # type: ignore[no-untyped-call]
                    torch.nn.utils.clip_grad_norm_(heads.parameters(), training.clip_norm)
                    optimizer.step()
                    schedule.step()
                    total += loss.detach() * len(y[part])
                entry = {
                    "epoch": epoch,
                    "learning_rate": float(schedule.get_last_lr()[0]),
                    "train_loss": float(total) / len(rows),
                }
                # The last step's weights have met no loss yet.
                whole = all(bool(torch.isfinite(p).all()) for p in heads.parameters())
                if not np.isfinite(entry["train_loss"]) or not whole:
                    raise GeoError(
                        f"the loss became {entry['train_loss']} in epoch {epoch}",
                        hint="lower training.learning_rate",
                    )
                if data.held_out.any():
                    entry |= _validate(heads, config, data, prior)
                    if entry["val_score"] > best_score:
                        best_score, best_epoch = entry["val_score"], epoch
                        best = {key: value.clone() for key, value in heads.state_dict().items()}
                history.append(entry)
                advance(1)
                if best and epoch - best_epoch >= training.patience:
                    break
        if best:
            heads.load_state_dict(best)
    return heads, pd.DataFrame(history)


def race_heads(config: Config, data: _Data, classes: int) -> "tuple[Best, pd.DataFrame, int]":
    """`--preset best` on the rows that aren't held out: the held-out ones choose nothing, and so tell the truth.

    Returns:
        The heads, one row per trial of the race (member, score, state_score, gps_score), and the longest member's epochs.
    """
    import torch

    from geo_embed.best import fit_best
    from geo_embed.members import Rows

    device = backbones.pick_device(config.model.device)
    kept = np.flatnonzero(~data.held_out)
    rows = Rows(
        torch.from_numpy(data.values[kept]).to(device),
        torch.from_numpy(data.present[kept]).to(device),
        torch.from_numpy(data.labels[kept]).to(device),
        torch.from_numpy(geography.to_unit_vectors(data.truth.latitude[kept], data.truth.longitude[kept])).to(
            device
        ),
    )
    training = config.training
    heads, race = fit_best(rows, classes, seed=training.seed, budget_seconds=training.budget_seconds)
    say(f"chosen: {', '.join(race.chosen)}")
    return heads, pd.DataFrame([asdict(trial) for trial in race.trials]), race.epochs


def _join(
    config: Config, samples: Samples, rows: slice, embeddings: Embeddings
) -> tuple[LabelEncoder, _Data]:
    """Labels, truth and split beside the embeddings; samples without a picture are left out, and said."""
    assert samples.state_idx is not None
    assert samples.latitude is not None
    assert samples.longitude is not None
    seen = embeddings.present.any(axis=1)
    if not seen.all():
        warn(f"{int((~seen).sum()):,} samples have no picture and are left out of training")
    partly = int((seen & ~embeddings.present.all(axis=1)).sum())
    if partly:
        warn(f"{partly:,} samples lack some of their views; those views are left out of the fusion")
    if not seen.any():
        raise GeoError("no sample has a picture", where=embeddings.store.path)
    finite = np.isfinite(embeddings.values).all(axis=(1, 2))
    if not finite.all():
        first = embeddings.sample_id[~finite][0]
        raise GeoError(
            f"embeddings of {int((~finite).sum()):,} samples are NaN or infinite, sample {first} first",
            where=embeddings.store.path,
            hint="geo cache verify",
        )
    truth = Truth(samples.state_idx[rows][seen], samples.latitude[rows][seen], samples.longitude[rows][seen])
    encoder = label_encoder(truth.state_idx, load_mapping(config))
    labels = encoder.encode(truth.state_idx)
    ids = embeddings.sample_id[seen]
    held_out = stratified_split(ids, labels, config.training.val_split, config.training.seed)
    if not held_out.any():
        warn("too few samples to hold any out: no validation score, no early stopping")
    values = embeddings.values if seen.all() else embeddings.values[seen]
    return encoder, _Data(ids, values, embeddings.present[seen], labels, truth, held_out)


def _describe_classes(data: _Data, classes: int) -> tuple[NDArray[np.float64], NDArray[np.int64], Prior]:
    """Centroids (C, 2) in degrees, sample counts (C,), and the prior, all from training rows alone."""
    kept = ~data.held_out
    lat, lon, labels = data.truth.latitude[kept], data.truth.longitude[kept], data.labels[kept]
    counts = np.bincount(labels, minlength=classes)
    middle = geography.to_degrees(geography.to_unit_vectors(lat, lon).sum(axis=0))
    prior = Prior(counts / counts.sum(), float(middle[0]), float(middle[1]))
    return geography.class_centroids(lat, lon, labels, classes), counts, prior


def _validate(heads: "Heads", config: Config, data: _Data, prior: Prior) -> dict[str, float]:
    val = data.held_out
    p = apply_heads(heads, config, prior, data.sample_id[val], data.values[val], data.present[val])
    scores = _score(p.probabilities, p.latitude, p.longitude, data, val)
    return {f"val_{key}": scores[key] for key in ("score", "state_score", "gps_score", "mean_km", "nll")}


def _score(
    probabilities: NDArray[np.float32],
    latitude: NDArray[np.float64],
    longitude: NDArray[np.float64],
    data: _Data,
    rows: NDArray[np.bool_],
) -> dict[str, Any]:
    return metrics(
        probabilities,
        latitude,
        longitude,
        data.labels[rows],
        data.truth.latitude[rows],
        data.truth.longitude[rows],
    )
