"""Addresses in place of paths: `file://` is this machine's, a cache may lie in a bucket, and all else is refused by name before anything is made."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from geo_embed.errors import GeoError
from geo_embed.locations import local_path
from geo_embed.settings import known_keys, resolve

if TYPE_CHECKING:
    from conftest import Geo

PATHS = [key for key in known_keys() if key.startswith("paths.")]


@pytest.mark.parametrize("key", PATHS)
def test_no_setting_takes_a_bucket_for_a_folder_of_that_name(key: str) -> None:
    with pytest.raises(GeoError) as refused:
        resolve(settings=[f"{key}=s3://user:hunter2@bucket/cache"])
    assert "s3://" in refused.value.what
    assert "credentials" in refused.value.what or "here" in refused.value.what
    assert refused.value.where == key
    assert "hunter2" not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize("scheme", ["s3", "gs", "az", "abfss", "hdfs", "https", "S3"])
def test_a_scheme_is_refused_by_name_as_text_and_as_a_path(scheme: str) -> None:
    for location in (f"{scheme}://bucket/cache", Path(f"{scheme}://bucket/cache")):
        with pytest.raises(GeoError, match=f"{scheme.lower()}://"):
            local_path(location)


@pytest.mark.parametrize("address", ["file:///data/a%20b/c", "file://localhost/data/a%20b/c"])
def test_a_file_address_is_the_path_behind_it(address: str) -> None:
    assert local_path(address) == local_path(Path(address)) == Path("/data/a b/c")


@pytest.mark.parametrize("address", ["file://server/share", "file://", "file:///a%00b"])
def test_a_file_address_of_another_machine_or_of_nothing_is_refused(address: str) -> None:
    with pytest.raises(GeoError, match="file://"):
        local_path(address)


def test_names_with_colons_stay_names() -> None:
    for name in ("12:30/cache", "c:/x", "a b://c", "runs/s3:/b", "./x", "größe:/x"):
        assert local_path(name) == Path(name)
    Path("s3:").mkdir()
    assert local_path(Path("s3:/b")) == Path("s3:/b")


@pytest.mark.parametrize(
    "arguments",
    [
        ("submission", "validate", "s3://bucket/a.csv"),
        ("cache", "export", "--split", "train", "--out", "s3://bucket/train.npy"),
        ("evaluate", "--out", "s3://bucket/rows.csv"),
        ("--config", "s3://bucket/geo.toml", "config", "show"),
        ("--set", "paths.runs_dir=s3://bucket/runs", "runs", "ls"),
        ("demo", "--root", "s3://bucket/demo"),
        ("predict", "first", "--images", "n.jpg", "s3://bucket/e.jpg"),
    ],
)
def test_a_command_refuses_a_bucket_in_one_line_and_makes_nothing(
    geo: Geo, tmp_path: Path, arguments: tuple[str, ...]
) -> None:
    ran = geo(*arguments)
    assert ran.code == 1
    assert ran.err.startswith("error: s3:// can't be read or written")
    assert "Traceback" not in ran.err
    assert not list(tmp_path.iterdir())


def test_commands_read_and_write_where_a_file_address_points(geo: Geo, tmp_path: Path) -> None:
    shown = geo("--json", "--set", f"paths.cache_dir=file://{tmp_path}/the%20cache", "cache", "ls")
    assert shown.code == 0, shown.err
    made = geo("config", "init", "--out", f"file://{tmp_path}/my%20settings.toml")
    assert made.code == 0, made.err
    assert [path.name for path in tmp_path.iterdir()] == ["my settings.toml"]


def test_a_run_and_a_backbone_are_named_by_a_file_address_as_by_a_path(geo: Geo, tmp_path: Path) -> None:
    address = f"file://{tmp_path}/a%20thing"
    for arguments in (
        ("evaluate", address),
        ("runs", "compare", address, address),
        ("cache", "info", "--backbone", address),
    ):
        ran = geo(*arguments)
        assert ran.code == 1
        assert f"{tmp_path}/a thing" in ran.err, arguments
        assert "file:" not in ran.err, arguments
