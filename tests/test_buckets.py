"""Addresses of buckets, and requests that fail: tried again while it may help, and then told in one line without a secret."""

from __future__ import annotations

import pickle
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from s3 import BUSY, CUT, KEY_ID, LOST, SECRET, SLOW, STALL, Server

from geo_embed import buckets
from geo_embed.buckets import Address
from geo_embed.config import Config
from geo_embed.errors import GeoError, UnreachableError
from geo_embed.locations import located
from geo_embed.settings import resolve, to_toml

if TYPE_CHECKING:
    from conftest import Geo

BODY = bytes(range(256)) * 4000


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_an_address_is_a_path_that_keeps_its_slashes(scheme: str) -> None:
    text = f"{scheme}://my-bucket/a/b c"
    for address in (
        located(text),
        located(f"{scheme.upper()}://my-bucket/a/b c/"),
        located(Path(text)),
        located(str(Path(text))),
    ):
        assert isinstance(address, Address)
        assert str(address) == text
        assert (address.bucket, address.key, address.name) == ("my-bucket", "a/b c", "b c")
        assert str(address.parent / "train.zarr") == f"{scheme}://my-bucket/a/train.zarr"
        assert str(address.with_name("x.zarr").with_suffix(".lock")) == f"{scheme}://my-bucket/a/x.lock"
        assert str(pickle.loads(pickle.dumps(address))) == text
    Path(f"{scheme}:").mkdir()
    assert not isinstance(located(f"{scheme}:/my-bucket"), Address)
    assert not isinstance(located("12:30/cache"), Address)


def test_settings_keep_an_address_through_toml_json_and_changes() -> None:
    config, _ = resolve(settings=["paths.cache_dir=s3://my-bucket/cache"])
    assert 'cache_dir = "s3://my-bucket/cache"' in to_toml(config)
    for again in (
        Config.model_validate_json(config.model_dump_json()),
        Config.model_validate(config.model_dump()),
        config.model_copy(deep=True),
    ):
        assert again.paths.cache_dir == config.paths.cache_dir
        assert isinstance(again.paths.cache_dir, Address)


@pytest.mark.parametrize(
    "rest",
    ["me:hunter2@bucket/a", "bucket/a?X-Amz-Signature=hunter2", "", "/a", "hunter2:x/a", "b/../hunter2"],
)
def test_what_is_no_address_is_refused_and_not_repeated(rest: str) -> None:
    with pytest.raises(GeoError, match="address") as refused:
        located(f"s3://{rest}", where="paths.cache_dir")
    assert "hunter2" not in str(refused.value) + refused.value.hint


@pytest.mark.parametrize(
    "use",
    [open, Path.read_text, Path.mkdir, Path.touch, lambda path: Path("a").rename(path)],
)  # fmt: skip
def test_no_address_is_taken_for_a_file_of_this_machine(use: Callable[[Path], Any], tmp_path: Path) -> None:
    Path("a").touch()
    with pytest.raises(GeoError, match="s3:// can't be read or written here"):
        use(Address("s3:", "bucket", "a"))
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_objects_are_written_read_listed_copied_and_deleted(bucket: Address) -> None:
    assert buckets.get(bucket / "a") is None
    assert buckets.head(bucket / "a") is None
    tag = buckets.put(bucket / "a", BODY)
    assert buckets.get(bucket / "a") == (BODY, tag)
    entry = buckets.head(bucket / "a")
    assert entry is not None
    assert (entry.size, entry.e_tag) == (len(BODY), tag)
    buckets.copy(bucket / "a", bucket / "b" / "c")
    assert list(buckets.listing(bucket)) == ["a", "b/c"]
    assert buckets.listing(bucket)["b/c"].e_tag == tag
    assert buckets.children(bucket) == [bucket / "a", bucket / "b"]
    assert (bucket.is_dir(), bucket.is_file(), (bucket / "a").is_file()) == (True, False, True)
    assert list(bucket.glob("*c")) == []
    buckets.delete([bucket / "a", bucket / "b" / "c", bucket / "nothing"])
    assert buckets.listing(bucket) == {}
    with pytest.raises(UnreachableError, match="no such object"):
        buckets.copy(bucket / "a", bucket / "b")


