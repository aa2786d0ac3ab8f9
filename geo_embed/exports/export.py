"""`geo export`: a run and its backbone to one directory that predicts by itself, with a card, and on request as ONNX."""

import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed import hub
from geo_embed.cache.join import Source, read_joined
from geo_embed.cache.store import read_ids
from geo_embed.config import Config
from geo_embed.console import say
from geo_embed.data import images
from geo_embed.data.images import Preprocessing
from geo_embed.errors import GeoError
from geo_embed.exports.card import Facts, write_card
from geo_embed.exports.directory import (
    CARD,
    CONFIG,
    HEADS_ONNX,
    MODEL_ONNX,
    RUN,
    Stored,
    backbone_places,
    check_directory,
    check_exportable,
    check_is_export,
    features_of,
    files_of,
    is_ours,
    load_stored_backbone,
    names_of,
    write_backbone,
    write_config,
    write_run,
)
from geo_embed.exports.origin import find_origins, licenses_of, warn_of_licenses
from geo_embed.files import read_tensor_header, replacing_directory
from geo_embed.geography import haversine_km
from geo_embed.runs.backbone import Inputs, named_for
from geo_embed.runs.recipe import answering_runs
from geo_embed.runs.run import Run, check_not_replaced, on_this_machine
from geo_embed.runs.samples import load_samples_of
from geo_embed.runs.store import find_source_of

if TYPE_CHECKING:
    from geo_embed.exports.predictor import GeoPredictor

# Places by which an ONNX file is compared with torch: enough for views to be missing in every way.
_PLACES, _ROWS = 6, 64
# Of those that are looked through for pictures that can be read.
_LOOKED_AT = 24
# Pictures (n, V, 3, H, W) for each backbone, or embeddings (n, V, D), of places, and which views are there (n, V).
_Places = tuple[list[NDArray[Any]], NDArray[np.bool_]]


@dataclass(frozen=True)
class Exported:
    """What was exported.

    Attributes:
        run: its name.
        directory: of the export.
        files: its files, and their bytes.
        bytes: of all of them.
        license, base_model: of the backbone; of several with commas between them.
        neighbours: `samples` of the training set that it holds for refining points, and their `bytes`.
        onnx: the ONNX file and how far it is from torch; None without.
        pushed: the repository's address on the hub; None without.
    """

    run: str
    directory: Path
    files: dict[str, int]
    bytes: int
    license: str
    base_model: str
    neighbours: dict[str, int]
    onnx: dict[str, Any] | None
    pushed: str | None


