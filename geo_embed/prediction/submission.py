"""A run's answers as a competition file."""

import contextlib
from collections.abc import Iterable
from pathlib import Path

from geo_embed.answers import Predictions
from geo_embed.cache.find import choose_store
from geo_embed.cache.store import content_digest, list_stores
from geo_embed.config import Config
from geo_embed.console import warn
from geo_embed.data.outputs import check_output
from geo_embed.data.variants import AS_THEY_ARE
from geo_embed.errors import GeoError
from geo_embed.prediction.predict import Embed, predict_cached
from geo_embed.runs.run import Run, check_not_replaced, on_this_machine
from geo_embed.runs.samples import check_has_csv
from geo_embed.runs.table import is_tta, read_predictions, read_stores, write_predictions
from geo_embed.submissions.check import Verdict
from geo_embed.submissions.template import fill_template, read_template
from geo_embed.submissions.write import write_submission


def submit(
    config: Config, run: Run, out: Path | None = None, *, embed: Embed | None = None
) -> tuple[Path, Verdict]:
    """Write a run's answers for the test split as a competition file, check it, and put it into the log of submissions.

    Test predictions are taken from the run, or made from the cached test split where the run has none that are still true, or
    none of the kind that is asked for.

    Args:
        config: paths and device, and `inference.tta`, whether to average over variants of the pictures.
        run: whose answers.
        out: the file; default `<submissions_dir>/<run>.csv`, or the next free name where a file of that name was noted or sent.
        embed: makes what the cache lacks first, where predictions are made; without it that is an error.

    Raises:
        GeoError: no template, no embeddings of the test split, a sample of the template without an answer, or `out` was noted or sent.
    """
    if out is not None:
        check_output(config.paths, out)
    run = on_this_machine(run, config.paths, config.model.device)
    check_has_csv(run)
    config = config.model_copy(update={"paths": run.config.paths})
    template = read_template(config.paths.csv("test"), run.config.model.view_names)
    predictions = predictions_of_test(config, run, samples=template["sample_id"], embed=embed)
    return write_submission(config, run, fill_template(template, predictions), out)


def predictions_of_test(
    config: Config, run: Run, *, samples: Iterable[str] = (), embed: Embed | None = None
) -> Predictions:
    """A run's predictions of the test split: its table, made again if it is of the other kind, lacks a sample or the stores hold something else since it was made.

    Args:
        config: as of `submit`.
        run: by the paths and the device of these settings.
        samples: ids that must be among them.
        embed: as of `submit`.

    Raises:
        GeoError: the table is damaged; or it must be made, and there are no embeddings of the test split.
    """
    path, tta = run.predictions_path("test"), config.inference.tta
    if path.is_file() and is_tta(path) == tta and not _is_stale(run, path):
        predictions, _ = read_predictions(path, run.labels)
        if set(samples) <= set(predictions.sample_id):
            return predictions
    if embed is not None:
        embed(config, run, "test")
    predictions, truth, stores = predict_cached(run, "test", config.paths, run.config.model.device, tta=tta)
    try:
        write_predictions(path, predictions, truth, stores, lambda: check_not_replaced(run), tta=tta)
    except GeoError as error:
        warn(f"the run can't keep its test predictions: {error}")
    return predictions


def _is_stale(run: Run, path: Path) -> bool:
    """Whether a table of test predictions was made from other content than the run's test stores have now.

    A store that isn't on this machine has no say, and with it the predictions can't be made again. A table that doesn't
    tell what it was made from is one of an earlier version: stale, if it can be made again.
    """
    now: dict[str, str | None] = {}
    model = run.config.model.with_backbone(run.config.model.backbone_name)
    for fingerprint in run.store_fingerprints:
        now[fingerprint] = None
        with contextlib.suppress(GeoError):
            store = choose_store(run.config.paths.cache_dir, model, "test", fingerprint)
            now[fingerprint] = content_digest(store)
    made_from = read_stores(path)
    # An earlier version's: what can't be made again is better than nothing.
    if made_from is None:
        return None not in now.values()
    # Stores of variants go by their own names.
    for store in list_stores(run.config.paths.cache_dir, "test"):
        if store.fingerprint in made_from and store.variant != AS_THEY_ARE:
            with contextlib.suppress(GeoError):
                now[store.fingerprint] = content_digest(store)
    return any(digest not in (None, made_from.get(fingerprint)) for fingerprint, digest in now.items())
