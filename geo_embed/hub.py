"""The Hugging Face hub, or what HF_ENDPOINT names in its place: files into a repository in one commit, and back.

Tokens come from the hub's own chain alone (HF_TOKEN, `hf auth login`), and are neither read, shown nor kept here.
"""

import errno
import re
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from geo_embed.console import counted, is_quiet, on_terminal, say
from geo_embed.errors import GeoError, PlainError, UnreachableError
from geo_embed.files import JSON_BYTES, read_bytes

SCHEME = "hf"
_NAME = r"[A-Za-z0-9](?:[A-Za-z0-9._-]{0,94}[A-Za-z0-9])?"
_REPOSITORY = re.compile(rf"{_NAME}/{_NAME}")
_ADDRESS = re.compile(
    rf"hf:/{{1,2}}(?P<repository>{_NAME}/{_NAME})(?:/(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*))?/?"
)
_TOKEN = "make a token with the right to write at huggingface.co/settings/tokens, then: hf auth login; or set HF_TOKEN"
_AGAIN = "nothing was changed there; run the same command again once it answers"


@dataclass(frozen=True)
class HubAddress:
    """A repository, and maybe a name in it: `hf://USER/REPO/NAME`."""

    repository: str
    name: str = ""

    def __str__(self) -> str:
        return f"{SCHEME}://{self.repository}" + (f"/{self.name}" if self.name else "")


def parse_address(text: str) -> HubAddress | None:
    """The place on the hub that an address names; None for what is no address of it.

    Raises:
        GeoError: it begins as one and is none.
    """
    if not text.lower().startswith(f"{SCHEME}:/"):
        return None
    match = _ADDRESS.fullmatch(f"{SCHEME}{text[len(SCHEME) :]}")
    if match is None:
        raise GeoError(
            "this is no place on the hub", where=text[:200], hint="hf://USER/REPO, or hf://USER/REPO/RUN"
        )
    return HubAddress(match["repository"], match["name"] or "")


def repository_of(text: str) -> str:
    """The repository that people mean, with `hf://` before it or without. Raises GeoError as `parse_address`."""
    address = parse_address(text)
    return text if address is None or address.name else address.repository


def check_can_push(repository: str) -> None:
    """Raise GeoError for what names no repository, or where there is no token. Cheap: call it before any work is done."""
    from huggingface_hub import constants, get_token

    if not _REPOSITORY.fullmatch(repository) or ".." in repository or "--" in repository:
        raise GeoError(
            f"{repository!r:.120} names no repository",
            where="the hub",
            hint="USER/REPO, as it stands in its address",
        )
    if constants.HF_HUB_OFFLINE:
        raise _offline()
    if not get_token():
        raise GeoError("there is no token for the hub", where=repository, hint=_TOKEN)


def push_files(
    repository: str,
    files: Mapping[str, Path | bytes],
    message: str,
    *,
    replaces: Callable[[str], bool],
    refuse: str = "",
) -> str:
    """Put files into a repository by one commit, which is there whole or not at all. A new repository is private.

    Args:
        repository: USER/REPO; made if it isn't there.
        files: by their names there.
        message: of the commit.
        replaces: whether a file that is there, and isn't among these, goes.
        refuse: the name of a file beside which nothing is pushed; empty: none.

    Returns:
        The address of the repository, for a browser.

    Raises:
        GeoError: as `check_can_push`; the hub refuses; the file `refuse` is there; somebody committed meanwhile.
        UnreachableError: the hub doesn't answer.
    """
    from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi

    check_can_push(repository)
    api = HfApi(library_name="geo_embed")
    with hub_errors(repository), _bars_on_terminals():
        _make(api, repository)
        info = api.repo_info(repository)
        names = [file.rfilename for file in info.siblings or ()]
        if refuse in names:
            raise GeoError(
                "one of this name exists there",
                where=f"{repository}/{refuse}",
                hint="replace it with --overwrite",
            )
        operations: list[Any] = [
            CommitOperationAdd(name, data if isinstance(data, bytes) else str(data))
            for name, data in files.items()
        ]
        operations += [CommitOperationDelete(name) for name in names if name not in files and replaces(name)]
        say(f"push {counted(len(files), 'file')} to {repository}")
        api.create_commit(repository, operations, commit_message=message, parent_commit=info.sha)
    return f"{api.endpoint}/{repository}"


def _make(api: Any, repository: str) -> None:
    from huggingface_hub.errors import RepositoryNotFoundError

    try:
        api.repo_info(repository)
    except RepositoryNotFoundError:
        api.create_repo(repository, private=True, exist_ok=True)
        say(f"{repository} is new, and private: its settings on the hub make it public")


