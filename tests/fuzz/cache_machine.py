"""Anything that can happen to a cache, in any order, and what must hold after each step: a hypothesis state machine.

Over one small dataset and one cache: extraction whole, in parts, limited and killed at any change of the file system; pictures, CSV, weights,
config.json, preprocessor and settings changed; chunks damaged and lost; the cache copied away and back, made one of an earlier version, collected;
embeddings exported and imported. After each step every committed row of the store that the settings select is what transformers' own processor
and tower make of the recorded picture now, or the reader refuses. After an extraction the recorded pictures are those on disk, and nothing was
paid for twice.

    python tests/fuzz/cache_machine.py --seconds 600 --seed 1
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

if __name__ == "__main__":
    # Before torch is there: as tests/conftest.py has it.
    sys.path.insert(0, str(Path(__file__).parents[1]))
    os.environ |= {"HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}

import google_crc32c
import numpy as np
import pandas as pd
import torch
import transformers
import xxhash
from hypothesis import HealthCheck, Phase, note, seed, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from PIL import Image
from small import Nursery, age

from geo_embed.cache.exchange import cache_export, cache_import
from geo_embed.cache.find import check_fits, find_store, is_of_old_kind
from geo_embed.cache.store import (
    OK,
    PENDING,
    Store,
    open_store,
    read_content_hash,
    read_ids,
    read_status,
    read_store,
)
from geo_embed.cache.tidy import collect_garbage
from geo_embed.cache.verify import verify
from geo_embed.config import Config
from geo_embed.console import set_quiet
from geo_embed.data import images
from geo_embed.data.samples import load_samples
from geo_embed.errors import GeoError
from geo_embed.extraction.extract import extract
from geo_embed.synthetic.backbone import write_backbone

transformers.utils.logging.disable_progress_bar()

SPLITS, VIEWS, CONTENTS, CHUNK_ROWS = ("train", "test"), ("a", "b"), 24, 2
FORMATS = (".npy", ".npz", ".safetensors", ".parquet")
CSV = {"train": "train_ground_truth.csv", "test": "sample_submission.csv"}
# Of what made an embedding, the attributes that a store of it records.
MADE_BY = ("weights_sha256", "function", "preprocessing", "feature", "dtype", "stored", "picture_semantics")
# Float32, stored as float16, is 2e-8 off; GELU for its approximation 3e-5. bfloat16 needs the room.
LEAST_COSINE = {"auto": 1 - 1e-6, "float32": 1 - 1e-6, "bfloat16": 0.999}
# The process ends itself, as by kill -9, before its k-th change of a file system below the cache.
KILL = """
import os, signal, sys
left, root = [{k}], {root!r}
def _kill(event, arguments):
    if event == "open":
        path, changes = arguments[0], isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT)
    else:
        path, changes = arguments and arguments[0], event in ("os.rename", "os.remove", "os.rmdir", "os.mkdir", "os.link")
    if changes and isinstance(path, (str, os.PathLike)) and os.fspath(path).startswith(root):
        left[0] -= 1
        if left[0] <= 0:
            os.kill(os.getpid(), signal.SIGKILL)
