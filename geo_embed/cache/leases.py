"""Who may write to a store in a bucket: a lease in place of each lock file.

A lease is an object with its holder's name. It is made only where there is none (a conditional write: of two that try, one succeeds),
and its holder renews it, by a thread, as long as it works. One that stays the same for longer than a lease lasts is a dead holder's, and
is taken over: the watch is the observer's own, so no machine's clock is compared with another's. An empty object is a lease that
nobody holds.

A holder that was out of touch for that long stops before its next commit. What it has under way just then may still arrive; it is
what the next holder would write, since embeddings follow from pictures and weights.
"""

import json
import os
import socket
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from geo_embed import buckets
from geo_embed.buckets import Address, Entry
from geo_embed.console import say
from geo_embed.errors import BusyError, UnreachableError
from geo_embed.files import LEFTOVER_SECONDS

# Four tries to renew before others may take it, each with its own tries and waits.
_RENEWALS = 4
_LOOKS = 25

# What this process holds; the tokens of that, and of what it tries to hold; and what it saw of other leases.
_held: dict[Address, "_Lease"] = {}
_tokens: set[str] = set()
_seen: dict[Address, "_Sight"] = {}


@dataclass(frozen=True)
class _Sight:
    """A lease as it was seen last: its tag, since when by our own clock (monotonic seconds), and whether it had another before."""

    e_tag: str
    since: float
    changed: bool


@contextmanager
def lease(address: Address, *, busy: str, where: Path, hint: str, wait_seconds: float = 0) -> Iterator[None]:
    """Hold a lease while the block runs.

    Args:
        address: the object; it stays, empty, afterwards.
        busy: what to say of another holder, as in "another extraction is writing to this store".
        where: what it is of, for people.
        hint: what to do about the other holder.
        wait_seconds: how long to wait for a living one to let go; a dead one's lease is waited for as long as it lasts.

    Raises:
        BusyError: somebody else holds it, by process, host and time.
        UnreachableError: the bucket doesn't answer.
    """
    held = _Lease(address, where)
    until = time.monotonic() + wait_seconds
    _tokens.add(held.token)
    try:
        while not held.take():
            alive = is_alive(address)
            # Of a holder that may be dead more is known in a while, and who doesn't wait at all is told so by `watch`.
            if time.monotonic() > until and (alive or (alive is None and not wait_seconds)):
                raise BusyError(f"{busy}: {holder(address)}", where=where, hint=hint)
            time.sleep(_look_seconds())
        _held[address] = held
        held.start()
        try:
            yield
        finally:
            del _held[address]
            held.stop()
    finally:
        _tokens.discard(held.token)


def check_held(root: Address) -> None:
    """Raise GeoError where this process holds a lease of a store, and was out of touch for so long that others may have taken it.

    To be called before each write.
    """
    for address, held in list(_held.items()):
        if address.parent == root.parent and address.name.startswith(f"{root.stem}."):
            held.check()


def held_leases(addresses: Sequence[Address]) -> dict[Address, Entry]:
    """Of leases, those that somebody may hold now: not free, not seen to be dead, and not older than any machine's clock is wrong."""
    held = {}
    for address in addresses:
        entry = buckets.head(address)
        if entry is not None and entry.size and not _is_dead(address, entry) and not _is_old(entry):
            held[address] = entry
    return held


def is_alive(address: Address) -> bool | None:
    """Whether a lease's holder is at work; None while that can't be told, which it can once the lease has been watched for as long as
    it lasts.
    """
    entry = buckets.head(address)
    if entry is None or not entry.size or _is_dead(address, entry):
        return False
    return _seen[address].changed or _is_here(_read(address)) or None


def watch(addresses: Sequence[Address], *, busy: str, where: Path, hint: str) -> None:
    """Wait until it is known that nobody holds any of these leases: for as long as one lasts, if its holder is dead.

    Raises:
        BusyError: somebody does: a lease was renewed meanwhile, or its holder runs on this machine.
    """
    # That a holder was seen to renew it before says nothing: its machine may have died since.
    first: dict[Address, str] = {}
    announced = False
    while waiting := held_leases(addresses):
        for address, entry in waiting.items():
            if entry.e_tag != first.setdefault(address, entry.e_tag) or _is_here(_read(address)):
                raise BusyError(f"{busy}: {holder(address)}", where=where, hint=hint)
        if not announced:
            announced = True
            say(
                f"{holder(next(iter(waiting)))}, may have been killed at work on {where}: watched for {lease_seconds():g} seconds"
            )
        time.sleep(_look_seconds())


def holder(address: Address) -> str:
    """Who holds a lease, for people: process, host and time."""
    entry = _read(address)
    try:
        return f"process {entry['pid']} on {entry['host']}, since {entry['since']}"
    except KeyError:
        return "it has just ended"


def lease_seconds() -> float:
    """How long a lease lasts that isn't renewed."""
    # Longer than a request and its next try.
    return 2 * buckets.timeout_seconds()


