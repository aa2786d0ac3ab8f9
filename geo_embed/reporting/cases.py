"""Single samples of a report: the worst, the best, the least certain; with their views where that is asked for."""

from typing import Any

import numpy as np

from geo_embed.console import harmless
from geo_embed.data.images import UnreadableImage, decode
from geo_embed.data.samples import Samples
from geo_embed.errors import GeoError
from geo_embed.prediction.results import worst_first
from geo_embed.reporting.evidence import Evidence
from geo_embed.reporting.markup import PICTURE_SIDE, to_url

CASES = 20


def cases(evidence: Evidence, *, pictures: bool) -> dict[str, Any]:
    """The twenty worst, best and least certain samples.

    Returns:
        `worst`, `best`, `unsure`: each a list of id, true, top (name and probability, the most probable first), true_rank, km, confidence,
        score; and with `pictures` its views: name and a data URL, or why there is none.
    """
    table = worst_first(evidence.table)
    unsure = table.sort_values("confidence", kind="stable")
    row_of = {sample_id: row for row, sample_id in enumerate(evidence.predictions.sample_id)}
    chosen = {"worst": table.head(CASES), "best": table.tail(CASES).iloc[::-1], "unsure": unsure.head(CASES)}
    views = _pictures(evidence) if pictures else None
    return {
        name: [
            _case(evidence, row_of[str(sample_id)], float(score), views)
            for sample_id, score in zip(rows["sample_id"], rows["score"], strict=True)
        ]
        for name, rows in chosen.items()
    }


def _case(evidence: Evidence, row: int, score: float, views: Any) -> dict[str, Any]:
    probabilities = evidence.predictions.probabilities[row]
    label = int(evidence.labels[row])
    rank = int((np.argsort(-probabilities, kind="stable") == label).argmax()) + 1
    case: dict[str, Any] = {
        "id": evidence.ids[row],
        "true": evidence.names[label],
        "top": [[evidence.names[k], round(float(probabilities[k]), 4)] for k in evidence.ranked[row]],
        "hit": int(evidence.ranked[row, 0]) == label,
        "rank": rank,
        "km": round(float(evidence.km[row]), 1),
        "score": round(score, 4),
        "at": [round(float(x), 4) for x in (evidence.truth.latitude[row], evidence.truth.longitude[row])],
        "guess": [
            round(float(x), 4)
            for x in (evidence.predictions.latitude[row], evidence.predictions.longitude[row])
        ],
    }
    if views is not None:
        case["views"] = views(evidence.predictions.sample_id[row])
    return case


def _pictures(evidence: Evidence) -> Any:
    """A function of a sample's id to its views: [name, data URL or "", why there is none]."""
    samples = evidence.samples
    if samples is None:
        return lambda sample_id: [["", "", evidence.why_no_samples]]
    rows = {sample_id: row for row, sample_id in enumerate(samples.sample_id)}

    def views(sample_id: str) -> list[list[str]]:
        if sample_id not in rows:
            return [["", "", "the train CSV has no such sample"]]
        pictures = []
        for view, name in zip(samples.view_names, samples.images[rows[sample_id]], strict=True):
            url, why = _thumbnail(samples, name) if name else ("", "the CSV names no picture")
            pictures.append([harmless(view), url, why])
        return pictures

    return views


def _thumbnail(samples: Samples, name: str) -> tuple[str, str]:
    """A picture as a data URL, made small; or "" and why not."""
    from PIL import Image

    try:
        pixels = decode(samples.pictures.read(name), accept_damage=True)
    except OSError as error:
        return "", f"no picture: {error.strerror}"
    except (GeoError, UnreadableImage) as error:
        return "", f"no picture: {harmless(str(error))}"
    image = Image.fromarray(np.ascontiguousarray(pixels))
    image.thumbnail((PICTURE_SIDE, PICTURE_SIDE))
    return to_url(image), ""
