"""A disk whose power can go at any moment: what a command does to it is recorded, and every disk is built that a cut could leave.

What is recorded. `Disk.recording` looks at the whole tree before and after every call of Python's that changes a name or forces
something to the disk, and writes down what differs. So it sees whatever anybody did in between, by whatever means: Zarr's threads,
safetensors' Rust, Arrow's C++, NumPy's C, a call through ctypes. What it can't see is an fsync of theirs; one that isn't seen
counts as not done, which is the stricter. In which order things were done between two looks doesn't matter, since nothing orders
what no fsync orders. `tests/faults/test_powercut.py` holds it against what strace
sees, where there is one.

What a cut may leave. After an fsync of a file its bytes are there; after an fsync of a folder, the names in it. Of everything else
each may be there or not, independently:

- a change of a name (create, rename, swap, link, delete), whole; but a later one of the same name never without the earlier;
- a file's bytes: as they were when it was last forced (none of a new one), or torn at any byte or block, or of full length with
  zeros where bytes didn't arrive, or all of it.

That is weaker than any file system in use: ext4, XFS, Btrfs and APFS keep the order of changes of names.
"""

from __future__ import annotations

import os
import random
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import pytest

_NAMES = ("rename", "replace", "link", "symlink", "mkdir", "rmdir", "unlink", "remove", "truncate")
_SYNCS = ("fsync", "fdatasync")
BLOCK = 4096
ROOT = 0

Names = dict[int, dict[str, int]]
# In a folder a name comes to stand for something else, or for nothing.
Change = tuple[int, str, int | None]


@dataclass(frozen=True)
class Renamed:
    """Changes of names that happen in one step."""

    changes: frozenset[Change]

    @property
    def touched(self) -> set[tuple[int, str]]:
        return {(folder, name) for folder, name, _ in self.changes}


@dataclass(frozen=True)
class Wrote:
    """A file has other bytes."""

    file: int
    data: bytes


@dataclass(frozen=True)
class Forced:
    """A file or folder was forced to the disk, by its name then."""

    node: int
    path: str


@dataclass(frozen=True)
class Promised:
    """The command told somebody that something is done."""

    what: object


Event = Renamed | Wrote | Forced | Promised


@dataclass(frozen=True)
class Cut:
    """A disk after a cut: what had been promised by then, and bytes by path (None for a folder, text for what a link leads to)."""

    promised: tuple[object, ...]
    tree: dict[str, bytes | str | None]

    def build(self, root: Path) -> Path:
        """Make it a real one, below an empty directory."""
        root.mkdir(parents=True)
        for name, data in sorted(self.tree.items()):
            if data is None:
                (root / name).mkdir()
            elif isinstance(data, str):
                (root / name).symlink_to(data)
            else:
                (root / name).write_bytes(data)
        return root

    def key(self) -> int:
        """Tells it from others, quickly: bytes remember their hash."""
        return hash((self.promised, frozenset(self.tree.items())))


