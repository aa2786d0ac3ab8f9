"""A real server in a process of its own: many at once, slow ones, broken ones, and its end."""

from __future__ import annotations

import contextlib
import http.client
import json
import signal
import socket
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from small import Country, Nursery, Running

from geo_embed.cli import INTERRUPTED
from geo_embed.errors import GeoError
from geo_embed.explorer import serving
from geo_embed.explorer.serving import bind, url_of

# So that a test needn't wait ten seconds for a client that does.
BEFORE = "import geo_embed.explorer.serving as serving; serving.HEADER_SECONDS = 0.5"


@dataclass
class Served:
    """A server, and where it listens."""

    process: Running
    url: str

    @property
    def address(self) -> tuple[str, int]:
        split = urlsplit(self.url)
        assert split.hostname is not None
        assert split.port is not None
        return split.hostname, split.port

    def get(self, path: str) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection(*self.address, timeout=60)
        connection.request("GET", path)
        answer = connection.getresponse()
        received = answer.status, answer.read()
        connection.close()
        return received

    def say(self, text: bytes) -> socket.socket:
        """A client that says this and no more."""
        client = socket.create_connection(self.address, timeout=60)
        client.sendall(text)
        return client

    def ask(self, text: bytes) -> bytes:
        """The whole of what is answered to raw bytes, until the server ends the connection."""
        with self.say(text) as client:
            return b"".join(iter(lambda: client.recv(65536), b""))


@pytest.fixture
def served(nursery: Nursery, country: Country, fitted: Path) -> Served:
    options = [*country.options(fitted.parents[1]), "--json", "explore", "first"]
    process = nursery.start_in(fitted.parents[1], *options, before=BEFORE)
    assert process.wait_for(lambda: process.out().endswith("\n")), process.err()
    return Served(process, json.loads(process.out())["url"])


def test_a_server_stands_a_crowd_and_strangers_and_ends_at_ctrl_c(served: Served) -> None:
    assert served.address[0] == "127.0.0.1"
    ids = [place["sample_id"] for place in json.loads(served.get("/api/game?rounds=12")[1])["rounds"]]

    # 1. Two hundred at once, of all kinds, beside fifty that say nothing further.
    slow = [served.say(b"GET /api/run HTTP/1.1\r\nHost: 127.0.0.1\r\nX-Slow: ") for _ in range(50)]
    kinds = ("/pictures/val/{}/north?side=64", "/api/samples/val/{}", "/api/samples.arrow?{}", "/api/run?{}")
    paths = [kinds[k % 4].format(ids[k % len(ids)]) for k in range(200)]
    with ThreadPoolExecutor(200) as crowd:
        assert {status for status, _ in crowd.map(served.get, paths)} == {200}
    # 2. Those are let go.
    for client in slow:
        with client:
            assert client.recv(1) in (b"",)

    # 3. Whoever calls it by another name, or speaks no HTTP, is told so with the same headers as everybody.
    for text, status in (
        (b"GET /api/run HTTP/1.1\r\nHost: evil.example\r\nConnection: close\r\n\r\n", b"403"),
        (b"GET /api/run HTTP/1.0\r\n\r\n", b"403"),
        (b"HEAD /api/run HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", b"200"),
        (b"GET /pictures/val/..%2f..%2fetc%2fpasswd/north HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"GET /pictures/val/%00%ff/north HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"GET /assets/../../../../etc/passwd HTTP/1.0\r\nHost: 127.0.0.1\r\n\r\n", b"404"),
        (b"\x16\x03\x01 nothing of the kind\r\n\r\n", b"400"),
        (b"GET / HTTP/1.1\r\nHost: a\r\nX: " + b"a" * 100_000 + b"\r\n\r\n", b"4"),
    ):
        answer = served.ask(text)
        assert answer.split()[1].startswith(status), answer
        assert b"nosniff" in answer
        assert b"content-security-policy" in answer
        assert b"root:" not in answer
        assert not text.startswith(b"HEAD") or answer.endswith(b"\r\n\r\n")

    # 4. Ctrl-C, though one client is still sending and another waits for its answer.
    form = (
        b"POST /api/predict HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    )
    sending = served.say(form + b"Content-Length: 1000\r\n\r\n--x\r\n")
    with sending, served.say(b"GET / HTTP/1.1\r\n"):
        time.sleep(0.2)
        served.process.signal(signal.SIGINT)
        ran = served.process.end()
        # Nobody waited until it was let go for being slow, which is told.
        with contextlib.suppress(ConnectionError):
            assert b" 408 " not in sending.recv(100)
    assert ran.code == INTERRUPTED
    # It printed its address and nothing else, and told nobody of what strangers did.
    assert json.loads(ran.out).keys() == {"url"}
    assert ran.err == ""
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(served.address, timeout=5)


def test_a_port_that_is_taken_is_named_and_a_free_one_is_found() -> None:
    with bind("127.0.0.1", None) as first, bind("127.0.0.1", None) as second:
        ports = {listening.getsockname()[1] for listening in (first, second)}
        assert len(ports) == 2
        assert url_of(first) == f"http://127.0.0.1:{first.getsockname()[1]}/"
        with pytest.raises(GeoError, match="can't listen on port"):
            bind("127.0.0.1", first.getsockname()[1])
    for host in ("no.such.host.invalid", "", "..", "a" * 70, "[::1]", "http://localhost"):
        with pytest.raises(GeoError, match="can't listen on"):
            bind(host, None)
    # The system would take it for another one.
    for port in (0, -1, 65536 + 8000):
        with pytest.raises(GeoError, match="there is no port"):
            bind("127.0.0.1", port)
    assert serving.INTERRUPTED == INTERRUPTED
