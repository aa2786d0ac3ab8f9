"""Where a run came from: how it was made, and from what. The content of provenance.json."""

import os
import platform
from collections.abc import Sequence
from datetime import UTC, datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from geo_embed.cache.join import Source


def describe_origin(command: Sequence[str], *, seed: int, note: str) -> dict[str, Any]:
    """How a run is made: by which command line, with what seed, by which versions, on what machine; and a note of the user's.

    Args:
        command: the command line; empty where there was none, as in a notebook.
        seed: of the training.
        note: free text.
    """
    return {
        "created": datetime.now(UTC).isoformat(timespec="microseconds"),
        "command": list(command),
        "note": note,
        "seed": seed,
        "versions": {
            "python": platform.python_version(),
            **{name: version(name) for name in ("geo-embed", "torch", "numpy", "scikit-learn")},
        },
        "machine": {"platform": platform.platform(), "cores": os.cpu_count()},
    }


def describe_sources(
    train_csv: Path, csv_sha256: str, sources: "Sequence[Source]", content_samples: Sequence[Sequence[str]]
) -> dict[str, Any]:
    """What a run is fitted on.

    Args:
        train_csv: the samples.
        csv_sha256: of that file's bytes.
        sources: their embeddings, in the order in which they are joined.
        content_samples: of each source that is an import, whose fingerprint says nothing of what it holds.
    """
    described = [_describe_source(*pair) for pair in zip(sources, content_samples, strict=True)]
    return {"data": {"train_csv": str(train_csv), "sha256": csv_sha256}} | by_source(described)


def by_source(described: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Sources as provenance.json has them: the first as `store` and `function`, and where there are several, all of them as `sources`."""
    first = {key: value for key, value in described[0].items() if key not in ("name", "function")}
    # What the backbone computes with its weights; not known of an import, or of a store of an earlier version.
    only = {"store": first, "function": described[0]["function"]}
    return only if len(described) == 1 else only | {"sources": list(described)}


def _describe_source(source: "Source", content_sample: Sequence[str]) -> dict[str, Any]:
    store = source.store
    n, v, _ = store.shape
    of_import = {"content_sample": list(content_sample), "source_made_by": store.attrs.get("source_made_by")}
    return {
        "name": source.name,
        "path": str(store.path),
        "fingerprint": store.fingerprint,
        "backbone": store.attrs["backbone"],
        "weights_sha256": store.attrs.get("weights_sha256"),
        "preprocessing": store.attrs.get("preprocessing"),
        "manifest_sha256": store.attrs["manifest_sha256"],
        "samples": n,
        "views": v,
        "dim": source.dim,
        **({} if source.feature is None else {"feature": source.feature}),
        "function": store.attrs.get("function"),
        **(of_import if store.attrs.get("imported") else {}),
    }