class _Lease:
    """A lease that this process holds, or tries to."""

    def __init__(self, address: Address, where: Path) -> None:
        self.address, self.where = address, where
        self.state = ""
        self.renewed = 0.0
        self.lost = ""
        # The answer to a write may be lost: by this, its writer knows it again.
        self.token = uuid.uuid4().hex
        self._content: dict[str, Any] = {
            "pid": os.getpid(),
            "host": socket.gethostname(),
            "since": datetime.now(UTC).isoformat(timespec="seconds"),
            "process": _this_process(),
            "token": self.token,
            "renewals": 0,
        }
        self._ended = threading.Event()
        self._renewing = threading.Lock()
        self._thread = threading.Thread(target=self._keep, name="lease", daemon=True)

    def take(self) -> bool:
        """Try once: where there is none, or one that is free or dead."""
        began = time.monotonic()
        entry = buckets.head(self.address)
        if entry is None:
            tag = buckets.put_new(self.address, self._bytes())
        elif not entry.size or _is_dead(self.address, entry):
            tag = buckets.put_over(self.address, self._bytes(), entry.state)
        else:
            tag = None
        self.state, self.renewed = tag or "", began
        return tag is not None

    def start(self) -> None:
        self._thread.start()

    def stop(self) -> None:
        """Let go."""
        self._ended.set()
        self._thread.join()
        with suppress(UnreachableError):
            if not self.lost:
                buckets.put_over(self.address, b"", self.state)

    def renew(self) -> None:
        with self._renewing:
            if self.lost:
                return
            began = time.monotonic()
            self._content["renewals"] += 1
            tag = buckets.put_over(self.address, self._bytes(), self.state)
            if tag is None:
                self.lost = holder(self.address)
            else:
                self.state, self.renewed = tag, began

    def check(self) -> None:
        if not self.lost and time.monotonic() - self.renewed > lease_seconds():
            self.renew()
        if self.lost:
            raise BusyError(
                f"out of touch with the bucket for {lease_seconds():g} seconds or more, and its place taken: {self.lost}",
                where=self.where,
                hint="what is committed stays; the same command goes on from there once nobody else is writing",
            )

    def _keep(self) -> None:
        while not self._ended.wait(lease_seconds() / _RENEWALS) and not self.lost:
            # The next try may succeed; whether it was too late is asked before each write.
            with suppress(UnreachableError):
                self.renew()

    def _bytes(self) -> bytes:
        return json.dumps(self._content).encode()


def _read(address: Address) -> dict[str, Any]:
    stored = buckets.get(address)
    with suppress(ValueError):
        entry = json.loads(stored[0]) if stored else {}
        return entry if isinstance(entry, dict) else {}
    return {}


def _is_dead(address: Address, entry: Entry) -> bool:
    """Whether a lease has been the same for as long as one lasts, as far as this process saw; or its holder ran on this machine and is gone."""
    now, seen = time.monotonic(), _seen.get(address)
    if seen is None or seen.e_tag != entry.e_tag:
        seen = _seen[address] = _Sight(entry.e_tag, now, changed=seen is not None)
    # It may have died since it was seen at work.
    return now - seen.since > lease_seconds() or _is_here(_read(address)) is False


def _is_old(entry: Entry) -> bool:
    """Not renewed for an hour by the server's clock and ours: a bucket refuses requests of whose clock is a quarter of one off."""
    return (datetime.now(UTC) - entry.modified).total_seconds() > LEFTOVER_SECONDS


def _is_here(entry: dict[str, Any]) -> bool | None:
    """Whether a holder still runs on this very machine; None where it ran elsewhere, or this system can't tell."""
    recorded, this_process = entry.get("process"), _this_process()
    if (
        not isinstance(recorded, list)
        or not this_process
        or recorded[:2] != this_process[:2]
        or len(recorded) != len(this_process)
    ):
        return None
    # One of this very process may be left from when the bucket didn't answer.
    return (
        entry.get("token") in _tokens
        if recorded == this_process
        else bool(_started(int(recorded[2])) == recorded[3])
    )


def _this_process() -> list[Any]:
    """What names a process among all of a machine's since it was started: [the start, the space of its ids, its id, when it began]."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        space = os.readlink("/proc/self/ns/pid")  # noqa: PTH115
    except OSError:
        return []
    return [boot, space, os.getpid(), _started(os.getpid())]


def _started(process: int) -> str:
    """When a process of this machine began (clock ticks since the machine did); empty where there is none."""
    try:
        text = Path(f"/proc/{process}/stat").read_text(encoding="ascii", errors="replace")
    except OSError:
        return ""
    # Behind the name, which may hold anything: the state, and as the twentieth the start. A zombie is dead.
    fields = text.rpartition(")")[2].split()
    return "" if fields[0] in "ZX" else fields[19]


def _look_seconds() -> float:
    return lease_seconds() / _LOOKS
