"""A run as a notebook holds it: it shows itself, and answers."""

import html
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, fields
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from geo_embed.config import Config
from geo_embed.console import harmless
from geo_embed.devices import pick_device
from geo_embed.errors import GeoError
from geo_embed.prediction.evaluate import split_predictions
from geo_embed.prediction.pictures import predict_arrays, predict_images
from geo_embed.prediction.results import answers, per_sample
from geo_embed.prediction.submission import predictions_of_test
from geo_embed.runs.backbone import load_backbones_of
from geo_embed.runs.listing import summarise
from geo_embed.runs.run import Run, check_not_replaced, is_run, on_this_machine
from geo_embed.runs.run import load_run as load_run_of
from geo_embed.settings import get_config

if TYPE_CHECKING:
    import pandas as pd
    from numpy.typing import ArrayLike

    from geo_embed.backbones.backbone import Backbone


@dataclass(frozen=True, repr=False)
class NotebookRun(Run):
    """A run, as every verb takes it, that answers by itself. `load_run` gives one.

    Attributes:
        here: the settings of this machine: paths, device, `inference`.
        backbone: where its backbones lie that don't under the name that they had in training.
    """

    here: Config = field(default_factory=Config)
    backbone: tuple[str, ...] = ()

    @property
    def metrics(self) -> dict[str, Any]:
        """Its scores on the samples that it held out, as in the contract. Raises GeoError where they can't be read."""
        return self.read_metrics()

    def predictions(self, split: str = "val") -> "pd.DataFrame":
        """One row per sample of a split, in its order: `answers`, and with the truth, where it is known, `per_sample` (results.py).

        Args:
            split: `val`, the samples that it held out, as recorded; `train`, those that it learnt from, predicted now from the cache; or
                `test`, what `submit` would write: as recorded while that is still true, else predicted from the cache.

        Raises:
            GeoError: no such split; predictions are damaged, or can't be made; or the run was replaced since it was loaded.
        """
        if split not in ("val", "train", "test"):
            raise GeoError(f"there is no split {split!r:.80}", hint="val, train or test")
        if split == "test":
            run = on_this_machine(self, self.here.paths, self.here.model.device)
            table = answers(predictions_of_test(self.here, run))
        else:
            table = per_sample(*split_predictions(self, split, self.here.paths, self.here.model.device))
        check_not_replaced(self)
        return table

    def predict(
        self,
        images: Any = None,
        *,
        embeddings: "ArrayLike | Mapping[str, ArrayLike] | None" = None,
        present: "ArrayLike | None" = None,
    ) -> "pd.DataFrame":
        """Where places are, by their pictures or their embeddings: a row per place, `answers` (results.py); `sample_id` is its number from 0.

        Args:
            images: one place, or a list of places. A place is a list of one picture per view in the order of `config.model.view_names`,
                None where one is missing, or a dict from views to pictures. A picture is a PIL image, a path, a file's bytes, or a uint8
                array (height, width, 3). Where the run looks at one view, a place may be its picture itself.
            embeddings: in place of pictures (N, V, D), or (N, D) of one view, by the backbone that the run was fitted on; of several
                such an array by the name of each.
            present: (N, V) bool beside `embeddings`, False where a view is missing; default: all are there.

        Raises:
            GeoError: pictures that are none, can't be read or don't fit the views; embeddings of another shape, or NaN; the backbone
                isn't to be had; or the run was replaced since it was loaded.
        """
        if (images is None) == (embeddings is None):
            raise GeoError("give pictures, or embeddings=", where="run.predict")
        if images is None:
            predictions = predict_arrays(self.here, self, embeddings, present)  # type: ignore[arg-type]
        elif present is not None:
            raise GeoError(
                "present goes with embeddings",
                where="run.predict",
                hint="of pictures give None where one is missing",
            )
        else:
            predictions = predict_images(self.here, self, images, backbone=self._towers)
        check_not_replaced(self)
        return answers(predictions)

    @cached_property
    def _towers(self) -> "list[Backbone]":
        """Loaded once: that takes seconds."""
        return load_backbones_of(self, pick_device(self.here.model.device), self.backbone)

    def _rows(self) -> dict[str, str]:
        """What there is to know at a glance."""
        rows = {"run": self.name}
        try:
            summary, scores = summarise(self), self.metrics
        except GeoError as error:
            return rows | {"damaged": str(error)}
        recipe = summary.recipe.get("method") or summary.recipe.get("preset")
        rows["kind"] = f"{summary.kind}, {recipe}"
        if summary.score is not None:
            low, high = summary.score_interval
            interval = "" if low is None or high is None else f" ({low:.4f} to {high:.4f})"
            rows["score"] = f"{summary.score:.4f}{interval}"
            rows |= {
                name: f"{scores[name]:{form}}"
                for name, form in (
                    ("top1", ".3f"),
                    ("top5", ".3f"),
                    ("median_km", ",.0f"),
                    ("mean_km", ",.0f"),
                )
                if scores.get(name) is not None
            }
        return rows | {
            "held-out samples": f"{summary.samples:,}",
            "states": f"{len(self.labels):,}",
            "views": ", ".join(self.config.model.view_names),
            "backbone": summary.backbone,
            "directory": str(self.path),
        }

    def __repr__(self) -> str:
        rows = self._rows()
        facts = [
            f"{name} {rows[name]}"
            for name in ("damaged", "score", "held-out samples", "states")
            if name in rows
        ]
        return harmless(f"<run {self.name}: {', '.join(facts)}>")

    def _repr_html_(self) -> str:
        cells = (
            f'<tr><th style="text-align: left">{html.escape(name)}</th>'
            f'<td style="text-align: left">{html.escape(harmless(value))}</td></tr>'
            for name, value in self._rows().items()
        )
        return f"<table>{''.join(cells)}</table>"


def load_run(
    run: str | Path | None = None,
    name: str | None = None,
    *,
    config: Config | None = None,
    backbone: str | Path | Sequence[str | Path] | None = None,
) -> NotebookRun:
    """A run by its name or its directory; the newest if left out.

    `load_run(runs_dir, name)`, the folder of the runs first, works as well, and `load_run(runs_dir)` for the newest in it.

    Args:
        run: a name in `paths.runs_dir`, or a directory.
        name: of a run in the folder `run`.
        config: the settings of this machine; default `get_config()`.
        backbone: where the run's backbone lies, or several do, if not under the name that it had in training; another one is refused.

    Raises:
        GeoError: no such run, or a damaged one, with the file; one that needs a plugin that isn't loaded.
    """
    here = config or get_config()
    if name is not None or (isinstance(run, Path) and run.is_dir() and not is_run(run)):
        loaded = load_run_of(here.paths.runs_dir if run is None else Path(run), name)
    else:
        loaded = load_run_of(here.paths.runs_dir, None if run is None else str(run))
    return NotebookRun(
        **{attribute.name: getattr(loaded, attribute.name) for attribute in fields(Run)},
        here=here,
        backbone=tuple(map(str, [backbone] if isinstance(backbone, str | Path) else backbone or ())),
    )
