"""Embeddings that are at hand as plain arrays, checked as an import is."""

from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from geo_embed.blocks import Block, blocks_of
from geo_embed.cache.store import is_finite, rounded_away, stored_dtype
from geo_embed.errors import GeoError

_BLOCK_ROWS = 4096


def check_embeddings(
    embeddings: ArrayLike, present: ArrayLike | None = None, *, dtype: str
) -> tuple[NDArray[Any], NDArray[np.bool_]]:
    """Embeddings (N, V, D) as a store would hold them, and which of them are there (N, V); the given arrays stay as they are.

    Args:
        embeddings: (N, V, D), or (N, D) of one view; floats.
        present: (N, V), or (N,) of one view; False where a view is missing, whose numbers don't count. Default: all are there.
        dtype: `model.dtype`: what is kept is float16, or float32 where that is asked for by name.

    Raises:
        GeoError: another shape or type; or an embedding that is there is NaN, infinite, or too large or too small for the precision.
    """
    array = as_array(embeddings, "embeddings")
    if array.dtype.kind != "f":
        raise GeoError(f"{array.dtype} values, where floats are needed", where="embeddings")
    values = array[:, None] if array.ndim == 2 else array
    if values.ndim != 3 or not values.size:
        raise GeoError(
            f"embeddings of shape {array.shape}",
            where="embeddings",
            hint="give (samples, views, numbers), or (samples, numbers) where there is one view",
        )
    seen = np.ones(values.shape[:2], dtype=bool)
    if present is not None:
        flags = as_array(present, "present")
        seen = flags[:, None] if flags.ndim == 1 else flags
        if seen.shape != values.shape[:2] or seen.dtype != np.bool_:
            raise GeoError(
                f"{flags.dtype} of shape {flags.shape}, where bool of shape {values.shape[:2]} is needed",
                where="present",
            )
    stored = stored_dtype(dtype)
    kept = np.zeros(values.shape, dtype=stored)
    for start in range(0, len(values), _BLOCK_ROWS):
        rows = slice(start, start + _BLOCK_ROWS)
        unfit = first_unfit(values[rows], seen[rows], stored, asks="model.dtype=float32")
        if unfit is not None:
            row, view, what, hint = unfit
            if "NaN" in what:
                hint = "where a view is missing, say so: present=~np.isnan(embeddings).any(axis=-1)"
            raise GeoError(
                f"an embedding {what}", where=f"embeddings, row {start + row}, view {view}", hint=hint
            )
        # What a missing view holds may be anything.
        with np.errstate(over="ignore", invalid="ignore"):
            kept[rows] = values[rows]
        kept[rows][~seen[rows]] = 0
    return kept, seen.copy()


def check_sources(
    embeddings: ArrayLike | Mapping[str, ArrayLike], present: ArrayLike | None = None, *, dtype: str
) -> tuple[NDArray[Any], NDArray[np.bool_], tuple[Block, ...]]:
    """`check_embeddings` of one array; or of several by name, one per source, side by side in the order of their names.

    Returns:
        Embeddings (N, V, D), D the sum of the sources' widths; which views are there (N, V); and of several sources which of the D
        numbers are whose.

    Raises:
        GeoError: as `check_embeddings`; no array at all, or arrays of other samples or views.
    """
    if not isinstance(embeddings, Mapping):
        return *check_embeddings(embeddings, present, dtype=dtype), ()
    if not embeddings:
        raise GeoError("there is no array", where="embeddings", hint='give {"name": array, …}')
    arrays = {str(name): as_array(embeddings[name], f"embeddings[{name!r:.80}]") for name in embeddings}
    names = sorted(arrays)
    first = arrays[names[0]]
    for name in names[1:]:
        if arrays[name].shape[:-1] != first.shape[:-1]:
            raise GeoError(
                f"embeddings of shape {arrays[name].shape}, where {names[0]!r:.80} has {first.shape}",
                where=f"embeddings[{name!r:.80}]",
                hint="give the same samples and views by every source",
            )
    blocks = blocks_of(names, (arrays[name].shape[-1] if arrays[name].ndim else 0 for name in names))
    values: NDArray[Any] | None = None
    for block in blocks:
        try:
            part, seen = check_embeddings(arrays.pop(block.name), present, dtype=dtype)
        except GeoError as error:
            error.where = error.where.replace("embeddings", f"embeddings[{block.name!r:.80}]", 1)
            raise
        if values is None:
            values = np.zeros((*part.shape[:2], blocks[-1].stop), dtype=part.dtype)
        values[..., block.start : block.stop] = part
    assert values is not None
    return values, seen, blocks


def as_array(values: ArrayLike, name: str) -> NDArray[Any]:
    """What was given under a name, as an array. Raises GeoError where that can't be, as of rows of several lengths."""
    try:
        return np.asarray(values)
    except (ValueError, TypeError, RuntimeError) as error:
        raise GeoError(f"no array: {str(error).splitlines()[0]}", where=name) from error


def first_unfit(
    block: NDArray[Any], seen: NDArray[np.bool_], stored: str, *, asks: str
) -> tuple[int, int, str, str] | None:
    """The first embedding of a block (B, V, D) that is there (B, V) and that a precision can't hold: its row, its view, what is wrong
    with it, and what helps. None where all can be held.

    Args:
        block: floats.
        seen: which are there.
        stored: `float16` or `float32`.
        asks: how float32 is asked for.
    """
    # What has the precision already is only to be finite, and two maxima tell that of a whole block.
    if block.dtype == stored and is_finite(block):
        return None
    # As a number of Python it would become infinite in float16, with a warning on the screen: it is compared in double precision.
    largest = np.float64(np.finfo(stored).max)
    smaller = (
        f"{asks} stores smaller values" if stored == "float16" else "multiply all embeddings by a number"
    )
    for what, find, hint in (
        ("is NaN or infinite", lambda x: ~np.isfinite(x).all(axis=2), "compute it again"),
        (
            f"is too large for {stored}",
            lambda x: (np.abs(x) > largest).any(axis=2),
            f"{asks} stores larger values",
        ),
        (
            f"is too small for {stored}, which would round it away",
            lambda x: rounded_away(x, stored),
            smaller,
        ),
    ):
        bad = find(block) & seen
        if bad.any():
            row, view = np.argwhere(bad)[0].tolist()
            return row, view, what, hint
    return None
