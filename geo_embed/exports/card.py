"""The model card of an export: what it is, how good, on what, and what it is not for."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed import __version__
from geo_embed.console import harmless
from geo_embed.errors import GeoError
from geo_embed.exports.directory import (
    BACKBONE,
    HEADS_ONNX,
    MODEL_ONNX,
    RUN,
    UNKNOWN_FEATURE,
    backbone_places,
)
from geo_embed.exports.origin import UNKNOWN, Origin, licenses_of, strictest
from geo_embed.runs.listing import RunSummary, list_runs, summarise
from geo_embed.runs.run import Run

# More classes than this are folded away.
_LISTED = 60
_TAGS = ["geolocation", "street-view", "geo_embed"]


@dataclass(frozen=True)
class Facts:
    """What a card says beside what the run says of itself.

    Attributes:
        origins: of the backbones, in the order of the embeddings' columns.
        backbones: what the export calls them.
        name: what the export is called: the name of its directory.
        heads_only: whether the backbone is left out.
        neighbours: training samples that the export holds for refining points, and their bytes.
        checks: of the ONNX file, as `config.json` has them.
        features: of each backbone, with their widths, in the order of the embeddings' columns; empty where it is the only one, and its
            own feature alone.
    """

    origins: Sequence[Origin]
    backbones: Sequence[str]
    name: str
    heads_only: bool
    neighbours: tuple[int, int]
    checks: Mapping[str, Any] | None
    features: Sequence[Sequence[tuple[str, int]]] = ((),)


def write_card(path: Path, run: Run, dim: int, facts: Facts) -> None:
    """Write README.md, of a run over embeddings of `dim` numbers. Raises GeoError where its scores can't be read."""
    summary, scores = summarise(run), run.read_metrics()
    parts = [
        _front_matter(facts, summary),
        f"# {_plain(facts.name)}\n",
        _opening(run, dim, facts),
        _use(run, dim, facts),
        _scores(run, summary, scores),
        _limits(summary, scores, facts),
        _purposes(),
        _license(facts.origins),
        _data(run, summary, facts),
        _files(facts),
    ]
    path.write_text("\n".join(parts), encoding="utf-8")


def _front_matter(facts: Facts, summary: RunSummary) -> str:
    from huggingface_hub import EvalResult, ModelCardData

    licenses = licenses_of(facts.origins)
    models = list(dict.fromkeys(origin.base_model for origin in facts.origins if origin.on_hub))
    # The hub takes one name and one link, of a licence that it doesn't know.
    named = next((origin for origin in facts.origins if origin.license_name), facts.origins[0])
    results = []
    if summary.score is not None:
        kind = "spatially grouped" if summary.validation["kind"] == "spatial" else "random"
        values = {"score": summary.score, "mean_km": summary.mean_km}
        results = [
            EvalResult(
                task_type="image-classification",
                task_name="geolocation of street-view pictures",
                dataset_type="street-view",
                dataset_name=f"{summary.samples:,} held-out places, {kind} split",
                metric_type=name,
                metric_value=round(value, 4),
            )
            for name, value in values.items()
            if value is not None
        ]
    data = ModelCardData(
        license=licenses if len(licenses) > 1 else licenses[0],
        license_name=named.license_name,
        license_link=named.license_link,
        base_model=models if len(models) > 1 else next(iter(models), None),
        library_name="geo_embed",
        tags=_TAGS,
        model_name=facts.name if results else None,
        eval_results=results or None,
    )
    return f"---\n{data.to_yaml()}\n---\n"


def _joined(names: Sequence[str]) -> str:
    """Names in a text."""
    return " and ".join(map(_plain, names))


