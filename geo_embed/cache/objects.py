"""The bytes of a store in a bucket, and making, moving and deleting whole ones there.

An object is written in one step and can't be renamed. So a store stands where its `zarr.json` does: that one is written last, only where
there is none, and deleted first. Whatever lies below a root without it, of a command that was killed while it made, moved or deleted a
store, is nobody's, and goes when the next store is made there or with `geo cache gc`.

Chunks that a fit reads are kept on this machine, each under the tag that the bucket gave its content: one that changed has another tag
and is fetched anew, one that didn't is read from the disk. The bucket is asked for its list of tags each time.
"""

import asyncio
import hashlib
import os
import tempfile
import threading
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from geo_embed import buckets
from geo_embed.buckets import Address, Entry
from geo_embed.cache.folder import FolderStorage
from geo_embed.cache.leases import check_held
from geo_embed.cache.medium import Storage
from geo_embed.console import progress
from geo_embed.errors import BusyError, GeoError

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore

_HEAD = "zarr.json"
_CHECKSUM_BYTES = 4
# Requests at once: what hides the way to the bucket and back, and few enough for one machine.
_AT_ONCE = 16
# What a fit hasn't read for thirty days may go from this machine.
_UNREAD_SECONDS = 30 * 86_400


class ObjectStorage(Storage):
    """The bytes of a store in a bucket, `root`."""

    def __init__(self, root: Address) -> None:
        self.root: Address = root
        self._metadata: dict[str, bytes] = {}
        self._listed: dict[str, dict[str, Entry]] = {}
        self._listing = threading.Lock()

    def zarr(self, *, writable: bool) -> "ZarrStore":
        return _for_zarr(self, writable=writable)

    def exists(self, name: str) -> bool:
        return self._entry(name) is not None

    def size(self, name: str) -> int:
        entry = self._entry(name)
        if entry is None:
            raise _absent(self.root / name)
        return entry.size

    def chunks(self, array: str) -> list[str]:
        return [f"{array}/c/{name}" for name in buckets.listing(self.root / array / "c")]

    def head(self, name: str, count: int) -> bytes:
        return self._get(name)[0][:count]

    def read(self, name: str, *, limit: int) -> bytes:
        if name.endswith(_HEAD) and name not in self._metadata:
            self._metadata.update(self._read_metadata())
        data = self._metadata[name] if name in self._metadata else self._get(name)[0]
        if len(data) > limit:
            raise GeoError(
                f"{len(data):,} bytes are more than a file of this kind may have ({limit:,})",
                where=self.root / name,
            )
        return data

    def _read_metadata(self) -> dict[str, bytes]:
        """All metadata files that are there, at the price of one; of two, where there are further features."""
        from geo_embed.cache.layout import ARRAYS, named_arrays

        metadata = self._get_all([_HEAD, *(f"{array}/{_HEAD}" for array in ARRAYS)])
        further = [f"{array}/{_HEAD}" for array in named_arrays(metadata.get(_HEAD, b""))]
        return metadata | (self._get_all(further) if further else {})

    def _get_all(self, names: Sequence[str]) -> dict[str, bytes]:
        with ThreadPoolExecutor(len(names), "get") as pool:
            objects = pool.map(lambda name: buckets.get(self.root / name), names)
            return {
                name: stored[0] for name, stored in zip(names, objects, strict=True) if stored is not None
            }

    def checksum(self, name: str) -> str:
        """As `Storage`; of metadata, that of the bytes that were read when the store was opened."""
        return hashlib.sha256(self._metadata.get(name) or self._get(name)[0]).hexdigest()

    def write_chunks(self, blocks: Mapping[str, NDArray[Any]]) -> None:
        """As `Storage`; nor does any reach the bucket after a lease on the store was lost."""
        import google_crc32c

        check_held(self.root)

        def write(name: str, block: NDArray[Any]) -> None:
            raw = block.reshape(-1).view(np.uint8)
            checksum = google_crc32c.value(raw).to_bytes(_CHECKSUM_BYTES, "little")
            buckets.put(self.root / name, b"".join((raw.data, checksum)))

        with ThreadPoolExecutor(max(1, min(len(blocks), _AT_ONCE)), "put") as pool:
            list(pool.map(write, blocks.keys(), blocks.values()))

    def write_durably(self, name: str, data: bytes) -> None:
        check_held(self.root)
        buckets.put(self.root / name, data)
        self._metadata.pop(name, None)

    def force(self, names: Sequence[str]) -> None:
        """Nothing: once a bucket has answered, it has them."""

    def read_chunk(self, name: str, block: NDArray[Any]) -> None:
        entry = self._entry(name, ask=False)
        if entry is not None and _read_kept(self.root, name, entry.e_tag, block):
            return
        data, tag = self._get(name)
        _fill(name, data, block)
        # What others wrote since the list was made has another tag, and is kept under that.
        if entry is not None:
            _keep(self.root, name, tag, data)

    def read_parts(self, name: str, starts: Sequence[int], block: NDArray[Any]) -> None:
        """As `Storage`; one request for all of the chunk takes less time than some for its parts."""
        data = np.frombuffer(self._get(name)[0], np.uint8)
        for start, part in zip(starts, block, strict=True):
            raw = part.reshape(-1).view(np.uint8)
            if len(data) < start + len(raw):
                raise ValueError(f"{name} ends before byte {start + len(raw):,}")
            raw[:] = data[start : start + len(raw)]

    def usage(self) -> tuple[int, float]:
        return usage(self.root)

    @contextmanager
    def listed(self, array: str) -> Iterator[None]:
        with self._listing:
            is_first = array not in self._listed
            if is_first:
                self._listed[array] = buckets.listing(self.root / array)
        try:
            yield
        finally:
            if is_first:
                del self._listed[array]

    def _entry(self, name: str, *, ask: bool = True) -> Entry | None:
        array, _, rest = name.partition("/")
        # Another thread may leave its list behind just now.
        names = self._listed.get(array)
        if names is not None:
            return names.get(rest)
        return buckets.head(self.root / name) if ask else None

    def _get(self, name: str) -> tuple[bytes, str]:
        stored = buckets.get(self.root / name)
        if stored is None:
            raise _absent(self.root / name)
        return stored


