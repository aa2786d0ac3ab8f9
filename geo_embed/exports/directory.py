"""An export on disk: what lies in its directory under which name, and a run's files in it without where they were made.

README.md        the model card
config.json      what this is: views, classes, sizes, the check of its ONNX file
run/             the run's settings, classes, heads and scores, as `load_run` takes them; of an ensemble its members, too
backbone/        the image tower, a Hugging Face model directory; of several backbone/1/, backbone/2/, …; left out of heads alone
model.onnx       pictures to answers; model.onnx.data beside it, where weights are beyond a gigabyte
heads.onnx       embeddings to answers, of heads alone
"""

import os
import re
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

from PIL.Image import Resampling
from pydantic import BaseModel, ConfigDict, Field

from geo_embed import __version__
from geo_embed.backbones.backbone import Backbone, save_backbone
from geo_embed.backbones.weights import find_backbone, hash_weights, read_weights
from geo_embed.config import Config
from geo_embed.data.images import Preprocessing
from geo_embed.errors import AbsentError, GeoError
from geo_embed.files import JSON_BYTES, file_sha256, parse_json, read_bytes, read_json, validated, write_json
from geo_embed.registry import CALIBRATIONS, FUSIONS, HEADS, REGISTRIES
from geo_embed.runs.backbone import Inputs, inputs_of, load_backbone_for, look_for
from geo_embed.runs.recipe import answering_runs, load_ensemble, read_recipe
from geo_embed.runs.run import Run, RunWriter, backbone_dir, load_run

CARD, CONFIG = "README.md", "config.json"
RUN, BACKBONE = "run", "backbone"
MODEL_ONNX, HEADS_ONNX = "model.onnx", "heads.onnx"
# Whatever else lies in a directory is somebody's, and is not replaced.
_OURS = {CARD, CONFIG, RUN, BACKBONE, MODEL_ONNX, HEADS_ONNX, f"{MODEL_ONNX}.data", f"{HEADS_ONNX}.data"}
# Of config.json; others can't be read. An export with several backbones has the second one, since earlier versions know one alone.
_FORMAT, _FORMAT_OF_SEVERAL = 1, 2
UNKNOWN_FEATURE = "embeddings"
_LIBRARY = "geo_embed"
_NO_EXPORT = "what lies there is no export of geo_embed"


class Described(BaseModel):
    """config.json of an export."""

    model_config = ConfigDict(extra="allow", frozen=True)

    library_name: Literal["geo_embed"]
    format: Literal[1, 2]
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


@dataclass(frozen=True)
class Stored:
    """A backbone of an export.

    Attributes:
        name: what the export calls it; two of the same model are told apart.
        directory: where it lies, from the export's own on; None where it is left out.
        weights_sha256: of its tensors as stored in the export; None where it is left out.
        preprocessing: what its pictures need; None where it is left out.
    """

    name: str
    directory: str | None = None
    weights_sha256: str | None = None
    preprocessing: Preprocessing | None = None


def backbone_places(count: int) -> list[str]:
    """Where so many backbones lie in an export, from its directory on, in the order of the embeddings' columns."""
    return [BACKBONE] if count == 1 else [f"{BACKBONE}/{k}" for k in range(1, count + 1)]


def names_of(base_models: Sequence[str]) -> list[str]:
    """What an export calls its backbones, told apart where several are of one model.

    >>> names_of(["a/b", "c", "a/b"])
    ['a/b', 'c', 'a/b (2)']
    """
    before = [base_models[:k].count(name) for k, name in enumerate(base_models)]
    return [f"{name} ({n + 1})" if n else name for name, n in zip(base_models, before, strict=True)]


def check_exportable(run: Run) -> Inputs:
    """What a run answers from. Raises GeoError for one that needs a plugin to answer: who has the export hasn't the plugin's code."""
    inputs = inputs_of(run)
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
    return inputs


