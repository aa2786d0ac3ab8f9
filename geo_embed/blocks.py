"""Columns of joined embeddings: which are whose."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Block:
    """The columns of joined embeddings that one source gave: from `start` to before `stop`."""

    name: str
    start: int
    stop: int


def blocks_of(names: Iterable[str], dims: Iterable[int]) -> tuple[Block, ...]:
    """Blocks that lie side by side, of these names and widths."""
    blocks: list[Block] = []
    for name, dim in zip(names, dims, strict=True):
        start = blocks[-1].stop if blocks else 0
        blocks.append(Block(name, start, start + dim))
    return tuple(blocks)


def label_of(name: str, feature: str | None) -> str:
    """What a source is called: its backbone, and where it isn't the store's own, the feature."""
    return name if feature is None else f"{name}:{feature}"


def short_names(names: Sequence[str]) -> list[str]:
    """Names for people: the last part of each, where that tells them apart.

    >>> short_names(["geolocal/StreetCLIP", "openai/clip"]), short_names(["a/backbone", "b/backbone"])
    (['StreetCLIP', 'clip'], ['a/backbone', 'b/backbone'])
    """
    short = [Path(name).name or name for name in names]
    return short if len(set(short)) == len(short) else list(names)
