"""Buckets of an object store, `s3://bucket/prefix` and its like: addresses, and the few requests that a cache is made of.

Everything is a `Path` in this package, so an address is one as well: it has a path's name, parent and `/`, lists what lies below it,
and refuses by name to be opened as a file. (`UPath` of universal-pathlib is no `Path`: every signature would have to name both, and it
brings fsspec, which knows no conditional writes.) Requests go through obstore, which is asked to try once: what is tried again, how
often and after which wait is decided here, for all requests alike, conditional ones among them.

What obstore says of a failure is never shown: addresses that it asked, signatures in them included, are part of it.
"""

import os
import random
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from functools import lru_cache
from pathlib import Path, PosixPath
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar
from urllib.parse import urlsplit

from geo_embed.console import say
from geo_embed.errors import GeoError, UnreachableError

if TYPE_CHECKING:
    from obstore.store import ObjectStore

SCHEMES = ("s3", "gs", "az")
_INSTALL = "pip install 'geo-embed[cloud]'"
# A request that gets no byte for this long has failed (seconds); how often it is tried in all. Tests want both small.
_TIMEOUT_VARIABLE, _TIMEOUT_SECONDS = "GEO_BUCKET_TIMEOUT", 30.0
_TRIES_VARIABLE, _TRIES = "GEO_BUCKET_TRIES", 8
# Of the time-out: the longest wait before the second try, doubled before each one after it, and what it is doubled up to.
_FIRST_WAIT, _LONGEST_WAIT = 1 / 100, 1 / 3
# A body may take long, if only it keeps coming.
_BODY_SECONDS = 3600.0
# Where there are no credentials, or nothing has ever answered.
_FEW_TRIES = 2
_SILENCE = "the server doesn't answer in time"
_SAY_AFTER, _SAY_SECONDS = 3, 5.0
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")
_LOOPBACK = ("127.0.0.1", "localhost", "::1", "0.0.0.0")
_NO_ANSWER = "the server can't be reached"
_GO_ON = "what is committed stays, and the same command goes on from there once the bucket answers"
_METADATA = ("169.254.169.254", "169.254.170.2", "metadata.google.internal")
_CREDENTIALS = {
    "s3": "set AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or run where the machine has a role; AWS_REGION names the bucket's region",
    "gs": "set GOOGLE_APPLICATION_CREDENTIALS to a key file, or run where the machine has a service account",
    "az": "set AZURE_STORAGE_ACCOUNT_NAME and AZURE_STORAGE_ACCOUNT_KEY, or run where the machine has an identity",
}

_T = TypeVar("_T")

# Buckets that answered this process, whatever they said.
_answered: set[str] = set()


