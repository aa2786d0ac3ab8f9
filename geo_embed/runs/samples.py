"""The samples that a run speaks of, where there is a CSV of them."""

from geo_embed.data.samples import Samples, load_samples
from geo_embed.errors import GeoError
from geo_embed.runs.run import Run
from geo_embed.runs.store import is_fitted_on_arrays


def load_samples_of(run: Run, split: str) -> Samples:
    """A split's CSV, by the run's settings. Raises GeoError as `load_samples` and `check_has_csv`."""
    check_has_csv(run)
    return load_samples(run.config, split)


def check_has_csv(run: Run) -> None:
    """Raise GeoError for a run that was fitted on arrays: what CSV there is isn't of its samples."""
    if is_fitted_on_arrays(run):
        raise GeoError(
            "the run was fitted on arrays: there is no CSV of its samples",
            where=run.path,
            hint="run.predict(embeddings=…) answers for arrays; for all else import both splits' embeddings (geo cache import) and fit on those",
        )