def _opening(run: Run, dim: int, facts: Facts) -> str:
    views, classes = run.config.model.view_names, len(run.labels)
    named = ", ".join(map(_plain, views))
    seen = f"pictures of {len(views)} views ({named})" if len(views) > 1 else "a picture"
    if facts.heads_only:
        columns = f"{dim} numbers each"
        several = len(facts.backbones) > 1
        parts = [
            f"{width} of {_plain(name)}{'' if feature == UNKNOWN_FEATURE else f', {feature}'}"
            if several
            else f"{width} of {feature}"
            for name, features in zip(facts.backbones, facts.features, strict=True)
            for feature, width in features
        ]
        if parts:
            columns += ": " + ", then ".join(parts)
        seen = f"embeddings of {seen} by {_joined(facts.backbones)} ({columns})"
    return (
        f"From {seen} of one place: a probability for each of {classes:,} classes, and a point (latitude, longitude). Made by geo_embed "
        f"{__version__} from the run {_plain(run.name)}.\n"
    )


def _use(run: Run, dim: int, facts: Facts) -> str:
    views = run.config.model.view_names
    arguments = (
        "embeddings=array"
        if facts.heads_only
        else "[" + ", ".join(json.dumps(f"{view}.jpg", ensure_ascii=False) for view in views) + "]"
    )
    forms = (
        f"`array` holds embeddings (places, {len(views)}, {dim}); `present=` (places, {len(views)}) says which views are there."
        if facts.heads_only
        else "A picture is a PIL image, a path, a file's bytes, or a uint8 array (height, width, 3); `None` where a view is missing. "
        "A list of such lists is many places."
    )
    if facts.heads_only and len(facts.backbones) > 1:
        forms += " In place of one array a dict of one for each, by the names in `predictor.blocks`."
    text = f"""## Use

```python
from geo_embed import GeoPredictor  # pip install geo-embed

answer = GeoPredictor.from_pretrained(".").predict({arguments})[0]
print(answer["states"][:3], answer["latitude"], answer["longitude"])
```

In place of `"."`: the directory of this file, or the repository's id on the hub. {forms}
"""
    if facts.checks is None:
        return text
    checks = facts.checks
    inputs = "; ".join(f"`{name}` {shape}" for name, shape in checks["inputs"].items())
    outputs = "; ".join(f"`{name}` {shape}" for name, shape in checks["outputs"].items())
    resized = ""
    if not facts.heads_only:
        resized = "Pictures must be resized and cropped before: `picture` in config.json says how. "
        if len(facts.backbones) > 1:
            resized = (
                "Pictures must be resized and cropped before, for each backbone by itself: `pixels_1` is for the first of `backbones` in "
                "config.json, whose `picture` says how, and so on. "
            )
    return f"""{text}
`{checks["file"]}` does the same in ONNX, without geo_embed. Inputs: {inputs}. Outputs: {outputs}. The order of the classes is that of
`states` in config.json. {resized}Run by ONNX Runtime
{checks["onnxruntime"]} beside torch on {checks["places"]} places ({checks["of"]}), the largest errors were
{checks["probability_error"]:.1e} in a probability and {checks["point_error_km"] * 1000:.2g} m in a point.
"""


def _scores(run: Run, summary: RunSummary, scores: Mapping[str, Any]) -> str:
    if summary.score is None or not summary.samples:
        return "## Scores\n\nNothing was held out: how good it is isn't known.\n"
    columns = {_validation(summary): summary.score_interval, **{}}
    of = {_validation(summary): scores}
    other = _other_split(run, summary)
    if other is not None:
        of[_validation(other[0])] = other[1]
        columns[_validation(other[0])] = other[0].score_interval
    lines = [f"| | {' | '.join(of)} |", f"|---|{'---|' * len(of)}"]
    lines.append(
        f"| score | {' | '.join(_score(split_scores, columns[name]) for name, split_scores in of.items())} |"
    )
    for label, key, form in (
        ("right class first", "top1", ".1%"),
        ("among the first five", "top5", ".1%"),
        ("median error (km)", "median_km", ",.0f"),
        ("mean error (km)", "mean_km", ",.0f"),
        ("calibration error (ECE)", "ece", ".3f"),
        ("places", "samples", ",d"),
    ):
        if scores.get(key) is not None:
            cells = (
                format(split_scores[key], form) if split_scores.get(key) is not None else "–"
                for split_scores in of.values()
            )
            lines.append(f"| {label} | {' | '.join(cells)} |")
    alone = (
        ""
        if other is not None
        else "\nOnly this split is known. "
        + (
            "A random one tells how good it is at places like those that it learnt from, next door to some of them; where it has seen "
            "nothing near by, it is worse.\n"
            if summary.validation["kind"] == "random"
            else "Its held-out places lie away from those that it learnt from; next door to them it is better.\n"
        )
    )
    return (
        "## Scores\n\nOn places that it held out. Score: 0.70 × top-5 credit + 0.30 × max(0, 1 − mean km / 5000), with its 95 % interval.\n\n"
        + "\n".join(lines)
        + f"\n{alone}"
    )


