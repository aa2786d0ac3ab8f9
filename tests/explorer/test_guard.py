"""Who may ask, and what is taken: hosts, origins, tokens, uploads, addresses that lead elsewhere."""

from __future__ import annotations

import asyncio
import struct
import tempfile
import zlib
from typing import Any

import pytest
from fastapi.testclient import TestClient
from PIL import Image
from served import HOME, client_of
from small import VIEWS, encode

from geo_embed.explorer import api, guard, uploads
from geo_embed.explorer.api import build_app
from geo_embed.explorer.guard import Guard, own_names
from geo_embed.explorer.scene import Scene

PICTURE = encode(Image.new("RGB", (64, 64), (90, 120, 60)), "JPEG")


@pytest.mark.parametrize(
    "host",
    [
        "evil.example",
        "127.0.0.1.evil.example",
        "localhost.evil.example",
        "evil.example:8000",
        "",
        "192.168.1.7",
        "[::1",
    ],
)
def test_a_name_that_is_not_this_machines_is_refused(client: TestClient, host: str) -> None:
    """Or a page whose name comes to mean 127.0.0.1 once it is loaded could read all of it."""
    answer = client.get("/api/run", headers={"Host": host})
    assert (answer.status_code, "run" in answer.json()) == (403, False)


@pytest.mark.parametrize("host", ["127.0.0.1:8000", "localhost:9000", "LOCALHOST", "[::1]:8000", "127.8.8.8"])
def test_every_name_of_this_machine_is_taken_on_any_port(client: TestClient, host: str) -> None:
    """Also through `ssh -L`."""
    assert client.get("/api/run", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize(
    "headers",
    [
        {"Origin": "http://evil.example"},
        {"Origin": "null"},
        {"Origin": "http://127.0.0.1:9999"},
        {"Sec-Fetch-Site": "cross-site"},
        {"Sec-Fetch-Site": "same-site"},
    ],
    ids=str,
)
def test_a_page_of_elsewhere_can_send_nothing(client: TestClient, headers: dict[str, str]) -> None:
    answer = client.post("/api/predict", files={"north": PICTURE}, headers=headers)
    assert (answer.status_code, "prediction" in answer.json()) == (403, False)


def test_the_page_itself_may_send(client: TestClient) -> None:
    headers = {"Origin": HOME, "Sec-Fetch-Site": "same-origin"}
    assert client.post("/api/predict", files={"north": PICTURE}, headers=headers).status_code == 200


def test_beyond_this_machine_a_token_is_asked_for_once(scene: Scene) -> None:
    with client_of(scene, hosts={"machine"}, token="a-secret") as client:
        for address in (
            "/",
            "/api/run",
            "/docs",
            "/api/run?token=",
            "/api/run?token=a-secre",
            "/api/run?token=é",
        ):
            assert client.get(address).status_code == 403, address
        assert client.get("/api/run", headers={"Cookie": "geo-explore-8000=another"}).status_code == 403
        opened = client.get("/?token=a-secret")
        cookie = opened.headers["set-cookie"]
        assert {"HttpOnly", "SameSite=Strict", "Path=/"} <= set(cookie.split("; "))
        assert client.get("/api/run").status_code == 200
        # Names are still looked at: the token could come with a page of another site.
        assert client.get("/api/run", headers={"Host": "evil.example"}).status_code == 403
        assert client.get("/api/run", headers={"Host": "192.168.1.7:8000"}).status_code == 200


@pytest.mark.parametrize(
    ("cookie", "status"),
    [
        ("geo-explore-8000=a-secret", 200),
        ("first=1; geo-explore-8000=a-secret; geo-explore-9000=another", 200),
        ("geo-explore-9000=a-secret", 403),
        ("geo-explore-8000=a-secre", 403),
        ("geo-explore-8000=a-secret2", 403),
        ("geo-explore-8000=", 403),
        ("geo-explore-8000", 403),
        ("=a-secret", 403),
    ],
)
def test_the_token_is_kept_by_a_cookie_of_this_port_alone(scene: Scene, cookie: str, status: int) -> None:
    """Cookies go by names of machines, so that of several servers each sees all."""
    with client_of(scene, token="a-secret") as client:
        assert client.get("/api/run", headers={"Cookie": cookie}).status_code == status
        odd = client.get("/api/run", headers={b"Cookie": b"geo-explore-8000=a-secret\xff"})
    assert odd.status_code == 403


def test_every_answer_forbids_what_is_not_the_pages_own(client: TestClient, ids: list[str]) -> None:
    tag = client.get(f"/pictures/val/{ids[0]}/north").headers["etag"]
    answers = {
        200: client.get("/"),
        304: client.get(f"/pictures/val/{ids[0]}/north", headers={"If-None-Match": tag}),
        403: client.get("/", headers={"Host": "evil.example"}),
        404: client.get("/nothing"),
        405: client.delete("/api/run"),
        413: client.post("/api/guess", content=b"x" * 100_000),
        422: client.get("/api/game?rounds=no"),
    }
    for status, answer in answers.items():
        assert answer.status_code == status
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert not {"unsafe-inline", "unsafe-eval", "*", "http:"} & set(policy.replace("'", "").split())
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_a_fault_of_ours_tells_the_client_nothing_and_the_terminal_one_line(
    scene: Scene, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def fails(split: str) -> None:
        raise RuntimeError("/a/secret/path")

    with client_of(scene) as client:
        monkeypatch.setattr(scene, "about", fails)
        answer = client.get("/api/run")
    assert (answer.status_code, answer.json().keys()) == (500, {"error", "hint"})
    assert "secret" not in answer.text
    stderr = capfd.readouterr().err
    assert "RuntimeError" in stderr
    assert len(stderr.splitlines()) == 1


# ---------------------------------------------------------------- addresses that lead elsewhere


@pytest.mark.parametrize(
    "address",
    [
        "/pictures/val/../../../../etc/passwd/north",
        "/pictures/val/..%2f..%2f..%2f..%2fetc%2fpasswd/north",
        "/pictures/val/%2e%2e%2f%2e%2e%2fprovenance.json/north",
        "/pictures/val/%00/north",
        "/pictures/val/{id}/..%2fnorth",
        "/pictures/val/{id}/north%00.jpg",
        "/pictures/val/{id}%2f..%2f{id}/north",
        "/pictures/train/img_000000_north.jpg/north",
        "/pictures/runs/{id}/north",
        "/pictures/val/" + "a" * 5000 + "/north",
        "/assets/..%2fapi.py",
        "/assets/%2e%2e/%2e%2e/pyproject.toml",
        "/assets//etc/passwd",
        "/assets/%2fetc%2fpasswd",
        "/assets/index.html%00.js",
        "/api/samples/val/..%2f..%2flabels.json",
        "/api/samples/..%2fval/{id}",
    ],
)
def test_no_address_leads_to_another_file(client: TestClient, ids: list[str], address: str) -> None:
    answer = client.get(address.format(id=ids[0]))
    assert answer.status_code in (404, 422)
    assert answer.json().keys() == {"error", "hint"}


# ---------------------------------------------------------------- pictures that are sent


def bomb(side: int) -> bytes:
    """A PNG that claims to be so large, and ends there."""
    header = b"IHDR" + struct.pack(">IIBBBBB", side, side, 8, 2, 0, 0, 0)
    chunk = struct.pack(">I", 13) + header + struct.pack(">I", zlib.crc32(header))
    body = zlib.compress(bytes(64))
    data = struct.pack(">I", len(body)) + b"IDAT" + body + struct.pack(">I", zlib.crc32(b"IDAT" + body))
    return b"\x89PNG\r\n\x1a\n" + chunk + data


@pytest.mark.parametrize(
    ("files", "status", "word"),
    [
        ([("north", b"#!/bin/sh\n" * 100)], 415, "can't be read"),
        ([("north", b"")], 415, "can't be read"),
        ([("north", PICTURE[: len(PICTURE) // 2])], 415, "can't be read"),
        ([("north", bomb(9000))], 413, "pixels"),
        ([("north", bomb(60_000))], 415, "pixels"),
        ([("up", PICTURE)], 400, "no view"),
        ([("north", PICTURE), ("north", PICTURE)], 400, "two pictures"),
        ([("views", PICTURE)] * 5, 400, "more than 4"),
    ],
    ids=["script", "empty", "half", "bomb", "larger bomb", "no view", "twice", "too many"],
)
def test_what_is_no_picture_of_a_place_is_refused(
    client: TestClient, files: list[tuple[str, bytes]], status: int, word: str
) -> None:
    answer = client.post("/api/predict", files=[(name, ("x.jpg", data)) for name, data in files])
    assert answer.status_code == status, answer.text
    assert word in answer.json()["error"]


@pytest.mark.parametrize(
    ("content", "kind", "status"),
    [
        (b"{}", "application/json", 415),
        (b"--x\r\n", "multipart/form-data", 415),
        (b"--x--\r\n", "multipart/form-data; boundary=x", 400),
        (b"nothing of the kind", "multipart/form-data; boundary=x", 400),
        (
            b'--x\r\nContent-Disposition: form-data; name="north"\r\n\r\nabc',
            "multipart/form-data; boundary=x",
            400,
        ),
        (b"--x\r\n" + b"a" * 20_000 + b": b\r\n\r\n", "multipart/form-data; boundary=x", 400),
        (b"--x\r\nA: b\r\n\r\nabc\r\n--x--\r\n", "multipart/form-data; boundary=x", 400),
    ],
    ids=["json", "no boundary", "no part", "no form", "cut off", "long header", "no name"],
)
def test_a_broken_form_is_refused(client: TestClient, content: bytes, kind: str, status: int) -> None:
    answer = client.post("/api/predict", content=content, headers={"Content-Type": kind})
    assert answer.status_code == status, answer.text


def test_a_large_picture_never_touches_the_disk(client: TestClient, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is no place for temporary files, whoever wants one fails."""
    monkeypatch.setattr(tempfile, "tempdir", "/nowhere")
    large = PICTURE[:2] + (b"\xff\xfe" + struct.pack(">H", 65535) + bytes(65533)) * 40 + PICTURE[2:]
    assert len(large) > 2 << 20
    assert client.post("/api/predict", files={"north": large}).status_code == 200


@pytest.fixture
def asked(scene: Scene, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Sends a form chunk by chunk, as a stream without a length; gives the status, and how many chunks were taken."""
    monkeypatch.setattr(uploads, "MOST_BYTES", 100_000)
    monkeypatch.setattr(guard, "STALLED_SECONDS", 0.5)
    app = Guard(build_app(scene, "val"), hosts=own_names("127.0.0.1"), token=None, port=8000)
    head = b'--x\r\nContent-Disposition: form-data; name="north"; filename="n.jpg"\r\n\r\n'

    def ask(chunks: list[bytes | None], length: int | None = None, pause: float = 0.0) -> tuple[int, int]:
        taken, status = 0, 0

        async def receive() -> dict[str, Any]:
            nonlocal taken
            taken += 1
            if taken == 1:
                return {"type": "http.request", "body": head, "more_body": True}
            if chunks[taken - 2] is None:
                await asyncio.sleep(60)
            await asyncio.sleep(pause)
            return {"type": "http.request", "body": chunks[taken - 2], "more_body": True}

        async def send(message: dict[str, Any]) -> None:
            nonlocal status
            status = message.get("status", status)

        headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
        headers += [] if length is None else [(b"content-length", str(length).encode())]
        scope = {
            **{"type": "http", "method": "POST", "path": "/api/predict", "raw_path": b"/api/predict"},
            **{"query_string": b"", "headers": headers, "root_path": "", "scheme": "http"},
            **{"http_version": "1.1", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1), "state": {}},
        }
        asyncio.run(app(scope, receive, send))
        return status, taken

    return ask


def test_reading_ends_at_the_first_byte_too_many(asked: Any) -> None:
    status, taken = asked([bytes(30_000)] * 100)
    assert (status, taken) == (413, 5)


def test_a_length_that_is_too_much_is_refused_before_anything_is_read(asked: Any) -> None:
    assert asked([bytes(30_000)] * 100, length=len(VIEWS) * 200_000) == (413, 0)


def test_a_client_that_stops_sending_is_let_go(asked: Any) -> None:
    status, _ = asked([b"abc", None])
    assert status == 408


def test_a_client_that_sends_drop_by_drop_is_let_go(asked: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(api, "UPLOAD_SECONDS", 0.3)
    status, taken = asked([b"a"] * 100, pause=0.05)
    assert status == 408
    assert taken < 50


def test_more_requests_at_once_than_there_is_place_for_are_told_to_come_again(
    client: TestClient, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(guard, "MOST_REQUESTS", 0)
    answer = client.get("/api/run")
    assert (answer.status_code, answer.json()["error"]) == (503, "too many requests at once")


def test_of_many_places_at_once_four_are_taken_sixteen_wait_and_the_rest_are_told_to_come_again(
    scene: Scene,
) -> None:
    """Each may be a hundred megabytes."""
    app = Guard(build_app(scene, "val"), hosts=own_names("127.0.0.1"), token=None, port=8000)
    headers = [(b"host", b"127.0.0.1"), (b"content-type", b"multipart/form-data; boundary=x")]
    scope = {
        **{"type": "http", "method": "POST", "path": "/api/predict", "raw_path": b"/api/predict"},
        **{"query_string": b"", "headers": headers, "root_path": "", "scheme": "http"},
        **{"http_version": "1.1", "server": ("127.0.0.1", 8000), "client": ("127.0.0.1", 1), "state": {}},
    }

    async def crowd() -> tuple[int, list[int], list[int]]:
        come, taken = asyncio.Event(), 0

        async def ask() -> int:
            status = 0

            async def receive() -> dict[str, Any]:
                nonlocal taken
                taken += 1
                await come.wait()
                return {"type": "http.request", "body": b"--x--\r\n"}

            async def send(message: dict[str, Any]) -> None:
                nonlocal status
                status = message.get("status", status)

            await app(dict(scope), receive, send)
            return status

        tasks = [asyncio.create_task(ask()) for _ in range(22)]
        refused, waiting = await asyncio.wait(tasks, timeout=0.5)
        before = taken
        come.set()
        return before, [task.result() for task in refused], list(await asyncio.gather(*waiting))

    taken, refused, answered = asyncio.run(crowd())
    assert (taken, refused, answered) == (4, [503] * 2, [400] * 20)
