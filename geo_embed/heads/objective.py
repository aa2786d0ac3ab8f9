"""The one number that training makes small, put together as the settings say."""

from collections.abc import Mapping

import torch
from torch import Tensor

from geo_embed import geography
from geo_embed.config import Training
from geo_embed.heads import losses
from geo_embed.heads.region import Atlas
from geo_embed.sphere import soft_targets

# Numbers that may differ between trainings that share a program (`stack.py`); whatever else differs, differs in its code.
NUMBERS = ("tau_km", "label_smoothing", "state_weight", "cell_weight", "gps_weight", "score_weight")


def make_tables(atlas: Atlas, training: Training, device: torch.device) -> dict[str, Tensor]:
    """What a batch's loss is looked up in: numbers and targets that hold for a whole training."""
    between = geography.distance_matrix_km(atlas.centroids)
    tables = {name: torch.tensor(float(getattr(training, name))) for name in NUMBERS}
    tables |= {
        "soft": torch.from_numpy(geography.soft_labels(between, training.tau_km)).float(),
        "class_weights": losses.inverse_frequency(torch.from_numpy(atlas.counts)),
        "centroids": torch.from_numpy(geography.to_unit_vectors(*atlas.centroids.T)).float(),
    }
    if atlas.cells is not None:
        tables["centres"] = atlas.cells.centres
    return {name: table.to(device) for name, table in tables.items()}


def objective(
    out: Mapping[str, Tensor],
    labels: Tensor,
    points: Tensor,
    tables: Mapping[str, Tensor],
    training: Training,
) -> Tensor:
    """The mean loss of a batch.

    It is `state_weight` × the states' loss + `cell_weight` × the cells' cross-entropy with PIGEON's soft labels, or
    `gps_weight` × the point's loss, + `score_weight` × (1 − the expected score of the states).

    Args:
        out: what `Heads.forward` gives.
        labels: (B,) classes.
        points: (B, 3) float32 unit vectors of the true places.
        tables: of `make_tables`.
        training: which losses there are.
    """
    logits = out["logits"]
    if training.state_loss == "haversine":
        targets = tables["soft"][labels]
    elif training.state_loss == "pigeon":
        targets = soft_targets(points, tables["centroids"], tables["tau_km"])
    else:
        targets = losses.smoothed(labels, logits.shape[-1], tables["label_smoothing"])
    weights = tables["class_weights"][labels] if training.class_weights else None
    loss = tables["state_weight"] * losses.soft_cross_entropy(logits, targets, weights)
    if "cells" in out:
        near = soft_targets(points, tables["centres"], tables["tau_km"])
        loss = loss + tables["cell_weight"] * losses.soft_cross_entropy(out["cells"], near)
    else:
        x, y, z = points.unbind(-1)
        truth = torch.stack([torch.asin(z.clamp(-1, 1)), torch.atan2(y, x)], dim=-1).rad2deg()
        loss = loss + tables["gps_weight"] * losses.gps_loss(training.gps_loss, out["points"], truth)
    if training.score_weight:
        loss = loss + tables["score_weight"] * losses.expected_score_loss(logits, labels)
    return loss
