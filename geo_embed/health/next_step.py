"""What is still missing between pictures and a submission, by what lies on the disk: what commands print as the next one."""

from collections.abc import Collection, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

from geo_embed.cache.find import choose_store, fingerprints_of
from geo_embed.cache.store import PENDING, Store, list_stores, read_status
from geo_embed.config import Config
from geo_embed.data.samples import SPLITS
from geo_embed.data.variants import AS_THEY_ARE
from geo_embed.errors import GeoError
from geo_embed.runs.run import finished_runs, run_stores


def next_step(
    config: Config,
    splits: Sequence[str],
    *,
    samples: Mapping[str, int] | None = None,
    named: Sequence[str] = (),
    fresh: Collection[str] = (),
) -> list[str]:
    """The first command that is missing of extract, fit-heads and submit: its words after `geo`; none where all is there.

    Stores are told by their backbone's name and their views, and weights are read only where none has that name: the command itself looks closer.

    Args:
        config: paths, and the `model` group.
        splits: that are to be embedded.
        samples: how many a split's CSV has, where that is known.
        named: the backbones that the command line names in place of the settings'.
        fresh: splits whose embeddings have just changed, so that what was made of them doesn't count.

    Raises:
        GeoError: the runs can't be listed.
    """
    names, samples = config.model.backbone_names, samples or {}
    named_words = [word for name in named for word in ("--backbone", name)]
    # 1. Embeddings by every backbone. Heads need the training split, whatever was asked for.
    stores = _stores_of_settings(config)
    whole = {
        (name, store.split): store
        for name, store in reversed(stores)
        if samples.get(store.split) in (None, store.shape[0]) and _is_whole(store)
    }
    absent = [(name, split) for split in splits for name in names if (name, split) not in whole]
    absent = absent or [(name, "train") for name in names if (name, "train") not in whole]
    if absent:
        imports = {name for name, store in stores if store.attrs.get("imported")}
        for name, split in absent:
            if name in imports:
                return ["cache", "import", "FILE", "--split", split, "--backbone", name]
        if imports:
            named_words = [word for name in names if name not in imports for word in ("--backbone", name)]
        lacking_splits = dict.fromkeys(split for _, split in absent)
        return [
            "extract",
            "--split",
            "all" if len(lacking_splits) > 1 else next(iter(lacking_splits)),
            *named_words,
        ]
    # 2. A run on them.
    newest = [path.name for path in finished_runs(config.paths.runs_dir)]
    of_fingerprint = run_stores(config.paths.runs_dir)
    fitted = set(newest) if "train" not in fresh else set()
    for store in (whole[name, "train"] for name in names):
        fitted &= {run for name in fingerprints_of(store) for run in of_fingerprint.get(name, ())}
    run = next((name for name in newest if name in fitted), None)
    if run is None:
        return ["fit-heads", *named_words]
    # 3. Its answers.
    if "test" not in fresh and (config.paths.submissions_dir / f"{run}.csv").is_file():
        return []
    return ["submit", *([] if run == newest[0] else [run])]


def _stores_of_settings(config: Config) -> list[tuple[str, Store]]:
    """The stores of the settings' views, each with which of their backbones it is by, as far as stores can be read."""
    views, cache_dir = list(config.model.view_names), config.paths.cache_dir
    by_name: list[tuple[str, Store]] = []
    with suppress(GeoError):
        stores = [s for s in list_stores(cache_dir) if s.variant == AS_THEY_ARE]
        for name in config.model.backbone_names:
            named = [store for store in stores if _same_backbone(store.attrs["backbone"], name)]
            by_name += [(name, store) for store in named if store.attrs["view_names"] == views]
            # A folder that was moved is known by its weights.
            if stores and not named and Path(name).is_dir():
                for split in SPLITS:
                    with suppress(GeoError):
                        by_name.append(
                            (name, choose_store(cache_dir, config.model.with_backbone(name), split))
                        )
    return by_name


def _is_whole(store: Store) -> bool:
    with suppress(GeoError):
        return bool((read_status(store) != PENDING).all())
    return False


def _same_backbone(first: str, second: str) -> bool:
    """Whether two names are one, or lead to one folder."""
    return first == second or (Path(first).is_dir() and Path(first).resolve() == Path(second).resolve())
