"""Programs without the token at the port of a page: they get nothing, learn nothing and cannot stop the marking."""

from __future__ import annotations

import contextlib
import http.client
import json
import os
import random
import re
import signal
import socket
import threading
import time
from urllib.parse import quote, urlsplit

import pytest
from annotate_serving import Serving

from bonecaffe import web


@pytest.fixture
def serving(hands, tmp_path):
    """The page for the twelve phantoms."""
    found = Serving(hands / "images", tmp_path / "points.csv")
    yield found
    if found.process.poll() is None:
        found.kill()


def address(serving: Serving) -> tuple[int, str]:
    """Port and token."""
    parts = urlsplit(serving.address)
    return parts.port, parts.path.strip("/")


def connect(port: int) -> socket.socket:
    return socket.create_connection((web.ADDRESS, port), timeout=20)


def ask(port: int, content: bytes) -> bytes:
    """The answer to raw bytes, read until the connection is closed."""
    answer = b""
    with connect(port) as connection, contextlib.suppress(OSError):
        connection.sendall(content)
        connection.shutdown(socket.SHUT_WR)
        while piece := connection.recv(65536):
            answer += piece
    return answer


def request(port: int, path: str, method: str = "GET", body: bytes = b"", kind: str = "application/json") -> bytes:
    head = f"{method} {path} HTTP/1.1\r\nHost: {web.ADDRESS}:{port}\r\nConnection: close\r\n"
    head += f"Content-Type: {kind}\r\nContent-Length: {len(body)}\r\n\r\n"
    return ask(port, head.encode() + body)


def status(answer: bytes) -> int:
    return int(answer.split()[1]) if answer else 0


def log(serving: Serving) -> str:
    """What the server printed, once it has ended."""
    serving.process.send_signal(signal.SIGINT)
    serving.process.wait(60)
    return serving.printed + serving.process.stdout.read()


def test_idle_connections_do_not_block_the_page(serving):
    """More connections than the server accepts, silent or slow. The page is still answered at once."""
    port, token = address(serving)
    strangers = []
    for number in range(web.CONNECTIONS + 100):
        strangers.append(connect(port))
        strangers[-1].sendall(
            [b"", b"GET /", b"POST / HTTP/1.1\r\nHost: a\r\nContent-Length: 60000\r\n\r\n"][number % 3]
        )
    mine = http.client.HTTPConnection(web.ADDRESS, port, timeout=20)
    for _ in range(5):
        began = time.monotonic()
        mine.request("GET", f"/{token}/hands")
        answer = mine.getresponse()
        assert answer.status == 200 and len(json.loads(answer.read())["hands"]) == 12
        assert time.monotonic() - began < 2
        for each in strangers:
            try:
                each.sendall(b"x")
            except OSError:
                continue
    assert status(request(port, f"/{token}/hands")) == 200
    for each in (*strangers, mine):
        each.close()
    assert "Traceback" not in log(serving)


def answer(connection) -> bytes:
    """Header and body, which may come in two pieces."""
    content = connection.recv(1000)
    while not content.endswith(b"here") and (more := connection.recv(1000)):
        content += more
    return content


def test_a_connection_without_the_token_is_closed_in_time(monkeypatch, tmp_path):
    """Whether it sends a byte at a time or asks for a wrong path again and again. One with the token stays open."""
    monkeypatch.setattr(web, "STRANGER_S", 1.0)
    listener, token = web.listen(0, web.RememberedAddress(tmp_path / "page"), RuntimeError)

    def here(environ, start):
        start("200 OK", [("Content-Length", "4")])
        return [b"here"]

    listener.application = here
    thread = threading.Thread(target=listener.run, daemon=True)
    thread.start()
    port = int(listener.effective_port)
    known, drip, wrong = connect(port), connect(port), connect(port)
    known.sendall(f"GET /{token}/ HTTP/1.1\r\n\r\n".encode())
    assert answer(known).endswith(b"here")
    closed = set()
    end = time.monotonic() + 8
    while len(closed) < 2 and time.monotonic() < end:
        for each, content in ((drip, b"a"), (wrong, b"GET /nobody/ HTTP/1.1\r\n\r\n")):
            try:
                each.sendall(content)
            except OSError:
                closed.add(each)
        time.sleep(0.1)
    assert len(closed) == 2
    known.sendall(f"GET /{token}/ HTTP/1.1\r\n\r\n".encode())
    assert answer(known).endswith(b"here")
    for each in (known, drip, wrong):
        each.close()
    listener.close()


