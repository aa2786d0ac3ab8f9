"""Image names are read as an array of text would be."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from geo_embed.cache import store as stores
from geo_embed.cache.store import manifest_sha256
from geo_embed.data.image_names import ImageNames
from geo_embed.data.samples import Samples

ROWS = 11
TEXTS = np.array(
    [[f"{'é' * (row % 3)}{row}{view}.jpg" for view in "abc"] for row in range(ROWS)], dtype=object
)
TEXTS[4, 1] = TEXTS[10, 2] = ""


@pytest.fixture(params=["lists", "series"])
def names(request: pytest.FixtureRequest) -> ImageNames:
    columns = [TEXTS[:, v].tolist() for v in range(3)]
    if request.param == "lists":
        return ImageNames(columns)
    # As they come from a file, in several pieces.
    pieces = [[pd.Series(column[:5], dtype="str"), pd.Series(column[5:], dtype="str")] for column in columns]
    return ImageNames([pd.concat(series) for series in pieces])


def test_places_rows_and_slices_are_those_of_an_array(names: ImageNames) -> None:
    assert (names.shape, len(names)) == (TEXTS.shape, ROWS)
    assert [names[place] for place in np.ndindex(ROWS, 3)] == TEXTS.ravel().tolist()
    assert names[np.int64(7), np.int64(2)] == TEXTS[7, 2]
    assert type(names[0, 0]) is str
    for key in (0, -1, slice(3, 8), slice(None), (slice(2, 20), 1), (3, slice(None)), (slice(0, 0), 2)):
        assert names[key].tolist() == TEXTS[key].tolist()
    assert [row.tolist() for row in names] == names.tolist() == TEXTS.tolist()
    assert (names.named == (TEXTS != "")).all()
    with pytest.raises(IndexError):
        names[ROWS, 0]


def test_a_manifest_is_hashed_as_ever_whatever_the_blocks(
    names: ImageNames, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Ids and names, each with a NUL behind it, after the views: every store is known by this."""
    ids = [f"ü{row}" for row in range(ROWS)]
    lines = "".join("\0".join([text, *row]) + "\0" for text, row in zip(ids, TEXTS, strict=True))
    expected = sha256(("a\0b\0c" + lines).encode()).hexdigest()
    for texts in (np.array(ids, dtype=object), np.array(ids, dtype=np.dtypes.StringDType())):
        samples = Samples("test", Path("t.csv"), Path(), ("a", "b", "c"), texts, names, None)
        for rows in (1, 4, 65_536):
            monkeypatch.setattr(stores, "_MANIFEST_ROWS", rows)
            assert manifest_sha256(samples) == expected