def test_of_two_writers_one_makes_an_object_and_of_two_changes_one_succeeds(bucket: Address) -> None:
    first = buckets.put_new(bucket / "a", b"mine")
    assert first is not None
    assert buckets.put_new(bucket / "a", b"theirs") is None
    second = buckets.put_over(bucket / "a", b"mine again", first)
    assert second is not None
    assert buckets.put_over(bucket / "a", b"theirs", first) is None
    assert buckets.put_over(bucket / "gone", b"theirs", first) is None
    assert buckets.get(bucket / "a") == (b"mine again", second)


@pytest.mark.parametrize("fault", [BUSY, STALL, CUT, LOST, "500", "429"])
@pytest.mark.parametrize("how", ["put", "put_new", "put_over", "get", "list", "copy", "delete"])
def test_a_request_that_fails_twice_is_done_at_the_third_try(
    bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch, how: str, fault: str
) -> None:
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.3")
    tag = buckets.put(bucket / "there", b"before")
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.3")
    s3.reset()
    s3.faults = lambda request: fault if request.earlier < 2 else None
    done = {
        "put": lambda: buckets.put(bucket / "a", BODY),
        "put_new": lambda: buckets.put_new(bucket / "a", BODY),
        "put_over": lambda: buckets.put_over(bucket / "there", BODY, tag),
        "get": lambda: buckets.get(bucket / "there") == (b"before", tag),
        "list": lambda: list(buckets.listing(bucket)) == ["there"],
        "copy": lambda: buckets.copy(bucket / "there", bucket / "a") is None,
        "delete": lambda: buckets.delete([bucket / "there"]) is None,
    }[how]()
    assert done
    # Whether a conditional write was ours is read, where the answer was lost, and that may be tried again as well.
    assert s3.met[fault] == 2 or (how in ("put_new", "put_over") and s3.met[fault] in (4, 6))
    s3.reset()
    left = {"copy": ["a", "there"], "delete": [], "put": ["a", "there"], "put_new": ["a", "there"]}
    assert list(buckets.listing(bucket)) == left.get(how, ["there"])
    written = bucket / ("there" if how == "put_over" else "a")
    if how.startswith("put"):
        stored = buckets.get(written)
        assert stored is not None
        assert stored[0] == BODY


def test_a_silent_server_is_told_of_after_its_first_time_out(
    bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(buckets, "_SAY_SECONDS", 0.1)
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.3")
    monkeypatch.setenv("GEO_BUCKET_TRIES", "2")
    buckets._say_trying.cache_clear()
    s3.faults = lambda _: STALL
    with pytest.raises(UnreachableError, match="doesn't answer in time, 2 times"):
        buckets.listing(bucket)
    assert "the server doesn't answer in time; trying again" in capsys.readouterr().err


def test_a_server_that_never_answered_is_given_up_after_two_time_outs_not_eight(
    bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buckets, "_answered", set())
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.3")
    monkeypatch.setenv("GEO_BUCKET_TRIES", "8")
    s3.reset()
    s3.faults = lambda _: STALL
    with pytest.raises(UnreachableError, match="doesn't answer in time, 2 times"):
        buckets.listing(bucket)
    # One that is only busy is tried on.
    s3.reset()
    s3.faults = lambda request: BUSY if request.earlier < 4 else None
    assert buckets.listing(bucket) == {}


def test_half_of_a_key_is_told_by_the_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SESSION_TOKEN", "AWS_PROFILE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "half-a-secret")
    with pytest.raises(UnreachableError, match="one is set and the other isn't") as failed:
        buckets.listing(Address("s3:", "half-a-key"))
    assert "half-a-secret" not in str(failed.value)


