"""An S3 server of this machine (moto's), and what can happen on the way to it: real requests, real sockets, no network."""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import logging
import threading
import urllib.request
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from geo_embed import buckets
from geo_embed.buckets import Address

BUCKET = "geo-tests"
# To be recognised wherever it might be shown.
SECRET = "sEcReT/hunter2+KEY"
KEY_ID = "AKIDHUNTER2EXAMPLE"
# Faults: what the client sees.
BUSY, STALL, SLOW, CUT, LOST = "503", "stall", "slow", "cut", "lost answer"


@dataclass
class Request:
    """A request: its method, the object's key (with the query of a list), and how many there were of the same before it."""

    method: str
    key: str
    query: str
    earlier: int
    is_conditional: bool


@dataclass
class Server:
    """The server, and what is to go wrong: a function of a request that gives one of the faults, or None.

    Attributes:
        url: where it is.
        faults: asked for every request.
        requests: those that came.
        met: how often each fault was served.
    """

    url: str = ""
    faults: Callable[[Request], str | None] = lambda _: None
    requests: list[Request] = field(default_factory=list)
    met: Counter[str] = field(default_factory=Counter)
    _seen: Counter[tuple[str, str, str]] = field(default_factory=Counter)
    _one_at_a_time: threading.Lock = field(default_factory=threading.Lock)
    _released: threading.Event = field(default_factory=threading.Event)

    @property
    def environment(self) -> dict[str, str]:
        """By which a process finds it, and is known to it."""
        return {
            "AWS_ENDPOINT_URL": self.url,
            "AWS_ACCESS_KEY_ID": KEY_ID,
            "AWS_SECRET_ACCESS_KEY": SECRET,
            "AWS_REGION": "us-east-1",
        }

    def reset(self) -> None:
        """No faults, nothing seen; and let go of those who wait for an answer."""
        self.faults = lambda _: None
        self._released.set()
        self._released = threading.Event()
        self.requests.clear()
        self.met.clear()
        self._seen.clear()

    def app(self, whole: Any) -> Any:
        """Moto's application with the faults before it."""

        def answer(environ: dict[str, Any], start: Any) -> Iterable[bytes]:
            path, query = environ["PATH_INFO"], environ.get("QUERY_STRING", "")
            place = (environ["REQUEST_METHOD"], path, query)
            conditional = "HTTP_IF_MATCH" in environ or "HTTP_IF_NONE_MATCH" in environ
            self._seen[place] += 1
            request = Request(
                place[0], path.removeprefix(f"/{BUCKET}/"), query, self._seen[place] - 1, conditional
            )
            self.requests.append(request)
            fault = self.faults(request)
            if fault is not None:
                self.met[fault] += 1
            if fault == BUSY:
                start("503 Slow Down", [("Content-Type", "application/xml")])
                return [b"<Error><Code>SlowDown</Code><Message>" + SECRET.encode() + b"</Message></Error>"]
            if fault is not None and fault.isdigit():
                start(f"{fault} Refused", [("Content-Type", "application/xml")])
                return [b"<Error><Code>Refused</Code><Message>" + SECRET.encode() + b"</Message></Error>"]
            if fault == STALL:
                self._released.wait(60)
                raise ConnectionAbortedError
            # Moto looks whether there is an object, and then makes it: no other may come between.
            with self._one_at_a_time:
                body = b"".join(whole(environ, start))
            if fault == LOST:
                self._released.wait(60)
            if fault == LOST or (fault == CUT and not body):
                raise ConnectionAbortedError
            return _parts(body, fault)

        return answer


def _parts(body: bytes, fault: str | None) -> Iterator[bytes]:
    if fault == CUT and body:
        yield body[: len(body) // 2]
        raise ConnectionAbortedError
    if fault == SLOW:
        for start in range(0, len(body), max(1, len(body) // 20)):
            yield body[start : start + max(1, len(body) // 20)]
            threading.Event().wait(0.01)
        return
    yield body


def seeded(seed: int, share: float, kinds: tuple[str, ...]) -> Callable[[Request], str | None]:
    """Faults for a share of all requests, by the seed and the request, each kind in its turn, so that eight faults meet eight kinds; none that comes back for the third time fails."""
    turn = itertools.cycle(kinds)

    def fault(request: Request) -> str | None:
        place = f"{seed} {request.method} {request.key} {request.query} {request.earlier}"
        draw = int.from_bytes(hashlib.sha256(place.encode()).digest()[:8], "big") / 2**64
        return next(turn) if draw < share and request.earlier % 3 < 2 else None

    return fault


@contextlib.contextmanager
def serving() -> Iterator[Server]:
    """A server with an empty bucket, until the block ends."""
    from moto.moto_server.werkzeug_app import DomainDispatcherApplication, create_backend_app
    from werkzeug.serving import WSGIRequestHandler, make_server

    class Quiet(WSGIRequestHandler):
        def log(self, *_: Any, **__: Any) -> None:
            pass

        def run_wsgi(self) -> None:
            # A connection that was cut on purpose is no news.
            with contextlib.suppress(ConnectionError):
                super().run_wsgi()

    logging.getLogger("werkzeug").setLevel(logging.CRITICAL)
    server = Server()
    listening = make_server(
        "127.0.0.1",
        0,
        server.app(DomainDispatcherApplication(create_backend_app)),
        threaded=True,
        request_handler=Quiet,
    )
    thread = threading.Thread(target=listening.serve_forever, daemon=True)
    thread.start()
    server.url = f"http://127.0.0.1:{listening.server_port}"
    urllib.request.urlopen(urllib.request.Request(f"{server.url}/{BUCKET}", method="PUT"))
    server.reset()
    yield server
    server.reset()
    listening.shutdown()


def objects(address: Address) -> dict[str, bytes]:
    """Every object below an address and what is in it."""
    stored = {name: buckets.get(address / name) for name in buckets.listing(address)}
    return {name: answer[0] for name, answer in stored.items() if answer is not None}


def upload(folder: Path, address: Address) -> None:
    """Put what lies in a folder into a bucket, under the same names."""
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            buckets.put(address.joinpath(*file.relative_to(folder).parts), file.read_bytes())
