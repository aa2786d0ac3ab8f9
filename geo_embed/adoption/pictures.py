"""The pictures of a source: listed, put together to samples by a pattern of their names, and looked at."""

import os
import re
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from os import cpu_count
from pathlib import Path

import numpy as np
import pandas as pd

from geo_embed.adoption.candidates import ONE_VIEW, Ledger
from geo_embed.adoption.gps import read_gps
from geo_embed.config import Config
from geo_embed.console import progress
from geo_embed.data.images import find_fault
from geo_embed.errors import GeoError, reading_errors
from geo_embed.files import open_regular

# Names of picture files. Some of these kinds can't be read here: that is said of each, with what converts it.
_ENDINGS = frozenset(
    {
        *(".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".ppm", ".pgm"),
        *(".avif", ".heic", ".heif", ".jp2", ".jxl", ".dng", ".nef", ".cr2", ".arw"),
    }
)
_POINTS = ("north", "northeast", "east", "southeast", "south", "southwest", "west", "northwest")
_COMPASS = {name: place for place, name in enumerate(_POINTS)} | {
    name: place for place, name in enumerate(("n", "ne", "e", "se", "s", "sw", "w", "nw"))
}
_FIELDS = {"id": r"[^/]+", "view": r"[^/]+?", "class": r"[^/]+", "*": r"[^/]*"}
_BLOCK = 2048


@dataclass(frozen=True)
class Pattern:
    """How names of pictures are made: `{id}_{view}.jpg`, with `{class}` for a class and `*` for anything within a name.

    One with a slash is of the path below the source's folder, another one of the file's name alone.
    """

    text: str
    expression: "re.Pattern[str]"

    @property
    def is_path(self) -> bool:
        return "/" in self.text

    @property
    def has_views(self) -> bool:
        return "{view}" in self.text

    def match(self, name: str) -> dict[str, str] | None:
        """What stands for each field in a path below the source's folder; None where it isn't of this pattern."""
        matched = self.expression.fullmatch(name if self.is_path else name.rpartition("/")[2])
        return matched.groupdict() if matched else None


def read_pattern(text: str, views: Sequence[str]) -> Pattern:
    """A pattern as somebody types it; `views`, where they are named, are the only ones that it takes.

    Raises:
        GeoError: it has no id, another field than these, or one twice.
    """
    fields = re.findall(r"\{([^{}]*)\}", text)
    unknown = [name for name in fields if name not in ("id", "view", "class")]
    if "id" not in fields or unknown or len(set(fields)) < len(fields):
        raise GeoError(
            f"a pattern has {{id}} once, and {{view}} and {{class}} at most once: {text!r}",
            where="--pattern",
            hint="for example: --pattern '{id}_{view}.jpg'",
        )
    # Of views that are named the longest that fits: `far_left` is no `left` of `7_far`.
    longest = "|".join(map(re.escape, sorted(views, key=len, reverse=True)))
    known = dict(_FIELDS, view=longest, id=r"[^/]+?") if views else _FIELDS
    expression = "".join(
        f"(?P<{name[1:-1]}>{known[name[1:-1]]})"
        if name.startswith("{")
        else known["*"]
        if name == "*"
        else re.escape(name)
        for name in re.split(r"(\{[a-z]+\}|\*)", text)
        if name
    )
    return Pattern(text, re.compile(expression, re.IGNORECASE))


def list_files(root: Path, ledger: Ledger) -> list[str]:
    """Every file below a folder by its path there, parts joined by `/`, sorted; hidden ones left out, links followed, none twice.

    Names that are no text can't stand in a CSV: these are left out, and entered as such.

    Raises:
        GeoError: the folder can't be read.
    """
    names: list[str] = []
    seen: set[tuple[int, int]] = set()
    folders = [""]
    with reading_errors(root):
        while folders:
            folder = folders.pop()
            status = (root / folder).stat()
            if (status.st_dev, status.st_ino) in seen:
                continue
            seen.add((status.st_dev, status.st_ino))
            with os.scandir(root / folder) as entries:
                for entry in entries:
                    if entry.name.startswith(".") or entry.name == "__MACOSX":
                        continue
                    name = f"{folder}/{entry.name}" if folder else entry.name
                    if entry.is_dir():
                        folders.append(name)
                    elif entry.is_file():
                        names.append(name)
    odd = [name for name in names if not is_text(name)]
    shown = [name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace") for name in odd]
    ledger.leave_files(shown, "unusable-name", "its name is no text: rename it")
    return sorted(set(names).difference(odd))


def is_text(name: str) -> bool:
    """Whether a name can stand in a CSV as it is."""
    try:
        name.encode("utf-8")
    except UnicodeError:
        return False
    return "\0" not in name and "\r" not in name


def is_picture(name: str) -> bool:
    """Whether a file's name ends as pictures' do."""
    return Path(name).suffix.lower() in _ENDINGS


def group_pictures(
    names: Sequence[str], pattern: Pattern | None, views: Sequence[str], ledger: Ledger
) -> pd.DataFrame:
    """A row per picture: `key` of its sample, `id`, `class`, `view` and `path`; what doesn't match the pattern is left out.

    Without a pattern each picture is a sample by itself, called by its name without the ending. Samples in different folders
    are different ones, unless the pattern is of whole paths. Views that differ in case are one, as `views` has it, or the first.
    """
    spelled = {view.casefold(): view for view in views}
    rows, others, again = [], [], []
    taken: set[tuple[str, str]] = set()
    for name in names:
        folder, _, file = name.rpartition("/")
        fields = {"id": Path(file).stem} if pattern is None else pattern.match(name)
        if fields is None:
            others.append(name)
            continue
        parent = fields.get("class", "") if pattern is not None and pattern.is_path else folder
        key, view = f"{parent}/{fields['id']}".lstrip("/"), fields.get("view", ONE_VIEW)
        view = spelled.setdefault(view.casefold(), view)
        if (key, view) in taken:
            again.append(name)
            continue
        taken.add((key, view))
        rows.append((key, fields["id"], fields.get("class", ""), view, name))
    if pattern is not None:
        ledger.leave_files(others, "other-name", f"its name isn't of the pattern {pattern.text}")
    ledger.leave_files(
        again,
        "same-name",
        "another picture has this name but for the ending, or for what the pattern leaves open",
    )
    return pd.DataFrame(rows, columns=["key", "id", "class", "view", "path"], dtype=object)


def order_views(names: Iterable[str]) -> tuple[str, ...]:
    """Views in the compass's order, or by number; others as they are found first."""
    views = list(dict.fromkeys(names))
    if all(view.lower() in _COMPASS for view in views):
        return tuple(sorted(views, key=lambda view: _COMPASS[view.lower()]))
    if all(view.isdecimal() for view in views):
        return tuple(sorted(views, key=int))
    return tuple(views)


def look_at_pictures(
    root: Path, names: Sequence[str], config: Config, *, places: bool
) -> tuple[list[str], list[tuple[float, float] | str]]:
    """Of each picture why it can't be read ("" where it seems fine), and where its EXIF says that it was taken, or why it doesn't.

    Args:
        root: the folder that names start at.
        names: of N pictures, "" for none.
        config: threads, and how often progress is told.
        places: whether EXIF is asked.
    """

    def look(name: str) -> tuple[str, tuple[float, float] | str]:
        if not name:
            return "", ""
        path = root / name
        fault = find_fault(path)
        if fault or not places:
            return fault, ""
        try:
            with open_regular(path) as file:
                return "", read_gps(file)
        except GeoError as error:
            return error.what, ""

    looks: list[tuple[str, tuple[float, float] | str]] = []
    with (
        progress("look", len(names), "pictures", config.tracking.progress_seconds) as advance,
        ThreadPoolExecutor(config.inference.workers or cpu_count() or 1) as pool,
    ):
        for start in range(0, len(names), _BLOCK):
            part = names[start : start + _BLOCK]
            looks += pool.map(look, part)
            advance(len(part))
    return [fault for fault, _ in looks], [place for _, place in looks]


def without_faults(
    frame: pd.DataFrame, images: list[str], root: Path, config: Config, ledger: Ledger
) -> pd.DataFrame:
    """The samples whose pictures can all be read, as far as a look at them tells; the places of EXIF are not asked."""
    for column in images:
        faults, _ = look_at_pictures(root, frame[column].tolist(), config, places=False)
        detail = pd.Series(faults, index=frame.index, dtype=object).str.cat(
            frame[column].astype(object), ": "
        )
        frame = ledger.leave(frame, np.array(faults, dtype=object) != "", "unreadable-picture", detail)
    return frame
