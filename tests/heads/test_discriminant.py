"""The discriminant is scikit-learn's, shrunk as asked; that of the views tells views apart that their average can't."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import CLASSES, region_of, rows_of, tiny

from geo_embed.bench.planted import planted
from geo_embed.config import Training
from geo_embed.fitting.examples import Rows
from geo_embed.fitting.train import train
from geo_embed.geography import to_unit_vectors
from geo_embed.heads.discriminant import fit_discriminant
from geo_embed.heads.fusion import fuse_average

ROWS = rows_of(200, noise=1.0)
X = fuse_average(ROWS.views.float(), ROWS.present) * 3 + 10


@pytest.mark.parametrize("shrinkage", [0.05, 0.3, 0.9])
def test_it_agrees_with_scikit_learns_shrunk_discriminant(shrinkage: float) -> None:
    from sklearn.discriminant_analysis import LinearDiscriminantAnalysis

    weight, bias = fit_discriminant(X, ROWS.labels, CLASSES, shrinkage)
    log_prior = (torch.bincount(ROWS.labels, minlength=CLASSES) / len(X)).log()
    # scikit-learn shrinks each class's covariance in units of its own features: give both features of one variance.
    reference = LinearDiscriminantAnalysis(solver="lsqr", covariance_estimator=_Shrunk(shrinkage))
    reference.fit(X.double().numpy(), ROWS.labels.numpy())
    log_probabilities = torch.log_softmax(X @ weight.T + bias + log_prior, 1).numpy()
    np.testing.assert_allclose(
        log_probabilities, reference.predict_log_proba(X.double().numpy()), atol=0.02, rtol=1e-3
    )


class _Shrunk:
    """A covariance estimator in scikit-learn's sense."""

    def __init__(self, shrinkage: float) -> None:
        self.shrinkage = shrinkage

    def fit(self, x: np.ndarray) -> _Shrunk:
        covariance = np.cov(x.T, bias=True)
        self.covariance_ = (1 - self.shrinkage) * covariance
        # The trace of the covariance within classes, of all classes together.
        within = _within(X.double().numpy(), ROWS.labels.numpy())
        self.covariance_ += self.shrinkage * np.trace(within) / len(covariance) * np.eye(len(covariance))
        return self


def _within(x: np.ndarray, labels: np.ndarray) -> np.ndarray:
    return sum(np.cov(x[labels == k].T, bias=True) * (labels == k).mean() for k in range(CLASSES))


def test_features_that_never_change_a_class_without_samples_and_samples_all_alike_do_no_harm() -> None:
    still = torch.cat([X, torch.full((len(X), 1), 5.0)], dim=1)
    for x in (still, torch.ones(20, 3)):
        labels = ROWS.labels[: len(x)]
        weight, bias = fit_discriminant(x, labels, CLASSES + 1, 0.3)
        assert torch.isfinite(weight).all()
        assert torch.isfinite(bias).all()


def test_views_of_unequal_worth_are_told_apart() -> None:
    # Half of the planted views show the sample's place, the others another one or none.
    data = planted(900, seed=3, classes=20, dim=384)
    labels = torch.from_numpy(np.unique(data.state_idx, return_inverse=True)[1])
    classes = int(labels.max()) + 1
    points = torch.from_numpy(to_unit_vectors(data.latitude, data.longitude))
    rows = Rows(torch.from_numpy(data.embeddings), torch.ones(900, 4, dtype=torch.bool), labels, points)
    seen, unseen = rows.take(torch.arange(600)), rows.take(torch.arange(600, 900))

    def right(kind: str) -> float:
        model = tiny(head=kind)
        heads = train(seen, region_of(seen, model, classes), model, Training(), seed=0).heads
        with torch.no_grad():
            states, _ = heads.predict(unseen.views, unseen.present)
        return float((states.argmax(1) == unseen.labels).float().mean())

    assert right("view-discriminant") > right("discriminant") + 0.03
