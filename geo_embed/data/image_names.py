"""The names of a split's images, in Arrow's memory: forty million of them in one gigabyte, where Python's strings take three."""

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa

# Rows that are Python's strings at once.
_BLOCK = 1 << 12


class ImageNames:
    """Names of N × V images, read as an array of text (N, V) is, by row, by row and view, or by a slice of rows; not to be changed.

    Args:
        columns: (N,) of each view.
    """

    def __init__(
        self, columns: Sequence["pd.Series[str] | Sequence[str] | NDArray[Any] | pa.ChunkedArray"]
    ) -> None:
        import pyarrow as pa

        arrays = [
            column if isinstance(column, pa.ChunkedArray) else pa.array(column, pa.large_string())
            for column in columns
        ]
        self._columns = [
            array if isinstance(array, pa.ChunkedArray) else pa.chunked_array([array]) for array in arrays
        ]
        self.shape = len(self._columns[0]), len(self._columns)

    def __len__(self) -> int:
        return self.shape[0]

    def __iter__(self) -> Iterator[NDArray[Any]]:
        for start in range(0, len(self), _BLOCK):
            yield from self[start : start + _BLOCK]

    def __getitem__(self, place: Any) -> Any:
        """The name at (row, view); or the names (V,) of a row, (R, V) or (R,) of a slice of rows, of all views or one."""
        rows, view = place if isinstance(place, tuple) else (place, slice(None))
        if not isinstance(rows, slice):
            if not isinstance(view, slice):
                return self._columns[view][int(rows)].as_py()
            return np.array([column[int(rows)].as_py() for column in self._columns[view]], dtype=object)
        if not isinstance(view, slice):
            return self._columns[view][rows].to_numpy(zero_copy_only=False)
        return np.column_stack([self[rows, v] for v in range(len(self._columns))[view]])

    def take(self, rows: NDArray[np.int64]) -> "ImageNames":
        """The names of some rows (R,), in this order."""
        import pyarrow as pa

        return ImageNames([column.take(pa.array(rows)) for column in self._columns])

    @property
    def named(self) -> NDArray[np.bool_]:
        """(N, V) whether the CSV names an image."""
        import pyarrow.compute as pc

        return np.column_stack([pc.not_equal(column, "").to_numpy() for column in self._columns])

    def tolist(self) -> list[list[str]]:
        """All of them."""
        return [list(names) for names in self]

    def joined(self, first: Sequence[str], rows: slice) -> "pa.Buffer":
        """The bytes of rows one after the other: of each a text (R,) of its own and its names, every one with a NUL behind it."""
        import pyarrow as pa
        import pyarrow.compute as pc

        text = pa.large_string()
        names = [column[rows].combine_chunks() for column in self._columns]
        # A last text that is empty gives the last name its NUL.
        end, separator = pa.scalar("", text), pa.scalar("\0", text)
        lines = pc.binary_join_element_wise(pa.array(first, text), *names, end, separator)
        _, offsets, data = lines.buffers()
        return data[: np.frombuffer(offsets, np.int64)[len(lines)]]
