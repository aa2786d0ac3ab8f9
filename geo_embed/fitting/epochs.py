"""Which epoch is kept, chosen by held-out samples, and which would have been without each of them.

The epoch that scores best on the held-out samples is kept, and for having been chosen its score on these very samples is
too good: by 0.013 where there is nothing to learn. So they are dealt into five parts (cross-fitting). Beside the
rule that looks at all of them, each part has one that looks at all others: it is answered by that rule's epoch, in which it
had no say. Every rule ends by itself, and a training goes on until all have ended, so that no part decides either how long
its own rule may look.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import Predictions, Truth
from geo_embed.config import Training
from geo_embed.data.holdout import random_folds
from geo_embed.data.spatial import resampling_groups
from geo_embed.metrics import competition_score, error_km, top_states

_PARTS = 5
# Of a run's choices, in its metrics.json.
CHOSEN_BY = f"the held-out samples; each was scored by what the other parts of {_PARTS} chose, this score is of the choice itself"


def deal_parts(samples: int, seed: int, together: NDArray[np.int64] | None = None) -> NDArray[np.int64]:
    """The part (n,) of each of n held-out samples: one of five, or of n where there are fewer.

    Args:
        samples: n.
        seed: of the dealing.
        together: (n,) groups of samples that are alike, each of which comes into one part if that leaves none empty.
    """
    return random_folds(samples, max(1, min(_PARTS, samples)), seed, together)


def parts_of(truth: Truth, tied: NDArray[np.int64] | None, training: Training) -> NDArray[np.int64]:
    """The part (n,) of each of n held-out samples; what is held out together chooses together.

    Args:
        truth: of the samples.
        tied: (n,) groups of samples that share pictures, or None.
        training: validation, group_km and split_seed.
    """
    together = resampling_groups(truth.latitude, truth.longitude, training)
    return deal_parts(len(truth), training.split_seed, tied if together is None else together)


def answered_by_part(
    kept: Predictions, part: NDArray[np.int64], answers: Mapping[int, Predictions]
) -> Predictions:
    """Predictions for n samples, those of some parts in the place of the kept ones.

    Args:
        kept: by the choice of all samples.
        part: (n,) of each sample.
        answers: for parts that are answered otherwise, predictions for all n samples.
    """
    for p, predictions in answers.items():
        kept = kept.replaced(part == p, predictions.take(part == p))
    return kept


def scores_without(predictions: Predictions, truth: Truth, part: NDArray[np.int64]) -> list[float]:
    """The score of n samples without those of each part (n,) in turn; minus infinity of none."""
    ranked, labels = top_states(predictions.probabilities), predictions.labels.encode(truth.state_idx)
    km = error_km(predictions, truth)
    others = [part != p for p in range(int(part.max(initial=-1)) + 1)]
    return [
        competition_score(ranked[rows], labels[rows], km[rows])[0] if rows.any() else -math.inf
        for rows in others
    ]


@dataclass
class EpochChoice:
    """Several rules, each of which keeps the epoch of the best score that it sees and ends after `patience` epochs without a better one.

    Attributes:
        patience: epochs.
        epochs: noted so far, counted from 1; a score before any epoch may be noted, too.
        best: of each rule the epoch that it keeps, 0 for the start.
        scores: of each rule that epoch's score.
    """

    patience: int
    epochs: int = 0
    best: list[int] = field(default_factory=list)
    scores: list[float] = field(default_factory=list)

    def note(self, epoch: int, scores: Sequence[float]) -> None:
        """Note an epoch: what it scored, for each rule. A rule that has ended looks no more."""
        if not self.best:
            self.best, self.scores = [0] * len(scores), [-math.inf] * len(scores)
        for rule, score in enumerate(scores):
            if not self._ended(rule) and score > self.scores[rule]:
                self.best[rule], self.scores[rule] = epoch, score
        self.epochs = epoch

    @property
    def ended(self) -> bool:
        """Whether no rule looks any further."""
        return bool(self.best) and all(map(self._ended, range(len(self.best))))

    def _ended(self, rule: int) -> bool:
        # Samples that a rule can't score choose nothing, and hold up nothing.
        return self.epochs - self.best[rule] >= self.patience