def export(
    config: Config,
    run: Run,
    out: Path,
    *,
    onnx: bool = False,
    heads_only: bool = False,
    push: str | None = None,
    backbone: str | Sequence[str] | None = None,
) -> Exported:
    """Export a run as a directory that `GeoPredictor.from_pretrained` reads; it appears whole.

    Args:
        config: where pictures lie by which an ONNX file is checked.
        run: any run.
        out: the directory: a new one, or of an export, which is replaced.
        onnx: write an ONNX file as well, and compare what ONNX Runtime makes of it with torch.
        heads_only: leave the backbone out; the export then takes embeddings.
        push: a repository on the hub, USER/REPO, that gets the files.
        backbone: where the run's backbone lies, or several do, if not under the name that it had in training.

    Raises:
        GeoError: something else lies at `out`; the run is damaged, needs a plugin, or its backbone isn't to be had; a step of it has no
            form in ONNX; the disk is full; or the hub refuses.
        UnreachableError: the hub doesn't answer; the directory is there, and the same command again pushes it.
    """
    # Whatever can be refused cheaply is, before anything is loaded.
    check_directory(out)
    if Path(os.path.realpath(out)).is_relative_to(run.path.resolve()):
        raise GeoError("this lies in the run itself", where=out, hint="name another directory: --out DIR")
    inputs = check_exportable(run)
    named = [backbone] if isinstance(backbone, str) else list(backbone or ())
    if onnx:
        from geo_embed.exports.onnx import check_onnx

        check_onnx()
    if push is not None:
        push = hub.repository_of(push)
        hub.check_can_push(push)
        _check_repository(push)

    where = named_for(run, inputs.by_backbone, named)
    origins = find_origins(run, inputs, where)
    names = names_of([origin.base_model for origin in origins])
    neighbours = count_neighbours(run)
    checks = None
    # A link to a directory stays, and says where the export is wanted.
    with replacing_directory(Path(os.path.realpath(out)) if out.is_dir() else out) as directory:
        stored = [Stored(name) for name in names]
        for k, place in enumerate([] if heads_only else backbone_places(len(names))):
            # One after the other: each may be large.
            tower = load_stored_backbone(run, inputs, k, where[k])
            stored[k] = write_backbone(directory, tower, place, names[k])
            del tower
            for text in origins[k].texts:
                shutil.copyfile(text, directory / place / text.name)
        write_run(directory / RUN, run, inputs, stored)
        write_config(directory, run, inputs, stored, None)
        # What was written is read again: its hashes and shapes are looked at here, and not first where it is used.
        from geo_embed.exports.predictor import GeoPredictor

        predictor = GeoPredictor(directory, device="cpu", dtype="float32")
        if onnx:
            checks = _write_onnx(config, run, inputs, predictor, directory)
            write_config(directory, run, inputs, stored, checks)
        name = out.resolve().name
        facts = Facts(origins, names, name, heads_only, neighbours, checks, features_of(run, inputs))
        write_card(directory / CARD, run, inputs.dim, facts)
        check_not_replaced(run)
    warn_of_licenses(origins)

    pushed = None
    if push is not None:
        paths = {name: out / name for name in files_of(out)}
        pushed = hub.push_files(push, paths, f"Export of {run.name} by geo_embed", replaces=is_ours)
    files = files_of(out)
    return Exported(
        run.name,
        out,
        files,
        sum(files.values()),
        ", ".join(licenses_of(origins)),
        ", ".join(dict.fromkeys(origin.base_model for origin in origins)),
        dict(zip(("samples", "bytes"), neighbours, strict=True)),
        checks,
        pushed,
    )


def _check_repository(push: str) -> None:
    """Raise GeoError where another model lies in a repository: as of a directory, an export takes the place of nothing else."""
    names = hub.files_there(push, maybe_new=True)
    # A card may have been written where the repository was made.
    replaced = [name for name in names if is_ours(name) and name != CARD]
    if replaced:
        config_bytes = hub.read_file(push, CONFIG) if CONFIG in names else b""
        check_is_export(
            config_bytes, f"{push}/{replaced[0]}", "name another repository: one that isn't there is made"
        )


def count_neighbours(run: Run) -> tuple[int, int]:
    """Training samples that a run's heads look among, of all its parts, and the bytes that these take."""
    samples = size = 0
    for part in answering_runs(run):
        for name, entry in read_tensor_header(part.heads_path).items():
            if ".gallery_" in name:
                size += entry.stop - entry.start
                samples += entry.shape[0] if name.endswith(".gallery_cells") else 0
    return samples, size


def _write_onnx(
    config: Config, run: Run, inputs: Inputs, predictor: "GeoPredictor", directory: Path
) -> dict[str, Any]:
    """Write the predictor as ONNX, and run it beside torch: what `config.json` says of it."""
    import onnxruntime
    import torch

    from geo_embed.exports.onnx import OUTPUTS, run_onnx, write_onnx

    heads_only = predictor.described.heads_only
    file = HEADS_ONNX if heads_only else MODEL_ONNX
    example_inputs, present, of = _inputs(config, run, inputs, predictor)
    names = ["embeddings" if heads_only else "pixels"]
    if len(example_inputs) > 1:
        names = [f"pixels_{k}" for k in range(1, len(example_inputs) + 1)]
    arrays = dict(zip((*names, "present"), (*example_inputs, present), strict=True))
    tensors = [torch.from_numpy(array) for array in example_inputs]
    pair, seen = [tensor[:2] for tensor in tensors], torch.from_numpy(present)
    say(f"write {file}")
    network_inputs = [pair[0] if len(pair) == 1 else pair, seen[:2]]
    write_onnx(predictor.network, network_inputs, [*arrays], directory / file)
    states, points = run_onnx(directory / file, arrays)
    with torch.inference_mode():
        answers = predictor(tensors[0] if len(tensors) == 1 else tensors, seen)
    wanted_states, wanted_points = (part.numpy() for part in answers)
    away = haversine_km(wanted_points[:, 0], wanted_points[:, 1], points[:, 0], points[:, 1])
    checks = {
        "file": file,
        "inputs": {
            name: f"{array.dtype} (B{''.join(f', {side}' for side in array.shape[1:])})"
            for name, array in arrays.items()
        },
        "outputs": dict(
            zip(OUTPUTS, (f"float32 (B, {states.shape[1]})", "float64 (B, 2), degrees"), strict=True)
        ),
        "places": len(present),
        "of": of,
        "probability_error": float(np.abs(states - wanted_states).max()),
        "point_error_km": float(away.max()),
        "onnxruntime": onnxruntime.__version__,
    }
    if not (np.isfinite(states).all() and np.isfinite(points).all()):
        raise GeoError("ONNX Runtime's answers are NaN or infinite", where=file, hint="do without --onnx")
    return checks