class Address(PosixPath):
    """A bucket, or what lies at or below a key of it.

    Nothing that wants a file of this machine takes it: it has no place in the file system, and says so.
    """

    def __str__(self) -> str:
        return f"{self.scheme}://{'/'.join(self.parts[1:])}"

    def __fspath__(self) -> str:
        raise GeoError(
            f"{self.scheme}:// can't be read or written here: only a cache and pictures may lie in a bucket",
            where=str(self),
            hint="copy it to a folder of this machine, and name that folder",
        )

    def __repr__(self) -> str:
        return f"Address({str(self)!r})"

    @property
    def scheme(self) -> str:
        """`s3`, `gs` or `az`."""
        return self.parts[0].removesuffix(":")

    @property
    def bucket(self) -> str:
        """The bucket's name; of `az` a container's."""
        return self.parts[1]

    @property
    def key(self) -> str:
        """The name within the bucket."""
        return "/".join(self.parts[2:])

    def exists(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object has this name, or names below it."""
        return self.is_file() or self.is_dir()

    def is_file(self, *, follow_symlinks: bool = True) -> bool:
        """Whether an object has this name."""
        return bool(self.key) and head(self) is not None

    def is_dir(self, *, follow_symlinks: bool = True) -> bool:
        """Whether objects have names below it."""
        return any(True for _ in self.iterdir())

    def is_symlink(self) -> bool:
        """There is no such thing."""
        return False

    def iterdir(self) -> Iterator["Address"]:  # type: ignore[override]
        """What lies right below it, by name."""
        return iter(children(self))

    def glob(self, pattern: str, **_: Any) -> Iterator["Address"]:  # type: ignore[override]
        """Of what lies right below it, whose name matches; no pattern over several levels."""
        return (child for child in children(self) if child.match(pattern))

    def resolve(self, strict: bool = False) -> "Address":
        """Itself."""
        return self

    def absolute(self) -> "Address":
        """Itself."""
        return self


@dataclass(frozen=True)
class Entry:
    """An object: its bytes in all, the tag that another content would change, when it was written, by the server's clock, and what
    `put_over` knows it by.
    """

    size: int
    e_tag: str
    modified: datetime
    state: str


def parse(scheme: str, rest: str, *, where: str = "") -> Address:
    """The address that stands behind a scheme and `://`.

    Raises:
        GeoError: no bucket, or something that is no part of an address, such as a password, which is not repeated.
    """
    bucket, _, key = rest.partition("/")
    hint = f"{scheme}://BUCKET/PREFIX"
    if "@" in bucket or "?" in rest:
        raise GeoError(
            f"an {scheme}:// address holds no credentials, and nothing after a question mark",
            where=where,
            hint=f"{hint}; {_CREDENTIALS[scheme]}",
        )
    parts = [part for part in key.split("/") if part]
    if not _BUCKET.fullmatch(bucket) or any(part in (".", "..") or "\0" in part for part in parts):
        raise GeoError(f"this is no {scheme}:// address", where=where, hint=hint)
    return Address(f"{scheme}:", bucket, *parts)


def get(address: Address) -> tuple[bytes, str] | None:
    """An object's bytes and tag; None where there is none. Raises UnreachableError where the bucket doesn't answer."""

    def request(store: "ObjectStore") -> tuple[bytes, str]:
        import obstore

        response = obstore.get(store, address.key)
        return bytes(response.bytes()), str(response.meta["e_tag"])

    return _absent_as_none(address, "read", request)


def get_part(address: Address, start: int, count: int, e_tag: str) -> bytes | None:
    """Of an object `count` bytes, one or more, from `start` on, fewer where it ends; None where it is gone or has another tag by now.

    Raises:
        UnreachableError: the bucket doesn't answer.
    """

    def request(store: "ObjectStore") -> bytes | None:
        import obstore
        from obstore.exceptions import PreconditionError

        try:
            part: Any = {"range": (start, start + count), "if_match": e_tag}
            return bytes(obstore.get(store, address.key, options=part).bytes())
        except PreconditionError:
            return None

    return _absent_as_none(address, "read", request)


def head(address: Address) -> Entry | None:
    """What is known of an object; None where there is none. Raises UnreachableError where the bucket doesn't answer."""

    def request(store: "ObjectStore") -> Entry:
        import obstore

        return _entry(obstore.head(store, address.key))

    return _absent_as_none(address, "read", request)


def put(address: Address, data: bytes | memoryview) -> str:
    """Write an object in one step, over whatever has its name; gives its state. Raises UnreachableError where it can't be written."""
    tag = _put(address, data, "overwrite")
    assert tag is not None
    return tag


def put_new(address: Address, data: bytes) -> str | None:
    """Write an object that nothing has the name of, and give its state; None where something has it: of several writers one succeeds.

    Where the answer to a try was lost, the next one finds an object: it is ours if it has our bytes, so these should be nobody else's.

    Raises:
        UnreachableError: it can't be written.
    """
    return _put(address, data, "create")


def put_over(address: Address, data: bytes, state: str) -> str | None:
    """Write an object over the one in a state, and give the new state; None where it has another by now, or is gone. See `put_new`."""
    e_tag, _, version = state.partition("\n")
    return _put(address, data, {"e_tag": e_tag, "version": version} if version else {"e_tag": e_tag})


def delete(addresses: Sequence[Address]) -> None:
    """Delete objects of one bucket; what is gone already is no fault. Raises UnreachableError where they can't be deleted."""
    if addresses:

        def request(store: "ObjectStore") -> None:
            import obstore

            with suppress(FileNotFoundError):
                obstore.delete(store, [address.key for address in addresses])

        _tried(addresses[0], "delete", request)


def copy(source: Address, target: Address) -> None:
    """Copy an object to another name of the same bucket, on the server. Raises UnreachableError where it can't be copied, or is gone."""

    def request(store: "ObjectStore") -> None:
        import obstore

        obstore.copy(store, source.key, target.key)

    try:
        _tried(source, "copy", request)
    except FileNotFoundError:
        raise UnreachableError("there is no such object", where=source) from None


def listing(address: Address) -> dict[str, Entry]:
    """Every object below an address, by its name from there on, sorted. Raises UnreachableError where the bucket doesn't answer."""
    prefix = f"{address.key}/" if address.key else ""

    def request(store: "ObjectStore") -> dict[str, Entry]:
        import obstore

        pages = obstore.list(store, prefix or None, chunk_size=1000)
        entries = {meta["path"].removeprefix(prefix): _entry(meta) for page in pages for meta in page}
        return dict(sorted(entries.items()))

    return _tried(address, "list", request)


def children(address: Address) -> list[Address]:
    """What lies right below an address, objects and prefixes, by name. Raises UnreachableError where the bucket doesn't answer."""

    def request(store: "ObjectStore") -> list[str]:
        import obstore

        listed = obstore.list_with_delimiter(store, f"{address.key}/" if address.key else None)
        return [*listed["common_prefixes"], *(meta["path"] for meta in listed["objects"])]

    names = {key.rstrip("/").rpartition("/")[2] for key in _tried(address, "list", request)}
    return sorted(address / name for name in names if name)


def kept_dir() -> Path:
    """Where this machine keeps what it read from buckets: `geo_embed` in the user's folder for caches."""
    return Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache").expanduser() / "geo_embed"


def timeout_seconds() -> float:
    """How long a request may go without a byte."""
    return _number(_TIMEOUT_VARIABLE, _TIMEOUT_SECONDS)


def server() -> str:
    """The address of an S3 server other than Amazon's, which the environment may name; else empty."""
    named = (os.environ.get(name) for name in ("AWS_ENDPOINT_URL_S3", "AWS_ENDPOINT_URL", "AWS_ENDPOINT"))
    return next(filter(None, named), "")


def _put(address: Address, data: bytes | memoryview, mode: Any) -> str | None:
    def request(store: "ObjectStore") -> str | None:
        import obstore
        from obstore.exceptions import AlreadyExistsError, PreconditionError

        try:
            # In one request: parts would have to be put together by another, and may be left over.
            return _state(obstore.put(store, address.key, data, mode=mode, use_multipart=False))
        except (AlreadyExistsError, PreconditionError):
            return None

    try:
        tag = _tried(address, "write", request)
        # In this order: what is read later may be another's, and its state another's, too.
        entry = head(address) if tag is None else None
        if entry is not None and (stored := get(address)) is not None and stored == (data, entry.e_tag):
            return entry.state
    except FileNotFoundError:
        raise UnreachableError(
            f"there is no bucket {address.bucket}", where=address, hint="make it, or correct its name"
        ) from None
    return tag


def _entry(meta: Any) -> Entry:
    return Entry(int(meta["size"]), str(meta["e_tag"]), meta["last_modified"], _state(meta))


def _state(meta: Any) -> str:
    """The tag, and the version, where the server keeps any: Google's buckets go by that."""
    return "\n".join(filter(None, (str(meta["e_tag"]), meta["version"])))


def _absent_as_none(address: Address, verb: str, request: Callable[["ObjectStore"], _T]) -> _T | None:
    try:
        return _tried(address, verb, request)
    except FileNotFoundError:
        return None


def _tried(address: Address, verb: str, request: Callable[["ObjectStore"], _T]) -> _T:
    """What a request gives, tried again while what fails may pass.

    Raises:
        FileNotFoundError: there is no such object.
        UnreachableError: why it fails, in words of our own.
    """
    # A process that was forked has none of the threads that a client works with.
    store = _client(address.scheme, address.bucket, os.getpid(), timeout_seconds(), server())
    tries = int(_number(_TRIES_VARIABLE, _TRIES))
    started = time.monotonic()
    for done in range(1, tries + 1):
        fault: BaseException
        try:
            answer = request(store)
            _answered.add(address.bucket)
            return answer
        except FileNotFoundError:
            _answered.add(address.bucket)
            raise FileNotFoundError from None
        # obstore has a dozen kinds, and one for all that it has no kind for.
        except Exception as error:
            fault = error
        # obstore's panics are no Exception, so that nobody goes on; here it is the one request that is in doubt.
        except BaseException as error:
            if type(error).__name__ != "PanicException":
                raise
            fault = error
        reason = _reason(fault)
        # Whoever never answered this process is probably not there: its silence lasts a whole time-out each time.
        is_stranger = reason.is_silence and address.bucket not in _answered
        if not reason.passes or done >= (
            min(_FEW_TRIES, tries) if reason.is_credentials or is_stranger else tries
        ):
            _fail(address, verb, reason, done)
        # A server that is silent uses up its time-out, and whoever waits for it that long wants to know.
        is_slow = done < _SAY_AFTER and time.monotonic() - started > _SAY_SECONDS
        if done == _SAY_AFTER or is_slow:
            _say_trying(address.scheme, address.bucket, reason.what)
        # Waits of several writers differ, or they would all come back at once.
        longest = min(_FIRST_WAIT * 2 ** (done - 1), _LONGEST_WAIT) * timeout_seconds()
        time.sleep(longest * random.uniform(0.5, 1))
    raise AssertionError


@dataclass(frozen=True)
class _Reason:
    """Why a request failed; whether it may succeed later; whether no credentials were found; whether nothing was answered."""

    what: str
    passes: bool = False
    hint: str = ""
    is_credentials: bool = False
    is_silence: bool = False


def _reason(error: BaseException) -> _Reason:
    """What is said of a failure: its kind, its number and its code alone, whatever else the library says."""
    text, kind = str(error), type(error).__name__
    match = re.search(r"status: (\d{3})|status code: (\d{3})", text)
    status = int(match[1] or match[2]) if match else 0
    coded = re.search(r"<Code>([A-Za-z]{1,60})</Code>", text)
    code = f" ({coded[1]})" if coded else ""
    if any(host in text for host in _METADATA):
        return _Reason("no credentials were found", passes=True, is_credentials=True)
    if kind in ("UnauthenticatedError", "PermissionDeniedError") or status in (401, 403):
        return _Reason(f"access is denied{code}", hint="credentials")
    if status == 404 or "NoSuchBucket" in text:
        return _Reason("there is no such bucket", hint="make it, or correct its name")
    if status in (301, 307) or "LOCATION" in text:
        return _Reason("the bucket lies in another region", hint="set AWS_REGION to the bucket's region")
    if "BadScheme" in text:
        return _Reason(
            "the endpoint has an http:// address, which would send everything unencrypted",
            hint="give it an https:// one, or allow it by AWS_ALLOW_HTTP=true",
        )
    if status:
        return _Reason(f"the server answers {status}{code}", passes=status >= 500 or status in (408, 429))
    for word, what in (
        ("Timeout", _SILENCE),
        ("TimedOut", _SILENCE),
        ("Connect", _NO_ANSWER),
        ("Interrupted", "the connection was cut"),
        ("Decode", "the connection was cut"),
        ("Body", "the connection was cut"),
    ):
        if word in text:
            return _Reason(what, passes=True, is_silence=what == _SILENCE)
    if kind in ("PanicException", "NotSupportedError", "InvalidPathError", "UnknownConfigurationKeyError"):
        return _Reason(f"obstore refuses it ({kind})")
    return _Reason(f"the request failed ({kind})", passes=True)


def _fail(address: Address, verb: str, reason: _Reason, tries: int) -> NoReturn:
    again = f", {tries} times" if tries > 1 and not reason.is_credentials else ""
    hint = _CREDENTIALS[address.scheme] if reason.hint == "credentials" or reason.is_credentials else ""
    if reason.what == _NO_ANSWER and address.scheme == "s3" and server():
        hint = f"is AWS_ENDPOINT_URL right? {_GO_ON}"
    # Nothing that the library said is chained to it: tracebacks are shown with -v.
    raise UnreachableError(
        f"can't {verb}: {reason.what}{again}",
        where=address,
        hint=hint or reason.hint or _GO_ON,
    ) from None


@lru_cache(maxsize=64)
def _say_trying(scheme: str, bucket: str, what: str) -> None:
    say(f"{scheme}://{bucket}: {what}; trying again")


@lru_cache(maxsize=16)
def _client(scheme: str, bucket: str, process: int, seconds: float, endpoint: str) -> "ObjectStore":
    """What obstore asks a bucket by, with credentials from where it looks for them by itself: environment, files that it names, machine."""
    try:
        from obstore import store as stores
    except ImportError:
        raise UnreachableError(
            f"{scheme}:// can't be read or written without obstore",
            where=f"{scheme}://{bucket}",
            hint=_INSTALL,
        ) from None
    client: dict[str, Any] = {
        "connect_timeout": timedelta(seconds=min(seconds, 10)),
        "read_timeout": timedelta(seconds=seconds),
        "timeout": timedelta(seconds=max(_BODY_SECONDS, seconds)),
    }
    options: dict[str, Any] = {"client_options": client, "retry_config": {"max_retries": 0}}
    try:
        if scheme == "gs":
            return stores.GCSStore(bucket, **options)
        if scheme == "az":
            return stores.AzureStore(bucket, **options)
        _check_credentials()
        if _host_of(endpoint) in _LOOPBACK:
            client["allow_http"] = True
        return stores.S3Store(bucket, **options, **_profile())
    except UnreachableError:
        raise
    except Exception as error:
        if "MissingAccount" in str(error):
            reason = "no account is named"
        elif bool(os.environ.get("AWS_ACCESS_KEY_ID")) != bool(os.environ.get("AWS_SECRET_ACCESS_KEY")):
            reason = "of AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY one is set and the other isn't"
        else:
            reason = f"obstore refuses the environment's settings ({type(error).__name__})"
    raise UnreachableError(
        f"{scheme}:// can't be opened: {reason}", where=f"{scheme}://{bucket}", hint=_CREDENTIALS[scheme]
    )


def _check_credentials() -> None:
    """Raise UnreachableError where the environment's have what no request may hold: obstore would panic over it."""
    for variable in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY", "AWS_SESSION_TOKEN", "AWS_REGION"):
        value = os.environ.get(variable, "")
        if not (value.isascii() and value.isprintable()):
            raise UnreachableError(
                "there is something in it that isn't printable ASCII, such as the end of a line",
                where=variable,
                hint="set it anew, as it was given to you",
            )


def _host_of(endpoint: str) -> str | None:
    """The host of a server other than Amazon's, where one is named.

    Raises:
        UnreachableError: obstore would panic over it, or take it for another. It may hold a password, and is not repeated.
    """
    if not endpoint:
        return None
    host = None
    # A port that is no number below 65,536 raises.
    with suppress(ValueError):
        parts = urlsplit(endpoint)
        is_address = parts.scheme in ("http", "https") and parts.port != 0 and not re.search(r"\s", endpoint)
        host = parts.hostname if is_address else None
    if host is None:
        raise UnreachableError(
            "this is no address of a server",
            where="AWS_ENDPOINT_URL",
            hint="such as https://minio.example.org:9000; without it, Amazon's own are asked",
        )
    return host


def _profile() -> dict[str, Any]:
    """Credentials of a profile in ~/.aws, which boto3 reads, where it is installed and the environment has none of its own."""
    if os.environ.get("AWS_ACCESS_KEY_ID"):
        return {}
    files = [
        os.environ.get("AWS_SHARED_CREDENTIALS_FILE", "~/.aws/credentials"),
        os.environ.get("AWS_CONFIG_FILE", "~/.aws/config"),
    ]
    if not os.environ.get("AWS_PROFILE") and not any(Path(file).expanduser().is_file() for file in files):
        return {}
    try:
        from obstore.auth.boto3 import Boto3CredentialProvider

        return {"credential_provider": Boto3CredentialProvider()}
    # Neither boto3, nor such a profile, nor any in it: what obstore finds by itself is next.
    except Exception:
        return {}


def _number(variable: str, default: float) -> float:
    text = os.environ.get(variable, "")
    try:
        number = float(text) if text else default
    except ValueError:
        number = 0.0
    if not 0.01 <= number <= 1e6:
        raise GeoError(f"{text!r:.40} is no number of this kind", where=variable, hint=f"such as {default:g}")
    return number
