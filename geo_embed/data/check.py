"""`geo data check`: every problem of a split's CSVs and pictures, before anything is paid for."""

from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count

from geo_embed.config import Config
from geo_embed.console import progress
from geo_embed.data import images
from geo_embed.data.samples import Samples, check_samples, missing_images
from geo_embed.data.table import Problem

_BLOCK = 2048


@dataclass(frozen=True)
class Checked:
    """A split, how many samples it has, and what is wrong with it."""

    split: str
    samples: int
    problems: list[Problem]


def check_data(config: Config, split: str, *, decode: bool = False) -> Checked:
    """Look for every problem of a split.

    Args:
        config: paths and views.
        split: `train` or `test`.
        decode: decode every picture too, instead of only looking for its file. A damaged one is a problem unless
            `inference.on_damaged_image` accepts such.
    """
    samples, problems = check_samples(config.paths, config.model.view_names, split)
    if samples is None:
        return Checked(split, 0, problems)
    absent = missing_images(samples)
    problems = problems + [_image_problem(samples, "missing-image", i, v, reason) for i, v, reason in absent]
    if decode:
        workers, every = config.inference.workers or cpu_count() or 1, config.tracking.progress_seconds
        accept_damage = config.inference.with_damaged == "accept"
        problems += _undecodable(samples, {(i, v) for i, v, _ in absent}, workers, every, accept_damage)
    return Checked(split, len(samples), problems)


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
            images.decode(images.read_picture(samples.image_root / samples.images[place]))
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