def _inputs(
    config: Config, run: Run, inputs: Inputs, predictor: "GeoPredictor"
) -> tuple[list[NDArray[Any]], NDArray[np.bool_], str]:
    """Pictures, for each backbone, or embeddings of held-out places, where they are at hand, and which of them are there; else drawn
    ones. And which of it.

    Beside those that are missing anyway some views are taken away, and of the last place all.
    """
    runs = [on_this_machine(part, config.paths, "cpu") for part in answering_runs(run)]
    views, specs = len(predictor.views), predictor.preprocessings
    places = _pictures(runs[0], specs) if specs else _cached(runs, inputs)
    of = "held out"
    if places is None:
        of = "drawn at random: there were none of the data at hand"
        rng = np.random.default_rng(0)
        drawn: list[NDArray[Any]] = [
            rng.integers(0, 256, (_PLACES, views, 3, spec.height, spec.width), dtype=np.uint8)
            for spec in specs
        ]
        drawn = drawn or [rng.normal(size=(_ROWS, views, inputs.dim)).astype(np.float32)]
        places = drawn, np.ones(drawn[0].shape[:2], dtype=bool)
    example_inputs, present = places
    present[len(present) // 2 :, : views // 2] = False
    present[-1] = False
    return example_inputs, present, of


def _held_out(run: Run) -> list[str]:
    split = run.read_split()
    return [str(sample) for sample in split["sample_id"][split["part"] == "val"].unique()[:_ROWS]]


def _cached(runs: Sequence[Run], inputs: Inputs) -> _Places | None:
    """Embeddings (n, V, D) of held-out samples from the stores of a run, by those that answer, and which are there; None where they aren't
    here.
    """
    by_place: dict[tuple[int, int], Source] = {}
    try:
        for run in runs:
            for place, source in zip(inputs.places[run.path], run.sources, strict=True):
                if place not in by_place:
                    by_place[place] = find_source_of(run, source, "train")
        sources = [by_place[place] for place in sorted(by_place)]
        ids = read_ids(sources[0].store)
        joined = read_joined(sources, ids[np.isin(ids.astype(str), _held_out(runs[0]))])
    except GeoError:
        return None
    return ([joined.values.astype(np.float32)], joined.present.copy()) if len(joined.values) > 1 else None


def _pictures(run: Run, specs: Sequence[Preprocessing]) -> _Places | None:
    """Pictures (n, V, 3, H, W) of held-out samples as each backbone wants them, and which are there; None where none can be read."""
    try:
        samples = load_samples_of(run, "train")
        wanted = set(_held_out(run)[:_LOOKED_AT])
    except GeoError:
        return None
    views = len(samples.view_names)
    pixels = [np.zeros((_PLACES, views, 3, spec.height, spec.width), dtype=np.uint8) for spec in specs]
    present = np.zeros((_PLACES, views), dtype=bool)
    places = 0
    for row in np.flatnonzero([str(sample) in wanted for sample in samples.sample_id]):
        for view in range(views):
            try:
                picture = images.decode(samples.pictures.read(samples.images[int(row), view]))
                for block, spec in zip(pixels, specs, strict=True):
                    block[places, view] = images.resize(picture, spec)
            # Absent, damaged, or no picture: the others do.
            except (OSError, GeoError, images.UnreadableImage):
                present[places, view] = False
            else:
                present[places, view] = True
        places += bool(present[places].any())
        if places == _PLACES:
            break
    return ([block[:places] for block in pixels], present[:places]) if places > 1 else None