sys.addaudithook(_kill)
"""

nursery = Nursery()
# What was done in all machines, to tell a machine that compares much from one that is always refused.
done: Counter[str] = Counter()


@dataclass(frozen=True)
class Tower:
    """All that makes an embedding of a picture."""

    weights: int = 0
    activation: str = "quick_gelu"
    heads: int = 8
    size: int = 96
    mean: float = 0.48
    feature: str = "image_embeds"
    dtype: str = "auto"
    exact: bool = True


@functools.cache
def picture(content: int) -> bytes:
    """The bytes of one of `CONTENTS` pictures: PNG and JPEG, of many sizes. The last one is cut in half."""
    random_ = np.random.default_rng(content)
    width, height = (int(n) for n in random_.integers(20, 140, 2))
    coarse = Image.fromarray(random_.integers(0, 255, (5, 6, 3), dtype=np.uint8))
    buffer = io.BytesIO()
    coarse.resize((width, height)).save(buffer, "JPEG" if content % 2 else "PNG")
    data = buffer.getvalue()
    return data[: len(data) // 2] if content == CONTENTS - 1 else data


HASHES = {xxhash.xxh3_64_intdigest(picture(content)): content for content in range(CONTENTS)}
BAD = CONTENTS - 1


@functools.cache
def backbone_files(weights: int) -> dict[str, bytes]:
    with tempfile.TemporaryDirectory() as folder:
        write_backbone(Path(folder), seed=weights)
        return {path.name: path.read_bytes() for path in Path(folder).iterdir()}


def write_tower(folder: Path, tower: Tower, *, shuffled: bool = False) -> None:
    """A model directory; `shuffled`: its JSON in another order and layout, with a remark."""
    folder.mkdir(exist_ok=True)
    for name, data in backbone_files(tower.weights).items():
        changes: dict[str, Any] = {}
        if name == "config.json":
            changes = {"hidden_act": tower.activation, "num_attention_heads": tower.heads}
        elif name == "preprocessor_config.json":
            changes = {"size": {"shortest_edge": tower.size}, "image_mean": [tower.mean, 0.45, 0.4]}
        if changes:
            content = json.loads(data) | changes
            if shuffled:
                content = {"remark": "nobody reads this"} | dict(reversed(content.items()))
            data = json.dumps(content, indent=None if shuffled else 2).encode()
        (folder / name).write_bytes(data)


@functools.lru_cache(maxsize=8)
def _loaded(tower: Tower) -> tuple[Any, Any, images.Preprocessing]:
    """transformers' own processor and tower, and our resize for settings that aren't exact."""
    from geo_embed.backbones.preprocessing import read_preprocessing

    with tempfile.TemporaryDirectory() as folder:
        write_tower(Path(folder), tower)
        processor = transformers.CLIPImageProcessorPil.from_pretrained(folder)
        dtype = torch.bfloat16 if tower.dtype == "bfloat16" else torch.float32
        model = transformers.CLIPVisionModelWithProjection.from_pretrained(folder, dtype=dtype).eval()
        return processor, model, read_preprocessing(Path(folder), exact=tower.exact)


@functools.cache
def fresh(tower: Tower, content: int) -> np.ndarray[Any, Any]:
    """The embedding of a picture, float64, by transformers; only the approximate resize is ours."""
    processor, model, spec = _loaded(tower)
    data = picture(content)
    if tower.exact:
        pixels = processor(Image.open(io.BytesIO(data)).convert("RGB"), return_tensors="pt")["pixel_values"]
    else:
        whole = images.resize(images.decode(data), spec)[None].astype(np.float32) / 255
        mean, std = (
            np.array(values, dtype=np.float32)[:, None, None]
            for values in ([tower.mean, 0.45, 0.4], processor.image_std)
        )
        pixels = torch.from_numpy((whole - mean) / std)
    with torch.inference_mode():
        answer = model(pixels.to(model.dtype))
        if tower.feature == "pooler_output":
            answer = model.vision_model(pixels.to(model.dtype)).pooler_output
        else:
            answer = answer.image_embeds
    return np.asarray(answer[0].double())


def cosine(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> float:
    a, b = a.astype(np.float64), b.astype(np.float64)
    return float(a @ b / (np.linalg.norm(a) * np.linalg.norm(b)))


def is_whole_file(path: Path) -> bool:
    """A chunk against the CRC-32C of its bytes, the last four of them."""
    data = path.read_bytes()
    return len(data) > 4 and google_crc32c.value(data[:-4]) == int.from_bytes(data[-4:], "little")


def chunk_files(store: Path) -> list[Path]:
    return sorted(
        path for path in store.rglob("c/*") if path.is_file() and not path.name.startswith(".")
    ) + sorted(path for path in store.rglob("c/*/**/*") if path.is_file() and not path.name.startswith("."))


def committed(store: Store) -> dict[int, set[int]]:
    """By chunk, the content hashes of the embeddings that are there and whole; nothing where its head is damaged."""
    heads = [
        p for p in chunk_files(store.path) if p.relative_to(store.path).parts[0] in ("status", "content_hash")
    ]
    if not all(map(is_whole_file, heads)):
        return {}
    status, content = np.asarray(store.status[:]), np.asarray(store.content_hash[:])
    by_chunk: dict[int, set[int]] = {}
    for start in range(0, len(status), store.chunk_rows):
        file = store.path / "embeddings" / "c" / str(start // store.chunk_rows) / "0" / "0"
        rows = slice(start, start + store.chunk_rows)
        if file.is_file() and is_whole_file(file):
            by_chunk[start] = {int(h) for h in content[rows][status[rows] == OK]}
    return by_chunk


def is_damaged(store: Path) -> bool:
    """Whether a file of a store is not what was written, or gone though its rows count."""
    if not all(map(is_whole_file, chunk_files(store))):
        return True
    opened = open_store(store, writable=False)
    status = np.asarray(opened.status[:])
    return (
        any(
            not any(
                path.is_file() for path in (store / name / "c" / str(start // opened.chunk_rows)).rglob("0")
            )
            for start in range(0, len(status), opened.chunk_rows)
            for name in ("embeddings", "content_hash")
            if (status[start : start + opened.chunk_rows] != PENDING).any()
        )
        or not (store / "sample_id" / "c" / "0").exists()
    )


class CacheMachine(RuleBasedStateMachine):
    """One cache and what happens to it."""

    def __init__(self) -> None:
        super().__init__()
        set_quiet(True)
        self.room = tempfile.TemporaryDirectory(prefix="geo-machine-")
        self.root = Path(self.room.name)
        self.data, self.cache = self.root / "data", self.root / "cache"
        self.tower, self.views = Tower(), VIEWS
        self.skip = False
        # By split, rows of (id, name of each view's picture).
        self.table: dict[str, list[tuple[str, list[str]]]] = {}
        # Towers of stores of the old kind, by path; vectors of exports and imports, by (id, view).
        self.old: dict[str, Tower] = {}
        self.exports: dict[str, tuple[str, list[str], dict[tuple[str, str], Any]]] = {}
        self.views_of_exports: dict[str, tuple[str, ...]] = {}
        self.imports: dict[tuple[str, str], tuple[tuple[str, ...], dict[tuple[str, str], Any]]] = {}
        self.copy: tuple[Any, ...] | None = None
        self.numbers = iter(range(1000, 10**9))

    def teardown(self) -> None:
        set_quiet(False)
        self.room.cleanup()

    # The dataset, on disk as in `self.table`.

    @initialize(chosen=st.lists(st.integers(0, CONTENTS - 2), min_size=20, max_size=20))
    def make(self, chosen: list[int]) -> None:
        contents = iter(chosen)
        for split, rows in (("train", 6), ("test", 4)):
            (self.data / f"{split}_images").mkdir(parents=True)
            self.table[split] = []
            for row in range(rows):
                names = [f"p{row}{view}.png" for view in VIEWS]
                for name in names:
                    (self.data / f"{split}_images" / name).write_bytes(picture(next(contents)))
                self.table[split].append((f"s{row}", names))
            self.write_csv(split)
        (self.data / "state_mapping.csv").write_text("state_idx,state\n0,A\n1,B\n")
        write_tower(self.root / "model", self.tower)
        self.embed_all()

    def write_csv(self, split: str) -> None:
        rows = []
        for i, (sample_id, names) in enumerate(self.table[split]):
            row: dict[str, Any] = {"sample_id": sample_id} | {
                f"image_{view}": name for view, name in zip(VIEWS, names, strict=True)
            }
            if split == "train":
                row |= {"state": "AB"[i % 2], "state_idx": i % 2, "latitude": 40 + i, "longitude": -100 - i}
            else:
                row |= {f"predicted_state_idx_{rank}": 0 for rank in range(1, 6)}
                row |= {"predicted_latitude": 0.0, "predicted_longitude": 0.0}
            rows.append(row)
        pd.DataFrame(rows).to_csv(self.data / CSV[split], index=False)

    def file(self, split: str, row: int, view: str) -> Path:
        return self.data / f"{split}_images" / self.table[split][row][1][VIEWS.index(view)]

    def places(self, split: str) -> list[tuple[int, str]]:
        return [(row, view) for row in range(len(self.table[split])) for view in self.views]

    def config(self, **model: Any) -> Config:
        return Config.model_validate(
            {
                "paths": {"data_root": self.data, "cache_dir": self.cache, "runs_dir": self.root / "runs"},
                "model": {
                    "backbone_name": str(self.root / "model"),
                    "view_names": self.views,
                    "device": "cpu",
                    "dtype": self.tower.dtype,
                    "feature": self.tower.feature,
                    "exact": self.tower.exact,
                }
                | model,
                "inference": {
                    "chunk_rows": CHUNK_ROWS,
                    "batch_size": 5,
                    "workers": 2,
                    "on_bad_image": "skip" if self.skip else "fail",
                },
                "tracking": {},
            }
        )

    def options(self) -> list[str]:
        """The same for a command line."""
        groups = self.config().model_dump(mode="json", exclude_unset=True)
        return [
            word
            for group, values in groups.items()
            for key, value in values.items()
            for word in ("--set", f"{group}.{key}={value if isinstance(value, str) else json.dumps(value)}")
        ]

    def stores(self) -> list[Store]:
        """Every store that can be opened, moved aside or not."""
        opened = []
        for path in sorted(self.cache.glob("*/[!.]*.zarr*")):
            if not path.is_dir():
                continue
            try:
                opened.append(open_store(path, writable=False))
            except GeoError as error:
                raise AssertionError(f"nothing damages a store's head, and yet: {error}") from error
        return opened

    def any_damage(self) -> bool:
        return any(is_damaged(store.path) for store in self.stores())

    # Stage 1.

    @rule(
        split=st.sampled_from(SPLITS),
        how=st.sampled_from(["all", "all", "part", "limit"]),
        n=st.integers(1, 3),
        k=st.integers(1, 3),
    )
    def extract(self, split: str, how: str, n: int, k: int) -> None:
        part = (min(k, n), n) if how == "part" else None
        limit = k if how == "limit" else None
        # What an extraction of a part takes over, it may take over before it begins.
        if how != "all" and self.old:
            return
        before = [
            (s.path, dict(s.attrs), is_of_old_kind(s), committed(s))
            for s in self.stores()
            if not s.attrs.get("imported")
        ]
        damaged = self.any_damage()
        try:
            result = extract(self.config(), split, part=part, limit=limit)
        except GeoError as error:
            note(f"refused: {error}")
            bad = not self.skip and any(self.is_bad(split, *place) for place in self.places(split))
            if not (bad or damaged or (part and "after it was embedded" in error.what)):
                raise
            done["refused extractions"] += 1
            return
        done["extractions"] += 1
        store = open_store(result.store, writable=False)
        # The rows that were asked for are what is on disk now.
        rows = range(len(self.table[split]))
        if limit is not None:
            rows = rows[:limit]
        if part is not None:
            chunks = -(-len(rows) // store.chunk_rows)
            first, last = (j * chunks // part[1] * store.chunk_rows for j in (part[0] - 1, part[0]))
            rows = rows[first:last]
        status, content = read_status(store), read_content_hash(store)
        expected = 0
        sources = {
            content_hash
            for path, attrs, was_old, chunks_ in before
            if path.parent == store.path.parent
            # What was moved aside serves its own split.
            and (path.suffix == ".zarr" or path.stem == store.path.name)
            and ((path == store.path and was_old) or all(attrs.get(k) == store.attrs[k] for k in MADE_BY))
            for hashes in chunks_.values()
            for content_hash in hashes
        }
        for row in rows:
            for v, view in enumerate(self.views):
                path = self.file(split, row, view)
                if self.is_bad(split, row, view):
                    assert status[row, v] not in (PENDING, OK), (row, view)
                    continue
                content_hash = xxhash.xxh3_64_intdigest(path.read_bytes())
                assert status[row, v] == OK, (row, view)
                assert content[row, v] == content_hash, (row, view)
                expected += content_hash not in sources
        # Nothing is paid for twice.
        if not damaged:
            assert result.computed <= expected, f"{result.computed} computed, where {expected} were needed"
        done["computed"] += result.computed
        done["reused"] += result.reused

    @rule()
    def embed_all(self) -> None:
        """What somebody does who wants to go on: repair, and extract everything, without pictures that can't be read."""
        self.verify(repair=True)
        self.skip = True
        for split in SPLITS:
            self.extract(split, "all", 1, 1)

    @rule()
    def embed_with_usual_tower(self) -> None:
        self.usual_tower()
        self.embed_all()

    @rule(split=st.sampled_from(SPLITS))
    def embed_split(self, split: str) -> None:
        self.extract(split, "all", 1, 1)

    def is_bad(self, split: str, row: int, view: str) -> bool:
        path = self.file(split, row, view)
        return not path.is_file() or path.read_bytes() == picture(BAD)

    @rule(
        what=st.sampled_from(["train", "test", "train", "gc", "unused", "repair", "import"]),
        k=st.integers(1, 60),
    )
    def kill(self, what: str, k: int) -> None:
        """A command that is killed before its k-th change of a file below the cache, if it makes so many."""
        commands = {
            "gc": ["cache", "gc", "--yes"],
            "unused": ["cache", "gc", "--yes", "--unused"],
            "repair": ["cache", "verify", "--repair"],
        }
        if what == "import":
            name = next((name for name, (split, *_) in self.exports.items() if split == "train"), None)
            # What a killed import leaves is either store, whole: both are right only where they hold the same.
            if (
                name is None
                or ("train", "killed") in self.imports
                or self.views != self.views_of_exports[name]
            ):
                return
            _, ids, vectors = self.exports[name]
            if name.endswith(".npy") and ids != [i for i, _ in self.table["train"]]:
                return
            if not {i for i, _ in self.table["train"]} <= {i for i, _ in vectors} or not same_ids(
                self, "train", ids
            ):
                return
            command = ["cache", "import", str(self.root / name), "--split", "train", "--backbone", "killed"]
            self.imports["train", "killed"] = (self.views, vectors)
        else:
            command = commands.get(what, ["extract", "--split", what])
        self.age_litter()
        process = nursery.start_in(
            self.root, *self.options(), *command, before=KILL.format(k=k, root=str(self.cache) + "/")
        )
        ran = process.end()
        nursery.clear()
        note(f"{what} ended with {ran.code}: {ran.err[-300:]}")
        assert ran.code in (0, 1, 3, -signal.SIGKILL), ran.err
        assert "Traceback" not in ran.err, ran.err
        assert "unexpected" not in ran.err, ran.err
        done["killed" if ran.code == -signal.SIGKILL else "not killed"] += 1

    # Pictures.

    @rule(
        split=st.sampled_from(SPLITS),
        row=st.integers(0, 9),
        view=st.sampled_from(VIEWS),
        content=st.integers(0, CONTENTS - 1),
    )
    def change_picture(self, split: str, row: int, view: str, content: int) -> None:
        self.file(split, row % len(self.table[split]), view).write_bytes(picture(content))

    @rule(split=st.sampled_from(SPLITS), row=st.integers(0, 9), view=st.sampled_from(VIEWS))
    def delete_picture(self, split: str, row: int, view: str) -> None:
        self.file(split, row % len(self.table[split]), view).unlink(missing_ok=True)

    @rule()
    def restore_pictures(self) -> None:
        for split in SPLITS:
            for row in range(len(self.table[split])):
                for view in VIEWS:
                    if self.is_bad(split, row, view):
                        self.file(split, row, view).write_bytes(picture(row))

    @rule(split=st.sampled_from(SPLITS), first=st.integers(0, 9), second=st.integers(0, 9))
    def swap_pictures(self, split: str, first: int, second: int) -> None:
        a, b = (self.file(split, row % len(self.table[split]), "a") for row in (first, second))
        if a.is_file() and b.is_file():
            data = a.read_bytes(), b.read_bytes()
            a.write_bytes(data[1])
            b.write_bytes(data[0])

    @rule(split=st.sampled_from(SPLITS), row=st.integers(0, 9))
    def rename_picture(self, split: str, row: int) -> None:
        row %= len(self.table[split])
        path = self.file(split, row, "b")
        if path.is_file() and sum(names.count(path.name) for _, names in self.table[split]) == 1:
            name = f"p{next(self.numbers)}.png"
            path.rename(path.with_name(name))
            self.table[split][row][1][1] = name
            self.write_csv(split)

    # The CSV.

    @rule(
        split=st.sampled_from(SPLITS),
        how=st.sampled_from(["add", "remove", "reverse", "rename", "share"]),
        row=st.integers(0, 9),
    )
    def change_csv(self, split: str, how: str, row: int) -> None:
        table = self.table[split]
        row %= len(table)
        if how == "add" and len(table) < 8:
            number = next(self.numbers)
            names = [f"p{number}{view}.png" for view in VIEWS]
            for view, name in enumerate(names):
                (self.data / f"{split}_images" / name).write_bytes(picture((number + view) % (CONTENTS - 1)))
            table.insert(row, (f"s{number}", names))
        elif how == "remove" and len(table) > 3:
            del table[row]
        elif how == "reverse":
            table.reverse()
        elif how == "rename":
            table[row] = (f"s{next(self.numbers)}", table[row][1])
        elif how == "share":
            table[row][1][0] = table[0][1][0]
        self.write_csv(split)

    # What makes an embedding.

    @rule(
        key=st.sampled_from(
            [
                *(("weights", 1), ("activation", "gelu"), ("heads", 4), ("size", 112), ("mean", 0.5)),
                *(
                    ("feature", "pooler_output"),
                    ("dtype", "float32"),
                    ("dtype", "bfloat16"),
                    ("exact", False),
                ),
            ]
        )
    )
    def change_tower(self, key: tuple[str, Any]) -> None:
        """One thing is changed, or changed back."""
        name, other = key
        value = other if getattr(self.tower, name) != other else getattr(Tower(), name)
        self.tower = Tower(**(vars(self.tower) | {name: value}))
        write_tower(self.root / "model", self.tower)

    @rule()
    def usual_tower(self) -> None:
        self.tower = Tower()
        write_tower(self.root / "model", self.tower)

    @rule()
    def rewrite_tower(self) -> None:
        """What changes no embedding."""
        write_tower(self.root / "model", self.tower, shuffled=True)

    @rule(views=st.sampled_from([VIEWS, VIEWS, VIEWS[::-1], VIEWS[:1]]))
    def change_views(self, views: tuple[str, ...]) -> None:
        self.views = views

    @rule(skip=st.booleans())
    def change_skip(self, skip: bool) -> None:
        self.skip = skip

    # Damage, and what looks after it.

    @precondition(lambda self: self.cache.exists() and any(self.cache.glob("*/*.zarr")))
    @rule(number=st.integers(0, 10**6), bit=st.integers(0, 10**6), lose=st.booleans())
    def damage(self, number: int, bit: int, lose: bool) -> None:
        files = [file for store in self.stores() for file in chunk_files(store.path)]
        if not files:
            return
        file = files[number % len(files)]
        if lose and file.relative_to(self.cache).parts[2] == "embeddings":
            file.unlink()
        else:
            data = bytearray(file.read_bytes())
            data[bit % len(data)] ^= 1 << bit % 8
            file.write_bytes(data)

    @rule(repair=st.booleans())
    def verify(self, repair: bool) -> None:
        """What was damaged is found; what was repaired is whole, once ids are written again."""
        for store in self.stores():
            damaged = is_damaged(store.path)
            problems = verify(store, repair=repair)
            assert bool(problems) == damaged, (store.path, problems)
            if repair:
                again = verify(open_store(store.path, writable=False))
                assert all(problem.where == "sample_id" for problem in again), again

    def age_litter(self) -> None:
        """Two hours go by."""
        for path in [*self.cache.rglob(".*"), *self.cache.rglob("*.partial")] if self.cache.exists() else []:
            os.utime(path, (time.time() - 7200,) * 2)

    @rule(unused=st.booleans(), yes=st.booleans())
    def collect(self, unused: bool, yes: bool) -> None:
        self.age_litter()
        held = self.held()
        garbage = collect_garbage(self.config(), runs={} if unused else None, delete=yes)
        assert self.held() == held
        if yes:
            left = list(self.cache.rglob(".*")) if self.cache.exists() else []
            assert not left, left
            whole = {
                store.path
                for store in self.stores()
                if store.path.suffix == ".zarr"
                and not is_damaged(store.path)
                and (read_status(store) != PENDING).all()
            }
            aside = [store.path for store in self.stores() if store.path.suffix != ".zarr"]
            assert not [path for path in aside if path.with_suffix("") in whole], aside
            assert not unused or garbage.deleted
        else:
            assert not garbage.deleted
        if unused and yes:
            kept = {str(store.path) for store in self.stores()}
            self.imports = {
                key: value for key, value in self.imports.items() if self.import_store(*key) is not None
            }
            self.old = {path: tower for path, tower in self.old.items() if path in kept}

    def held(self) -> dict[str, dict[int, set[int]]]:
        """All that is committed in the stores that the settings select."""
        by_split = {}
        for split in SPLITS:
            try:
                store = find_store(self.config(), split)
            except GeoError:
                continue
            by_split[split] = committed(store)
        return by_split

    # Away and back.

    @rule()
    def copy_away(self) -> None:
        if self.cache.exists():
            shutil.rmtree(self.root / "copy", ignore_errors=True)
            shutil.copytree(self.cache, self.root / "copy")
            self.copy = (dict(self.old), dict(self.imports))

    @precondition(lambda self: self.copy is not None)
    @rule()
    def copy_back(self) -> None:
        assert self.copy is not None
        shutil.rmtree(self.cache, ignore_errors=True)
        shutil.copytree(self.root / "copy", self.cache)
        self.old, self.imports = dict(self.copy[0]), dict(self.copy[1])

    @rule(split=st.sampled_from(SPLITS))
    def make_old(self, split: str) -> None:
        """The selected store becomes one that an earlier version made."""
        try:
            store = find_store(self.config(), split)
        except GeoError:
            return
        aside = list(store.path.parent.glob(f"*{store.path.name}.*"))
        if store.attrs.get("imported") or is_of_old_kind(store) or aside or is_damaged(store.path):
            return
        from geo_embed.backbones.weights import fingerprint_of

        attrs = {
            k: store.attrs[k]
            for k in ("weights_sha256", "preprocessing", "feature", "view_names", "dtype", "stored")
        }
        if (store.path.parent.with_name(f"backbone-{fingerprint_of(attrs)}") / store.path.name).exists():
            return
        self.old[str(age(store.path))] = self.tower
        done["made old"] += 1

    # Out and in.

    @rule(split=st.sampled_from(SPLITS), ending=st.sampled_from(FORMATS))
    def export(self, split: str, ending: str) -> None:
        out = self.root / f"{split}{ending}"
        try:
            embeddings = cache_export(self.config(), split, out)
        except GeoError as error:
            note(f"refused: {error}")
            return
        held = read_store(find_store(self.config(), split))
        ids = held.sample_id.tolist()
        vectors = {
            (sample_id, view): held.values[i, v]
            for i, sample_id in enumerate(ids)
            for v, view in enumerate(self.views)
            if held.present[i, v]
        }
        read = read_elsewhere(out, ids, self.views)
        assert set(read) >= set(vectors), out
        assert all(np.array_equal(read[place], vector) for place, vector in vectors.items()), out
        assert len(ids) == len(embeddings.sample_id)
        self.exports[out.name] = (split, ids, vectors)
        self.views_of_exports[out.name] = self.views
        done["exports"] += 1

    @precondition(lambda self: self.exports)
    @rule(number=st.integers(0, 9), other=st.booleans())
    def bring_in(self, number: int, other: bool) -> None:
        """An export comes in under another name; by position only where its format can't say more, and then only where that is right."""
        file = sorted(self.exports)[number % len(self.exports)]
        split, ids, vectors = self.exports[file]
        now, views = [sample_id for sample_id, _ in self.table[split]], self.views_of_exports[file]
        if file.endswith(".npy") and (now != ids or views != self.views):
            return
        name = "second" if other else "first"
        try:
            made = cache_import(self.config(), self.root / file, split, name, overwrite=True)
        except GeoError as error:
            note(f"refused: {error}")
            # Under one name there are one backbone's embeddings of both splits.
            of_another = "is another backbone's" in str(error)
            if set(now) == set(ids) and set(views) == set(self.views) and not of_another:
                raise
            return
        assert not made.by_position or file.endswith(".npy")
        if file.endswith(".npy"):
            held = read_store(open_store(made.store))
            vectors = {
                (sample_id, view): held.values[i, v]
                for i, sample_id in enumerate(held.sample_id.tolist())
                for v, view in enumerate(self.views)
                if (sample_id, view) in vectors
            }
            assert all(np.array_equal(vectors[place], self.exports[file][2][place]) for place in vectors)
        self.imports[split, name] = (self.views, vectors)
        done["imports"] += 1

    def import_store(self, split: str, name: str) -> Store | None:
        views, _ = self.imports[split, name]
        try:
            return find_store(self.config(backbone_name=name, view_names=views), split)
        except GeoError:
            return None

    # What must hold.

    @invariant()
    def every_committed_row_is_what_its_picture_gives(self) -> None:
        if not self.table:
            return
        for split in SPLITS:
            samples = load_samples(self.config(), split)
            try:
                store = find_store(self.config(), split)
                check_fits(store, samples)
                status, content = read_status(store), read_content_hash(store)
                ids = read_ids(store)
            except GeoError:
                done["refused readings"] += 1
                continue
            assert ids.tolist() == [sample_id for sample_id, _ in self.table[split]]
            assert store.attrs["view_names"] == list(self.views)
            # A store that doesn't say how it was made is used as it is, and that is said.
            tower = self.old.get(str(store.path), self.tower) if is_of_old_kind(store) else self.tower
            values = np.asarray(readable(store))
            for row, v in np.argwhere((status == OK) & np.isfinite(values).all(axis=2)):
                like = cosine(values[row, v], fresh(tower, HASHES[int(content[row, v])]))
                assert like >= LEAST_COSINE[tower.dtype], (split, row, self.views[v], like)
                done["compared"] += 1

    @invariant()
    def an_import_holds_what_came_in(self) -> None:
        for (split, name), (views, vectors) in self.imports.items():
            store = self.import_store(split, name)
            if store is None:
                continue
            try:
                held = read_store(store)
            except GeoError:
                continue
            for i, sample_id in enumerate(held.sample_id.tolist()):
                for v, view in enumerate(views):
                    if held.present[i, v]:
                        wanted = vectors[sample_id, view].astype(held.values.dtype)
                        assert np.array_equal(held.values[i, v], wanted), (name, sample_id, view)