def files_there(repository: str, *, maybe_new: bool = False) -> list[str]:
    """The names of the files of a repository; with `maybe_new` none of one that isn't there.

    Raises GeoError and UnreachableError as `push_files`.
    """
    from huggingface_hub import HfApi
    from huggingface_hub.errors import RepositoryNotFoundError

    with hub_errors(repository):
        try:
            names: list[str] = HfApi(library_name="geo_embed").list_repo_files(repository)
        except RepositoryNotFoundError:
            if not maybe_new:
                raise
            names = []
    return names


def read_file(repository: str, name: str) -> bytes:
    """A small file of a repository. Raises as `push_files`."""
    from huggingface_hub import hf_hub_download

    with hub_errors(repository), _bars_on_terminals():
        return read_bytes(Path(hf_hub_download(repository, name, library_name="geo_embed")), limit=JSON_BYTES)


def download(repository: str, **options: Any) -> Path:
    """A repository's files, in the hub's own cache on this machine.

    Args:
        repository: USER/REPO.
        options: as `huggingface_hub.snapshot_download` takes them.

    Raises:
        GeoError: there is none of this name, or it may not be read.
        UnreachableError: the hub doesn't answer, and the cache lacks it.
    """
    from huggingface_hub import snapshot_download

    with hub_errors(repository), _bars_on_terminals():
        return Path(snapshot_download(repository, library_name="geo_embed", **options))


@contextmanager
def _bars_on_terminals() -> Iterator[None]:
    """Have the hub's client draw its progress on a terminal alone, and keep its advice, which is for other people's files, to itself."""
    import warnings

    from huggingface_hub.utils import are_progress_bars_disabled, disable_progress_bars, enable_progress_bars

    hides = not are_progress_bars_disabled() and (is_quiet() or not on_terminal())
    if hides:
        disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            yield
    finally:
        if hides:
            enable_progress_bars()


@contextmanager
def hub_errors(repository: str) -> Iterator[None]:
    """Turn what the hub's client raises into one line."""
    try:
        yield
    except PlainError:
        raise
    except Exception as error:
        refusal = _refusal_of(error, repository)
        if refusal is None:
            raise
        raise refusal from error


def _refusal_of(error: Exception, repository: str) -> PlainError | None:
    """What an exception of the hub's client means; None for what is none of its."""
    from huggingface_hub import errors

    status = getattr(getattr(error, "response", None), "status_code", None)
    if isinstance(error, errors.OfflineModeIsEnabled):
        return _offline()
    if isinstance(error, errors.HFValidationError):
        return GeoError(
            "this is neither a directory nor the name of a repository",
            where=repository,
            hint="a directory that is there, or USER/REPO",
        )
    if isinstance(error, errors.LocalEntryNotFoundError):
        return UnreachableError(
            "it isn't here yet, and the hub can't be reached", where=repository, hint=_AGAIN
        )
    if isinstance(error, errors.GatedRepoError):
        return GeoError(
            "the repository is gated, and who asks has not been let in",
            where=repository,
            hint="ask for access on its page",
        )
    if isinstance(error, errors.RepositoryNotFoundError):
        return GeoError(
            "there is no such repository, or it is private and the token can't see it",
            where=repository,
            hint="USER/REPO as it stands in its address; of a private one: hf auth login",
        )
    if isinstance(error, errors.EntryNotFoundError | errors.RevisionNotFoundError):
        return GeoError("the repository holds no such file or revision", where=repository)
    if status in (401, 403):
        return GeoError("the hub refuses: the token has no right to this", where=repository, hint=_TOKEN)
    if status in (409, 412):
        return GeoError(
            "somebody else changed the repository meanwhile",
            where=repository,
            hint="run the same command again",
        )
    if isinstance(status, int) and status < 500 and status != 429:
        why = " ".join(str(getattr(error, "server_message", "") or "").split())
        return GeoError(
            f"the hub refuses (status {status})" + (f": {why:.200}" if why else ""), where=repository
        )
    if isinstance(status, int):
        return UnreachableError(f"the hub is busy or broken (status {status})", where=repository, hint=_AGAIN)
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EACCES, errno.EROFS):
        return GeoError(
            f"can't write: {error.strerror}",
            where=error.filename or "the hub's cache",
            hint="free or unlock the disk",
        )
    if isinstance(error, OSError) or type(error).__module__.split(".")[0] in (
        "httpx",
        "httpx2",
        "httpcore",
        "httpcore2",
        "requests",
    ):
        return UnreachableError(
            f"the hub can't be reached ({type(error).__name__})", where=repository, hint=_AGAIN
        )
    # Of hf_xet, which moves large files.
    if isinstance(error, RuntimeError) or type(error).__module__.split(".")[0] == "hf_xet":
        return UnreachableError(
            "a large file can't be moved to or from the hub", where=repository, hint=_AGAIN
        )
    return None


def _offline() -> GeoError:
    return GeoError(
        "the hub isn't asked for anything: HF_HUB_OFFLINE is set",
        where="HF_HUB_OFFLINE",
        hint="unset HF_HUB_OFFLINE",
    )
