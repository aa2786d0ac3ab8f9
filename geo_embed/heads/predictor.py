"""Predictor of a run: one set of heads, or several (seeds, folds) that answer together."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from geo_embed.answers import LabelEncoder, Predictions, Prior
from geo_embed.config import Training
from geo_embed.console import Advance, warn
from geo_embed.errors import GeoError
from geo_embed.geography import to_unit_vectors
from geo_embed.heads import calibration
from geo_embed.heads.calibration import Calibration
from geo_embed.heads.heads import CellHeads, Heads, build_heads
from geo_embed.heads.mixture import Mixture, build_mixture
from geo_embed.sphere import geometric_median_of, unit_to_degrees

# Of recipe.json: a run of another number can't be read.
FORMAT = 1


class Panel(nn.Module):
    """Heads that answer together: probabilities are averaged, the point is the geometric median of theirs.

    Args:
        parts: one or more, over the same classes.
        fitted: calibration of the averaged probabilities.
    """

    def __init__(self, parts: Sequence[Heads | Mixture], fitted: Calibration | None = None) -> None:
        super().__init__()
        self.parts = nn.ModuleList(parts)
        self.calibration = fitted
        self.reliability: dict[str, Any] | None = None

    def calibrate(
        self,
        probabilities: NDArray[np.float32],
        labels: NDArray[np.int64],
        kind: str,
        *,
        seed: int,
        tied: NDArray[np.int64] | None = None,
    ) -> NDArray[np.float32]:
        """Fit the calibration on the panel's probabilities (n, C) for held-out samples of these labels (n,), some of them `tied`
        (n,) by pictures that they share.

        `reliability` is then what it is worth. One that doesn't help on samples that it hasn't seen is left out.

        Returns:
            The same probabilities, each row calibrated by a calibration that hasn't seen it.
        """
        logs, truth = torch.from_numpy(probabilities).log(), torch.from_numpy(labels)
        self.reliability = calibration.reliability(logs, truth, kind, seed=seed, tied=tied)
        before, after = (self.reliability[when]["nll"] for when in ("before", "after"))
        if after >= before:
            warn(
                f"calibration by {kind} is left out: on samples that it hasn't seen, nll {before:.3f} → {after:.3f}"
            )
            return probabilities
        self.calibration = calibration.fit_calibration(logs, truth, kind)
        return np.asarray(calibration.cross_fitted(logs, truth, kind, seed=seed, tied=tied).exp().numpy())

    def set_temperature(
        self, temperature: float, probabilities: NDArray[np.float32], labels: NDArray[np.int64]
    ) -> NDArray[np.float32]:
        """Divide log-probabilities by a temperature > 0 from now on, whether that helps or not.

        `reliability` is then what it is worth on the panel's probabilities (n, C) for held-out samples of these labels (n,), if
        there are some: none of them chose it.

        Returns:
            The same probabilities at that temperature.
        """
        self.calibration = calibration.given_temperature(temperature, probabilities.shape[1])
        logs = torch.from_numpy(probabilities).log()
        after = calibration.apply(self.calibration, logs)
        if len(labels):
            self.reliability = calibration.compare(logs, after, torch.from_numpy(labels))
            before_nll, after_nll = (self.reliability[when]["nll"] for when in ("before", "after"))
            if after_nll > before_nll:
                warn(
                    f"training.temperature {temperature:g} makes held-out samples less likely: nll {before_nll:.3f} → {after_nll:.3f}"
                )
        return np.asarray(after.exp().numpy())

    def predict(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor]:
        """(B, V, D) embeddings and (B, V) bool to P(state) (B, C) and latitude, longitude (B, 2) in degrees."""
        answers = [part.predict(views, present) for part in self.parts]  # type: ignore[operator]
        states, points = together(answers)
        if self.calibration is not None:
            states = calibration.apply(self.calibration, states.log()).exp()
        return states, points

    def spread(self, views: Tensor, present: Tensor) -> tuple[Tensor, Tensor] | None:
        """Where samples (n, V, D) may be: the centres (K, 3) of all parts' cells, and P(cell) (n, K), every part's with the same
        share; before the panel's calibration, which is of states. None where a part has no cells.
        """
        parts = [part for part in self.parts if isinstance(part, Mixture | CellHeads)]
        if len(parts) < len(self.parts):
            return None
        spreads = [part.spread(views, present) for part in parts]
        centres, shares = (torch.cat(each, dim=k) for k, each in enumerate(zip(*spreads, strict=True)))
        return centres, shares / len(parts)

    def tunable(self) -> "Panel":
        """The panel of those of its heads, themselves and no copies, that fine-tuning can go on from (`Mixture.tunable`)."""
        parts = [part.tunable() if isinstance(part, Mixture) else part for part in self.parts]
        panel = Panel(parts, self.calibration)  # type: ignore[arg-type]
        panel.reliability = self.reliability
        return panel

    def leaves(self, training: Training) -> list[tuple[Heads, float, Training]]:
        """Every set of heads with its weight in the answer, and the settings that its losses follow.

        Args:
            training: of the plain heads; a `Mixture`'s members bring their own.
        """
        leaves: list[tuple[Heads, float, Training]] = []
        for part in self.parts:
            if isinstance(part, Mixture):
                trainings = [member.training for member in part.members]
                leaves += zip(part.heads, part.decision.weights, trainings, strict=True)
            elif isinstance(part, Heads):
                leaves.append((part, 1.0, training))
        return [(heads, weight / len(self.parts), fitted_by) for heads, weight, fitted_by in leaves]

    def description(self) -> dict[str, Any]:
        """What the state dict doesn't say, as plain values."""
        return {
            "format": FORMAT,
            "parts": [
                {"best" if isinstance(part, Mixture) else "heads": part.description()}  # type: ignore[operator]
                for part in self.parts
            ],
            "calibration": None if self.calibration is None else asdict(self.calibration),
        }


