"""Who may ask, and what every answer says: hosts, origins, the token, the headers. An ASGI application around another.

A page of another site can have a browser send requests here, and by DNS rebinding even read the answers. So the name in `Host` must be one of
this machine's, which no other site's name is; what changes or costs something must come from a page of ours; and where others than this
machine can reach it, a token is asked for.
"""

import asyncio
import ipaddress
import json
import secrets
import socket
from collections.abc import Iterable
from typing import Any
from urllib.parse import parse_qs, urlsplit

from geo_embed.console import warn
from geo_embed.errors import PlainError

TOKEN = "token"
# A client that takes nothing for so long, or sends nothing, is let go.
STALLED_SECONDS = 20.0
# Requests that are under way at once; more are told to come again.
MOST_REQUESTS = 512
# Bytes of a body, but where pictures are sent.
MOST_BODY, LARGE_BODIES = 16 << 10, frozenset({"/api/predict"})

CONTENT_SECURITY_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; connect-src 'self'; "
    "font-src 'self'; worker-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"content-security-policy", CONTENT_SECURITY_POLICY.encode()),
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"no-referrer"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
    (b"x-frame-options", b"DENY"),
)
_NAMES = {name for name, _ in HEADERS}


class Refusal(Exception):
    """What an answer says in place of what was asked for: a status, `error` and `hint`."""

    def __init__(self, status: int, error: str, hint: str = "") -> None:
        super().__init__(error)
        self.status, self.error, self.hint = status, error, hint


class Guard:
    """Lets through what may pass.

    Args:
        app: what answers.
        hosts: names that `Host` may have beside this machine's own addresses, in lower case.
        token: asked for, once as `?token=`, then by a cookie; None where only this machine can ask.
        port: of the server: cookies go by names of machines alone.
    """

    def __init__(self, app: Any, *, hosts: Iterable[str], token: str | None, port: int) -> None:
        self._app, self._hosts, self._token = app, frozenset(hosts), token
        self._cookie = f"geo-explore-{port}"
        self._under_way = 0

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "lifespan":
            await self._app(scope, receive, send)
            return
        if scope["type"] != "http":
            return
        started = False
        cookie: list[tuple[bytes, bytes]] = []

        async def guarded_send(message: Any) -> None:
            nonlocal started
            if message["type"] == "http.response.start":
                started = True
                app_headers = [
                    (name, value) for name, value in message.get("headers", ()) if name not in _NAMES
                ]
                message = message | {"headers": [*app_headers, *HEADERS, *cookie]}
            async with asyncio.timeout(STALLED_SECONDS):
                await send(message)

        async def guarded_receive() -> Any:
            # Of an answer that is under way it waits for the client to go, however long that takes.
            if started:
                return await receive()
            async with asyncio.timeout(STALLED_SECONDS):
                return await receive()

        self._under_way += 1
        try:
            if self._under_way > MOST_REQUESTS:
                raise Refusal(503, "too many requests at once", "try again in a moment")
            cookie += self._check(scope)
            # RFC 9110, 9.3.2: what GET would say, of which the server leaves out the body.
            asked = scope | {"method": "GET"} if scope["method"] == "HEAD" else scope
            await self._app(asked, guarded_receive, guarded_send)
        except Refusal as refusal:
            if not started:
                await _answer(guarded_send, refusal)
        except TimeoutError:
            # A client that takes nothing is let go.
            raise
        except Exception as error:
            warn(f"explore: unexpected {type(error).__name__} at {scope['method']} {scope['path'][:200]}")
        finally:
            self._under_way -= 1

    def _check(self, scope: Any) -> list[tuple[bytes, bytes]]:
        """The header that sets the cookie, where the token came with the address. Raises Refusal for what may not pass."""
        headers: dict[bytes, list[str]] = {}
        for name, value in scope["headers"]:
            headers.setdefault(name, []).append(value.decode("latin-1"))
        hosts = headers.get(b"host", [])
        if len(hosts) != 1 or not self._is_own(hosts[0]):
            raise Refusal(
                403, "this isn't a name of this server", "open the address that geo explore printed"
            )
        origins = headers.get(b"origin", [])
        if any(origin.partition("://")[2].lower() != hosts[0].lower() for origin in origins):
            raise Refusal(403, "a page of another origin asks", "ask from the page itself")
        site = headers.get(b"sec-fetch-site", ["none"])[0]
        if scope["method"] not in ("GET", "HEAD") and site not in ("same-origin", "none"):
            raise Refusal(403, "a page of another site asks", "ask from the page itself")
        # Of all that is sent pictures alone may be large, and those are counted as they come.
        length = headers.get(b"content-length", ["0"])[0]
        large = not length.isdecimal() or int(length) > MOST_BODY or b"transfer-encoding" in headers
        if large and scope["path"] not in LARGE_BODIES:
            raise Refusal(413, "too much was sent", "")
        if self._token is None:
            return []
        offered = parse_qs(scope["query_string"].decode("latin-1")).get(TOKEN, [""])[0]
        if _same(offered, self._token):
            value = f"{self._cookie}={self._token}; HttpOnly; SameSite=Strict; Path=/"
            return [(b"set-cookie", value.encode("ascii"))]
        kept = dict(
            pair.strip().partition("=")[::2]
            for line in headers.get(b"cookie", [])
            for pair in line.split(";")
        )
        if not _same(kept.get(self._cookie, ""), self._token):
            raise Refusal(403, "a token is needed", "open the whole address that geo explore printed")
        return []

    def _is_own(self, host: str) -> bool:
        """Whether a `Host` names this server: an address of a machine, or a name that is this one's. No site can be called either."""
        try:
            name = (urlsplit(f"//{host}").hostname or "").rstrip(".")
        except ValueError:
            return False
        if name in self._hosts:
            return True
        try:
            address = ipaddress.ip_address(name)
        except ValueError:
            return False
        return self._token is not None or address.is_loopback


def own_names(host: str, *, alone: bool = True) -> set[str]:
    """Names that a browser may call a server on `host` by, beside addresses; `alone` says that only this machine can ask it."""
    names = {"localhost", host.lower()}
    if not alone:
        names |= {socket.gethostname().lower(), socket.getfqdn().lower()}
    return names


def is_loopback(address: str) -> bool:
    """Whether only this machine can ask at an address that a socket listens on."""
    return ipaddress.ip_address(address.partition("%")[0]).is_loopback


def refusal_of(error: PlainError, status: int) -> Refusal:
    """What an answer says of what is missing."""
    return Refusal(status, error.what, error.hint)


async def _answer(send: Any, refusal: Refusal) -> None:
    body = json.dumps({"error": refusal.error, "hint": refusal.hint}).encode()
    headers = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        (b"cache-control", b"no-store"),
    ]
    await send({"type": "http.response.start", "status": refusal.status, "headers": headers})
    await send({"type": "http.response.body", "body": body})


def _same(offered: str, token: str) -> bool:
    """In the same time whatever is given."""
    return secrets.compare_digest(offered.encode("utf-8", "replace"), token.encode("ascii"))