def load_stored_backbone(run: Run, inputs: Inputs, number: int, name: str | None) -> Backbone:
    """One of a run's backbones on the CPU, its weights as they are stored.

    Args:
        run: any run.
        inputs: what it answers from.
        number: of the backbone, from 0.
        name: where it lies; default: in the run itself, else under the name that it had in training.

    Raises:
        GeoError: as `load_backbone_of`.
    """
    import torch

    sources = inputs.by_backbone[number]
    if sources[0]["weights_sha256"] is None:
        raise GeoError(
            "the run was fitted on imported embeddings: what made them isn't known here",
            where=run.path,
            hint=f"export its heads alone: geo export {run.name} --out DIR --heads-only",
        )
    of_it = [part for part in answering_runs(run) if [k for k, _ in inputs.places[part.path]] == [number]]
    bundled = (str(backbone_dir(part.path)) for part in of_it if backbone_dir(part.path).is_dir())
    name = name or next(bundled, None) or look_for(sources[0]["name"])
    kinds = {tensor.values.dtype for tensor in _stored(name)}
    dtype = kinds.pop() if len(kinds) == 1 else torch.float32
    kind = str(dtype).removeprefix("torch.")
    return load_backbone_for(run, sources, torch.device("cpu"), name, dtype=kind, trainable=True)


def _stored(name: str) -> list[Any]:
    return [*read_weights(find_backbone(name), copy=False).tensors.values()]


def write_backbone(directory: Path, backbone: Backbone, place: str, name: str) -> Stored:
    """Write one of an export's backbones to its place in the export's directory."""
    (directory / place).parent.mkdir(exist_ok=True)
    save_backbone(backbone, directory / place)
    # As stored now: a pickle's tensors have other names for their types.
    return Stored(name, place, hash_weights(directory / place), backbone.preprocessing)


def write_run(directory: Path, run: Run, inputs: Inputs, stored: Sequence[Stored]) -> None:
    """Write a run's files, and those of its members, into a new directory: what answering takes, and nothing of where they were made.

    Settings keep `model`, `training` and `finetune`; the provenance what was made when, by which versions, from data of which sha256.
    Left out are paths, command lines, the machine, and everything that speaks of single samples.
    """
    directory.mkdir(parents=True)
    writer = RunWriter(directory)
    counts, _ = run.read_classes()
    # 1. The backbones by the export's names, one for each of the run's own sources; an ensemble's are its first member's.
    numbers = [k for k, _ in inputs.places[answering_runs(run)[0].path]]
    by_source = [stored[k] for k in numbers]
    names = [backbone.name for backbone in dict.fromkeys(by_source)]
    renamed = {
        source["name"]: new.name
        for source, new in zip(answering_runs(run)[0].sources, by_source, strict=True)
    }
    # 2. Settings without paths.
    changes = {"backbone_name": names[0], "backbones": tuple(names) if len(names) > 1 else ()}
    model = run.config.model.model_copy(update=changes | {"fingerprint": None, "plugins": ()})
    kept = {
        "model": model,
        "training": run.config.training,
        "finetune": run.config.finetune,
    }
    settings = {group: _known(values.model_dump()) for group, values in kept.items()}
    config = Config.model_validate(settings)
    writer.write_description(config, run.labels, counts, run.prior, _provenance(run, by_source))
    # 3. Heads and scores. Where there are several sources, both call them by the backbones' names.
    _, recipe = read_recipe(run)
    writer.write_recipe(_known(_renamed(_without_names(recipe, names[0]), renamed)))
    writer.copy_results(run)
    if len(by_source) > 1:
        writer.write_metrics(_renamed(run.read_all_metrics(), renamed))
    ensemble = load_ensemble(run)
    for member in ensemble.members if ensemble else ():
        write_run(directory / run.members_dir.name / member.name, member, inputs, stored)


def _provenance(run: Run, by_source: Sequence[Stored]) -> dict[str, Any]:
    kept = {key: run.provenance.get(key) for key in ("created", "versions", "function", "seed")}
    data = {"sha256": (run.provenance.get("data") or {}).get("sha256")}
    store = _placeless(run.provenance["store"], by_source[0])
    sources = [
        _placeless(source, new) | {"name": new.name}
        for source, new in zip(run.provenance.get("sources") or (), by_source, strict=False)
    ]
    return (
        kept
        | ({"data": data} if data["sha256"] else {})
        | {"store": store}
        | ({"sources": sources} if sources else {})
    )


def _placeless(store: Mapping[str, Any], new: Stored) -> dict[str, Any]:
    weights = {} if new.weights_sha256 is None else {"weights_sha256": new.weights_sha256}
    return {key: value for key, value in store.items() if key != "path"} | {"backbone": new.name} | weights


def _without_names(recipe: Any, backbone: str) -> Any:
    """A recipe whose heads name this backbone, and no others."""
    if isinstance(recipe, dict):
        named = {"backbone_name": backbone, "backbones": []}
        return {key: named.get(key, _without_names(value, backbone)) for key, value in recipe.items()}
    return [_without_names(value, backbone) for value in recipe] if isinstance(recipe, list) else recipe


