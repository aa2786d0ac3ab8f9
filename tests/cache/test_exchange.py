"""Embeddings are brought in and taken out to the last bit; everything downstream works without a picture."""

from __future__ import annotations

import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray
from safetensors.numpy import save_file
from small import VIEWS, Small, command, content

from geo_embed.cache.exchange import FORMATS, cache_export, cache_import
from geo_embed.cache.store import open_store, read_store
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract

DIM = 7


def made_up(rows: int = 8, seed: int = 0) -> NDArray[np.float32]:
    return np.random.default_rng(seed).normal(size=(rows, 4, DIM)).astype(np.float32)


def save(
    file: Path, values: NDArray[Any], ids: list[Any] | None = None, order: list[int] | None = None
) -> Path:
    """Embeddings as another tool would write them; `order` shuffles the samples along with their ids."""
    order = list(range(len(values))) if order is None else order
    values = np.ascontiguousarray(values[order])
    named = None if ids is None else np.array(ids)[order]
    if file.suffix == ".npy":
        np.save(file, values)
    elif file.suffix == ".npz":
        np.savez(file, **({} if named is None else {"sample_id": named}), embeddings=values)
    elif file.suffix == ".safetensors":
        save_file({"embeddings": values} | ({} if named is None else {"sample_id": named}), file)
    else:
        assert named is not None
        rows = [
            {"sample_id": sample_id, "view": view, "embedding": values[i, v]}
            for i, sample_id in enumerate(named)
            for v, view in enumerate(VIEWS)
        ]
        pd.DataFrame(rows).sample(frac=1, random_state=1).to_parquet(file)
    return file


def ids_of(small: Small) -> list[int]:
    return [int(sample_id) for sample_id in small.table()["sample_id"]]


@pytest.mark.parametrize("ending", FORMATS)
def test_an_export_comes_back_in_to_the_last_bit(small: Small, ending: str) -> None:
    done = extract(small.config(), "train")
    file = small.root / f"out{ending}"
    cache_export(small.config(), "train", file)
    back = cache_import(small.config(), file, "train", "mine")
    a, b = read_store(open_store(done.store)), read_store(open_store(back.store))
    assert a.values.tobytes() == b.values.tobytes()
    assert b.values.dtype == np.float16
    assert b.sample_id.tolist() == a.sample_id.tolist()
    assert (back.samples, back.views, back.dim) == (8, 4, 768)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_ids_put_the_samples_in_order(small: Small, ending: str) -> None:
    values = made_up()
    file = save(small.root / f"in{ending}", values, ids_of(small), [5, 2, 7, 0, 1, 6, 4, 3])
    back = cache_import(small.config(model__dtype="float32"), file, "train", "mine")
    assert (read_store(open_store(back.store)).values == values).all()


@pytest.mark.parametrize("ending", [".npz", ".parquet"])
def test_text_ids_put_the_samples_in_order_too(small: Small, ending: str) -> None:
    ids = [f"place {k} é" for k in range(8)]
    small.write(small.table().assign(sample_id=ids))
    file = save(small.root / f"in{ending}", made_up(), ids, list(reversed(range(8))))
    back = cache_import(small.config(model__dtype="float32"), file, "train", "mine")
    assert (read_store(open_store(back.store)).values == made_up()).all()


def test_text_ids_survive_an_export_to_safetensors(small: Small) -> None:
    small.write(small.table().assign(sample_id=[f"place {k}" for k in range(8)]))
    cache_import(small.config(), save(small.root / "in.npy", made_up()), "train", "mine")
    named = small.config(model__backbone_name="mine")
    cache_export(named, "train", small.root / "out.safetensors")
    back = cache_import(small.config(), small.root / "out.safetensors", "train", "again")
    assert (read_store(open_store(back.store)).values == made_up().astype(np.float16)).all()


def test_bfloat16_safetensors_can_be_read(small: Small) -> None:
    import torch
    from safetensors.torch import save_file as save_torch

    values = torch.from_numpy(made_up()).bfloat16()
    save_torch({"features": values}, small.root / "in.safetensors")
    back = cache_import(small.config(model__dtype="float32"), small.root / "in.safetensors", "train", "mine")
    assert (read_store(open_store(back.store)).values == values.float().numpy()).all()


def test_a_parquet_file_may_lack_views(small: Small) -> None:
    file = save(small.root / "in.parquet", made_up(), ids_of(small))
    table = pd.read_parquet(file)
    gone = (table["sample_id"] == ids_of(small)[3]) & (table["view"] == "east")
    table[~gone].to_parquet(file)
    back = cache_import(small.config(), file, "train", "mine")
    assert np.argwhere(~read_store(open_store(back.store)).present).tolist() == [[3, 1]]

    named = small.config(model__backbone_name="mine")
    with pytest.raises(GeoError, match=r"1 view has no embedding, which only \.parquet can say"):
        cache_export(named, "train", small.root / "out.npy")
    cache_export(named, "train", small.root / "out.parquet")
    assert len(pd.read_parquet(small.root / "out.parquet")) == 31


