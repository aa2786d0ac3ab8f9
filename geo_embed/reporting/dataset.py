"""What there is to know of a dataset before any training: counts, places, pictures, duplicates, leaks, and what is odd."""

from collections import Counter
from dataclasses import dataclass
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from geo_embed.answers import LabelEncoder, Truth, label_encoder
from geo_embed.config import Config
from geo_embed.data.check import Checked, check_data
from geo_embed.data.duplicates import shared_pictures
from geo_embed.data.samples import Samples, check_samples, load_mapping, load_samples
from geo_embed.errors import GeoError
from geo_embed.fitting.leaks import Leakage, check_leaks
from geo_embed.geography import haversine_km, to_unit_vectors
from geo_embed.reporting.looks import Looks, look_at, near_duplicates
from geo_embed.reporting.outlines import Outlines, km_outside_own, outlines
from geo_embed.reporting.projections import Projection, fit_projection

# A place so far from its class's outline is odd: coasts and borders are drawn with fewer corners than they have.
OUTSIDE_KM: Final = 50.0


@dataclass(frozen=True)
class Part:
    """A split.

    Attributes:
        samples: of the split; None where its CSV can't be read.
        checked: what `geo data check` finds.
        looks: its pictures; None where none is at hand.
    """

    name: str
    samples: Samples | None
    checked: Checked
    looks: Looks | None


@dataclass(frozen=True)
class Twin:
    """Two samples with a picture that is nearly the same: their ids with splits, and how far apart they are in km, where that is known."""

    first: str
    second: str
    km: float | None
    across: bool


@dataclass(frozen=True)
class Ground:
    """Where the training samples lie.

    Attributes:
        encoder: C classes.
        labels: (N,) of the samples.
        truth: of the same.
        drawn, projection: the map.
        nearest_km: (N,) from each to the next sample.
        outside: rows of samples that lie far outside of their class's outline, and by how many km, the farthest first.
    """

    encoder: LabelEncoder
    labels: NDArray[np.int64]
    truth: Truth
    drawn: Outlines
    projection: Projection
    nearest_km: NDArray[np.float64]
    outside: list[tuple[int, float]]


@dataclass(frozen=True)
class Dataset:
    """All that the page shows.

    Attributes:
        parts: the splits that were asked for.
        ground: None without training samples.
        shared: how many pictures occur, byte by byte, in several samples of a split, by split.
        overlap: test samples that have a picture of a training sample; None where one of the two isn't looked at.
        twins: pairs of samples with a picture that is nearly the same and not the same file.
        leakage: what of the held-out samples training gives away; None where that can't be said, and then why.
    """

    parts: list[Part]
    ground: Ground | None
    shared: dict[str, int]
    overlap: int | None
    twins: list[Twin]
    leakage: Leakage | None
    no_leakage: str = ""


def survey(config: Config, splits: list[str], limit: int | None = None) -> Dataset:
    """Look at everything: the CSVs, the places, and every picture.

    Args:
        config: paths, views, workers; and how training would hold samples out.
        splits: `train`, `test` or both.
        limit: decode the pictures of so many samples of a split only, as `look_at`.

    Raises:
        GeoError: none of the splits can be read.
    """
    parts = [_part(config, name, limit) for name in splits]
    if all(part.samples is None for part in parts):
        load_samples(config, splits[0])
    train = next((part.samples for part in parts if part.name == "train"), None)
    ground = None if train is None or train.truth is None or not len(train) else _ground(config, train)
    leakage, why = None, "the training samples aren't looked at"
    if ground is not None:
        try:
            leakage, why = check_leaks(config), ""
        except GeoError as error:
            why = str(error)
    return Dataset(parts, ground, _shared(parts), _overlap(parts), _twins(parts), leakage, why)


def _part(config: Config, name: str, limit: int | None) -> Part:
    checked = check_data(config, name)
    samples, problems = check_samples(config.paths, config.model.view_names, name)
    if samples is None or (problems and not len(samples)):
        return Part(name, None, checked, None)
    has_pictures = samples.pictures.are_there()
    return Part(name, samples, checked, look_at(samples, config, limit) if has_pictures else None)