def _score(scores: Mapping[str, Any], interval: tuple[float | None, float | None]) -> str:
    low, high = interval
    return f"{scores['score']:.4f}" + ("" if low is None else f" ({low:.4f} to {high:.4f})")


def _validation(summary: RunSummary) -> str:
    kind = summary.validation
    return f"spatially grouped, {kind['group_km']:g} km" if kind["kind"] == "spatial" else "random split"


def _other_split(run: Run, summary: RunSummary) -> tuple[RunSummary, Mapping[str, Any]] | None:
    """A run beside this one, made alike of the same data, whose held-out places were chosen in the other way: the newest."""
    try:
        listed = list_runs(run.path.parent).runs
    except GeoError:
        return None
    for other in listed:
        alike = (other.kind, other.recipe, other.stores, other.data["sha256"]) == (
            *(summary.kind, summary.recipe, summary.stores, summary.data["sha256"]),
        )
        if alike and other.score is not None and other.validation["kind"] != summary.validation["kind"]:
            from geo_embed.runs.run import load_run

            return other, load_run(run.path.parent, other.path.name).read_metrics()
    return None


def _limits(summary: RunSummary, scores: Mapping[str, Any], facts: Facts) -> str:
    lines = ["## Limits\n"]
    marks = {int(km): share for km, share in (scores.get("within_km") or {}).items() if share is not None}
    half = min((km for km, share in marks.items() if share >= 0.5), default=None)
    if marks:
        fine = min(marks)
        lines.append(
            (
                f"- Finest granularity: {half:,} km. Of the marks that are measured, this is the smallest within which at least half of "
                f"the held-out places are found ({marks[half]:.0%}); half of them are off by more than {scores['median_km']:,.0f} km. "
                if half is not None
                else f"- Finest granularity: none. Not even within {max(marks):,} km are half of the held-out places found. "
            )
            + f"Within {fine:,} km it finds {marks[fine]:.1%}."
        )
    lines += [
        "- It knows the classes below and no others: a picture from anywhere else gets one of them, often with confidence.",
        "- It answers by what places look like: roads, plants, houses, light. Pictures of other cameras, seasons, heights or years are "
        "harder, and so is whatever is rare in the training data.",
        "- Probabilities are as good as the calibration error above says, for pictures like those held out."
        if scores.get("ece") is not None
        else "- How far its probabilities can be believed isn't known.",
    ]
    if facts.neighbours[0]:
        samples, size = facts.neighbours
        lines.append(
            f"- Points are refined among training samples: the export holds the places and features of {samples:,} of them ({size:,} bytes)."
        )
    return "\n".join(lines) + "\n"


def _purposes() -> str:
    return """## Intended use

Street-view pictures that were taken to show places: benchmarks and games of geolocation, checking coordinates of collections, research on
what makes places look alike.

## Out of scope

- Finding where a person is, lives or was from their private pictures, or helping others to: no consent, no use.
- Surveillance, law enforcement, immigration or asylum decisions, military targeting.
- Evidence: an answer is a guess, and wrong as often as the scores above say.
- Navigation, emergencies, and whatever else harms somebody when it is wrong.
"""


