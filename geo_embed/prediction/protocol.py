"""`geo evaluate --protocol`: a run's answers as the benchmarks of the field tabulate them."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import Predictions
from geo_embed.config import Config
from geo_embed.console import counted, warn
from geo_embed.data.samples import AREAS, text_ids
from geo_embed.data.spatial import resampling_groups
from geo_embed.data.table import numbers_of, read_csv
from geo_embed.devices import with_torch_switches
from geo_embed.errors import GeoError
from geo_embed.geography import haversine_km, to_unit_vectors
from geo_embed.metrics import GEOSCORE_KM, GEOSCORE_MOST, mean_intervals, top_states
from geo_embed.prediction.evaluate import chose_unseen, split_predictions
from geo_embed.prediction.predict import Embed, predict_cached
from geo_embed.runs.run import Run, on_this_machine

Protocol = Literal["im2gps3k", "osv5m"]

# Street, city, region, country, continent, as IM2GPS's successors call them (Weyand et al., ECCV 2016; Vo et al., ICCV 2017).
PROTOCOL_KM = (1, 25, 200, 750, 2500)
# How many pictures the benchmarks' own test sets have.
BENCHMARK_SAMPLES: Mapping[Protocol, int] = {"im2gps3k": 2_997, "osv5m": 210_122}


@dataclass(frozen=True)
class _Rows:
    """Answers and where the samples really are: of N samples degrees, groups that are drawn together, and known areas, "" for unknown."""

    predictions: Predictions
    latitude: NDArray[np.float64]
    longitude: NDArray[np.float64]
    areas: pd.DataFrame
    described: str


@with_torch_switches
def evaluate_protocol(
    config: Config,
    run: Run,
    protocol: Protocol,
    *,
    truth: Path | None = None,
    embed: Embed | None = None,
) -> dict[str, Any]:
    """A run's answers in a benchmark's table: of the samples that it held out, or of a test split whose places a file tells.

    `im2gps3k`: shares within 1, 25, 200, 750 and 2500 km (Vo, Jacobs & Hays, ICCV 2017). `osv5m`: mean geoscore, mean distance, and how
    often the point lies in the right country, region, sub-region and city (Astruc et al., CVPR 2024, section 3.3, and the benchmark's
    code, github.com/gastruc/osv5m, metrics/). Both are in the result, areas for `osv5m` alone.

    OSV-5M names the areas of a predicted point by its nearest town in GeoNames (the package reverse_geocoder), which has named its truth as
    well. Here they are those of the nearest place that the run learnt from: a little stricter where training places are rare. Samples
    without a name for an area are no part of its share; the benchmark's code counts them as missed. Where the classes are the countries,
    `country_by_class` is how often the first of them is right.

    Nothing is chosen by these samples, and nothing is written.

    Args:
        config: paths and device.
        run: any run.
        protocol: whose table.
        truth: a CSV of `sample_id`, `latitude`, `longitude`, and for the areas `country`, `region`, `sub-region`, `city`, as
            `geo data adopt` writes `test_ground_truth.csv`; its samples are those of the test split, of which it may name some.
        embed: makes what the cache lacks of the test split first; without it that is an error.

    Returns:
        `run, protocol, split, rows` (which samples these are, for people), `samples`, `within_km`, `geoscore`, `mean_km`, `median_km`,
        `intervals` of all but the median, 95 % by bootstrap, and `areas`: for each accuracy, interval and samples. Where there are no
        samples, values are None.

    Raises:
        GeoError: the truth can't be read or names a sample that the test split hasn't; or as `predict_split`.
    """
    run = on_this_machine(run, config.paths, config.model.device)
    config = config.model_copy(update={"paths": run.config.paths})
    rows = _held_out(run, config) if truth is None else _of_test(run, config, truth, embed)
    km = haversine_km(rows.predictions.latitude, rows.predictions.longitude, rows.latitude, rows.longitude)
    groups = resampling_groups(rows.latitude, rows.longitude, run.config.training) if len(km) else None

    values = np.stack(
        [*(km <= limit for limit in PROTOCOL_KM), GEOSCORE_MOST * np.exp(-km / GEOSCORE_KM), km], axis=1
    )
    means = [float(mean) for mean in values.mean(axis=0)] if len(km) else [None] * values.shape[1]
    intervals = [list(pair) for pair in mean_intervals(values, groups)]
    limits = list(map(str, PROTOCOL_KM))
    result: dict[str, Any] = {
        "run": run.name,
        "protocol": protocol,
        "split": "val" if truth is None else "test",
        "rows": rows.described,
        "samples": len(km),
        "within_km": dict(zip(limits, means, strict=False)),
        "geoscore": means[-2],
        "mean_km": means[-1],
        "median_km": float(np.median(km)) if len(km) else None,
        "intervals": {
            "within_km": dict(zip(limits, intervals, strict=False)),
            "geoscore": intervals[-2],
            "mean_km": intervals[-1],
        },
    }
    return result | ({"areas": _areas(run, config, rows, groups)} if protocol == "osv5m" else {})


def _held_out(run: Run, config: Config) -> _Rows:
    predictions, truth = split_predictions(run, "val", config.paths, config.model.device)
    chose = len(truth) and chose_unseen(run)
    if chose:
        warn(
            "the run is of a version that chose an epoch by these samples: their scores are a little too good"
        )
    how = (
        "by whole groups of places"
        if run.config.training.validation == "spatial"
        else "at random, some beside training places"
    )
    described = f"held out by the run, {how}; they chose {'its epoch' if chose else 'nothing'}; not the benchmark's own"
    table = _labelled(config.paths.csv("train"))
    areas = table.reindex(predictions.sample_id).fillna("").reset_index(drop=True)
    return _Rows(predictions, truth.latitude, truth.longitude, areas, described)


def _of_test(run: Run, config: Config, path: Path, embed: Embed | None) -> _Rows:
    # 1. The truth, before anything is embedded.
    table, problems = read_csv(path, ["sample_id", "latitude", "longitude"], every_column=True)
    if table is None:
        raise GeoError(
            problems[0].message,
            where=problems[0].where,
            hint="name a CSV of sample_id, latitude and longitude: --truth FILE",
        )
    latitude, longitude = numbers_of(table["latitude"]), numbers_of(table["longitude"])
    wrong = ~((np.abs(latitude) <= 90) & (np.abs(longitude) <= 180))
    again = table["sample_id"].duplicated().to_numpy()
    for faulty, what in ((wrong, "no coordinates in degrees"), (again, "the sample_id of an earlier row")):
        if faulty.any():
            raise GeoError(what, where=f"{path}, row {table.index[faulty][0]}", hint="correct the file")
    # 2. Answers to the test split, in the truth's order.
    if embed is not None:
        embed(config, run, "test")
    predictions, _, _ = predict_cached(
        run, "test", config.paths, config.model.device, tta=config.inference.tta
    )
    place = {sample_id: row for row, sample_id in enumerate(predictions.sample_id)}
    absent = [sample_id for sample_id in table["sample_id"] if sample_id not in place]
    if absent:
        raise GeoError(
            f"{len(absent):,} of its {counted(len(table), 'sample is', 'samples are')} none of the test split's, {absent[0]} first",
            where=path,
            hint="name the dataset that it belongs to: --set paths.data_root=DIR",
        )
    order = np.array([place[sample_id] for sample_id in table["sample_id"]], dtype=np.int64)
    unnamed = len(predictions) - len(table)
    described = f"of the test split, places from {path.name}; they chose nothing" + (
        f"; {unnamed:,} more have no place there" if unnamed else ""
    )
    areas = table[[area for area in AREAS if area in table]].reset_index(drop=True)
    return _Rows(predictions.take(order), latitude, longitude, areas, described)


def _labelled(path: Path) -> pd.DataFrame:
    """The areas of samples by their ids, as far as a CSV has them; its places as well. Empty where it has none, or there is no CSV."""
    table, _ = read_csv(path, ["sample_id", "latitude", "longitude"], every_column=True)
    areas = [] if table is None else [area for area in AREAS if area in table]
    if table is None or not areas:
        return pd.DataFrame()
    indexed = table.drop_duplicates("sample_id").set_index("sample_id")
    return indexed[[*areas, "latitude", "longitude", *({"state"} & set(indexed))]]


def _areas(
    run: Run, config: Config, rows: _Rows, groups: NDArray[np.int64] | None
) -> dict[str, dict[str, Any]]:
    """For each area that truth and training have: how often a point's is right, its interval, and of how many samples."""
    from scipy.spatial import cKDTree

    # 1. The places that the run learnt from, with their areas.
    learnt = _labelled(config.paths.csv("train"))
    names = [area for area in AREAS if area in learnt and area in rows.areas]
    if not names:
        return {}
    part = run.read_split()
    learnt = learnt.reindex(
        [name for name in text_ids(part["sample_id"][part["part"] == "train"]) if name in learnt.index]
    )
    latitude, longitude = numbers_of(learnt["latitude"]), numbers_of(learnt["longitude"])
    learnt = learnt[np.isfinite(latitude) & np.isfinite(longitude)]
    if learnt.empty or not len(rows.predictions):
        return {}
    tree = cKDTree(to_unit_vectors(numbers_of(learnt["latitude"]), numbers_of(learnt["longitude"])))
    nearest = tree.query(to_unit_vectors(rows.predictions.latitude, rows.predictions.longitude))[1]
    # 2. The shares.
    answers = {area: learnt[area].to_numpy(dtype=object)[nearest] for area in names}
    truths = {area: rows.areas[area].to_numpy(dtype=object) for area in names}
    if "country" in names and "state" in learnt and (learnt["state"] == learnt["country"]).all():
        best = top_states(rows.predictions.probabilities, 1)[:, 0]
        answers["country_by_class"] = np.array(rows.predictions.labels.names, dtype=object)[best]
        truths["country_by_class"] = truths["country"]
    shares = {}
    for name, answer in answers.items():
        known = truths[name] != ""
        right = (answer == truths[name])[known]
        (interval,) = mean_intervals(right[:, None].astype(float), None if groups is None else groups[known])
        shares[name] = {
            "accuracy": float(right.mean()) if len(right) else None,
            "interval": list(interval),
            "samples": len(right),
        }
    return shares