def _ground(config: Config, train: Samples) -> Ground | None:
    truth = train.truth
    assert truth is not None
    finite = np.isfinite(truth.latitude) & np.isfinite(truth.longitude)
    mapping = load_mapping(config.paths.mapping())
    known = finite & np.isin(truth.state_idx, list(mapping))
    if not known.any():
        return None
    truth = truth.take(known)
    rows = np.flatnonzero(known)
    encoder = label_encoder(truth.state_idx, mapping)
    labels = encoder.encode(truth.state_idx)
    drawn = outlines(labels, truth.latitude, truth.longitude, encoder.names)
    away = np.zeros(len(truth))
    # No place lies outside of the hull that it is a part of.
    bordered = np.isin(drawn.sources, ("us-atlas", "world-atlas"))[labels]
    away[bordered] = km_outside_own(
        drawn, labels[bordered], truth.latitude[bordered], truth.longitude[bordered]
    )
    far = np.flatnonzero(away > OUTSIDE_KM)
    outside = [(int(rows[k]), float(away[k])) for k in far[np.argsort(-away[far], kind="stable")]]
    projection = fit_projection(drawn, truth.latitude, truth.longitude)
    return Ground(encoder, labels, truth, drawn, projection, _nearest_km(truth), outside)


def _nearest_km(truth: Truth) -> NDArray[np.float64]:
    """(N,) from each place to the next one; infinite for a single one."""
    from scipy.spatial import cKDTree

    if len(truth) < 2:
        return np.full(len(truth), np.inf)
    points = to_unit_vectors(truth.latitude, truth.longitude)
    nearest = cKDTree(points).query(points, k=2)[1]
    # Where two stand at one place either may come first.
    other = np.where(nearest[:, 0] == np.arange(len(truth)), nearest[:, 1], nearest[:, 0])
    return haversine_km(truth.latitude, truth.longitude, truth.latitude[other], truth.longitude[other])


def _shared(parts: list[Part]) -> dict[str, int]:
    counts = {}
    for part in parts:
        if part.looks is not None and part.samples is not None:
            zeros = np.zeros(len(part.samples))
            counts[part.name] = len(shared_pictures(part.looks.content, part.looks.size > 0, zeros, zeros))
    return counts


def _overlap(parts: list[Part]) -> int | None:
    looks = {part.name: part.looks for part in parts}
    train, test = looks.get("train"), looks.get("test")
    if train is None or test is None:
        return None
    shared = (test.size > 0) & np.isin(test.content, train.content[train.size > 0])
    return int(shared.any(axis=1).sum())


def _twins(parts: list[Part]) -> list[Twin]:
    """Pairs of samples, of any splits, with a picture that is nearly the same; those across splits first, then the farthest apart."""
    rows, likeness, content = [], [], []
    for k, part in enumerate(parts):
        if part.looks is not None:
            telling = part.looks.present & part.looks.decoded[:, None] & ~part.looks.blank
            rows += [(k, int(i)) for i, _ in np.argwhere(telling)]
            likeness.append(part.looks.likeness[telling])
            content.append(part.looks.content[telling])
    if not rows:
        return []
    _, owner = np.unique(np.array(rows), axis=0, return_inverse=True)
    pairs = near_duplicates(np.concatenate(likeness), owner.ravel())
    bytes_of = np.concatenate(content)
    pairs = pairs[bytes_of[pairs[:, 0]] != bytes_of[pairs[:, 1]]]
    seen: dict[tuple[tuple[int, int], tuple[int, int]], Twin] = {}
    for a, b in pairs.tolist():
        seen.setdefault((rows[a], rows[b]), _twin(parts, rows[a], rows[b]))
    return sorted(
        seen.values(), key=lambda twin: (not twin.across, -(twin.km or 0.0), twin.first, twin.second)
    )


def _twin(parts: list[Part], first: tuple[int, int], second: tuple[int, int]) -> Twin:
    names, places = [], []
    for k, row in (first, second):
        samples = parts[k].samples
        assert samples is not None
        names.append(f"{parts[k].name} {samples.sample_id[row]}")
        truth = samples.truth
        places.append(None if truth is None else (float(truth.latitude[row]), float(truth.longitude[row])))
    a, b = places
    km = None if a is None or b is None else float(haversine_km(*a, *b))
    return Twin(names[0], names[1], km if km is None or np.isfinite(km) else None, first[0] != second[0])


def findings_by_kind(checked: Checked) -> list[dict[str, Any]]:
    """Problems and warnings of a split, as rows: kind, what it is (`problem` or `warning`), how many, and the first ones."""
    rows: list[dict[str, Any]] = []
    for what, findings in (("problem", checked.problems), ("warning", checked.warnings)):
        for kind, count in Counter(finding.kind for finding in findings).most_common():
            first = [finding for finding in findings if finding.kind == kind][:5]
            rows.append({"kind": kind, "what": what, "count": count, "first": first})
    return rows