def _license(origins: Sequence[Origin]) -> str:
    lines = ["## Licence\n"]
    different = list(dict.fromkeys(origins))
    for origin in different:
        if origin.license == UNKNOWN:
            lines.append(
                f"Unknown: nothing says what the licence of the backbone, {_plain(origin.base_model)}, is. Whoever passes this export on, or uses "
                "it, has to find out first."
            )
        else:
            lines.append(
                f"{_plain(origin.license_name or origin.license)}, as the backbone's, {_plain(origin.base_model)} ({_plain(origin.said_by)})."
                + (f" <{origin.license_link}>" if origin.license_link else "")
            )
        if len(different) > 1:
            lines.append("")
    if len(different) > 1:
        least = strictest(different)
        lines.append(
            f"The export as a whole may be used and passed on as all of them allow; the strictest is that of {_plain(least.base_model)}."
        )
    if any(origin.forbids_commerce for origin in different):
        of = "their" if len(different) > 1 else "its"
        lines.append(
            f"**Not for commercial use.** That holds for the heads as well: they were fitted on {of} embeddings."
        )
    lines.append("The pictures that it learnt from have licences of their own.")
    return "\n".join(lines) + "\n"


def _data(run: Run, summary: RunSummary, facts: Facts) -> str:
    counts, _ = run.read_classes()
    kind, data = summary.validation, summary.data
    held = (
        f"each was held out once, in {kind['folds']} folds"
        if kind["folds"] > 1
        else f"{kind['val_split']:.0%} of them were held out"
    )
    drawn = (
        f"groups of places within {kind['group_km']:g} km, whole"
        if kind["kind"] == "spatial"
        else "drawn at random"
    )
    split = f"{held}: {drawn}, seed {kind['split_seed']}" if summary.samples else "none were held out"
    rows = "\n".join(
        f"| {_plain(name)} | {int(index)} | {int(count):,} |"
        for name, index, count in zip(run.labels.names, run.labels.state_idx, counts, strict=True)
    )
    table = f"| class | index | training samples |\n|---|---|---|\n{rows}\n"
    if len(run.labels) > _LISTED:
        table = f"<details><summary>{len(run.labels)} classes</summary>\n\n{table}\n</details>\n"
    total = f"{data['samples']:,} places" if data["samples"] else "places"
    taken = [
        _plain(name) + ("" if not features else f", its {' and '.join(feature for feature, _ in features)}")
        for name, features in zip(facts.backbones, facts.features, strict=True)
    ]
    origin = f"Backbone{'s' if len(taken) > 1 else ''}: {'; '.join(taken)}; {_recipe(summary)}."
    return f"""## Data

{total} of {len(run.labels)} classes; {split}. sha256 of the table: `{data["sha256"] or "unknown"}`. {origin}

{table}"""


def _recipe(summary: RunSummary) -> str:
    recipe = summary.recipe
    if summary.kind == "ensemble":
        return f"{len(recipe['members'])} runs, combined by {recipe['method']}"
    if "chosen" in recipe:
        heads = f"heads {', '.join(recipe['chosen'])}, chosen by a race"
    else:
        heads = f"head {recipe['head']}, fusion {recipe['fusion']}"
    return f"fine-tuned, {heads}" if summary.kind == "finetuned" else f"frozen, {heads}"


def _plain(text: str) -> str:
    """A name in a text or a cell of a table: no markup, no line's end."""
    return "".join(f"\\{c}" if c in r"\`*_{}[]<>|#~$&" else c for c in harmless(" ".join(text.split())))


def _files(facts: Facts) -> str:
    towers = [(f"{BACKBONE}/", "the image tower, a Hugging Face model directory")]
    if len(facts.backbones) > 1:
        towers = [
            (f"{place}/", f"the image tower of {_plain(name)}, a Hugging Face model directory")
            for place, name in zip(backbone_places(len(facts.backbones)), facts.backbones, strict=True)
        ]
    rows = [
        ("config.json", "views, classes, sizes"),
        (f"{RUN}/", "settings, heads, classes, centroids and their distances, scores"),
        *([] if facts.heads_only else towers),
    ]
    if facts.checks is not None:
        rows.append((HEADS_ONNX if facts.heads_only else MODEL_ONNX, "the same as ONNX"))
    table = "\n".join(f"| `{name}` | {what} |" for name, what in rows)
    return f"## Files\n\n| | |\n|---|---|\n{table}\n"
