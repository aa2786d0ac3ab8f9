"""What a store's metadata may say. It is checked before anything is opened, counted or allocated by it.

A store is a Zarr v3 group in one layout only: the arrays and codecs of `ARRAYS`, for each further feature that its attributes name
the two of `further_arrays`, and chunks of whole rows. Whatever else a zarr.json asks for (another codec, other chunks, a shape beyond the bounds below) is refused by name, and Zarr never sees it.
"""

import math
from collections.abc import Iterable
from typing import Annotated, Any, Literal, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from geo_embed.cache.medium import Storage
from geo_embed.console import counted
from geo_embed.data.variants import Variant
from geo_embed.errors import GeoError
from geo_embed.files import JSON_BYTES, parse_json, validated

FORMAT_VERSION = 1
# Bounds of a store, each far beyond any dataset of street views: pictures (N · V), numbers in an embedding (D), chunks.
MOST_PICTURES, MOST_NUMBERS, MOST_CHUNKS = 2**28, 2**20, 2**18
_MOST_CHUNK_BYTES = 2**32
_UNPROVEN_PICTURES = 2**22

_Codec = tuple[str, dict[str, Any]]
_LITTLE: _Codec = ("bytes", {"endian": "little"})
# By array: the dimensions of its shape, and by dtype the codec that makes bytes of it; a CRC-32C always follows.
ARRAYS: dict[str, tuple[str, dict[str, _Codec]]] = {
    "embeddings": ("NVD", {"float16": _LITTLE, "float32": _LITTLE}),
    "status": ("NV", {"uint8": ("bytes", {})}),
    "content_hash": ("NV", {"uint64": _LITTLE}),
    "sample_id": ("N", {"int64": _LITTLE, "string": ("vlen-utf8", {})}),
}

# Beside the name of a further feature, what pictures it is of.
_HASH = "_hash"
# Of a store, beyond what any backbone has.
_MOST_FEATURES = 16


MOST_LETTERS = 4096
_Text = Annotated[str, Field(max_length=MOST_LETTERS)]
# Enters paths.
_FeatureName = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]{0,63}$")]
_Length = Annotated[int, Field(ge=1, lt=2**63)]


class _Strict(BaseModel):
    model_config = ConfigDict(strict=True, extra="ignore")


class _Group(_Strict):
    zarr_format: Literal[3]
    node_type: Literal["group"]
    attributes: dict[str, Any]


class Attributes(_Strict):
    """What a store says of itself, as far as anything goes by it."""

    # Enters paths and messages.
    fingerprint: Annotated[str, Field(pattern=r"^[0-9A-Za-z_-]{1,64}$")]
    backbone: _Text
    view_names: Annotated[list[_Text], Field(min_length=1)]
    manifest_sha256: _Text
    dtype: Literal["float16", "bfloat16", "float32", "float64"] | None = None
    stored: Literal["float16", "float32"] | None = None
    feature: _Text | None = None
    features: Annotated[list[_FeatureName], Field(max_length=_MOST_FEATURES)] = []
    weights_sha256: _Text | None = None
    function: dict[str, Any] | None = None
    picture_semantics: int | None = None
    preprocessing: dict[str, Any] | None = None
    variant: Variant | None = None
    imported: bool = False
    checksums: dict[str, str] = {}
    versions: dict[str, Any] = {}


class _Features(_Strict):
    features: Annotated[list[_FeatureName], Field(max_length=_MOST_FEATURES)] = []


class _Head(_Strict):
    attributes: _Features


class _ChunkShape(_Strict):
    chunk_shape: Annotated[list[_Length], Field(min_length=1)]


class _ChunkGrid(_Strict):
    name: Literal["regular"]
    configuration: _ChunkShape


class _Separator(_Strict):
    separator: Literal["/"] = "/"


class _ChunkKeys(_Strict):
    name: Literal["default"]
    configuration: _Separator = _Separator()


class _CodecEntry(_Strict):
    name: str
    configuration: dict[str, Any] = {}


class _Array(_Strict):
    zarr_format: Literal[3]
    node_type: Literal["array"]
    shape: list[_Length]
    data_type: str
    chunk_grid: _ChunkGrid
    chunk_key_encoding: _ChunkKeys
    fill_value: int | float | str
    codecs: list[_CodecEntry]
    storage_transformers: Annotated[list[Any], Field(max_length=0)] = []


_Schema = TypeVar("_Schema", bound=BaseModel)


def further_arrays(features: Iterable[str]) -> dict[str, tuple[str, dict[str, _Codec]]]:
    """The arrays of further features, as `ARRAYS` has the others: the numbers, and the content hash of the picture that they are of."""
    arrays = {}
    for feature in features:
        arrays[feature] = ARRAYS["embeddings"]
        arrays[hash_array(feature)] = ARRAYS["content_hash"]
    return arrays


