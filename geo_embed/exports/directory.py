"""An export on disk: what lies in its directory under which name, and a run's files in it without where they were made.

README.md        the model card
config.json      what this is: views, classes, sizes, the check of its ONNX file
run/             the run's settings, classes, heads and scores, as `load_run` takes them; of an ensemble its members, too
backbone/        the image tower, a Hugging Face model directory; left out of heads alone
model.onnx       pictures to answers; model.onnx.data beside it, where weights are beyond a gigabyte
heads.onnx       embeddings to answers, of heads alone
"""

import os
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL.Image import Resampling
from pydantic import BaseModel, ConfigDict, Field

from geo_embed import __version__
from geo_embed.backbones.backbone import Backbone, save_backbone
from geo_embed.backbones.weights import find_backbone, hash_weights, read_weights
from geo_embed.config import Config
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import JSON_BYTES, file_sha256, parse_json, read_bytes, read_json, validated, write_json
from geo_embed.registry import CALIBRATIONS, FUSIONS, HEADS, REGISTRIES
from geo_embed.runs.backbone import check_one_backbone, load_backbone_of, sources_by_backbone
from geo_embed.runs.recipe import answering_runs, load_ensemble, read_recipe
from geo_embed.runs.run import Run, RunWriter, backbone_dir, load_run

CARD, CONFIG = "README.md", "config.json"
RUN, BACKBONE = "run", "backbone"
MODEL_ONNX, HEADS_ONNX = "model.onnx", "heads.onnx"
# Whatever else lies in a directory is somebody's, and is not replaced.
_OURS = {CARD, CONFIG, RUN, BACKBONE, MODEL_ONNX, HEADS_ONNX, f"{MODEL_ONNX}.data", f"{HEADS_ONNX}.data"}
# Of config.json; another one can't be read.
_FORMAT = 1
_LIBRARY = "geo_embed"
_NO_EXPORT = "what lies there is no export of geo_embed"


class Described(BaseModel):
    """config.json of an export."""

    model_config = ConfigDict(extra="allow", frozen=True)

    library_name: Literal["geo_embed"]
    format: Literal[1]
    run: str
    views: list[str] = Field(min_length=1)
    dim: int
    heads_only: bool
    onnx: dict[str, Any] | None = None
    sha256: dict[Annotated[str, Field(pattern="^run/", max_length=1000)], str] = Field(min_length=1)


def check_directory(directory: Path) -> None:
    """Raise GeoError where something lies there that an export may not take the place of, or somebody stands in it. Cheap: call it before
    any work is done.
    """
    hint = "name a directory that isn't there yet: --out DIR"
    if Path.cwd().is_relative_to(os.path.realpath(directory)):
        raise GeoError(
            "this is the working directory, or one that it lies in: a new one would take its place",
            where=directory,
            hint=hint,
        )
    if not os.path.lexists(directory):
        return
    try:
        entries = {path.name for path in directory.iterdir()}
    except NotADirectoryError:
        raise GeoError(
            "this is a file, where a directory is to be made", where=directory, hint=hint
        ) from None
    except OSError as error:
        raise GeoError(f"can't read: {error.strerror}", where=directory, hint=hint) from error
    others = sorted(entries - _OURS)
    if others:
        raise GeoError(f"it holds {others[0]}, which is no part of an export", where=directory, hint=hint)
    if entries:
        try:
            check_is_export(read_bytes(directory / CONFIG, limit=JSON_BYTES), directory, hint)
        except AbsentError as error:
            raise GeoError(_NO_EXPORT, where=directory, hint=hint) from error


def check_is_export(content: bytes, where: str | Path, hint: str) -> None:
    """Raise GeoError where the content of a config.json isn't an export's."""
    try:
        validated(Described, parse_json(content, where), where)
    except GeoError as error:
        raise GeoError(_NO_EXPORT, where=where, hint=hint) from error