def test_a_deep_or_odd_body_gets_400(serving, tmp_path):
    """Also with the token: nested, cut off, not text, or not in the page's form. Nothing is written or printed."""
    port, token = address(serving)
    good = {"points": [None] * 7, "skipped": "", "flagged": True, "seconds": 0, "version": ""}
    whole = json.dumps(good)
    odd = [
        b"[" * 30_000,
        b'{"points":' * 6000,
        b'{"a":' * 5000 + b"1" + b"}" * 5000,
        b"",
        b"\xff\xfe\x00",
        b"nul",
        whole[:-5].encode(),
        b"null",
        b"[1,2",
        b'"text"',
        b"9" * 5000,
        whole.replace("0,", "1e999,").encode(),
        whole.replace("0,", f"{'9' * 400},").encode(),
        whole.replace('"points": [', '"points": [[[], []], ').encode(),
        whole.replace('"points": [null', '"points": [{"0": 1}').encode(),
        whole.replace('"points": [null', '"points": [[1, NaN]').encode(),
    ]
    for body in odd:
        answer = request(port, f"/{token}/hands/1001", "PUT", body)
        assert status(answer) == 400 and b'{"error":' in answer, body[:60]
    assert status(request(port, f"/{token}/hands/1001", "PUT", whole.encode(), "text/plain")) == 415
    assert status(request(port, f"/{token}/hands/1001", "PUT", b" " * (web.LARGEST_BODY + 1))) == 413
    assert status(request(port, f"/{token}/hands/1001", "PUT", whole.replace('""', '"\\ud800"').encode())) == 409
    assert not list(tmp_path.glob("points*"))
    printed = log(serving)
    assert "Traceback" not in printed and printed.count("\n") < 6, printed


def test_odd_requests_cause_no_server_error(serving):
    """Eight hundred seeded requests, with and without the token: none is answered with 5xx or leaves a traceback."""
    port, token = address(serving)
    chance = random.Random(13)
    odd = "\x00 \t\r\n/\\%?#;:@&=+~*'\"<>[]{}|^`.äß\u2028\U0001f600"
    names = [
        "hands",
        "images",
        "thumbnails",
        "page",
        "",
        "..",
        ".",
        "%2e%2e",
        "%00",
        "%ff",
        "1001",
        "app.js",
        "a" * 5000,
    ]

    def text(longest: int) -> str:
        return "".join(chance.choice(odd + "aZ09") for _ in range(chance.randrange(longest)))

    def path() -> str:
        start = chance.choice(
            [f"/{token}/", f"/{token}", f"//{token}/", "/", "", "*", "http://localhost/", f"/{token[:-1]}x/"]
        )
        return start + "/".join(chance.choice([*names, text(12)]) for _ in range(chance.randrange(4)))

    def query() -> str:
        return chance.choice(
            ["", "?points=1,1;90,90", f"?points={text(30)}", "?points=nan,1;inf,9", "?points=1e400,1;9,9"]
        )

    def head() -> bytes:
        host = chance.choice(
            [f"{web.ADDRESS}:{port}", f"localhost:{port}", "evil.example", "", "[::1", "\xff", text(8)]
        )
        lines = [f"Host: {host}"] if chance.random() < 0.95 else []
        for _ in range(chance.randrange(4)):
            lines.append(
                chance.choice(
                    [
                        "Content-Length: -1",
                        f"Content-Length: {chance.choice(['7', '99999999999', '1_0', 'x', '+3', '٣'])}",
                        "Transfer-Encoding: chunked",
                        "Transfer-Encoding: gzip",
                        "Content-Type: application/json; charset=utf-99",
                        f"Content-Type: {text(10)}",
                        "Expect: 100-continue",
                        f"Range: bytes={text(6)}",
                        "If-Modified-Since: yesterday",
                        "If-None-Match: " + text(9),
                        f"Cookie: {text(40)}",
                        f"Origin: {text(12)}",
                        "Upgrade: websocket\r\nConnection: Upgrade",
                        "X: " + "y" * chance.choice([10, 20_000]),
                        text(30),
                    ]
                )
            )
        return "\r\n".join(lines).encode("utf-8", "replace") + b"\r\n\r\n"

    def wild() -> bytes:
        """Not valid as HTTP."""
        method = chance.choice(["GET", "PUT", "HEAD", "OPTIONS", "TRACE", "CONNECT", "get", "", text(5)])
        version = chance.choice(["HTTP/1.1", "HTTP/1.0", "HTTP/9.9", "", "http/1.1"])
        body = chance.choice([b"", b"{}", b"[" * 9000, chance.randbytes(50), b"5\r\nhello\r\n0\r\n\r\n"])
        return f"{method} {path()}{query()} {version}\r\n".encode("utf-8", "replace") + head() + body

    def tame() -> bytes:
        """Valid as HTTP, odd for the application."""
        method = chance.choice(["GET", "GET", "PUT", "PUT", "POST", "HEAD", "DELETE", "OPTIONS"])
        ids = ["1001", "1002", "1003", "nobody", text(12)]
        likely = [f"{chance.choice(['hands', 'hands', 'images', 'thumbnails'])}/{quote(chance.choice(ids))}"]
        likely.append("/".join(quote(chance.choice([*names, text(12)])) for _ in range(chance.randrange(1, 4))))
        target = f"/{token}/{chance.choice(likely)}"
        value = chance.choice([None, [], {}, text(9), 1e300, -1, [[0]], {"a": text(5)}, True])
        marks = {"points": [None] * 7, "skipped": "", "flagged": False, "seconds": 0, "version": text(4)}
        marks[chance.choice([*marks, "confirmed", "other"])] = value
        body = chance.choice([json.dumps(marks), json.dumps(value), "[" * 9000, text(90)]).encode("utf-8", "replace")
        lines = [f"{method} {target}{quote(query(), safe='?=&')} HTTP/1.1", f"Host: {web.ADDRESS}:{port}"]
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
        return "\r\n".join(lines).encode() + b"\r\n\r\n" + body

    seen: dict[int, int] = {}
    for number in range(800):
        answer = ask(port, tame() if number % 2 else wild())
        for code in re.findall(rb"^HTTP/1\.[01] (\d{3})", answer, re.MULTILINE):
            seen[int(code)] = seen.get(int(code), 0) + 1
    assert seen and all(code < 500 for code in seen), seen
    assert {200, 400, 403, 404, 405, 409, 422} <= set(seen), seen
    assert status(request(port, f"/{token}/hands")) == 200
    assert "Traceback" not in log(serving)


