"""CSVs to a checked table of samples. Nothing here opens an image.

Rows are counted as a spreadsheet shows them: the header is row 1.
"""

import json
import re
import shlex
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from geo_embed.answers import Truth
from geo_embed.buckets import Address, kept_dir
from geo_embed.config import Config, Paths
from geo_embed.console import counted
from geo_embed.data.image_names import ImageNames
from geo_embed.data.pictures import Pictures
from geo_embed.data.table import Problem, composed, look_alike, numbers_of, read_csv, shown, why_no_number
from geo_embed.errors import GeoError

SPLITS = ("train", "test")
_TRUTH_COLUMNS = ("state", "state_idx", "latitude", "longitude")
PREDICTED_STATES = tuple(f"predicted_state_idx_{rank}" for rank in range(1, 6))
PREDICTED_POINT = ("predicted_latitude", "predicted_longitude")

# Further columns that a CSV may have: the administrative areas that OSV-5M names of each place, the largest first.
AREAS = ("country", "region", "sub-region", "city")

_VIEW_SETTING = "model.view_names"

# Problems of one column of one file that are listed one by one; more than that are counted.
_LISTED = 20
# Samples whose names are looked for at once; Python's strings of all of them would take more memory than anything else.
_BLOCK = 1 << 14
# Up to here every whole number is a float of its own.
_LARGEST_INTEGER = 2**53
_LEAVES_FOLDER = r"(?:^|[/\\])\.\.(?:[/\\]|$)|^[/\\]|^[A-Za-z]:|\x00"
# Lines of integers; eighteen digits fit into int64. Possessive, so that a million of them need no memory to go back to.
_INTEGER_ID = r"(?:0|-?[1-9][0-9]{0,17})"
_INTEGER_IDS = re.compile(rf"{_INTEGER_ID}(?:\n{_INTEGER_ID})*+")


@dataclass(frozen=True)
class Samples:
    """One split in manifest order: the order of its CSV.

    Attributes:
        split: `train` or `test`.
        csv: the file it came from.
        image_root: the folder that the image names start at, or the tar archive or Parquet file that has them all.
        view_names: the V views.
        sample_id: (N,) ids as text, exactly as written in the CSV, as NumPy's own strings.
        images: (N, V) image names relative to `image_root`; empty where the CSV names none.
        truth: of the N samples; None for `test`.
        index_dir: where indexes of tar archives of pictures are kept; None for nowhere.
    """

    split: str
    csv: Path
    image_root: Path
    view_names: tuple[str, ...]
    sample_id: NDArray[Any]
    images: ImageNames
    truth: Truth | None
    index_dir: Path | None = None

    @cached_property
    def pictures(self) -> Pictures:
        """The pictures by their names, however they lie at `image_root`."""
        return Pictures(self.image_root, self.index_dir)

    def __len__(self) -> int:
        return len(self.sample_id)

    def row(self, index: int) -> int:
        """The spreadsheet row of a sample, where the CSV has no blank lines."""
        return index + 2


def load_samples(config: Config, split: str) -> Samples:
    """One split, checked. The presence of image files is not: see `missing_images`.

    Raises:
        GeoError: the first problem of the CSVs, with file, row and column, and how many more there are.
    """
    samples, problems = check_samples(config.paths, config.model.view_names, split)
    if samples is None or problems:
        first, more = problems[0], len(problems) - 1
        if first.kind == "missing-file":
            hint = "name the dataset's folder with --set paths.data_root=DIR, or the file itself: geo config show"
        elif _VIEW_SETTING in first.message:
            hint = (
                f"name the file's views in {_VIEW_SETTING}, with --set or in geo.toml; or rename its columns"
            )
        elif more:
            hint = f"list all of them with: geo data check --split {split}"
        else:
            hint = "correct the file, or name another one with --set paths.…"
        raise GeoError(
            first.message + (f", and {more} more problem{'s' * (more > 1)}" if more else ""),
            where=first.where,
            hint=hint,
        )
    return samples


def truth_of(samples: Samples) -> Truth:
    """The truth of a split that has one. Raises GeoError for one that hasn't."""
    if samples.truth is None:
        raise GeoError(f"the {samples.split} split carries no truth", where=samples.csv)
    return samples.truth


