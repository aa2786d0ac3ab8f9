"""`geo data check`: every problem of a split's CSVs and pictures, before anything is paid for."""

import hashlib
from collections import Counter
from collections.abc import Callable, Hashable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from os import cpu_count

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import Config
from geo_embed.console import counted, progress
from geo_embed.data import images
from geo_embed.data.duplicates import SAME_PLACE_KM, SharedPicture, shared_pictures
from geo_embed.data.pictures import Pictures
from geo_embed.data.samples import Samples, check_samples, leave_out_empty_views, missing_images
from geo_embed.data.table import Problem
from geo_embed.errors import GeoError

_BLOCK = 2048
# Findings of one kind that are listed one by one; more are counted.
_LISTED = 20
_NAMED = 3
# From the middle of a file: pictures of one size mostly differ there.
_PROBE_BYTES = 256


@dataclass(frozen=True)
class Checked:
    """A split, how many samples it has, what is wrong with it, what is odd but may be meant, and what mends all of a kind."""

    split: str
    samples: int
    problems: list[Problem]
    warnings: list[Problem] = field(default_factory=list)
    hint: str = ""


def check_data(config: Config, split: str, *, decode: bool = False) -> Checked:
    """Look for every problem of a split.

    Args:
        config: paths and views.
        split: `train` or `test`.
        decode: decode every picture too, instead of only looking for its file. A damaged one is a problem unless
            `inference.on_damaged_image` accepts such.

    Pictures of the same bytes in several samples are looked for in any case: a problem where the samples contradict each other
    in place or state, else a warning. So is a test picture that a training sample has, too.
    """
    samples, problems = check_samples(config.paths, config.model.view_names, split)
    if samples is None:
        return Checked(split, 0, problems)
    try:
        absent = missing_images(samples)
    except GeoError as error:
        message = "; ".join(filter(None, (error.what, error.hint)))
        return Checked(split, len(samples), [*problems, Problem("unreadable-shard", error.where, message)])
    problems = problems + [_image_problem(samples, "missing-image", i, v, reason) for i, v, reason in absent]
    workers, seconds = config.inference.workers or cpu_count() or 1, config.tracking.progress_seconds
    train = check_samples(config.paths, config.model.view_names, "train")[0] if split == "test" else None
    contents = same_contents([samples] if train is None else [samples, train], workers, seconds)
    contradictions, warnings = _duplicates(samples, contents[0])
    problems += contradictions
    if train is not None:
        warnings += _overlap(samples, train, *contents)
    if decode:
        accept_damage = config.inference.with_damaged == "accept"
        problems += _undecodable(samples, {(i, v) for i, v, _ in absent}, workers, seconds, accept_damage)
    return Checked(split, len(samples), problems, warnings, leave_out_empty_views(samples))


def same_contents(
    splits: Sequence[Samples], workers: int, progress_seconds: float
) -> list[NDArray[np.uint64]]:
    """For each split (N, V): the same number for the same bytes; 0 for a picture that has no equal, is empty or isn't there."""
    # Few pictures have equals. So files are told apart by their sizes first, those of one size by some bytes from their middle,
    # and only what is still alike is read whole.
    places = [
        (number, i, v)
        for number, samples in enumerate(splits)
        for i in range(len(samples))
        for v in range(len(samples.view_names))
        if samples.images[i, v]
    ]
    pictures = [(splits[number].pictures, str(splits[number].images[i, v])) for number, i, v in places]
    alike: list[int] = list(range(len(places)))
    keys: list[Hashable] = [None] * len(places)
    with ThreadPoolExecutor(workers) as pool:
        for label, look in (("", _size), ("", _probe), ("compare", _digest)):
            with progress(label, len(alike) if label else 0, "images", progress_seconds) as advance:
                for start in range(0, len(alike), _BLOCK):
                    part = alike[start : start + _BLOCK]
                    for place, key in zip(
                        part, pool.map(_quietly(look), [pictures[k] for k in part]), strict=True
                    ):
                        keys[place] = key if keys[place] is None or key is None else (keys[place], key)
                    advance(len(part))
            count = Counter(keys[k] for k in alike)
            alike = [k for k in alike if keys[k] is not None and count[keys[k]] > 1]
    numbers: dict[Hashable, int] = {}
    contents = [np.zeros(samples.images.shape, dtype=np.uint64) for samples in splits]
    for k in alike:
        number, i, v = places[k]
        contents[number][i, v] = numbers.setdefault(keys[k], len(numbers) + 1)
    return contents


def _quietly(look: Callable[[Pictures, str], Hashable]) -> Callable[[tuple[Pictures, str]], Hashable]:
    """The same, with None for a picture that can't be looked at: other checks say so."""

    def looked(picture: tuple[Pictures, str]) -> Hashable:
        try:
            return look(*picture)
        except (OSError, ValueError, GeoError, images.UnreadableImage):
            return None

    return looked


def _size(pictures: Pictures, name: str) -> int | None:
    size = pictures.size(name)
    # What is larger is no picture, and would take hours to read.
    return size if 0 < size <= images.MAX_BYTES else None


