"""What a run answers with, on disk: its heads, or the members of an ensemble."""

import json
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

import numpy as np
from numpy.typing import NDArray

from geo_embed.config import EnsembleMethod
from geo_embed.errors import GeoError
from geo_embed.runs.run import Run, is_run, load_run

if TYPE_CHECKING:
    from geo_embed.heads.predictor import Panel


@dataclass(frozen=True)
class Ensemble:
    """What makes a run an ensemble.

    Attributes:
        method: how its members' answers are combined.
        weights: (M,) of the members, ≥ 0, sum 1.
        members: M runs.
    """

    method: EnsembleMethod
    weights: NDArray[np.float64]
    members: tuple[Run, ...]


def load_ensemble(run: Run) -> Ensemble | None:
    """An ensemble's members; None for a run with heads of its own. Raises GeoError where it is damaged."""
    path = run.recipe_path
    try:
        recipe = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        if "ensemble" not in recipe:
            return None
        described = recipe["ensemble"]
        weights, names = np.array(described["weights"], dtype=np.float64), list(described["members"])
        fit = weights.shape == (len(names),) and (weights >= 0).all() and np.isclose(weights.sum(), 1)
        if described["method"] not in get_args(EnsembleMethod) or not fit:
            raise ValueError(f"{described['method']} of {len(names)} members with weights {weights.tolist()}")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise GeoError(
            f"the run's heads can't be loaded: {error}".splitlines()[0], where=path, hint="make the run again"
        ) from error
    members = []
    for name in names:
        if not is_run(run.members_dir / name):
            raise GeoError(
                "the ensemble lacks this member",
                where=run.members_dir / name,
                hint="make it again: geo ensemble",
            )
        members.append(load_run(run.members_dir, name))
    return Ensemble(described["method"], weights, tuple(members))


def load_heads(run: Run) -> "Panel":
    """A run's heads, on the CPU, in eval mode. Raises GeoError where a file is absent or doesn't fit."""
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from geo_embed.heads.predictor import build_panel

    path = run.recipe_path
    try:
        described = json.loads(path.read_text(encoding="utf-8"))
        if "ensemble" in described:
            raise GeoError(
                "an ensemble has no heads of its own",
                where=run.path,
                hint="name one of the runs it is made of",
            )
        heads = build_panel(described, run.dim, len(run.config.model.view_names), len(run.labels))
        path = run.heads_path
        heads.load_state_dict(load_file(path))
    except (OSError, SafetensorError, RuntimeError, ValueError, KeyError, TypeError) as error:
        raise GeoError(
            f"the run's heads can't be loaded: {error}".splitlines()[0],
            where=path,
            hint="train the run again",
        ) from error
    return heads.eval()
