"""A game: guess where held-out samples are, before the run's answer shows."""

import secrets
from typing import Any

import numpy as np

from geo_embed.errors import GeoError
from geo_embed.explorer.scene import Scene, Value, geoscore_of, number, score_of
from geo_embed.geography import haversine_km

MOST_ROUNDS = 50


def deal(scene: Scene, rounds: int, seed: int | None = None) -> Value:
    """Samples to guess, with their pictures and without a word of where they are.

    Args:
        scene: of a run whose held-out samples have pictures.
        rounds: how many; fewer where there are fewer.
        seed: the same deals the same; default: any.

    Raises:
        GeoError: the run held out no samples, or their pictures aren't at hand.
    """
    if (why := scene.why_no_game) is not None:
        raise GeoError(why, where=scene.run.path)
    shown = scene.shown("val")
    seed = secrets.randbelow(2**31) if seed is None else seed
    order = np.random.default_rng(seed).permutation(len(shown))
    dealt: list[Value] = []
    for row in order:
        sample_id = str(shown.predictions.sample_id[row])
        views = scene.views("val", sample_id)
        if any(view["picture"] for view in views):
            dealt.append({"sample_id": sample_id, "split": "val", "views": views})
        if len(dealt) == rounds:
            break
    if not dealt:
        raise GeoError("none of the held-out samples has a picture to guess by", where=scene.run.path)
    return {"seed": seed, "rounds": dealt}


def judge(scene: Scene, sample_id: str, latitude: float, longitude: float, state: int | None) -> Value | None:
    """A person's guess beside the run's answer, both by the competition's score of one sample and by GeoGuessr's.

    Args:
        scene: of the run.
        sample_id: a held-out sample.
        latitude, longitude: of the guess, in degrees.
        state: the class that the person names; None for the one whose outline holds the point.

    Returns:
        `truth`, `model` and `person`; None where no held-out sample has this id.
    """
    shown = scene.shown("val")
    row = shown.row_of.get(sample_id)
    if row is None or shown.truth is None or shown.labels is None or shown.km is None or shown.score is None:
        return None
    if state is None:
        state = scene.state_at(latitude, longitude)
    km = float(haversine_km(latitude, longitude, shown.truth.latitude[row], shown.truth.longitude[row]))
    credit = 1.0 if state == int(shown.labels[row]) else 0.0
    person: dict[str, Any] = {
        "km": number(km),
        "score": float(score_of(np.array([credit]), np.array([km]))[0]),
        "geoscore": geoscore_of(km),
        "state": state,
        "name": None if state is None else scene.run.labels.names[state],
    }
    model = scene.prediction(shown.predictions.take(slice(row, row + 1)))
    model |= {
        "km": float(shown.km[row]),
        "score": float(shown.score[row]),
        "geoscore": geoscore_of(float(shown.km[row])),
    }
    return {"truth": scene.truth_of(shown, row), "model": model, "person": person}
