"""What a page or service of ours is protected by: this machine alone, a token in every path, limits on all it takes.

Any program and any web page on this machine can connect to a port of the loopback. Without the token it gets nothing,
writes nothing, and holds nothing for long: its connections are the first to be closed when there are many.
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
"""A body up to this size is read before it is refused, so that its sender is there to hear it. Of a larger one the
connection is closed at once, and the answer may be lost."""
LARGEST_HEADER = 16 * 1024
CONNECTIONS = 256
STRANGERS = 128
"""So many connections may be open that have not shown the token yet; the oldest is closed for a new one."""
STRANGER_S = 10.0
"""Such a connection is closed after this time, whatever it sends."""
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
    """A token of 24 characters that nobody can guess."""
    return secrets.token_urlsafe(18)


def has_token(path: str, token: str) -> bool:
    """Whether a request's path begins with the token; takes as long for a wrong one.

    >>> has_token("/secret/hands", "secret"), has_token("/Secret/hands", "secret"), has_token("*", "secret")
    (True, False, False)
    """
    first = path.split("/")[1] if path.startswith("/") else ""
    return hmac.compare_digest(first.encode("utf-8", "replace"), token.encode())


# ---- what is asked -------------------------------------------------------------------------------------------------


def guard(app: Flask, token: str, port: int) -> None:
    """Let an application answer only requests of this machine's own pages that have the token; errors are JSON."""
    app.config["MAX_CONTENT_LENGTH"] = LARGEST_BODY
    hosts = {f"{name}:{port}" for name in (ADDRESS, "localhost")}
    if port == 80:  # browsers leave it out
        hosts |= {ADDRESS, "localhost"}

    @app.before_request
    def _guard() -> None:
        if request.host not in hosts:  # another name for us is somebody's rebinding
            abort(403, "wrong Host")
        origin = request.headers.get("Origin")
        if origin is not None and origin not in {f"http://{host}" for host in hosts}:
            abort(403, "wrong Origin")
        if request.headers.get("Sec-Fetch-Site", "none") not in ("none", "same-origin"):
            abort(403, "another site's request")
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
    """The request's body; it is answered with 400 where that is not JSON, or nested too deeply to be read."""
    if not request.is_json:
        abort(415, "the body must be JSON")
    try:
        return json.loads(request.get_data(cache=False))
    except (ValueError, RecursionError):
        abort(400, "the body is not JSON that can be read")


def number(value: object) -> float:
    """A finite number of a JSON body; TypeError or ValueError for anything else, ``true`` and ``"1"`` among it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise TypeError("not a number")
    if not math.isfinite(real := float(value)):
        raise ValueError("not finite")
    return real


# ---- who may stay connected ----------------------------------------------------------------------------------------


class _Parser(HTTPRequestParser):
    error: Any = None

    def received(self, data: bytes) -> int:
        """As waitress, but a way of sending that it does not know is the sender's error."""
        count: int = super().received(data)
        if isinstance(self.error, ServerNotImplemented):
            self.error = BadRequest(self.error.body)
        return count


class _Channel(HTTPChannel):
    parser_class = _Parser
    known = False
    """Whether a request with the token came through this connection."""


class Listener(TcpWSGIServer):
    """A server on a port of this machine, 0 for any that is free; ``effective_port`` is the one taken.

    Raises OSError where the port cannot be had. `application` is set, and `run` is called, by whoever makes it.
    """

    channel_class = _Channel

    def __init__(self, token: str, port: int) -> None:
        for name in ("waitress", "waitress.queue"):  # what strangers send is nothing to print
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
            asyncore_use_poll=True,  # select() ends at file 1024
            log_socket_errors=False,
        )

    def add_task(self, channel: Any) -> None:
        """A whole request has come: now it is seen whether its connection has the token."""
        if not channel.known and any(has_token(each.path, self._token) for each in channel.requests if not each.error):
            channel.known = True
        super().add_task(channel)

    def handle_accept(self) -> None:
        """Take a new connection, at the cost of the oldest of those without the token."""
        strangers = [channel for channel in self.active_channels.values() if not channel.known]
        if len(strangers) >= STRANGERS:
            min(strangers, key=lambda channel: channel.creation_time).handle_close()
        super().handle_accept()

    def maintenance(self, now: float) -> None:
        """Close what is idle, and what has not shown the token in time."""
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            if not channel.known and channel.creation_time < now - STRANGER_S:
                channel.will_close = True


# ---- going on after a crash ----------------------------------------------------------------------------------------

_TOKEN = re.compile(r"[A-Za-z0-9_-]{24}")
_LARGEST_MEMORY = 1000


class RememberedAddress:
    """Port and token of a running server, in a file that only its owner can read or write.

    A server that was killed leaves it; the next one takes it up, so that a page which is still open goes on.
    """

    def __init__(self, path: Path) -> None:
        self.path = path

    def read(self) -> tuple[int, str] | None:
        """What a killed server left; None when it left nothing, or when somebody else may have written it."""
        with contextlib.suppress(OSError, FilesError, ValueError, KeyError, TypeError, RecursionError):
            check_tree(self.path.parent, [self.path.name])
            with open_regular(self.path) as file:
                status = os.fstat(file.fileno())
                theirs = status.st_uid != os.geteuid() or stat.S_IMODE(status.st_mode) & 0o077 or status.st_nlink != 1
                if theirs:
                    return None
                last = json.loads(file.read(_LARGEST_MEMORY))
            port, token = last["port"], last["token"]
            if type(port) is int and 0 < port < 65536 and _TOKEN.fullmatch(token):
                return port, token
        return None

    def write(self, port: int, token: str) -> None:
        """Remember; OSError where that cannot be done."""
        write_secret(self.path, json.dumps({"port": port, "token": token}))

    def forget(self) -> None:
        """The address is not used again."""
        remove(self.path)


def listen(port: int, remembered: RememberedAddress, error: Callable[[str], BonecaffeError]) -> tuple[Listener, str]:
    """A listener and its token: on ``port``, or, for 0, the remembered ones of a killed server, or new ones.

    A remembered port that another program has now is not ours any more: that program may have been told the token by
    a page that is still open, so the token is new as well.
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
        raise error(f"{remembered.path}: {cause.strerror}. Remove it, or make room.") from None
    return listener, token
