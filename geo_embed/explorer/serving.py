"""The server: one process, one loop, clients that are slow let go of, and an end within a second."""

import html
import logging
import os
import socket
import sys
import threading
from asyncio import TimerHandle, Transport
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any, Self

from geo_embed.errors import GeoError
from geo_embed.explorer.guard import HEADERS

# A request line and its headers, in bytes; and how long they may take to come.
_MOST_HEADERS, HEADER_SECONDS = 32 << 10, 10.0
_KEEP_ALIVE_SECONDS = 5
# What the contract says of a command that is interrupted.
INTERRUPTED = 130


def bind(host: str, port: int | None) -> socket.socket:
    """A socket that listens there, on a free port where none is given.

    Raises:
        GeoError: there is no such host, or the port is taken or not allowed.
    """
    if port is not None and not 0 < port < 1 << 16:
        raise GeoError(
            f"there is no port {port}", where="--port", hint="1 to 65535, or leave it out for a free one"
        )
    try:
        family, kind, protocol, _, address = socket.getaddrinfo(
            host, port or 0, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )[0]
        listening = socket.socket(family, kind, protocol)
    except OSError as error:
        raise GeoError(f"can't listen on {host!r:.200}: {error.strerror}", where="--host") from error
    # What can't be the name of a host: with empty or long parts, or a NUL.
    except ValueError as error:
        raise GeoError(f"can't listen on {host!r:.200}: it is no name of a host", where="--host") from error
    try:
        # So that one that has just ended can be begun again.
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
        listening.listen(2048)
    except OSError as error:
        listening.close()
        raise GeoError(
            f"can't listen on port {port} of {host}: {error.strerror}",
            where="--port" if port else "--host",
            hint="leave --port out for a free one" if port else "",
        ) from error
    return listening


def url_of(listening: socket.socket) -> str:
    """The address for a browser on this machine, or on another where it can be reached from there."""
    host, port = listening.getsockname()[:2]
    if host in ("0.0.0.0", "::"):
        host = socket.gethostname()
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"


@dataclass(frozen=True)
class Page:
    """What is to be served.

    Attributes:
        app: an ASGI application.
        socket: what `bind` gave; closed at the end.
        url: the address; where others than this machine can reach it, with the token that it asks for.
    """

    app: Any
    socket: socket.socket
    url: str


def serve(page: Page, announce: Callable[[str], None]) -> None:
    """Serve until an interrupt, which it raises again; `announce` is told the address once it answers."""
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    try:
        _server(page.app, lambda: announce(page.url)).run(sockets=[page.socket])
    finally:
        page.socket.close()


class Explorer:
    """A page that a thread of this process serves, until `close` or the end of the process.

    Attributes:
        url: its address; beyond this machine with the token that it asks for.
    """

    def __init__(self, url: str, server: Any, thread: threading.Thread, listening: socket.socket) -> None:
        self.url = url
        self._server, self._thread, self._listening = server, thread, listening

    def close(self) -> None:
        """End it, and whatever it is being asked. A second time changes nothing."""
        self._server.should_exit = True
        self._thread.join()
        self._listening.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<geo explore at {self.url}>" if self._thread.is_alive() else "<geo explore, closed>"

    def _repr_html_(self) -> str:
        url = html.escape(self.url)
        return f'<a href="{url}" target="_blank">{url}</a>' if self._thread.is_alive() else "closed"


def serve_aside(page: Page) -> Explorer:
    """Serve from a thread, which doesn't keep the process from ending."""
    answers = threading.Event()
    server = _server(page.app, answers.set)

    def run() -> None:
        try:
            server.run(sockets=[page.socket])
        finally:
            answers.set()

    thread = threading.Thread(target=run, daemon=True, name="geo explore")
    thread.start()
    answers.wait()
    return Explorer(page.url, server, thread, page.socket)


def _server(app: Any, started: Callable[[], None]) -> Any:
    import uvicorn

    class Server(uvicorn.Server):
        async def startup(self, sockets: Any = None) -> None:
            await super().startup(sockets=sockets)
            started()

    config = uvicorn.Config(
        app,
        http=_protocol(),
        ws="none",
        lifespan="off",
        loop="asyncio",
        # What goes wrong is said by the guard, in one line; tracebacks are nobody's who looks at a terminal.
        log_config=None,
        log_level=logging.CRITICAL,
        access_log=False,
        server_header=False,
        proxy_headers=False,
        timeout_keep_alive=_KEEP_ALIVE_SECONDS,
        timeout_graceful_shutdown=0,
        h11_max_incomplete_event_size=_MOST_HEADERS,
    )
    return Server(config)


@contextmanager
def leaving_at_once() -> Iterator[None]:
    """For a command that serves: end the process with the interrupt, though a thread still computes.

    Torch's threads can't be interrupted, and what Python takes down at its end takes seconds on a machine at work. Nothing of ours is to be
    saved.
    """
    try:
        yield
    except KeyboardInterrupt:
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()
        os._exit(INTERRUPTED)


def _protocol() -> type:
    import h11
    from uvicorn.protocols.http.h11_impl import H11Protocol

    class Protocol(H11Protocol):
        """Closes a connection whose request line and headers don't come in time, and says what every answer says when they are broken."""

        _deadline: TimerHandle | None = None

        def connection_made(self, transport: Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def on_response_complete(self) -> None:
            super().on_response_complete()
            self._forget()

        def _expect(self) -> None:
            """A deadline while a request has begun to come, and none once it is there."""
            if self.conn.their_state is not h11.IDLE:
                self._forget()
            elif self._deadline is None:
                self._deadline = self.loop.call_later(HEADER_SECONDS, self.transport.abort)

        def _forget(self) -> None:
            if self._deadline is not None:
                self._deadline.cancel()
                self._deadline = None

        def send_400_response(self, msg: str) -> None:
            body = b'{"error": "this is no HTTP request", "hint": ""}'
            headers = [(b"content-type", b"application/json"), (b"connection", b"close"), *HEADERS]
            for event in (
                h11.Response(status_code=400, headers=headers, reason=b"Bad Request"),
                h11.Data(data=body),
                h11.EndOfMessage(),
            ):
                output = self.conn.send(event)
                self.transport.write(output or b"")
            self.transport.close()

    return Protocol