def same_ids(machine: CacheMachine, split: str, ids: list[str]) -> bool:
    return sorted(ids) == sorted(sample_id for sample_id, _ in machine.table[split])


def readable(store: Store) -> np.ndarray[Any, Any]:
    """The embeddings (N, V, D) as Zarr reads them, NaN where their chunk is damaged or gone."""
    n, v, d = store.shape
    values = np.full((n, v, d), np.nan, dtype=np.float32)
    for start in range(0, n, store.chunk_rows):
        file = store.path / "embeddings" / "c" / str(start // store.chunk_rows) / "0" / "0"
        if file.is_file() and is_whole_file(file):
            rows = slice(start, start + store.chunk_rows)
            values[rows] = store.embeddings[rows]
    return values


def read_elsewhere(path: Path, ids: list[str], views: tuple[str, ...]) -> dict[tuple[str, str], Any]:
    """An export by other libraries than ours: vectors by (id, view)."""
    if path.suffix == ".parquet":
        table = pd.read_parquet(path)
        return {
            (str(row.sample_id), row.view): np.asarray(row.embedding)
            for row in table.itertuples()
            if row.embedding is not None
        }
    if path.suffix == ".npy":
        values = np.load(path)
    elif path.suffix == ".npz":
        with np.load(path) as file:
            values, ids = file["embeddings"], [str(i) for i in file["sample_id"].tolist()]
            assert file["view_names"].tolist() == list(views)
    else:
        from safetensors.numpy import load_file

        tensors = load_file(path)
        values = tensors["embeddings"]
        if "sample_id_json" in tensors:
            ids = [str(i) for i in json.loads(tensors["sample_id_json"].tobytes())]
    return {(i, view): values[row, v] for row, i in enumerate(ids) for v, view in enumerate(views)}


def run(machines: int, steps: int, *, seeded: int | None = None) -> None:
    """So many machines of so many steps; raises with the steps of the shortest that fails. Without a seed always the same."""
    profile = settings(
        max_examples=machines,
        stateful_step_count=steps,
        derandomize=seeded is None,
        database=None,
        deadline=None,
        suppress_health_check=list(HealthCheck),
        phases=[Phase.generate, Phase.shrink] if seeded is not None else [Phase.generate],
    )
    machine: Callable[[], CacheMachine] = CacheMachine
    if seeded is not None:
        machine = seed(seeded)(type("CacheMachine", (CacheMachine,), {}))
    run_state_machine_as_test(machine, settings=profile)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=3600)
    parser.add_argument(
        "--seed", type=int, default=0, help="of the first ten machines; the next ten have the next"
    )
    parser.add_argument("--steps", type=int, default=60)
    arguments = parser.parse_args()
    end, number, failed = time.monotonic() + arguments.seconds, arguments.seed, 0
    while time.monotonic() < end:
        try:
            run(10, arguments.steps, seeded=number)
        except BaseException as error:
            if isinstance(error, KeyboardInterrupt):
                raise
            failed += 1
            print(f"seed {number}:", flush=True)
            traceback.print_exc()
            print(*getattr(error, "__notes__", []), sep="\n", flush=True)
        number += 1
    nursery.close()
    print(f"{10 * (number - arguments.seed)} machines from seed {arguments.seed}: {failed} findings")
    print(", ".join(f"{what}: {count:,}" for what, count in done.most_common()))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