def _renamed(described: Any, names: Mapping[str, str]) -> Any:
    """A recipe or scores in which sources that are called by a path have other names, in keys and texts."""
    paths = sorted((name for name in names if os.sep in name), key=len, reverse=True)
    if not paths:
        return described
    pattern = re.compile("|".join(map(re.escape, paths)))

    def rename(value: Any) -> Any:
        if isinstance(value, str):
            return pattern.sub(lambda match: names[match[0]], value)
        if isinstance(value, dict):
            return {rename(key): rename(nested) for key, nested in value.items()}
        return [rename(nested) for nested in value] if isinstance(value, list) else value

    return rename(described)


def _known(described: Any) -> Any:
    """Settings or a recipe with the default in place of a plugin's loss, or of what else of a plugin no answer needs: who has the export
    couldn't load a run that names it.
    """
    if isinstance(described, list):
        return [_known(nested) for nested in described]
    if not isinstance(described, dict):
        return described
    known = {key: _known(nested) for key, nested in described.items()}
    for registry in REGISTRIES:
        group, key = registry.setting.split(".")
        if isinstance(known.get(key), str) and known[key] not in registry.built_in:
            known[key] = getattr(getattr(Config(), group), key)
    return known


def write_config(
    directory: Path, run: Run, inputs: Inputs, stored: Sequence[Stored], checks: Mapping[str, Any] | None
) -> None:
    """Write config.json."""
    features = features_of(run, inputs)
    several = len(stored) > 1
    with_pictures = stored[0].directory is not None
    of_one = {"features": dict(features[0])} if not several and features[0] else {}
    of_several = [
        {
            "name": backbone.name,
            "directory": backbone.directory,
            # What tells two of one model apart.
            "weights_sha256": backbone.weights_sha256 or sources[0]["weights_sha256"],
            "picture": _picture(backbone),
            "features": dict(widths),
        }
        for backbone, widths, sources in zip(stored, features, inputs.by_backbone, strict=True)
    ]
    write_json(
        directory / CONFIG,
        {
            "library_name": _LIBRARY,
            "format": _FORMAT_OF_SEVERAL if several and with_pictures else _FORMAT,
            "geo_embed": __version__,
            "run": run.name,
            "views": list(run.config.model.view_names),
            "states": list(run.labels.names),
            "state_idx": run.labels.state_idx.tolist(),
            "dim": inputs.dim,
            "heads_only": not with_pictures,
            "picture": None if several else _picture(stored[0]),
            **of_one,
            **({"backbones": of_several} if several else {}),
            "onnx": checks,
            "sha256": {
                name: file_sha256(directory / name)
                for name in files_of(directory)
                if name.startswith(f"{RUN}/")
            },
        },
    )


def _picture(stored: Stored) -> dict[str, Any] | None:
    """How a backbone's pictures are resized and cropped."""
    spec = stored.preprocessing
    if spec is None:
        return None
    return {
        "height": spec.height,
        "width": spec.width,
        "shortest_edge": spec.shortest_edge,
        "longest_edge": spec.longest_edge,
        "resample": Resampling(spec.resample).name.lower(),
    }


def features_of(run: Run, inputs: Inputs) -> list[list[tuple[str, int]]]:
    """Of each of its backbones the features that a run takes, and their widths, in the order of its embeddings' columns; of a single
    backbone none where it is its own one alone.
    """
    default_feature = run.config.model.feature
    features = [
        # Which feature it is of an import, or of arrays, isn't known.
        [
            (
                source.get("feature") or (default_feature if source["weights_sha256"] else UNKNOWN_FEATURE),
                int(source["dim"]),
            )
            for source in sources
        ]
        for sources in inputs.by_backbone
    ]
    is_own = [name for name, _ in features[0]] in ([default_feature], [UNKNOWN_FEATURE])
    return [[]] if len(features) == 1 and is_own else features


def files_of(directory: Path) -> dict[str, int]:
    """The files of an export, and their bytes."""
    paths = (path for path in sorted(directory.rglob("*")) if path.is_file())
    return {path.relative_to(directory).as_posix(): path.stat().st_size for path in paths}


def is_ours(name: str) -> bool:
    """Whether a file of this name, within an export, is one of its own."""
    return name.split("/")[0] in _OURS
