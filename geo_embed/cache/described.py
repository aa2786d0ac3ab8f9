"""What a model directory computes and wants done to its pictures, remembered in the cache.

transformers fills in what a model's files leave out, and importing it takes longer than a small fit. Its answer depends on the
files, on its version and on our code alone: so it is kept under a digest of all of them, and asked for again where any differs.
"""

import hashlib
import json
from contextlib import suppress
from importlib.metadata import version
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from geo_embed import buckets
from geo_embed.backbones import families, function, preprocessing
from geo_embed.backbones.families import GEOCLIP, family_of
from geo_embed.backbones.function import read_function
from geo_embed.backbones.preprocessing import read_preprocessing
from geo_embed.data import images
from geo_embed.errors import GeoError
from geo_embed.files import JSON_BYTES, read_bytes, read_json, write_json

NAME = "descriptions.json"
# Of the file, the latest are kept.
_MOST = 64
_FILES = ("config.json", "processor_config.json", "preprocessor_config.json")


class _Description(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    function: dict[str, Any]
    preprocessing: dict[str, Any]


class _Descriptions(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid")

    by_digest: dict[str, _Description]


def describe(directory: Path, cache_dir: Path, *, exact: bool) -> dict[str, dict[str, Any]]:
    """`function` and `preprocessing` of a model directory, as a store records them.

    Args:
        directory: the model's.
        cache_dir: where the answer is remembered, on this machine where that is in a bucket; where nothing can be written, it isn't.
        exact: resize with PIL instead of torch.

    Raises:
        GeoError: as `read_function` and `read_preprocessing`.
    """
    if isinstance(cache_dir, buckets.Address):
        cache_dir = buckets.kept_dir()
    path, digest = cache_dir / NAME, _digest(directory, exact)
    known: dict[str, _Description] = {}
    # Where it is absent, damaged or of another version, it is made anew.
    with suppress(GeoError):
        known = read_json(path, _Descriptions).by_digest
    if digest not in known:
        known[digest] = _Description(
            function=read_function(directory).to_dict(),
            preprocessing=read_preprocessing(directory, exact=exact).to_dict(),
        )
        latest = dict(list(known.items())[-_MOST:])
        with suppress(GeoError, OSError):
            if cache_dir.is_dir():
                write_json(path, _Descriptions(by_digest=latest).model_dump())
    return known[digest].model_dump()


def _digest(directory: Path, exact: bool) -> str:
    """sha256 of all that a description follows from."""
    digest = hashlib.sha256(
        json.dumps([version("transformers"), exact, family_of(directory) is GEOCLIP]).encode()
    )
    modules = [Path(str(module.__file__)) for module in (families, function, preprocessing, images)]
    for path in [*modules, *(directory / name for name in _FILES)]:
        content = read_bytes(path, limit=JSON_BYTES) if path.is_file() else b""
        digest.update(f"{path.name} {path.is_file()} {len(content)} ".encode() + content)
    return digest.hexdigest()