def test_a_slow_body_is_waited_for_as_long_as_it_comes(
    bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    buckets.put(bucket / "a", BODY)
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.15")
    s3.faults = lambda _: SLOW
    stored = buckets.get(bucket / "a")
    assert stored is not None
    assert stored[0] == BODY
    assert s3.met[SLOW] == 1


@pytest.mark.parametrize(
    ("fault", "message", "tries"),
    [
        (BUSY, r"the server answers 503 \(SlowDown\), 3 times", 3),
        (STALL, "the server doesn't answer in time, 3 times", 3),
        (CUT, "the connection was cut, 3 times", 3),
        ("403", r"access is denied \(Refused\)", 1),
        ("400", r"the server answers 400 \(Refused\)", 1),
        ("301", "another region", 1),
    ],
)
def test_one_that_goes_on_failing_says_why_in_our_words(
    bucket: Address, s3: Server, monkeypatch: pytest.MonkeyPatch, fault: str, message: str, tries: int
) -> None:
    buckets.put(bucket / "a", BODY)
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.3")
    monkeypatch.setenv("GEO_BUCKET_TRIES", "3")
    s3.reset()
    s3.faults = lambda _: fault
    with pytest.raises(UnreachableError, match=message) as failed:
        buckets.get(bucket / "a")
    assert len(s3.requests) == tries
    assert failed.value.where == str(bucket / "a")
    assert failed.value.hint
    shown = "".join(traceback.format_exception(failed.value))
    assert not [part for part in (SECRET, KEY_ID, "127.0.0.1", "Debug source") if part in shown]


def test_a_server_that_is_not_there_and_a_bucket_that_is_not_there_are_said(
    bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Address("s3:", "no-such-bucket", "a")
    for use in (lambda: buckets.put(other, b""), lambda: buckets.listing(other)):
        with pytest.raises(UnreachableError, match=r"there is no (such )?bucket"):
            use()
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "0.1")
    with pytest.raises(UnreachableError, match="the server can't be reached, 8 times"):
        buckets.get(bucket / "a")
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://example.com")
    with pytest.raises(UnreachableError, match="unencrypted"):
        buckets.get(bucket / "a")


@pytest.mark.parametrize("scheme", ["s3", "gs", "az"])
def test_without_obstore_one_line_says_what_to_install(geo: Geo, scheme: str, s3: Server) -> None:
    code = "import sys; sys.modules['obstore'] = None; from geo_embed.cli import main; main(sys.argv[1:])"
    ran = geo(
        "--set", f"paths.cache_dir={scheme}://bucket/a", "cache", "ls",
        command=[sys.executable, "-c", code],
    )  # fmt: skip
    assert ran.code == 1
    assert "pip install 'geo-embed[cloud]'" in ran.err
    assert len(ran.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("variable", "value", "what"),
    [
        *(("AWS_ENDPOINT_URL", value, "no address of a server") for value in (
            "minio:9000", "http://", "ftp://me:hunter2@minio", "http://me:hunter2@minio:99999", " ", "http://a b/",
        )),
        ("AWS_ACCESS_KEY_ID", "hunter2\r", "the end of a line"),
        ("AWS_SECRET_ACCESS_KEY", "hunter2\n", "the end of a line"),
        ("AWS_SESSION_TOKEN", "hunter2\u00f6", "printable ASCII"),
    ],
)  # fmt: skip
def test_an_environment_that_no_request_can_be_made_of_is_told_by_the_variable(
    bucket: Address, monkeypatch: pytest.MonkeyPatch, variable: str, value: str, what: str
) -> None:
    monkeypatch.setenv(variable, value)
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "8")
    with pytest.raises(UnreachableError, match=what) as refused:
        buckets.listing(bucket)
    assert refused.value.where == variable
    assert "hunter2" not in str(refused.value) + refused.value.hint


def test_where_nothing_listens_the_variable_is_named_that_says_where(
    bucket: Address, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://me:hunter2@127.0.0.1:9")
    monkeypatch.setenv("GEO_BUCKET_TRIES", "1")
    with pytest.raises(UnreachableError, match="can't be reached") as refused:
        buckets.listing(bucket)
    assert "AWS_ENDPOINT_URL" in refused.value.hint
    assert "hunter2" not in str(refused.value) + refused.value.hint


def test_credentials_of_a_profile_are_taken_where_boto3_is_there(
    bucket: Address, s3: Server, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    profile = f"[lab]\naws_access_key_id = {KEY_ID}\naws_secret_access_key = {SECRET}\nregion = eu-north-1\n"
    (tmp_path / "credentials").write_text(profile)
    monkeypatch.setenv("AWS_SHARED_CREDENTIALS_FILE", str(tmp_path / "credentials"))
    monkeypatch.setenv("AWS_PROFILE", "lab")
    monkeypatch.setenv("GEO_BUCKET_TIMEOUT", "9")
    buckets.put(bucket / "a", b"by the profile")
    assert list(buckets.listing(bucket)) == ["a"]
