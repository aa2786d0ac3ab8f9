"""`inference.compile`: the same embeddings by a compiled backbone, and a compiler that is missing is told of before anything is embedded."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geo_embed.cache.store import list_stores, open_store, read_store
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from conftest import Geo
    from small import Small


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_embeddings(small: Small, geo: Geo, tmp_path: Path) -> None:
    arguments = (*small.options(), "--set", "inference.compile=true", "extract", "--split", "test")
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
    }
    # A process of its own: torch asks for the compiler's name when it is imported.
    command = (sys.executable, "-m", "geo_embed")
    ran = geo(*arguments, env=environment | {"CXX": "no-such-compiler"}, command=command)
    assert ran.code == 1
    (line, hint) = ran.err.splitlines()[-2:]
    assert line.startswith("error: torch.compile can't compile this backbone: ")
    assert "inference.compile=false" in hint
    cache = small.config().paths.cache_dir
    assert not any(cache.rglob("status/c/*"))

    ran = geo(*arguments, env=environment)
    assert ran.code == 0, ran.err
    assert (tmp_path / "inductor").is_dir()
    (store,) = list_stores(cache)
    compiled = read_store(store).values.astype(np.float32)
    plain = open_store(extract(small.config(paths__cache_dir=tmp_path / "plain"), "test").store)
    assert plain.fingerprint == store.fingerprint
    np.testing.assert_allclose(compiled, read_store(plain).values.astype(np.float32), rtol=0.01, atol=0.002)