def read_export(directory: Path) -> tuple[Described, Run]:
    """An export's description and its run. Raises GeoError where it is none, is damaged, or of a version that this one can't read."""
    described = describe(directory)
    # The backbone's tensors are compared when they are loaded.
    for name, digest in described.sha256.items():
        path = directory / name
        is_same = False
        # A name can be longer than any file's.
        with suppress(OSError):
            is_same = path.is_file() and file_sha256(path) == digest
        if not is_same:
            raise GeoError(
                "this file of the export is gone or isn't the one that was written",
                where=path,
                hint="copy or download the export again, or make it anew: geo export RUN --out DIR",
            )
    return described, load_run(directory, RUN)


def describe(directory: Path) -> Described:
    """An export's config.json. Raises GeoError where it is none, or of a version that this one can't read."""
    try:
        return read_json(directory / CONFIG, Described)
    except GeoError as error:
        raise GeoError(
            f"this is no export that can be read here: {error.what}",
            where=error.where,
            hint="make one with: geo export RUN --out DIR; one of a later version needs: pip install -U geo-embed",
        ) from error


def check_exportable(run: Run) -> None:
    """Raise GeoError for a run of several backbones, or one that needs a plugin to answer: who has the export hasn't the plugin's code."""
    check_one_backbone(
        run, f"an export has one backbone, and {run.name} was fitted on", sources_by_backbone(run)
    )
    for part in answering_runs(run):
        recipe, described = read_recipe(part)
        sets = [
            heads["model"]
            for entry in described["parts"]
            for heads in (entry["best"]["members"] if "best" in entry else [entry["heads"]])
        ]
        named = [(HEADS, model.get("head")) for model in sets]
        named += [(FUSIONS, model.get("fusion") or "average") for model in sets]
        for registry, name in named:
            if name not in registry.built_in:
                raise GeoError(
                    f"the {registry.what} {name!r:.80} is a plugin's, whose code an export doesn't hold",
                    where=part.path,
                    hint="only runs of built-in heads and fusions can be exported",
                )
        kind = None if recipe.calibration is None else recipe.calibration.kind
        if kind not in (None, "given") and kind not in CALIBRATIONS.built_in:
            raise GeoError(
                f"the calibration {kind!r:.80} is a plugin's, whose code an export doesn't hold",
                where=part.path,
                hint=f"calibrate it anew: geo calibrate {run.name} --kind temperature",
            )


def load_stored_backbone(run: Run, name: str | None) -> Backbone:
    """A run's backbone on the CPU, its weights as they are stored.

    Args:
        run: any run.
        name: where it lies; default: in the run itself, else under the name that it had in training.

    Raises:
        GeoError: as `load_backbone_of`.
    """
    import torch

    if not _is_known(run):
        raise GeoError(
            "the run was fitted on imported embeddings: what made them isn't known here",
            where=run.path,
            hint=f"export its heads alone: geo export {run.name} --out DIR --heads-only",
        )
    name = name or next(
        (str(backbone_dir(part.path)) for part in answering_runs(run) if backbone_dir(part.path).is_dir()),
        answering_runs(run)[0].config.model.backbone_name,
    )
    kinds = {tensor.values.dtype for tensor in _stored(name)}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    return load_backbone_of(
        run, torch.device("cpu"), name, dtype=str(dtype).removeprefix("torch."), trainable=True
    )


def _is_known(run: Run) -> bool:
    """Whether the backbone is known: that of an import isn't."""
    return all(part.provenance["store"]["weights_sha256"] is not None for part in answering_runs(run))


def _stored(name: str) -> list[Any]:
    return [*read_weights(find_backbone(name), copy=False).tensors.values()]


def write_run(directory: Path, run: Run, backbone: Backbone | None, base_model: str) -> None:
    """Write a run's files, and the backbone's, into an empty directory: what answering takes, and nothing of where they were made.

    Settings keep `model`, `training` and `finetune`; the provenance what was made when, by which versions, from data of which sha256.
    Left out are paths, command lines, the machine, and everything that speaks of single samples.
    """
    changes: dict[str, Any] = {"backbone": base_model}
    if backbone is not None:
        save_backbone(backbone, directory / BACKBONE)
        # As stored now: a pickle's tensors have other names for their types.
        changes["weights_sha256"] = hash_weights(directory / BACKBONE)
    _write_run(directory / RUN, run, changes)