@pytest.mark.parametrize(
    ("content", "mode", "used"),
    [
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvw_"}', 0o600, True),
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvw_"}', 0o644, False),
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvw_"}', 0o660, False),
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvw/"}', 0o600, False),
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvwxyz"}', 0o600, False),
        ('{"port": 45678, "token": "abcdefghijklmnopqrstuvw_\\n"}', 0o600, False),
        ('{"port": "45678", "token": "abcdefghijklmnopqrstuvw_"}', 0o600, False),
        ('{"port": true, "token": "abcdefghijklmnopqrstuvw_"}', 0o600, False),
        ('{"port": 99999, "token": "abcdefghijklmnopqrstuvw_"}', 0o600, False),
        ('{"port": 45678, "token": 7}', 0o600, False),
        ('["port", "token"]', 0o600, False),
        ("[" * 100_000, 0o600, False),
        ("", 0o600, False),
    ],
)
def test_a_remembered_address_is_used_only_if_this_user_wrote_it(tmp_path, content, mode, used):
    """The file belongs to this user, nobody else can read or write it, and the token has the right form."""
    path = tmp_path / ".points.csv.page"
    path.write_text(content)
    path.chmod(mode)
    assert (web.RememberedAddress(path).read() is not None) == used
    if used:
        (tmp_path / "again").hardlink_to(path)
        assert web.RememberedAddress(path).read() is None


def test_a_remembered_address_of_another_user_is_not_used(tmp_path, monkeypatch):
    """Otherwise, anybody who can write into the folder of the table could choose the token."""
    path = tmp_path / ".points.csv.page"
    remembered = web.RememberedAddress(path)
    remembered.write(45678, web.new_token())
    assert remembered.read()
    monkeypatch.setattr(os, "geteuid", lambda: path.stat().st_uid + 1)
    assert remembered.read() is None


def test_a_port_that_another_program_took_ends_the_token(tmp_path):
    """A page that is still open sends the token to that program with its next request."""
    remembered = web.RememberedAddress(tmp_path / "page")
    with socket.create_server((web.ADDRESS, 0)) as theirs:
        port, token = theirs.getsockname()[1], web.new_token()
        remembered.write(port, token)
        listener, new = web.listen(0, remembered, RuntimeError)
        assert new != token and int(listener.effective_port) != port
        assert remembered.read() == (int(listener.effective_port), new)
        listener.close()
        with pytest.raises(RuntimeError, match="Give another --port"):
            web.listen(port, remembered, RuntimeError)
    remembered.write(port, token)
    listener, same = web.listen(0, remembered, RuntimeError)
    assert (int(listener.effective_port), same) == (port, token)
    listener.close()
