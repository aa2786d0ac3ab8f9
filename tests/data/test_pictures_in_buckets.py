"""Pictures in a bucket, as objects or in shards: the bytes of those in a folder, by as few requests as can be."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from s3 import BUSY, CUT, SECRET, Request, Server, seeded, upload
from shards import pack
from small import Small, command, content

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.config import Config
from geo_embed.data.pictures import Pictures
from geo_embed.data.samples import load_samples, missing_images
from geo_embed.errors import GeoError, UnreachableError
from geo_embed.extraction.extract import extract
from geo_embed.fitting.fit import fit_heads

KINDS = ("loose", "tar", "parquet")
pytestmark = pytest.mark.cut(train=6, test=2)


def put_up(small: Small, kind: str, bucket: Address) -> dict[str, bytes]:
    """Move the training pictures into the bucket, packed or not; gives their bytes by name."""
    loose = {path.name: path.read_bytes() for path in small.images().iterdir()}
    if kind != "loose":
        pack(small.images(), kind)
    upload(small.images(), bucket / "pictures")
    shutil.rmtree(small.images())
    return loose


def in_bucket(small: Small, bucket: Address, **changes: object) -> Config:
    return small.config(paths__train_images=str(bucket / "pictures"), **changes)


def options(small: Small, bucket: Address) -> list[str]:
    return [*small.options(), "--set", f"paths.train_images={bucket / 'pictures'}"]


@pytest.mark.parametrize("kind", KINDS)
def test_every_byte_is_that_of_the_file(small: Small, kind: str, bucket: Address) -> None:
    loose = put_up(small, kind, bucket)
    pictures = Pictures(bucket / "pictures")
    assert {name: pictures.read(name) for name in loose} == loose
    for name, data in loose.items():
        assert pictures.size(name) == len(data)
        assert pictures.part(name, 50, 9) == data[50:59]
        assert pictures.find_fault(name) == ""
    with pytest.raises(FileNotFoundError):
        pictures.read("absent.jpg")
    assert str(pictures.where(next(iter(loose)))).startswith(f"{bucket}/pictures/")
    assert pictures.are_there()
    assert not Pictures(bucket / "elsewhere").are_there()


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_one_shard_is_named_or_stands_in_the_prefixs_place(small: Small, kind: str, bucket: Address) -> None:
    name, data = "a.jpg", small.other_picture(0)
    folder = small.root / "one"
    folder.mkdir()
    (folder / name).write_bytes(data)
    pack(folder, kind, shards=1)
    shard = bucket / f"pictures.{kind}"
    buckets.put(shard, (folder / f"part-0.{kind}").read_bytes())
    assert Pictures(shard).read(name) == Pictures(bucket / "pictures").read(name) == data


@pytest.mark.parametrize("kind", KINDS)
def test_stores_are_the_same_bytes_and_reused_for_files(
    small: Small, kind: str, bucket: Address, tmp_path: Path
) -> None:
    local = small.copy(tmp_path / "local")
    extract(local.config(), "train")
    put_up(small, kind, bucket)
    assert extract(in_bucket(small, bucket), "train").computed == 24
    assert content(small.store()) == content(local.store())
    assert extract(in_bucket(small, bucket, paths__cache_dir=str(local.cache)), "train").computed == 0
    assert extract(local.config(paths__cache_dir=str(small.cache)), "train").computed == 0


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_missing_is_said_as_of_files(small: Small, kind: str, bucket: Address) -> None:
    put_up(small, kind, bucket)
    table = small.table()
    table.loc[1, "image_north"] = "absent.jpg"
    table.loc[2, "image_east"] = table.loc[2, "image_east"].upper()
    small.write(table)
    missing = missing_images(load_samples(in_bucket(small, bucket), "train"))
    assert [(i, v) for i, v, _ in missing] == [(1, 0), (2, 1)]
    assert missing[0][2] == "no such file: absent.jpg"
    assert missing[1][2].endswith("the names must be the same")


def test_headers_of_an_archive_are_asked_for_once_and_a_picture_is_one_request(
    small: Small, bucket: Address, s3: Server, tmp_path: Path
) -> None:
    loose = put_up(small, "tar", bucket)
    index = tmp_path / "index"
    Pictures(bucket / "pictures", index).look_up(["a.jpg"])
    assert len(list(index.iterdir())) == 2
    s3.reset()
    pictures = Pictures(bucket / "pictures", index)
    pictures.look_up(["a.jpg"])
    assert {request.method for request in s3.requests if request.key.endswith(".tar")} == {"HEAD"}
    s3.reset()
    for name in loose:
        pictures.read(name)
    assert len(s3.requests) == len(loose)


def test_indexes_are_kept_on_this_machine_where_the_cache_is_in_a_bucket(
    small: Small, bucket: Address
) -> None:
    pack(small.images(), "tar")
    config = small.config(paths__cache_dir=str(bucket / "cache"))
    assert missing_images(load_samples(config, "train")) == []
    assert len(list((buckets.kept_dir() / "pictures").iterdir())) == 2


@pytest.mark.parametrize("kind", ["tar", "parquet"])
def test_a_shard_that_is_replaced_while_it_is_read_is_noticed(
    small: Small, kind: str, bucket: Address
) -> None:
    loose = put_up(small, kind, bucket)
    pictures = Pictures(bucket / "pictures")
    pictures.look_up(["a.jpg"])
    for name in buckets.listing(bucket / "pictures"):
        stored = buckets.get(bucket / "pictures" / name)
        assert stored is not None
        buckets.put(bucket / "pictures" / name, stored[0] + b"\0")
    with pytest.raises(GeoError, match="replaced while it was read"):
        pictures.read(next(iter(loose)))


@pytest.mark.parametrize("kind", KINDS)
def test_busy_answers_and_cut_connections_change_no_byte(
    small: Small, kind: str, bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.5")
    loose = put_up(small, kind, bucket)
    s3.faults = seeded(1, 0.3, (BUSY, CUT))
    pictures = Pictures(bucket / "pictures")
    assert {name: pictures.read(name) for name in loose} == loose
    assert s3.met[BUSY] + s3.met[CUT] > 0


@pytest.mark.parametrize("kind", KINDS)
def test_a_bucket_that_does_not_answer_is_one_line_and_no_missing_picture(
    small: Small,
    kind: str,
    bucket: Address,
    s3: Server,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("GEO_BUCKET_TRIES", "2")
    loose = put_up(small, kind, bucket)
    pictures = Pictures(bucket / "pictures")
    pictures.look_up(["a.jpg"])
    s3.faults = lambda request: BUSY
    with pytest.raises(UnreachableError):
        pictures.read(next(iter(loose)))
    for how in ((), ("--on-bad-image", "skip")):
        ran = command(capsys, *options(small, bucket), "extract", "--split", "train", *how)
        assert ran.code == 1
        assert ran.err.count("error: ") == 1
        assert "the server answers 503" in ran.err
        assert SECRET not in ran.err
        assert "Traceback" not in ran.err

    def in_the_middle(request: Request) -> str | None:
        return BUSY if request.method == "GET" and len(s3.requests) > 12 else None

    s3.reset()
    s3.faults = in_the_middle
    ran = command(capsys, *options(small, bucket), "extract", "--split", "train", "--on-bad-image", "skip")
    assert (ran.code, "the server answers 503" in ran.err) == (1, True)
    s3.reset()
    assert extract(in_bucket(small, bucket), "train").skipped == []


@pytest.mark.parametrize("kind", KINDS)
def test_commands_that_look_at_pictures_take_them_from_a_bucket(
    small: Small, kind: str, bucket: Address, capsys: pytest.CaptureFixture[str]
) -> None:
    put_up(small, kind, bucket)
    in_bucket_options = options(small, bucket)
    checked = command(capsys, *in_bucket_options, "data", "check", "--split", "train", "--decode")
    assert (checked.code, "problems  0" in checked.out) == (0, True), checked.out
    assert (
        command(
            capsys,
            *in_bucket_options,
            "data",
            "explore",
            "--split",
            "train",
            "--pictures",
            "--out",
            "page.html",
        ).code
        == 0
    )
    assert Path("page.html").read_text().count("data:image/") > 4
    extract(in_bucket(small, bucket), "train")
    fit_heads(in_bucket(small, bucket), name="first")
    how = ("--set", "finetune.epochs=1", "--set", "finetune.batch_size=4")
    tuned = command(capsys, *in_bucket_options, *how, "finetune", "--init", "first", "--name", "tuned")
    assert tuned.code == 0, tuned.err