def load_truth(path: Path, mapping: dict[int, str], sample_id: NDArray[Any]) -> Truth:
    """The answers of samples (N,) whose own CSV has none, from a file with a row for each of them, in any order.

    Raises:
        GeoError: the first problem of the file, or a sample without a row.
    """
    table, problems = read_csv(path, ["sample_id", *_TRUTH_COLUMNS])
    if table is not None:
        truth, truth_problems = _check_truth(path, table, mapping)
        problems = [*_check_ids(path, table["sample_id"]), *truth_problems]
        if not problems:
            place = {text: row for row, text in enumerate(table["sample_id"])}
            absent = [text for text in sample_id if text not in place]
            if absent:
                raise GeoError(
                    f"no row for {len(absent):,} of {counted(len(sample_id), 'sample')}, {absent[0]} first",
                    where=path,
                )
            return truth.take(np.array([place[text] for text in sample_id], dtype=np.int64))
    raise GeoError(problems[0].message, where=problems[0].where, hint="correct the file")


def load_mapping(path: Path) -> dict[int, str]:
    """`state_idx` to state name, ascending. Raises GeoError with the first problem."""
    mapping, problems = _check_mapping(path)
    if problems:
        raise GeoError(problems[0].message, where=problems[0].where, hint="correct the state mapping")
    return mapping


def natural_ids(sample_id: Sequence[str] | NDArray[Any]) -> NDArray[Any]:
    """Ids as int64 where every one is a plainly written integer, else as text: what pandas would read."""
    numbers = np.empty(len(sample_id), dtype=np.int64)
    for start in range(0, len(sample_id), _BLOCK):
        texts = sample_id[start : start + _BLOCK]
        lines = "\n".join(texts)
        if lines.count("\n") != len(texts) - 1 or not _INTEGER_IDS.fullmatch(lines):
            return np.asarray(sample_id, dtype=object)
        numbers[start : start + len(texts)] = [int(text) for text in texts]
    return numbers


def text_ids(sample_id: Iterable[Any]) -> NDArray[np.object_]:
    """Ids of any stored type as text, the form in which they are compared."""
    return np.array([str(value) for value in sample_id], dtype=object)


def missing_images(samples: Samples, rows: slice | None = None) -> list[tuple[int, int, str]]:
    """(sample, view, reason) of every image, of these rows if not all, that the CSV does not name, or that is neither a file on disk nor in a shard.

    Folders are listed once each, instead of one look at every file. Names are compared by 64-bit hashes, eight bytes each: where two
    fell together, a file that is absent would be told when it is to be read.

    Raises:
        GeoError: a shard can't be read.
    """
    rows = slice(*(rows or slice(None)).indices(len(samples)))
    blocks = [slice(start, min(start + _BLOCK, rows.stop)) for start in range(rows.start, rows.stop, _BLOCK)]
    named_folders = {
        name.rpartition("/")[0] for block in blocks for name in samples.images[block].ravel() if name
    }
    listed = [_hashes_in(samples, folder) for folder in sorted(named_folders)]
    present = np.sort(np.concatenate([np.zeros(0, dtype=np.int64), *listed]))
    alike: dict[str, dict[str, str]] = {}
    missing: list[tuple[int, int, str]] = []
    for block in blocks:
        names = samples.images[block]
        wanted = _hashes(names.ravel()).reshape(names.shape)
        absent = np.argwhere((names == "") | ~_is_among(wanted, present)).tolist()
        in_shards = samples.pictures.look_up([names[i, v] for i, v in absent]) if absent else []
        for (i, v), fault in zip(absent, in_shards, strict=True):
            name, place = names[i, v], (block.start + i, v)
            if not name:
                missing.append((*place, "the CSV names no image"))
            elif fault is None:
                missing.append((*place, _why_missing(samples, name, alike)))
            elif fault:
                missing.append((*place, f"{fault}: {name}"))
    return missing


def _hashes(names: Iterable[str]) -> NDArray[np.int64]:
    return np.fromiter(map(hash, names), dtype=np.int64)


def _hashes_in(samples: Samples, folder: str) -> NDArray[np.int64]:
    """Hashes of the files in a folder, by such names as a CSV would give them."""
    return _hashes(f"{folder}/{name}" if folder else name for name in samples.pictures.files_in(folder))


def _is_among(values: NDArray[np.int64], ascending: NDArray[np.int64]) -> NDArray[np.bool_]:
    if not len(ascending):
        return np.zeros(values.shape, dtype=bool)
    place = np.searchsorted(ascending, values).clip(max=len(ascending) - 1)
    return np.asarray(ascending[place] == values)


def _why_missing(samples: Samples, name: str, alike: dict[str, dict[str, str]]) -> str:
    """What to say of an image that is no file; `alike` keeps what the folders hold, by how it looks."""
    folder, _, base = name.rpartition("/")
    parent = samples.image_root / folder
    if folder not in alike:
        alike[folder] = {look_alike(other): other for other in samples.pictures.files_in(folder)}
    what = "is a directory" if samples.pictures.is_folder(name) else "no such file"
    near = alike[folder].get(look_alike(base))
    if near is not None and near != base:
        hint = _describe_near(base, near, parent)
    else:
        hint = samples.pictures.find_near(name)
    return f"{what}: {name}" + (f"; {hint}" if hint else "")