def _write_run(directory: Path, run: Run, changes: Mapping[str, Any]) -> None:
    directory.mkdir(parents=True)
    writer = RunWriter(directory)
    counts, _ = run.read_classes()
    name = str(changes["backbone"])
    model = run.config.model.with_backbone(name).model_copy(update={"fingerprint": None, "plugins": ()})
    kept = {
        "model": model,
        "training": run.config.training,
        "finetune": run.config.finetune,
    }
    settings = {group: _known(values.model_dump()) for group, values in kept.items()}
    config = Config.model_validate(settings)
    writer.write_description(config, run.labels, counts, run.prior, _provenance(run, changes))
    _, recipe = read_recipe(run)
    writer.write_recipe(_known(_renamed(recipe, name)))
    writer.copy_results(run)
    ensemble = load_ensemble(run)
    for member in ensemble.members if ensemble else ():
        _write_run(directory / run.members_dir.name / member.name, member, changes)


def _provenance(run: Run, changes: Mapping[str, Any]) -> dict[str, Any]:
    kept = {key: run.provenance.get(key) for key in ("created", "versions", "function", "seed")}
    data = {"sha256": (run.provenance.get("data") or {}).get("sha256")}
    store = _placeless(run.provenance["store"]) | dict(changes)
    # Several features of the one backbone.
    sources = [
        _placeless(source) | dict(changes) | {"name": changes["backbone"]}
        for source in run.provenance.get("sources") or ()
    ]
    return (
        kept
        | ({"data": data} if data["sha256"] else {})
        | {"store": store}
        | ({"sources": sources} if sources else {})
    )


def _placeless(store: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in store.items() if key != "path"}


def _renamed(recipe: Any, backbone: str) -> Any:
    """A recipe with another name for the backbone, wherever it stands."""
    if isinstance(recipe, dict):
        named = {"backbone_name": backbone, "backbones": []}
        return {key: named.get(key, _renamed(value, backbone)) for key, value in recipe.items()}
    return [_renamed(value, backbone) for value in recipe] if isinstance(recipe, list) else recipe


def _known(described: Any) -> Any:
    """Settings or a recipe with the default in place of a plugin's loss, or of what else of a plugin no answer needs: who has the export
    couldn't load a run that names it.
    """
    if isinstance(described, list):
        return [_known(each) for each in described]
    if not isinstance(described, dict):
        return described
    known = {key: _known(each) for key, each in described.items()}
    for registry in REGISTRIES:
        group, key = registry.setting.split(".")
        if isinstance(known.get(key), str) and known[key] not in registry.built_in:
            known[key] = getattr(getattr(Config(), group), key)
    return known


def write_config(
    directory: Path, run: Run, backbone: Backbone | None, checks: Mapping[str, Any] | None
) -> None:
    """Write config.json."""
    spec = None if backbone is None else backbone.preprocessing
    write_json(
        directory / CONFIG,
        {
            "library_name": _LIBRARY,
            "format": _FORMAT,
            "geo_embed": __version__,
            "run": run.name,
            "views": list(run.config.model.view_names),
            "states": list(run.labels.names),
            "state_idx": run.labels.state_idx.tolist(),
            "dim": run.dim,
            "heads_only": backbone is None,
            "picture": None
            if spec is None
            else {
                "height": spec.height,
                "width": spec.width,
                "shortest_edge": spec.shortest_edge,
                "longest_edge": spec.longest_edge,
                "resample": Resampling(spec.resample).name.lower(),
            },
            **({"features": dict(features)} if (features := further_features(run)) else {}),
            "onnx": checks,
            "sha256": {
                name: file_sha256(directory / name)
                for name in files_of(directory)
                if name.startswith(f"{RUN}/")
            },
        },
    )


def further_features(run: Run) -> list[tuple[str, int]]:
    """The features of its backbone that a run takes, and their widths, in the order of its embeddings' columns; none where it is the
    backbone's own one alone.
    """
    part = answering_runs(run)[0]
    own = part.config.model.feature
    features = [(source.get("feature") or own, int(source["dim"])) for source in part.sources]
    return [] if features == [(own, part.dim)] else features


def files_of(directory: Path) -> dict[str, int]:
    """The files of an export, and their bytes."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}


def is_ours(name: str) -> bool:
    """Whether a file of this name, within an export, is one of its own."""
    return name.split("/")[0] in _OURS
