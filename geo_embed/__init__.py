"""Geolocate street-view images: a two-stage embedding cache with a lightweight head trainer.

The commands' verbs, for notebooks:

    config = geo_embed.get_config(paths={"data_root": "data/raw"})
    geo_embed.extract(config, "train")
    geo_embed.fit_heads(config, name="first")
    run = geo_embed.load_run("first")
    run.metrics, run.predictions()
    run.predict([north, east, south, west])
    geo_embed.submit(config, run)

Without a CSV, a cache or a backbone:

    geo_embed.fit_heads(embeddings=x, states=names, latitude=lat, longitude=lon, name="mine")
    geo_embed.load_run("mine").predict(embeddings=y)

And a backbone alone:

    geo_embed.load_backbone("geolocal/StreetCLIP").embed([picture, "a.jpg"])

All of it: docs/python.md.
"""

from functools import partial, update_wrapper
from importlib import import_module
from typing import Any

from geo_embed.threads import spin_briefly

__version__ = "0.1.0"

_VERBS = {
    "Config": "config",
    "GeoError": "errors",
    "GeoPredictor": "exports.predictor",
    "UnreachableError": "errors",
    "adopt": "adoption.adopt",
    "analyze_submission": "reporting.submission_analysis",
    "cache_export": "cache.exchange",
    "cache_import": "cache.exchange",
    "calibrate": "prediction.calibrate",
    "check_data": "data.check",
    "compare_runs": "prediction.difference",
    "compare_submissions": "reporting.submission_comparison",
    "demo": "synthetic.demo",
    "demo_settings": "synthetic.demo",
    "denormalize": "heads.region",
    "describe_run": "runs.listing",
    "draw": "reporting.plot",
    "ensemble": "prediction.ensemble",
    "evaluate": "prediction.evaluate",
    "evaluate_protocol": "prediction.protocol",
    "export": "exports.export",
    "explore": "explorer.explore",
    "explore_data": "reporting.data_page",
    "extract": "extraction.extract",
    "extract_for_run": "extraction.for_run",
    "find_store": "cache.find",
    "finetune": "finetuning.finetune",
    "fit_heads": "fitting.fit",
    "get_config": "settings",
    "list_runs": "runs.listing",
    "load_backbone": "prediction.embedding",
    "load_run": "prediction.notebook",
    "load_samples": "data.samples",
    "make_country": "synthetic.demo",
    "normalize": "heads.region",
    "note_run": "runs.tags",
    "note_submission": "submissions.log",
    "open_store": "cache.store",
    "plot": "reporting.plot",
    "predict_arrays": "prediction.pictures",
    "predict_images": "prediction.pictures",
    "predict_split": "prediction.predict",
    "report": "reporting.report",
    "read_store": "cache.store",
    "remove_runs": "runs.remove",
    "send_submission": "submissions.send",
    "submission_log": "submissions.log",
    "submit": "prediction.submission",
    "sweep": "fitting.sweep",
    "tag_run": "runs.tags",
    "validate": "submissions.check",
}

# These embed what a run needs and the cache lacks first, as their commands do; `embed=None` has them refuse.
_EMBEDDING = {"evaluate_protocol", "predict_split", "submit"}

__all__ = sorted(_VERBS)


def __getattr__(name: str) -> Any:
    """A verb, looked up when it is used: `import geo_embed` must not wait for torch."""
    if name in _VERBS:
        # Before torch, where the caller hasn't imported it: threads that spin at length are ten times as slow beside other work.
        spin_briefly()
        verb = getattr(import_module(f"geo_embed.{_VERBS[name]}"), name)
        if name not in _EMBEDDING:
            return verb
        return update_wrapper(partial(verb, embed=__getattr__("extract_for_run")), verb)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return [*__all__, "__version__"]