def _advise_views(path: Path, views: tuple[str, ...]) -> str:
    """What to say of a CSV that lacks columns, where its views aren't those of the settings; empty where they are."""
    table, _ = read_csv(path, [], every_column=True)
    if table is None:
        return ""
    available = [name.removeprefix("image_") for name in table.columns if name.startswith("image_")]
    if set(views) <= set(available):
        return ""
    wanted = f"; {_VIEW_SETTING} asks for {', '.join(views)}"
    if not available:
        return f"{wanted}, each in a column image_VIEW, and the file has no such column"
    setting = f"{_VIEW_SETTING}={json.dumps(available, ensure_ascii=False)}"
    return f"{wanted}, the file seems to have {', '.join(available)}: --set {shlex.quote(setting)}"


def leave_out_empty_views(samples: Samples) -> str:
    """What to type where some views have no picture in any row, and others have: the setting without them; else empty."""
    used = [bool(samples.images.named[:, v].any()) for v in range(len(samples.view_names))]
    kept = [view for view, is_used in zip(samples.view_names, used, strict=True) if is_used]
    if not kept or all(used):
        return ""
    empty = ", ".join(view for view, is_used in zip(samples.view_names, used, strict=True) if not is_used)
    setting = shlex.quote(f"{_VIEW_SETTING}={json.dumps(kept, ensure_ascii=False)}")
    return f"no row has a picture of view {empty}; --set {setting} leaves it out"


def _describe_near(name: str, near: str, folder: Path) -> str:
    """What to say of a file whose name looks like the one that is wanted."""
    if unicodedata.normalize("NFC", name) != unicodedata.normalize("NFC", near):
        return f"the folder has {shown(near)}: the names must be the same"
    form = "composed" if unicodedata.is_normalized("NFC", name) else "decomposed"
    target = "nfc" if form == "composed" else "nfd"
    return (
        f"the folder has the same name with its accents written otherwise, and the CSV has them {form}: "
        f"convmv -r -f utf8 -t utf8 --{target} --notest {folder}"
    )


def check_samples(paths: Paths, views: tuple[str, ...], split: str) -> tuple[Samples | None, list[Problem]]:
    """One split and every problem of its CSVs; no samples where they can't be told from the file at all."""
    path = paths.csv(split)
    image_columns = [f"image_{view}" for view in views]
    truth_columns = _TRUTH_COLUMNS if split == "train" else ()
    table, problems = read_csv(path, ["sample_id", *image_columns, *truth_columns])
    if table is None:
        if problems[0].kind == "missing-column":
            problems = [replace(problems[0], message=problems[0].message + _advise_views(path, views))]
        return None, problems
    if table.empty:
        return None, [Problem("empty", str(path), "the file has a header but no rows")]

    problems += _check_ids(path, table["sample_id"])
    for column in image_columns:
        leaves = table[column].str.contains(_LEAVES_FOLDER)
        problems += _listed("image-path", path, table[column], leaves, "image name leaves the image folder:")
    truth: Truth | None = None
    if truth_columns:
        mapping, mapping_problems = _check_mapping(paths.mapping())
        problems += mapping_problems
        truth, truth_problems = _check_truth(path, table, mapping if not mapping_problems else None)
        problems += truth_problems

    return (
        Samples(
            split=split,
            csv=path,
            image_root=paths.images(split),
            view_names=views,
            sample_id=_compact(table["sample_id"]),
            images=ImageNames([table[column] for column in image_columns]),
            truth=truth,
            index_dir=_index_dir(paths),
        ),
        problems,
    )


def _compact(column: "pd.Series[str]") -> NDArray[Any]:
    """A column (N,) of text in NumPy's own strings, which take a quarter of the memory of Python's where they are short."""
    texts = np.empty(len(column), dtype=np.dtypes.StringDType())
    for start in range(0, len(column), _BLOCK):
        rows = slice(start, start + _BLOCK)
        texts[rows] = column.iloc[rows].to_numpy(dtype=object)
    return texts


def _index_dir(paths: Paths) -> Path:
    """Where indexes of shards are kept: in the cache, or of one in a bucket on this machine."""
    in_bucket = isinstance(paths.cache_dir, Address)
    return kept_dir() / "pictures" if in_bucket else paths.cache_dir / ".pictures"


