"""What a run answers with, on disk: its heads, or the members of an ensemble."""

from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray
from pydantic import ValidationError

from geo_embed.config import EnsembleMethod, EnsemblePoint
from geo_embed.errors import GeoError
from geo_embed.files import first_fault, open_tensors, read_json, read_tensor_header, validated
from geo_embed.runs.run import Run, is_run, load_run
from geo_embed.runs.schema import Recipe

if TYPE_CHECKING:
    from geo_embed.heads.calibration import Calibration
    from geo_embed.heads.predictor import Panel


@dataclass(frozen=True)
class Ensemble:
    """What makes a run an ensemble.

    Attributes:
        method: how its members' answers are combined.
        weights: (M,) of the members, ≥ 0, sum 1.
        members: M runs.
        point: what the point is of the members' points.
        calibration: of the combined probabilities, or None.
    """

    method: EnsembleMethod
    weights: NDArray[np.float64]
    members: tuple[Run, ...]
    point: EnsemblePoint
    calibration: "Calibration | None" = None


# Gives what makes a run an ensemble, which whoever answers more than once keeps.
EnsembleOf = Callable[[Run], Ensemble | None]


def load_ensemble(run: Run) -> Ensemble | None:
    """An ensemble's members; None for a run with heads of its own. Raises GeoError where it is damaged."""
    recipe, _ = read_recipe(run)
    described = recipe.ensemble
    if described is None:
        return None
    members = []
    for name in described.members:
        path = run.members_dir / name
        if not is_run(path):
            raise GeoError("the ensemble lacks this member", where=path, hint="make it again: geo ensemble")
        # A link can lead back to the ensemble, which would be its own member without end.
        if path.resolve() != run.path.resolve() / path.relative_to(run.path):
            raise GeoError(
                "this member is a link, where an ensemble has copies",
                where=path,
                hint="make it again: geo ensemble",
            )
        members.append(load_run(run.members_dir, name))
    weights = np.array(described.weights, dtype=np.float64)
    return Ensemble(described.method, weights, tuple(members), described.point, _calibration_of(run, recipe))


def _calibration_of(run: Run, recipe: Recipe) -> "Calibration | None":
    """An ensemble's calibration. Raises GeoError where it isn't one of its classes."""
    if recipe.calibration is None:
        return None
    from geo_embed.heads.calibration import Calibration

    fitted = recipe.calibration
    try:
        if len(fitted.scale) != len(run.labels):
            raise ValueError(f"a calibration of {len(fitted.scale)} classes, of {len(run.labels)}")
        return Calibration(fitted.kind, tuple(fitted.scale), tuple(fitted.offset))
    except ValueError as error:
        raise GeoError(
            f"the ensemble's calibration can't be used: {error}",
            where=run.recipe_path,
            hint="make it again: geo ensemble",
        ) from error


def answering_runs(run: Run, ensemble_of: EnsembleOf = load_ensemble) -> list[Run]:
    """The runs with heads that a run answers by: itself, or an ensemble's members, and theirs. Raises GeoError as `load_ensemble`."""
    ensemble = ensemble_of(run)
    if ensemble is None:
        return [run]
    return [answering for member in ensemble.members for answering in answering_runs(member, ensemble_of)]


def load_heads(run: Run) -> "Panel":
    """A run's heads, on the CPU, in eval mode. Raises GeoError where a file is absent or doesn't fit."""
    import torch

    from geo_embed.heads.predictor import build_panel

    checked, described = read_recipe(run)
    if checked.ensemble is not None:
        raise GeoError(
            "an ensemble has no heads of its own",
            where=run.path,
            hint="name one of the runs it is made of",
        )

    def build() -> "Panel":
        return build_panel(described, run.dim, len(run.config.model.view_names), len(run.labels))

    path = run.heads_path
    try:
        header = read_tensor_header(path)
        path = run.recipe_path
        if checked.calibration is not None and len(checked.calibration.scale) != len(run.labels):
            raise ValueError(
                f"a calibration of {len(checked.calibration.scale)} classes, of {len(run.labels)}"
            )
        sets = sum(1 if part.best is None else len(part.best.members) for part in checked.parts)
        if sets > len(header):
            raise ValueError(f"{sets:,} sets of heads, where the file holds {len(header):,} tensors")
        # 1. On the meta device heads have shapes and take no memory: those in the file must be the same. A plugin's that can't be
        #    built there are the word of whoever named the plugin.
        with suppress(NotImplementedError), torch.device("meta"):
            wanted = {name: tuple(tensor.shape) for name, tensor in build().state_dict().items()}
            path = run.heads_path
            _check_shapes(wanted, {name: entry.shape for name, entry in header.items()})
        # 2. They are as large as the file is.
        heads, path = build(), run.heads_path
        with open_tensors(path) as opened:
            tensors = {name: opened.get_tensor(name) for name in header}  # type: ignore[no-untyped-call]
        wild = [name for name, tensor in tensors.items() if not tensor.isfinite().all()]
        if wild:
            raise ValueError(f"{wild[0]} holds NaN or infinity")
        heads.load_state_dict(tensors)
    # What a description can be wrong in is as manifold as heads are, a plugin's among them.
    except Exception as error:
        why = error.what if isinstance(error, GeoError) else str(error).partition("\n")[0]
        if isinstance(error, ValidationError):
            why = first_fault(error)
        raise GeoError(
            f"the run's heads can't be loaded: {why or type(error).__name__:.300}",
            where=path,
            hint="train the run again",
        ) from error
    return heads.eval()


def read_recipe(run: Run) -> tuple[Recipe, dict[str, Any]]:
    """recipe.json, checked, and as plain values. Raises GeoError where it is absent or damaged."""
    path = run.recipe_path
    try:
        described = read_json(path)
        return validated(Recipe, described, path), described
    except GeoError as error:
        raise GeoError(
            f"the run's heads can't be loaded: {error.what}", where=path, hint="train the run again"
        ) from error


def _check_shapes(wanted: dict[str, tuple[int, ...]], stored: dict[str, tuple[int, ...]]) -> None:
    """Raise ValueError for the first tensor that is lacking, too many, or of another shape."""
    for name in sorted(wanted.keys() | stored.keys()):
        if wanted.get(name) != stored.get(name):
            raise ValueError(
                f"tensor {name:.100} is {stored.get(name, 'absent')}, where the run's recipe and labels make it "
                f"{wanted.get(name, 'absent')}"
            )