def _absent(address: Address) -> GeoError:
    return GeoError("there is no such object", where=address)


def _fill(name: str, data: bytes, block: NDArray[Any]) -> None:
    """Bytes into a chunk. Raises ValueError where they are not those that were written."""
    import google_crc32c

    raw = block.reshape(-1).view(np.uint8)
    content = memoryview(data)[:-_CHECKSUM_BYTES]
    if len(content) != len(raw):
        raise ValueError(f"the checksum of {name} does not match")
    raw[:] = np.frombuffer(content, np.uint8)
    if google_crc32c.value(raw).to_bytes(_CHECKSUM_BYTES, "little") != data[-_CHECKSUM_BYTES:]:
        raise ValueError(f"the checksum of {name} does not match")


def _for_zarr(storage: ObjectStorage, *, writable: bool) -> "ZarrStore":
    """A store of Zarr's whose bytes lie in a bucket: each is asked for once, in our own way of asking."""
    from zarr.core.buffer import default_buffer_prototype
    from zarr.storage import MemoryStore

    class Objects(MemoryStore):
        async def get(self, key: str, prototype: Any = None, byte_range: Any = None) -> Any:
            prototype = prototype or default_buffer_prototype()
            if key not in self._store_dict:
                stored = await asyncio.to_thread(buckets.get, storage.root / key)
                if stored is None:
                    return None
                self._store_dict[key] = prototype.buffer.from_bytes(stored[0])
            return await super().get(key, prototype, byte_range)

        async def set(self, key: str, value: Any, byte_range: Any = None) -> None:
            await asyncio.to_thread(storage.write_durably, key, value.to_bytes())
            await super().set(key, value, byte_range)

    buffer = default_buffer_prototype().buffer
    known = {name: buffer.from_bytes(data) for name, data in storage._metadata.items()}
    return Objects(store_dict=known, read_only=not writable)


@contextmanager
def creating(path: Address, *, aside: Address | None) -> Iterator[Storage]:
    """An empty root of this machine, which is put into the bucket once the block ends well.

    Args:
        path: of the store.
        aside: where a store that stands there is moved first, until the new one does; None where the caller knows that none does.

    Raises:
        BusyError: another command made one meanwhile.
        UnreachableError: the bucket doesn't answer; what was there before is there, or aside.
    """
    with tempfile.TemporaryDirectory(prefix="geo-bucket-") as folder:
        # By this name, nothing in it has to outlast a power cut.
        root = Path(folder) / f".{path.name}.{uuid.uuid4().hex[:8]}.writing"
        root.mkdir()
        yield FolderStorage(root)
        earlier = aside if aside is not None and buckets.head(path / _HEAD) else None
        if earlier is not None:
            move(path, earlier)
        _put_all(root, path)
        if earlier is not None:
            delete(earlier)