def _check_ids(path: Path, ids: "pd.Series[str]") -> list[Problem]:
    if _are_different_numbers(ids):
        return []
    repeated = ids.duplicated() & (ids != "")
    # Two ids that differ in how an accent is written can't be told apart by eye, nor by every program.
    alike = composed(ids).duplicated() & (ids != "") & ~repeated
    same = "an earlier row has the same sample_id"
    return [
        *_without_value(path, ids),
        *_listed("duplicate-id", path, ids, repeated, f"{same},"),
        *_listed("duplicate-id", path, ids, alike, f"{same} but for composed or decomposed accents,"),
    ]


def _are_different_numbers(ids: "pd.Series[str]") -> bool:
    """Whether ids (N,) are whole numbers, none of which is there twice: told in a tenth of the time that texts take."""
    import pyarrow as pa
    import pyarrow.compute as pc

    try:
        numbers = np.sort(pc.cast(pa.array(ids, pa.large_string()), pa.int64()).to_numpy())
    except pa.ArrowInvalid:
        return False
    return bool((numbers[1:] != numbers[:-1]).all())


def _check_mapping(path: Path) -> tuple[dict[int, str], list[Problem]]:
    table, problems = read_csv(path, ["state_idx", "state"])
    if table is None:
        return {}, problems
    if table.empty:
        return {}, [Problem("empty", str(path), "the file has a header but no rows")]
    index, more = _numbers(path, table["state_idx"], integer=True)
    problems += more
    problems += _without_value(path, table["state"])
    for column in ("state_idx", "state"):
        repeated = composed(table[column]).duplicated() & (table[column] != "")
        problems += _listed("duplicate-state", path, table[column], repeated, "repeated:")
    if problems:
        return {}, problems
    return dict(sorted(zip(index.astype(int).tolist(), table["state"].to_list(), strict=True))), []


def _check_truth(
    path: Path, table: pd.DataFrame, mapping: dict[int, str] | None
) -> tuple[Truth, list[Problem]]:
    index, problems = _numbers(path, table["state_idx"], integer=True)
    degrees: dict[str, NDArray[np.float64]] = {}
    for column, bound in (("latitude", 90), ("longitude", 180)):
        degrees[column], more = _numbers(path, table[column])
        outside = np.abs(degrees[column]) > bound
        problems += more
        problems += _listed("range", path, table[column], outside, f"outside [-{bound}, {bound}] degrees:")
    problems += _without_value(path, table["state"])
    if mapping is not None:
        named = pd.Series(index, index=table.index).map(mapping)
        unknown = named.isna().to_numpy() & ~np.isnan(index)
        problems += _listed("unknown-state", path, table["state_idx"], unknown, "not in the state mapping:")
        differs = named.notna() & (table["state"] != "") & (named != table["state"])
        # The same names, as macOS and Linux write their accents, don't.
        named, stated = named[differs].astype("str"), table["state"][differs]
        pairs = stated.str.cat(table["state_idx"], " / ")
        wrong = composed(named) != composed(stated)
        problems += _listed("state-mismatch", path, pairs, wrong, "contradicts the state mapping:")
    state_idx = np.nan_to_num(index, nan=-1).astype(np.int64)
    return Truth(state_idx, degrees["latitude"], degrees["longitude"]), problems


def _numbers(
    path: Path, column: "pd.Series[str]", *, integer: bool = False
) -> tuple[NDArray[np.float64], list[Problem]]:
    numbers = numbers_of(column)
    empty = (column == "").to_numpy()
    wrong = ~empty & np.isnan(numbers)
    if integer:
        wrong |= ~empty & ((numbers != np.round(numbers)) | (np.abs(numbers) > _LARGEST_INTEGER))
    what = "not a whole number:" if integer else "not a number:"
    return np.where(wrong, np.nan, numbers), [
        *_without_value(path, column),
        *_listed("not-a-number", path, column, wrong, what),
    ]


def _without_value(path: Path, column: "pd.Series[str]") -> list[Problem]:
    return _listed("null", path, column, column == "", "no value")


def _listed(
    kind: str,
    path: Path,
    column: "pd.Series[str]",
    wrong: "pd.Series[bool] | NDArray[np.bool_]",
    message: str,
) -> list[Problem]:
    """A problem for each of the first rows of a column (N,) that are `wrong` (N,), ending in its value if it has one, and a count."""
    rows = column.index[np.asarray(wrong, dtype=bool)]
    problems = [
        Problem(kind, f"{path}, row {row}, column {column.name}", message + _with_advice(kind, column[row]))
        for row in rows[:_LISTED]
    ]
    if len(rows) > _LISTED:
        more = f"and {len(rows) - _LISTED} more rows like these"
        problems.append(Problem(kind, f"{path}, column {column.name}", more))
    return problems


def _with_advice(kind: str, value: str) -> str:
    advice = why_no_number(value) if kind == "not-a-number" else ""
    return (f" {shown(value)}" if value else "") + (f" ({advice})" if advice else "")
