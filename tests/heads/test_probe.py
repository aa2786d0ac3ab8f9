"""The probe is scikit-learn's logistic regression, with no seed in it."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from rows import CLASSES, rows_of

from geo_embed.heads.fusion import fuse_average
from geo_embed.heads.probe import fit_probe

ROWS = rows_of(200, noise=1.0)
X = fuse_average(ROWS.views.float(), ROWS.present) * 3 + 10


@pytest.mark.parametrize("l2", [0.1, 0.01, 0.001])
def test_it_agrees_with_scikit_learns_logistic_regression(l2: float) -> None:
    from sklearn.linear_model import LogisticRegression

    weight, bias = fit_probe(X, ROWS.labels, CLASSES, l2)
    standard = ((X - X.mean(0)) / X.std(0, correction=0)).numpy()
    reference = LogisticRegression(C=1 / (l2 * len(X)), max_iter=5000, tol=1e-9)
    reference.fit(standard, ROWS.labels.numpy())
    probabilities = torch.softmax(X @ weight.T + bias, 1).numpy()
    np.testing.assert_allclose(probabilities, reference.predict_proba(standard), atol=0.01)


def test_it_is_the_same_every_time() -> None:
    first, second = (fit_probe(X, ROWS.labels, CLASSES, 0.01) for _ in range(2))
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_a_feature_that_never_changes_and_a_class_without_samples_do_no_harm() -> None:
    x = torch.cat([X, torch.full((len(X), 1), 5.0)], dim=1)
    weight, bias = fit_probe(x, ROWS.labels, CLASSES + 1, 0.01)
    assert torch.isfinite(weight).all()
    assert torch.isfinite(bias).all()
    assert torch.softmax(x @ weight.T + bias, 1)[:, CLASSES].max() < 0.05


def test_one_class_alone_is_certain() -> None:
    weight, bias = fit_probe(X, torch.zeros(len(X), dtype=torch.int64), 1, 0.01)
    assert torch.softmax(X @ weight.T + bias, 1).eq(1).all()