@dataclass
class Disk:
    """A directory that is recorded.

    Attributes:
        root: the directory; what is in it when the recording begins is on the disk.
        events: in order.
        paths: what each node was called last, for people.
        seen: all that ever had a name.
        tried: disks that `cuts` has put together.
    """

    root: Path
    events: list[Event] = field(default_factory=list)
    paths: dict[int, str] = field(default_factory=dict)
    seen: set[str] = field(default_factory=set)
    tried: int = 0
    _numbers: dict[int, int] = field(default_factory=dict)
    _names: Names = field(default_factory=dict)
    _data: dict[int, bytes] = field(default_factory=dict)
    _seen: dict[int, tuple[int, ...]] = field(default_factory=dict)
    _links: dict[int, str] = field(default_factory=dict)
    _folders: set[int] = field(default_factory=set)
    _last: int = ROOT
    _first_names: Names = field(default_factory=dict)
    _first_data: dict[int, bytes] = field(default_factory=dict)
    _lock: threading.RLock = field(default_factory=threading.RLock)

    @contextmanager
    def recording(self, monkeypatch: pytest.MonkeyPatch) -> Iterator[Disk]:
        """Write down what happens below the root while the block runs."""
        self.root.mkdir(parents=True, exist_ok=True)
        self._look()
        self.events.clear()
        self._first_names = {folder: dict(names) for folder, names in self._names.items()}
        self._first_data = dict(self._data)
        with monkeypatch.context() as patched:
            for name in _NAMES:
                patched.setattr(os, name, partial(self._change, getattr(os, name)))
            for name in _SYNCS:
                patched.setattr(os, name, partial(self._force, getattr(os, name)))
            yield self
            self._look()

    def say(self, what: object) -> None:
        """From here on a cut must not undo this."""
        with self._lock:
            self._look()
            self.events.append(Promised(what))

    def _change(self, call: Callable[..., object], *arguments: object, **named: object) -> object:
        with self._lock:
            self._look()
            try:
                return call(*arguments, **named)
            finally:
                self._look()

    def _force(self, call: Callable[[int], None], handle: int) -> None:
        with self._lock:
            self._look()
            number = self._numbers.get(os.fstat(handle).st_ino)
            if number is not None:
                self.events.append(Forced(number, self.paths.get(number, "")))
            call(handle)

    def _look(self) -> None:
        """Write down how the tree differs from what it was."""
        names: Names = {}
        numbers: dict[int, int] = {}
        data: dict[int, bytes] = {}

        def number_of(status: os.stat_result) -> int:
            number = numbers.get(status.st_ino, self._numbers.get(status.st_ino))
            if number is None:
                self._last = number = self._last + 1
            numbers[status.st_ino] = number
            return number

        def walk(folder: Path, number: int) -> None:
            names[number] = {}
            self._folders.add(number)
            for entry in sorted(os.scandir(folder), key=lambda entry: entry.name):
                status = entry.stat(follow_symlinks=False)
                inside = names[number][entry.name] = number_of(status)
                path = folder / entry.name
                self.paths[inside] = str(path.relative_to(self.root))
                self.seen.add(self.paths[inside])
                if entry.is_dir(follow_symlinks=False):
                    walk(path, inside)
                elif entry.is_symlink():
                    self._links[inside] = str(path.readlink())
                elif inside not in data:
                    # A clock's tick is too long to tell by the time whether there was another write.
                    key = (status.st_size, status.st_mtime_ns, status.st_ctime_ns)
                    same = self._seen.get(inside) == key and inside in self._data
                    data[inside] = self._data[inside] if same and self._is_old(status) else path.read_bytes()
                    self._seen[inside] = key

        numbers[self.root.stat().st_ino] = ROOT
        walk(self.root, ROOT)
        for file, content in data.items():
            if self._data.get(file, b"") != content:
                self.events.append(Wrote(file, content))
        self.events += map(Renamed, _steps(self._names, names))
        self._numbers, self._names, self._data = numbers, names, data

    @staticmethod
    def _is_old(status: os.stat_result) -> bool:
        return time.time_ns() - status.st_mtime_ns > 50_000_000

    def cuts(self, *, seed: int = 0, random_cuts: int = 2) -> Iterator[Cut]:
        """The disks that a cut after each event may leave, no one twice: nothing, all, each alone, all but each, torn, at random.

        How many were looked at, the same ones among them, is in `tried` afterwards.
        """
        known: set[int] = set()
        chance = random.Random(seed)
        now = _Moment(self._first_data)
        for event in [None, *self.events]:
            now.add(event)
            for chosen, data in now.choices(chance, random_cuts):
                self.tried += 1
                cut = Cut(tuple(now.promised), self._tree([now.steps[k] for k in sorted(chosen)], data))
                if (key := cut.key()) not in known:
                    known.add(key)
                    yield cut

    def _tree(self, steps: list[Renamed], data: dict[int, bytes]) -> dict[str, bytes | str | None]:
        names = {folder: dict(inside) for folder, inside in self._first_names.items()}
        for step in steps:
            for folder, name, node in step.changes:
                names.setdefault(folder, {}).pop(name, None)
                if node is not None:
                    names[folder][name] = node
        tree: dict[str, bytes | str | None] = {}

        def walk(folder: int, path: str) -> None:
            for name, node in names.get(folder, {}).items():
                if node in data:
                    tree[path + name] = data[node]
                elif node in self._links:
                    tree[path + name] = self._links[node]
                elif node in self._folders:
                    tree[path + name] = None
                    walk(node, f"{path}{name}/")
                # Nothing was ever written to it.
                else:
                    tree[path + name] = b""

        walk(ROOT, "")
        return tree


