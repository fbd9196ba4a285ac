"""The defences of a local page or service: this machine only, a token in every path, limits on everything it accepts.

Any program and any web page on this machine can connect to a port of the loopback interface. Without the token it can
read nothing, write nothing and occupy nothing for long: its connections are closed first when there are too many.
"""

from __future__ import annotations

import contextlib
import hmac
import json
import logging
import math
import os
import re
import secrets
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, request
from waitress.channel import HTTPChannel
from waitress.parser import HTTPRequestParser
from waitress.server import TcpWSGIServer
from waitress.utilities import BadRequest, ServerNotImplemented
from werkzeug.exceptions import HTTPException

from bonecaffe.errors import BonecaffeError, FilesError
from bonecaffe.files import check_tree, open_regular, remove, write_secret

ADDRESS = "127.0.0.1"
LARGEST_BODY = 64 * 1024
LARGEST_READ = 4 * LARGEST_BODY
"""A body up to this size is read before it is refused, so that its sender receives the answer. For a larger body the
connection is closed at once, and the answer may be lost."""
LARGEST_HEADER = 16 * 1024
CONNECTIONS = 256
STRANGERS = 128
"""The largest number of open connections that have not shown the token. A new one closes the oldest."""
STRANGER_S = 10.0
"""A connection that has not shown the token is closed after this time, whatever it sends."""
THREADS = 8
HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}


def new_token() -> str:
    """A random token of 24 characters."""
    return secrets.token_urlsafe(18)


def has_token(path: str, token: str) -> bool:
    """Whether a request's path begins with the token. The time does not depend on where a wrong one differs.

    >>> has_token("/secret/hands", "secret"), has_token("/Secret/hands", "secret"), has_token("*", "secret")
    (True, False, False)
    """
    first = path.split("/")[1] if path.startswith("/") else ""
    return hmac.compare_digest(first.encode("utf-8", "replace"), token.encode())


# ---- requests ------------------------------------------------------------------------------------------------------


def guard(app: Flask, token: str, port: int) -> None:
    """Let an application answer only requests that carry the token and come from its own pages. Errors are JSON."""
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
    if port == 80:  # browsers leave it out
        hosts |= {ADDRESS, "localhost"}

    @app.before_request
    def _guard() -> None:
        if request.host not in hosts:  # another name for this machine means a DNS rebinding attack
            abort(403, "the Host header is not the address of this page")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            abort(403, "the Origin header is not the address of this page")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            abort(403, "the request comes from another site")
        if not has_token(request.path, token):
            abort(404)

    @app.after_request
    def _headers(response: Response) -> Response:
        response.headers.update(HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(HTTPException)
    def _http(error: HTTPException) -> Response:
        response = jsonify(error=error.description or error.name)
        response.status_code = error.code or 400
        for name, value in error.get_headers():
            if name not in ("Content-Type", "Content-Length"):
                response.headers[name] = value
        return response

    @app.errorhandler(BonecaffeError)
    def _refused(error: BonecaffeError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 422


def json_body() -> object:
    """The body of the request. Answers 400 if the body is not JSON, or is nested too deeply to be read."""
    if not request.is_json:
        abort(415, "the body must be JSON")
    try:
        return json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError):
        abort(400, "the body is not readable JSON")


def number(value: object) -> float:
    """A finite number from a JSON body. TypeError or ValueError for anything else, including ``true`` and ``"1"``."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("not a number")
    if not math.isfinite(real := float(value)):
        raise ValueError("not finite")
    return real


# ---- connections ---------------------------------------------------------------------------------------------------


class _Parser(HTTPRequestParser):
    error: Any = None

    def received(self, data: bytes) -> int:
        """Parse as waitress does, but answer an unknown transfer encoding with 400: it is the sender's error."""
        count: int = super().received(data)
        if isinstance(self.error, ServerNotImplemented):
            self.error = BadRequest(self.error.body)
        return count


class _Channel(HTTPChannel):
    parser_class = _Parser
    known = False
    """Whether this connection has carried a request with the token."""


class Listener(TcpWSGIServer):
    """A server on a port of this machine, 0 for any free port; ``effective_port`` is the port in use.

    Raises OSError if the port cannot be used. The caller sets `application`, then calls `run`.
    """

    channel_class = _Channel

    def __init__(self, token: str, port: int) -> None:
        for name in ("waitress", "waitress.queue"):  # do not print the errors of requests without the token
            logging.getLogger(name).setLevel(logging.CRITICAL)
        self._token = token
        super().__init__(
            None,
            host=ADDRESS,
            port=port,
            threads=THREADS,
            ident=None,
            connection_limit=CONNECTIONS,
            cleanup_interval=1,
            max_request_body_size=LARGEST_READ,
            max_request_header_size=LARGEST_HEADER,
            asyncore_use_poll=True,  # select() cannot handle file descriptors above 1023
            log_socket_errors=False,
        )

    def add_task(self, channel: Any) -> None:
        """A complete request has arrived: check whether its connection has the token."""
        if not channel.known and any(has_token(each.path, self._token) for each in channel.requests if not each.error):
            channel.known = True
        super().add_task(channel)

    def handle_accept(self) -> None:
        """Accept a new connection. If too many have no token, close the oldest of these."""
        strangers = [channel for channel in self.active_channels.values() if not channel.known]
        if len(strangers) >= STRANGERS:
            min(strangers, key=lambda channel: channel.creation_time).handle_close()
        super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close idle connections, and those that have not shown the token in time."""
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if not channel.known and channel.creation_time < now - STRANGER_S:
                channel.will_close = True


# ---- continuing after a crash --------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z0-9_-]{24}")
_LARGEST_MEMORY = 1000


class RememberedAddress:
    """Port and token of a running server, in a file that only its owner can read or write.

    A killed server leaves this file. The next server uses the same address, so that an open page can continue.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, str] | None:
        """Port and token of a killed server. None if there is no file, or if somebody else may have written it."""
        with contextlib.suppress(OSError, FilesError, ValueError, KeyError, TypeError, RecursionError):
            check_tree(self.path.parent, [self.path.name])
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                untrusted = (
                    status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or status.st_nlink != 1
                )
                if untrusted:
                    return None
                last = json.loads(file.read(_LARGEST_MEMORY))
            port, token = last["port"], last["token"]
            if type(port) is int and 0 < port < 65536 and _TOKEN.fullmatch(token):
                return port, token
        return None

    def write(self, port: int, token: str) -> None:
        """Write the file. OSError if that fails."""
        write_secret(self.path, json.dumps({"port": port, "token": token}))

    def forget(self) -> None:
        """Remove the file: the address is not used again."""
        remove(self.path)


def listen(port: int, remembered: RememberedAddress, error: Callable[[str], BonecaffeError]) -> tuple[Listener, str]:
    """A listener and its token, on ``port``. For 0, port and token of a killed server are used again, or new ones.

    If another program uses the remembered port now, the token changes as well: a page that is still open may have sent
    the old token to that program.
    """
    last_port, token = remembered.read() or (0, new_token())
    try:
        try:
            listener = Listener(token, port or last_port)
        except OSError:
            if port or not last_port:
                raise
            token = new_token()
            listener = Listener(token, 0)
    except OSError as cause:
        raise error(f"port {port} of {ADDRESS}: {cause.strerror}. Give another --port.") from None
    try:
        remembered.write(int(listener.effective_port), token)
    except OSError as cause:
        listener.close()
        raise error(f"{remembered.path}: {cause.strerror}. Remove the file, or free some space on the disk.") from None
    return listener, token