def _probe(pictures: Pictures, name: str) -> bytes:
    return pictures.part(name, pictures.size(name) // 2, _PROBE_BYTES)


def _digest(pictures: Pictures, name: str) -> bytes:
    return hashlib.sha256(pictures.read(name)).digest()


def _duplicates(samples: Samples, content: NDArray[np.uint64]) -> tuple[list[Problem], list[Problem]]:
    """Problems and warnings of pictures that occur in several samples of a split."""
    truth = samples.truth
    zeros = np.zeros(len(samples))
    latitude, longitude = (zeros, zeros) if truth is None else (truth.latitude, truth.longitude)
    shared = [
        picture
        for picture in shared_pictures(content, content != 0, latitude, longitude)
        # A row without a place is a problem of its own.
        if np.isfinite(picture.spread_km)
    ]
    # Samples that have several pictures in common are one finding.
    counts = Counter(tuple(picture.rows.tolist()) for picture in shared)
    problems, same_place, placeholders = [], [], []
    for rows, picture in {tuple(picture.rows.tolist()): picture for picture in shared}.items():
        states = 0 if truth is None else len(set(truth.state_idx[picture.rows].tolist()))
        message = _describe_shared(samples, picture, counts[rows], states)
        where = f"{samples.csv}, sample {samples.sample_id[rows[0]]}"
        if picture.is_placeholder:
            placeholders.append(
                Problem(
                    "placeholder-image",
                    where,
                    f"{message}: taken for a placeholder, which ties no samples together",
                )
            )
        elif states > 1 or picture.spread_km > SAME_PLACE_KM:
            problems.append(Problem("duplicate-image", where, message))
        else:
            same_place.append(Problem("duplicate-image", where, message))
    return _cut(problems), _cut(same_place) + _cut(placeholders)


def _describe_shared(samples: Samples, picture: SharedPicture, count: int, states: int) -> str:
    ids = [str(samples.sample_id[row]) for row in picture.rows[: _NAMED + 1]]
    more = len(picture.rows) - _NAMED
    named = ", ".join(ids) if more <= 1 else f"{', '.join(ids[:_NAMED])} and {more:,} more"
    what = "one picture is" if count == 1 else f"{count} pictures are"
    apart = "" if samples.truth is None else f", {picture.spread_km:,.1f} km apart"
    return f"{what} the same in samples {named}{apart}" + (f", in {states} states" if states > 1 else "")


def _overlap(
    test: Samples, train: Samples, test_content: NDArray[np.uint64], train_content: NDArray[np.uint64]
) -> list[Problem]:
    """One warning of all test samples that have a picture of the training set."""
    rows = np.flatnonzero((np.isin(test_content, train_content[train_content != 0])).any(axis=1))
    if not len(rows):
        return []
    first = test_content[rows[0]]
    wanted = first[np.isin(first, train_content[train_content != 0])][0]
    twin = int(np.argwhere(train_content == wanted)[0, 0])
    ids = ", ".join(str(test.sample_id[row]) for row in rows[:_NAMED]) + (", …" if len(rows) > _NAMED else "")
    return [
        Problem(
            "train-test-overlap",
            str(test.csv),
            f"{len(rows):,} of {counted(len(test), 'sample has', 'samples have')} a picture that a training sample has, too: {ids} "
            f"(the first one's is that of {train.sample_id[twin]})",
        )
    ]


def _cut(findings: list[Problem]) -> list[Problem]:
    """The first of some findings of one kind, and how many more there are."""
    if len(findings) <= _LISTED:
        return findings
    more = len(findings) - _LISTED
    where = findings[0].where.rsplit(", sample ", 1)[0]
    return [*findings[:_LISTED], Problem(findings[0].kind, where, f"and {more:,} more like these")]


def _undecodable(
    samples: Samples,
    absent: set[tuple[int, int]],
    workers: int,
    progress_seconds: float,
    accept_damage: bool,
) -> list[Problem]:
    """Pictures that are there and can't be decoded, or not without a loss."""

    def look(place: tuple[int, int]) -> tuple[str, str]:
        if place in absent:
            return "", ""
        try:
            images.decode(samples.pictures.read(samples.images[place]))
        except images.DamagedImage as error:
            return "" if accept_damage else "damaged-image", str(error)
        except images.UnreadableImage as error:
            return "unreadable-image", str(error)
        except OSError as error:
            return "unreadable-image", error.strerror or str(error)
        return "", ""

    problems = []
    views = range(len(samples.view_names))
    total = len(samples) * len(views)
    with (
        progress("decode", total, "images", progress_seconds) as advance,
        ThreadPoolExecutor(workers) as pool,
    ):
        # A pool's map takes all its tasks at once: by blocks, a million samples need no more memory than a thousand.
        for start in range(0, len(samples), _BLOCK):
            places = [(i, v) for i in range(start, min(start + _BLOCK, len(samples))) for v in views]
            for (i, v), (kind, reason) in zip(places, pool.map(look, places), strict=True):
                advance(1)
                if kind:
                    problems.append(_image_problem(samples, kind, i, v, f"{reason}: {samples.images[i, v]}"))
    return problems


def _image_problem(samples: Samples, kind: str, i: int, v: int, reason: str) -> Problem:
    column = f"image_{samples.view_names[v]}"
    return Problem(kind, f"{samples.csv}, sample {samples.sample_id[i]}, column {column}", reason)