def named_arrays(head: bytes) -> list[str]:
    """The arrays of the further features that a group's zarr.json names, before it is checked; none where it can't be read."""
    try:
        return [*further_arrays(_Head.model_validate_json(head).attributes.features)]
    except ValidationError:
        return []


def hash_array(feature: str) -> str:
    """The array that says of which pictures a further feature is."""
    return f"{feature}{_HASH}"


def check_layout(storage: Storage) -> dict[str, Any]:
    """The attributes of a store whose metadata is in order.

    Raises:
        GeoError: the first thing in a zarr.json that is not as this package writes it, by file and key.
    """
    attributes = _read(storage, "zarr.json", _Group).attributes
    version = attributes.get("format_version")
    if version != FORMAT_VERSION or isinstance(version, bool):
        raise GeoError(f"store format {version!r:.40}, where this version reads {FORMAT_VERSION}")
    described = validated(Attributes, attributes, storage.root / "zarr.json")
    views = described.view_names
    further = further_arrays(described.features)
    if len(further) != 2 * len(described.features) or not further.keys().isdisjoint(ARRAYS):
        raise GeoError(
            f"features: {', '.join(described.features)!r:.80} can't all be further features",
            where=storage.root / "zarr.json",
        )
    lengths: dict[str, int] = {}
    kinds: dict[str, str] = {}
    for name, (dimensions, codecs) in (ARRAYS | further).items():
        file = f"{name}/zarr.json"
        array = _read(storage, file, _Array)
        # A further feature has a width of its own, and the precision of the embeddings.
        array_lengths = lengths if name in ARRAYS else {key: lengths[key] for key in "NVC"}
        if name in further and dimensions == "NVD":
            codecs = {kinds["embeddings"]: _LITTLE}
        _check_array(array, dimensions, codecs, array_lengths, where=str(storage.root / file))
        kinds[name] = array.data_type
    n, v = lengths["N"], lengths["V"]
    # An id takes four bytes or more: what few bytes claim to be millions of pictures are not.
    if n * v > _UNPROVEN_PICTURES and storage.size("sample_id/c/0") < 4 * n:
        raise GeoError(f"shape: {n:,} rows, where sample_id has fewer ids", where=storage.root)
    if len(set(views)) != len(views) or len(views) != lengths["V"]:
        raise GeoError(
            f"view_names: {counted(len(set(views)), 'name for', 'names for')} {lengths['V']} views",
            where=storage.root / "zarr.json",
        )
    return attributes


def _read(storage: Storage, name: str, schema: type[_Schema]) -> _Schema:
    where = storage.root / name
    return validated(schema, parse_json(storage.read(name, limit=JSON_BYTES), where), where)


def _check_array(
    array: _Array, dimensions: str, codecs: dict[str, _Codec], lengths: dict[str, int], *, where: str
) -> None:
    """Check one array; `lengths` gathers N, V, D and rows per chunk (C), in which all arrays of a store must agree."""
    if len(array.shape) != len(dimensions):
        raise GeoError(f"shape: {len(array.shape)} dimensions, where {len(dimensions)} belong", where=where)
    for dimension, length in zip(dimensions, array.shape, strict=True):
        if lengths.setdefault(dimension, length) != length:
            raise GeoError(
                f"shape: {array.shape}, where other arrays have {lengths[dimension]} along {dimension}",
                where=where,
            )
    n, v, d = (lengths.get(dimension, 1) for dimension in "NVD")
    if n * v > MOST_PICTURES or d > MOST_NUMBERS:
        raise GeoError(
            f"shape: {array.shape} is more than {MOST_PICTURES:,} pictures, or {MOST_NUMBERS:,} numbers each",
            where=where,
        )
    # Ids lie in one chunk; the others are cut along their rows alone, all into the same.
    rows, *others = array.chunk_grid.configuration.chunk_shape
    wanted = n if dimensions == "N" else lengths.setdefault("C", rows)
    if rows != wanted or rows > n or others != array.shape[1:]:
        raise GeoError(
            f"chunk_grid: chunks of {[rows, *others]} in {array.shape}, where chunks of {min(wanted, n)} whole rows belong",
            where=where,
        )
    if -(-n // rows) > MOST_CHUNKS or rows * math.prod(others) * 8 > _MOST_CHUNK_BYTES:
        raise GeoError(f"chunk_grid: chunks of {[rows, *others]} in {array.shape} can't be read", where=where)
    if array.data_type not in codecs:
        raise GeoError(f"data_type: {array.data_type!r:.40}, not {' or '.join(codecs)}", where=where)
    written = [(codec.name, codec.configuration) for codec in array.codecs]
    if written != [codecs[array.data_type], ("crc32c", {})]:
        raise GeoError(
            f"codecs: {', '.join(name for name, _ in written)!r:.80} are not {codecs[array.data_type][0]} and crc32c",
            where=where,
        )