def poisoned(value: float) -> NDArray[np.float32]:
    values = made_up()
    values[5, 2, 3] = value
    return values


REFUSED: dict[str, tuple[Callable[[Small], Path], str]] = {
    "NaN": (lambda s: save(s.root / "x.npy", poisoned(np.nan)), "view south is NaN or infinite"),
    "infinity": (lambda s: save(s.root / "x.npy", poisoned(-np.inf)), "view south is NaN or infinite"),
    "too few samples": (lambda s: save(s.root / "x.npy", made_up(7)), r"shape \(7, 4, 7\), where the CSV asks for \(8, 4, D\)"),
    "too few views": (lambda s: save(s.root / "x.npy", made_up()[:, :3]), r"shape \(8, 3, 7\)"),
    "flat": (lambda s: save(s.root / "x.npy", made_up().reshape(8, -1)), r"shape \(8, 28\)"),
    "no numbers": (lambda s: save(s.root / "x.npy", made_up()[:, :, :0]), r"shape \(8, 4, 0\)"),
    "integers": (lambda s: save(s.root / "x.npy", np.ones((8, 4, 7), dtype=np.int32)), "int32 values, where floats are needed"),
    "a strange id": (lambda s: save(s.root / "x.npz", made_up(), [*ids_of(s)[:7], 99_999]), "lacks sample .* of 8 "),
    "a repeated id": (lambda s: save(s.root / "x.npz", made_up(), [*ids_of(s)[:7], ids_of(s)[0]]), "a sample_id is repeated"),
    "a strange id in rows": (lambda s: save(s.root / "x.parquet", made_up(), [*ids_of(s)[:7], 99_999]), "sample_id '99999' is not the CSV's"),
    "a repeated id in rows": (lambda s: save(s.root / "x.parquet", made_up(), [*ids_of(s)[:7], ids_of(s)[0]]), "stands there twice"),
    "another ending": (lambda s: s.root / "x.pt", r"can't read \.pt"),
    "no such file": (lambda s: s.root / "absent.npy", "no such file"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSED)
def test_an_import_that_is_wrong_is_refused_and_leaves_nothing(small: Small, case: str) -> None:
    make, why = REFUSED[case]
    with pytest.raises(GeoError, match=why):
        cache_import(small.config(), make(small), "train", "mine")
    assert not any(small.cache.glob("*/*.zarr"))
    assert not any(small.cache.glob("*/.*"))


class Trap:
    """Unpickled, it makes a file."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return (Path.touch, (self.mark,))


@pytest.mark.parametrize("ending", [".npy", ".npz"])
def test_nothing_pickled_is_ever_loaded(small: Small, ending: str) -> None:
    mark = small.root / "it was unpickled"
    array = np.full((8, 4, DIM), Trap(mark), dtype=object)
    if ending == ".npy":
        np.save(small.root / "x.npy", array, allow_pickle=True)
    else:
        np.savez(small.root / "x.npz", embeddings=array)
    with pytest.raises(GeoError, match=rf"not a readable \{ending} file"):
        cache_import(small.config(), small.root / f"x{ending}", "train", "mine")
    (small.root / "plain.npy").write_bytes(pickle.dumps(Trap(mark)))
    with pytest.raises(GeoError, match="not a readable"):
        cache_import(small.config(), small.root / "plain.npy", "train", "mine")
    assert not mark.exists()


def test_a_value_too_large_for_half_precision_is_refused_with_what_helps(small: Small) -> None:
    file = save(small.root / "in.npy", poisoned(70_000))
    with pytest.raises(GeoError, match="too large for float16") as refused:
        cache_import(small.config(), file, "train", "mine")
    assert refused.value.hint == "--dtype float32 stores larger values"
    back = cache_import(small.config(model__dtype="float32"), file, "train", "mine")
    assert read_store(open_store(back.store)).values[5, 2, 3] == 70_000


@pytest.mark.filterwarnings("error")
def test_half_precision_is_stored_in_single_without_a_word(small: Small) -> None:
    file = save(small.root / "in.npy", made_up().astype(np.float16))
    back = cache_import(small.config(model__dtype="float32"), file, "train", "mine")
    assert (read_store(open_store(back.store)).values == made_up().astype(np.float16)).all()


def test_other_embeddings_under_the_same_name_need_overwrite(small: Small) -> None:
    first = save(small.root / "first.npy", made_up())
    second = save(small.root / "second.npy", made_up(seed=1))
    done = cache_import(small.config(), first, "train", "mine")
    before = content(done.store)
    with pytest.raises(GeoError, match="an import of this name holds other embeddings") as refused:
        cache_import(small.config(), second, "train", "mine")
    assert "--overwrite" in refused.value.hint
    assert content(done.store) == before
    assert cache_import(small.config(), first, "train", "mine").store == done.store
    cache_import(small.config(), second, "train", "mine", overwrite=True)
    assert (read_store(open_store(done.store)).values == made_up(seed=1).astype(np.float16)).all()
    assert not any(small.cache.glob("*/.*"))


def test_an_import_carries_everything_downstream_without_a_picture(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    for split, rows in (("train", 8), ("test", 4)):
        shutil.rmtree(small.images(split))
        file = save(small.root / f"{split}.npy", made_up(rows))
        ran = command(
            capsys,
            *small.options(),
            "--json",
            "cache",
            "import",
            file,
            "--split",
            split,
            "--backbone",
            "my/vit",
        )
        assert ran.code == 0, ran.err
        assert set(ran.json) >= {"store", "fingerprint", "samples", "views", "dim"}
    fit = command(capsys, *small.options(), "--json", "fit-heads", "--name", "first", "--backbone", "my/vit")
    assert fit.code == 0, fit.err
    done = command(capsys, *small.options(), "--json", "submit", "first")
    assert done.code == 0, done.err
    assert done.json["valid"]
    assert done.json["rows"] == 4

    ran = command(
        capsys, *small.options(), "cache", "verify", "--split", "train", "--backbone", "my/vit", "--deep"
    )
    assert ran.code == 1
    assert "an imported store can't be embedded again" in ran.err


def test_an_import_that_no_longer_fits_is_to_be_imported_again(
    small: Small, capsys: pytest.CaptureFixture[str]
) -> None:
    cache_import(small.config(), save(small.root / "in.npy", made_up()), "train", "mine")
    table = small.table()
    small.write(table.replace({"sample_id": {table["sample_id"].iloc[0]: "another"}}))
    ran = command(capsys, *small.options(), "fit-heads", "--backbone", "mine", "--name", "first")
    assert ran.code == 1
    assert f"hint: {small.geo} cache import FILE --split train --backbone mine" in ran.err


def test_a_long_name_is_a_name_and_none_is_refused(small: Small, capsys: pytest.CaptureFixture[str]) -> None:
    file = save(small.root / "in.npy", made_up())
    for name in ("b" * 300, "é\n/.."):
        done = cache_import(small.config(), file, "train", name)
        ran = command(
            capsys, *small.options(), "--json", "cache", "info", "--split", "train", "--backbone", name
        )
        assert ran.code == 0, ran.err
        assert [entry["path"] for entry in ran.json["stores"]] == [str(done.store)]
    for name in ("", " ", "b" * 5000):
        with pytest.raises(GeoError, match="name has 1 to"):
            cache_import(small.config(), file, "train", name)


@pytest.mark.parametrize("ending", [".npz", ".safetensors", ".parquet"])
def test_train_and_test_of_two_backbones_are_not_one_import(
    small: Small, capsys: pytest.CaptureFixture[str], ending: str
) -> None:
    files = {}
    for exact in (False, True):
        config = small.config(model__exact=exact)
        for split in ("train", "test"):
            extract(config, split)
            files[split, exact] = small.root / f"{split}-{exact}{ending}"
            cache_export(config, split, files[split, exact])
    train = cache_import(small.config(), files["train", False], "train", "mine")
    for options in ((), ("--overwrite",)):
        words = ("cache", "import", files["test", True], "--split", "test", "--backbone", "mine", *options)
        ran = command(capsys, *small.options(), *words)
        assert ran.code == 1
        assert "the train split of 'mine' is another backbone's than this file: its fingerprint is" in ran.err
        assert "another --backbone name" in ran.err
    assert not train.store.with_name("test.zarr").exists()
    cache_import(small.config(), files["test", False], "test", "mine")
    cache_import(small.config(), files["test", True], "test", "other")


def test_a_file_that_names_no_backbone_goes_by_its_name_alone(small: Small) -> None:
    values = {"train": made_up(), "test": made_up(4)}
    named = small.root / "named.npz"
    np.savez(named, embeddings=values["train"], backbone=np.array("first"), feature=np.array("pooler"))
    cache_import(small.config(), named, "train", "mine")
    cache_import(small.config(), save(small.root / "test.npy", values["test"]), "test", "mine")
    for key, value in (("backbone", "second"), ("feature", "cls")):
        np.savez(named, embeddings=values["test"], **{key: np.array(value)})
        with pytest.raises(GeoError, match=f"its {key} is '{value}', not"):
            cache_import(small.config(), named, "test", "mine", overwrite=True)


@pytest.mark.parametrize("factor", [1e-6, 1e-9])
def test_embeddings_too_small_for_half_precision_are_refused_with_what_helps(
    small: Small, factor: float
) -> None:
    values = made_up()
    values[2, 1] = 0
    values[5, 2] *= np.float32(factor)
    file = save(small.root / "in.npy", values)
    what = rf"sample {ids_of(small)[5]}, view south is too small for float16, which would round it away"
    with pytest.raises(GeoError, match=what) as refused:
        cache_import(small.config(), file, "train", "mine")
    assert refused.value.hint == "--dtype float32 stores smaller values"
    assert not any(small.cache.glob("*/*.zarr"))
    back = cache_import(small.config(model__dtype="float32"), file, "train", "mine")
    assert (read_store(open_store(back.store)).values == values).all()
