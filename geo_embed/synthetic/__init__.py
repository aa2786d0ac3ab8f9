"""The demo's small country: `write_country`, `write_backbone`; `demo` runs every stage on them."""

from importlib import import_module
from typing import Any

_VERBS = {"write_backbone": "backbone", "write_country": "country"}

__all__ = sorted(_VERBS)


def __getattr__(name: str) -> Any:
    """A verb, looked up when it is used: nobody waits for what paints and loads."""
    if name in _VERBS:
        return getattr(import_module(f"geo_embed.synthetic.{_VERBS[name]}"), name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
