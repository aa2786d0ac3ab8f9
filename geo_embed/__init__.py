"""Geolocate street-view images: a two-stage embedding cache with a lightweight head trainer.

The commands' verbs, for notebooks:

    config = geo_embed.get_config(paths={"data_root": "data/raw"})
    geo_embed.extract(config, "train")
    fit = geo_embed.fit_heads(config)
    run = geo_embed.load_run(config.paths.runs_dir, fit.run)
    geo_embed.evaluate(config, run)
    geo_embed.submit(config, run)
"""

import sys
from importlib import import_module
from types import ModuleType
from typing import Any

_VERBS = {
    "Config": "config",
    "GeoError": "errors",
    "check_data": "check",
    "demo": "demo",
    "ensemble": "ensemble",
    "evaluate": "evaluate",
    "extract": "extract",
    "find_store": "store",
    "finetune": "finetune",
    "fit_heads": "fit",
    "get_config": "config",
    "load_run": "run",
    "load_samples": "dataset",
    "open_store": "store",
    "predict_images": "predict",
    "predict_split": "predict",
    "read_store": "store",
    "submit": "submission",
    "sweep": "sweep",
    "validate": "submission",
}

__all__ = sorted(_VERBS)


class _Package(ModuleType):
    """Looks verbs up when they are used, since `import geo_embed` must not wait for torch.

    A module's `__getattr__` would not do: once a file such as extract.py is imported, the package's attribute of
    that name is the module, and the verb is out of reach.
    """

    def __getattribute__(self, name: str) -> Any:
        if name in _VERBS:
            return getattr(import_module(f"geo_embed.{_VERBS[name]}"), name)
        return super().__getattribute__(name)


sys.modules[__name__].__class__ = _Package
