"""`inference.compile`: the same embeddings by a compiled backbone, and a compiler that is missing is told of before anything is embedded."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import pytest

from geo_embed.cache.store import list_stores, open_store, read_store
from geo_embed.extraction.extract import extract

if TYPE_CHECKING:
    from small import Nursery, Ran, Small

# What CXX says, which torch has read by now.
COMPILER = "import torch._inductor.config as config; config.cpp.cxx = (None, {!r})"
# It would be compiled once for all, for seven files that take no longer without it.
NO_HEADER = "config.cpp_cache_precompile_headers = False"


@pytest.mark.slow
@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_a_compiled_backbone_gives_the_same_embeddings(
    small: Small, nursery: Nursery, tmp_path: Path
) -> None:
    # To optimise takes g++ most of a minute, and changes no number by more than rounding.
    hasty = tmp_path / "g++"
    hasty.write_text('#!/bin/sh\nexec g++ "$@" -O0\n')
    hasty.chmod(0o755)
    environment = {
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "inductor"),
        "TORCHINDUCTOR_COMPILE_THREADS": "1",
        # Seconds of trying out which instructions the compiler knows.
        "TORCHINDUCTOR_VEC_ISA_OK": "1",
    }

    def compiled(compiler: str) -> Ran:
        words = (*small.options(), "--set", "inference.compile=true", "extract", "--split", "test")
        before = f"{COMPILER.format(compiler)}\n{NO_HEADER}"
        return nursery.start_in(small.root, *words, before=before, environment=environment).end()

    ran = compiled("no-such-compiler")
    assert ran.code == 1
    (line, hint) = ran.err.splitlines()[-2:]
    assert line.startswith("error: torch.compile can't compile this backbone: ")
    assert "inference.compile=false" in hint
    cache = small.config().paths.cache_dir
    assert not any(cache.rglob("status/c/*"))

    ran = compiled(str(hasty))
    assert ran.code == 0, ran.err
    assert (tmp_path / "inductor").is_dir()
    (store,) = list_stores(cache)
    values = read_store(store).values.astype(np.float32)
    plain = open_store(extract(small.config(paths__cache_dir=tmp_path / "plain"), "test").store)
    assert plain.fingerprint == store.fingerprint
    np.testing.assert_allclose(values, read_store(plain).values.astype(np.float32), rtol=0.01, atol=0.002)
