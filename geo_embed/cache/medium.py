"""What a store's bytes have to offer, whatever they lie on."""

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from numpy.typing import NDArray

if TYPE_CHECKING:
    from zarr.abc.store import Store as ZarrStore


class Storage(ABC):
    """The bytes of one store, on whatever they lie.

    Attributes:
        root: where it lies.
    """

    root: Path

    @abstractmethod
    def zarr(self, *, writable: bool) -> "ZarrStore":
        """The same bytes for Zarr, which reads and writes metadata and ids by itself."""

    @abstractmethod
    def exists(self, name: str) -> bool:
        """Whether anything has this name, such as `status/c/3/0`: what isn't a file of bytes fails once it is read."""

    @abstractmethod
    def size(self, name: str) -> int:
        """How many bytes a name has. Raises GeoError where it is absent, or none of bytes."""

    @abstractmethod
    def chunks(self, array: str) -> list[str]:
        """The names of an array's chunks that are there, such as `status/c/3/0`, sorted."""

    @abstractmethod
    def head(self, name: str, count: int) -> bytes:
        """The first bytes of a name. Raises GeoError where it can't be read."""

    @abstractmethod
    def read(self, name: str, *, limit: int) -> bytes:
        """All bytes of a name. Raises GeoError where it can't be read, or there are more than `limit` of them."""

    @abstractmethod
    def checksum(self, name: str) -> str:
        """The sha256 of the bytes of a name."""

    @abstractmethod
    def write_chunks(self, blocks: Mapping[str, NDArray[Any]]) -> None:
        """Write whole chunks by name, little-endian and contiguous, each in one step, with the CRC-32C of its bytes.

        Once this returns, none is lost in a power cut; in which order they get there is open.

        Raises:
            GeoError: they can't be written.
        """

    def write_chunk(self, name: str, block: NDArray[Any]) -> None:
        """`write_chunks` for one."""
        self.write_chunks({name: block})

    @abstractmethod
    def write_durably(self, name: str, data: bytes) -> None:
        """Write the bytes of a name in one step that a power cut doesn't undo. Raises GeoError as `write_chunks` does."""

    @abstractmethod
    def force(self, names: Sequence[str]) -> None:
        """Let what others wrote under these names outlast a power cut: Zarr, or a writer that was killed before it waited for the disk."""

    @abstractmethod
    def read_chunk(self, name: str, block: NDArray[Any]) -> None:
        """Read a chunk into `block`, which has the size of all of it. Called from many threads.

        Raises:
            ValueError: its bytes are not those that were written.
            GeoError: it can't be read.
        """

    @abstractmethod
    def read_parts(self, name: str, starts: Sequence[int], block: NDArray[Any]) -> None:
        """Read some bytes of a chunk, no checksum compared: into each `block[k]` as many as it has, from byte `starts[k]` on.

        Raises:
            ValueError: the chunk ends before.
            GeoError: it can't be read.
        """

    @abstractmethod
    def usage(self) -> tuple[int, float]:
        """Bytes in all, and when the last of them was written (seconds since 1970)."""

    def listed(self, array: str) -> AbstractContextManager[None]:
        """While the block runs, an array's chunks are those that are there when it begins: where asking for each costs, it is done once."""
        return nullcontext()