def together(answers: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """One answer of several: the mean of the probabilities (B, C), the geometric median of the points (B, 2) in degrees."""
    states, points = answers[0]
    if len(answers) > 1:
        states = torch.stack([p for p, _ in answers]).mean(dim=0)
        each = torch.stack([point.double().cpu() for _, point in answers], dim=1)
        unit = torch.from_numpy(to_unit_vectors(each[..., 0].numpy(), each[..., 1].numpy()))
        points = unit_to_degrees(geometric_median_of(unit, torch.full(unit.shape[:2], 1 / len(answers))))
    return states, points


def build_panel(description: dict[str, Any], dim: int, views: int, classes: int) -> Panel:
    """A panel whose weights are still to be loaded. Raises KeyError, TypeError or ValueError for a damaged description."""
    if description["format"] != FORMAT:
        raise ValueError(f"format {description['format']}, where this version reads {FORMAT}")
    parts = [
        build_mixture(entry["best"], dim, views, classes)
        if "best" in entry
        else build_heads(entry["heads"], dim, views, classes)
        for entry in description["parts"]
    ]
    if not parts:
        raise ValueError("no heads")
    fitted = description["calibration"]
    if fitted is not None:
        fitted = Calibration(fitted["kind"], tuple(fitted["scale"]), tuple(fitted["offset"]))
    return Panel(parts, fitted)


# Rows that pass through the heads at once: bounded memory, no measurable cost.
_ROWS = 512


def apply_heads(
    heads: Panel,
    device: torch.device,
    prior: Prior,
    labels: LabelEncoder,
    sample_id: NDArray[np.object_],
    values: NDArray[Any],
    present: NDArray[np.bool_],
    advance: Advance | None = None,
) -> Predictions:
    """Predictions of heads over embeddings; rows without any view get the prior.

    Args:
        heads: moved to `device`, in eval mode.
        device: where they run.
        prior, labels: of the run.
        sample_id: (N,) text.
        values: (N, V, D) float16 or float32.
        present: (N, V) bool.
        advance: is told of rows that are done.

    Raises:
        GeoError: an answer is NaN or infinite.
    """
    heads = heads.to(device).eval()
    probabilities = np.tile(prior.probabilities.astype(np.float32), (len(values), 1))
    points = np.tile([prior.latitude, prior.longitude], (len(values), 1))
    seen = np.flatnonzero(present.any(axis=1))
    with torch.inference_mode():
        for start in range(0, len(seen), _ROWS):
            rows = seen[start : start + _ROWS]
            views, is_present = (torch.from_numpy(part[rows]).to(device) for part in (values, present))
            states, point = heads.predict(views, is_present)
            probabilities[rows] = states.cpu().numpy()
            points[rows] = point.double().cpu().numpy()
            if advance is not None:
                advance(len(rows))
    if not (np.isfinite(probabilities).all() and np.isfinite(points).all()):
        raise GeoError(
            "the heads' answers are NaN or infinite", hint="train again with a lower training.learning_rate"
        )
    return Predictions(sample_id, probabilities, points[:, 0], points[:, 1], labels)


def averaged(parts: Sequence[Predictions]) -> Predictions:
    """Several predictions for the same samples as one, averaged as a `Panel`'s parts are."""
    first = parts[0]
    points = [torch.from_numpy(np.stack([part.latitude, part.longitude], axis=1)) for part in parts]
    states = [torch.from_numpy(part.probabilities) for part in parts]
    p, point = together(list(zip(states, points, strict=True)))
    return Predictions(first.sample_id, p.numpy(), point[:, 0].numpy(), point[:, 1].numpy(), first.labels)