def _put_all(root: Path, path: Address) -> None:
    """Put a store into a bucket: its head last, and only where there is none."""
    check_held(path)
    if buckets.head(path / _HEAD) is None:
        _delete_all(path)
    names = [file.relative_to(root).as_posix() for file in sorted(root.rglob("*")) if file.is_file()]
    with progress(f"put {path.stem}", len(names), "objects") as advance:

        def put(name: str) -> None:
            check_held(path)
            data = (root / name).read_bytes()
            is_written = True
            # Another command at work on the same place must not find its arrays changed below it.
            if name.endswith(f"/{_HEAD}"):
                is_written = buckets.put_new(path / name, data) is not None
            else:
                buckets.put(path / name, data)
            if not is_written:
                raise _laid_out(path)
            advance(1)

        with ThreadPoolExecutor(_AT_ONCE, "put") as pool:
            list(pool.map(put, [name for name in names if name != _HEAD]))
        check_held(path)
        if buckets.put_new(path / _HEAD, (root / _HEAD).read_bytes()) is None:
            raise _laid_out(path)
        advance(1)


def _laid_out(path: Address) -> GeoError:
    return BusyError(
        "another command has laid out this store just now", where=path, hint="run the same command again"
    )


def move(path: Address, target: Address) -> None:
    """Give a store another name. Killed at any moment, it stands under the one, under both, or under the other.

    Raises:
        UnreachableError: the bucket doesn't answer.
    """
    check_held(path)
    # 1. What a killed move left there.
    _delete_all(target)
    # 2. All but the head, and then the head: now it stands there as well.
    names = [name for name in buckets.listing(path) if name != _HEAD]
    with ThreadPoolExecutor(_AT_ONCE, "copy") as pool:
        list(pool.map(lambda name: buckets.copy(path / name, target / name), names))
    buckets.copy(path / _HEAD, target / _HEAD)
    # 3. The head, and then all else.
    delete(path)


def delete(path: Address) -> None:
    """Delete a store, head first; or what is left of one; or an object. Raises UnreachableError where the bucket doesn't answer."""
    buckets.delete([path / _HEAD])
    _delete_all(path)
    if path.suffix == ".lock":
        buckets.delete([path])


def _delete_all(path: Address) -> None:
    names = list(buckets.listing(path))
    for start in range(0, len(names), 1000):
        buckets.delete([path / name for name in names[start : start + 1000]])


def usage(path: Address) -> tuple[int, float]:
    """Bytes in all of what lies at or below an address, and when the last of them was written (seconds since 1970); now, if it has gone."""
    entries = list(buckets.listing(path).values())
    object_entry = buckets.head(path) if not entries else None
    entries += [object_entry] if object_entry else []
    return sum(entry.size for entry in entries), max(
        (entry.modified.timestamp() for entry in entries), default=time.time()
    )


# ---------------------------------------------------------------- what is kept on this machine


def kept_dir() -> Path:
    """Where the chunks lie, in a folder for each store."""
    return buckets.kept_dir() / "buckets"


def unread() -> list[Path]:
    """What is kept here and wasn't read for so long that it may go."""
    old = []
    for path in kept_dir().glob("*/*"):
        with suppress(OSError):
            if time.time() - path.stat().st_mtime > _UNREAD_SECONDS:
                old.append(path)
    return sorted(old)


def _kept_path(root: Address, name: str, e_tag: str) -> Path:
    """Where a chunk of a certain content is kept: two servers may have buckets of one name, and a tag names the content."""
    store = hashlib.sha256(f"{buckets.server()} {root}".encode()).hexdigest()[:24]
    return kept_dir() / store / f"{name.replace('/', '-')}.{hashlib.sha256(e_tag.encode()).hexdigest()[:24]}"


def _read_kept(root: Address, name: str, e_tag: str, block: NDArray[Any]) -> bool:
    """Read a chunk from this machine; False where it isn't there, or damaged."""
    path = _kept_path(root, name, e_tag)
    try:
        FolderStorage(path.parent).read_chunk(path.name, block)
        # What wasn't used for long may go.
        os.utime(path)
    except (OSError, ValueError, GeoError):
        return False
    return True


def _keep(root: Address, name: str, e_tag: str, data: bytes) -> None:
    """Keep a chunk on this machine, in place of earlier states of it; where that can't be, it is fetched again next time."""
    path = _kept_path(root, name, e_tag)
    temporary = path.with_name(f".{path.name}.{uuid.uuid4().hex[:8]}.writing")
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
        try:
            # Nothing is forced to the disk: each is read against its checksum.
            temporary.write_bytes(data)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
        for earlier in path.parent.glob(f"{path.name.rpartition('.')[0]}.*"):
            if earlier != path:
                earlier.unlink(missing_ok=True)