@dataclass
class _Moment:
    """What is on the disk for sure at a moment, and what may be."""

    first: dict[int, bytes]
    steps: list[Renamed] = field(default_factory=list)
    promised: list[object] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._forced, self._written = dict(self.first), dict(self.first)
        self._safe: set[int] = set()
        self._earlier: list[set[int]] = []

    def add(self, event: Event | None) -> None:
        if isinstance(event, Promised):
            self.promised.append(event.what)
        elif isinstance(event, Wrote):
            self._written[event.file] = event.data
        elif isinstance(event, Renamed):
            self.steps.append(event)
            self._earlier.append(_with_earlier(self.steps, len(self.steps) - 1))
        elif isinstance(event, Forced):
            if event.node in self._written:
                self._forced[event.node] = self._written[event.node]
            for k in self._open():
                if any(folder == event.node for folder, _ in self.steps[k].touched):
                    self._safe |= self._earlier[k]

    def _open(self) -> list[int]:
        return [k for k in range(len(self.steps)) if k not in self._safe]

    def choices(self, chance: random.Random, random_cuts: int) -> Iterator[tuple[set[int], dict[int, bytes]]]:
        """Which steps are on the disk, and which bytes of each file."""
        forced, written, safe, undecided = self._forced, self._written, self._safe, self._open()
        dirty = [file for file, data in written.items() if forced.get(file, b"") != data]
        all_steps = safe | set(undecided)

        def old() -> dict[int, bytes]:
            return written | {file: forced.get(file, b"") for file in dirty}

        def torn(*files: int) -> dict[int, bytes]:
            return written | {file: _torn(forced.get(file, b""), written[file], chance) for file in files}

        yield all_steps, written
        yield safe, old()
        yield safe, written
        if dirty:
            yield all_steps, old()
            yield all_steps, written | {file: bytes(len(written[file])) for file in dirty}
            yield all_steps, torn(*dirty)
        for file in dirty if len(dirty) > 1 else ():
            yield all_steps, torn(file)
        for k in undecided:
            without = all_steps - {later for later in undecided if k in self._earlier[later]}
            yield safe | self._earlier[k], torn(*dirty)
            yield without, written
            yield without, torn(*dirty)
        for _ in range(random_cuts if len(undecided) + len(dirty) > 1 else 0):
            kept_steps = [self._earlier[k] for k in undecided if chance.random() < 0.5]
            yield safe.union(*kept_steps), torn(*dirty)


def _steps(before: Names, after: Names) -> Iterator[frozenset[Change]]:
    """What changed of names: one step for what was moved, with all that it took part in, and one for each other name."""
    changes: list[tuple[Change, int | None]] = []
    for folder in before.keys() | after.keys():
        earlier, later = before.get(folder, {}), after.get(folder, {})
        if folder not in after:
            # With the folder itself.
            continue
        for name in earlier.keys() | later.keys():
            if earlier.get(name) != later.get(name):
                changes.append(((folder, name, later.get(name)), earlier.get(name)))
    gone = {was for _, was in changes if was is not None}
    come = {change[2] for change, _ in changes if change[2] is not None}
    moved = gone & come
    groups: list[tuple[set[int], set[Change]]] = []
    for change, was in sorted(changes, key=lambda item: (item[0][0], item[0][1])):
        nodes = {node for node in (change[2], was) if node in moved}
        members = {change}
        for group in [group for group in groups if group[0] & nodes]:
            groups.remove(group)
            nodes |= group[0]
            members |= group[1]
        groups.append((nodes, members))
    for _, members in groups:
        yield frozenset(members)


def _with_earlier(steps: list[Renamed], k: int) -> set[int]:
    """A step and those without which it can't have happened: earlier ones of the same names."""
    chosen, touched = {k}, set(steps[k].touched)
    for earlier in range(k - 1, -1, -1):
        if steps[earlier].touched & touched:
            chosen.add(earlier)
            touched |= steps[earlier].touched
    return chosen


def _torn(old: bytes, new: bytes, chance: random.Random) -> bytes:
    """What there may be of a file's bytes: up to a byte, up to a block and zeros, or blocks of the old and the new."""
    kind = chance.randrange(5)
    at = chance.randrange(len(new) + 1)
    if kind == 0:
        return old
    if kind == 1:
        return new[:at]
    if kind == 2:
        return new[:at] + bytes(len(new) - at)
    if kind == 3:
        whole = at - at % BLOCK
        return new[:whole] + bytes(len(new) - whole)
    blocks = range(0, len(new), BLOCK)
    under = old[: len(new)] + bytes(max(0, len(new) - len(old)))
    return b"".join((new if chance.random() < 0.5 else under)[b : b + BLOCK] for b in blocks)
