"""The page's server: on this machine alone, behind a token, with nothing to read but the images of one folder."""

from __future__ import annotations

import contextlib
import hmac
import json
import secrets
import threading
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, request, send_from_directory
from waitress.server import create_server

from bonecaffe.annotate.marking import Conflict, Marking, Marks
from bonecaffe.annotate.pictures import Pictures
from bonecaffe.errors import AnnotateError, BonecaffeError, FilesError, ImageError
from bonecaffe.files import check_tree, read_text, remove, write_secret
from bonecaffe.hands.reference_points import POINT_NAMES
from bonecaffe.recipe import Preparation

ADDRESS = "127.0.0.1"
_PAGE = Path(__file__).parent / "page"
_HEADERS = {
    "Content-Security-Policy": (
        "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data:; connect-src 'self'; "
        "frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
    ),
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Cross-Origin-Opener-Policy": "same-origin",
}
_LONGEST_REASON = 200


def make_app(marking: Marking, preparation: Preparation, token: str, port: int) -> Flask:
    """The application; every path begins with the token, and only requests to this machine by name are answered."""
    app = Flask(__name__, static_folder=None)
    app.config["MAX_CONTENT_LENGTH"] = 64 * 1024
    pictures = Pictures(preparation)
    threading.Thread(target=_look_ahead, args=(marking, pictures)).start()
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
        given = request.path.split("/")[1]
        if not hmac.compare_digest(given.encode(), token.encode()):
            abort(404)

    @app.after_request
    def _headers(response: Response) -> Response:
        response.headers.update(_HEADERS)
        response.headers.setdefault("Cache-Control", "no-store")
        return response

    @app.errorhandler(BonecaffeError)
    def _refused(error: BonecaffeError) -> tuple[Response, int]:
        return jsonify(error=str(error)), 422

    @app.errorhandler(OSError)
    def _disk(error: OSError) -> tuple[Response, int]:
        return jsonify(
            error=f"{error.filename or marking.table}: {error.strerror}. Nothing was lost; make room and go on."
        ), 507

    @app.get("/<token>/")
    def _page(token: str) -> Response:
        return send_from_directory(_PAGE, "index.html", max_age=0)

    @app.get("/<token>/page/<name>")
    def _part(token: str, name: str) -> Response:
        return send_from_directory(_PAGE, name, max_age=0)

    @app.get("/<token>/hands")
    def _hands(token: str) -> Response:
        listed = [
            {"id": case_id, "state": marks.state, "flagged": marks.flagged, "seconds": marks.seconds}
            for case_id, marks in marking.all()
        ]
        return jsonify(
            hands=listed,
            table=str(marking.table),
            names=POINT_NAMES,
            suggested=sorted(marking.suggestions.keys() & marking.images.keys()),
        )

    @app.get("/<token>/hands/<case_id>")
    def _hand(token: str, case_id: str) -> Response:
        _known(case_id)
        return jsonify(_as_json(case_id, marking.marks(case_id)))

    @app.put("/<token>/hands/<case_id>")
    def _change(token: str, case_id: str) -> tuple[Response, int] | Response:
        _known(case_id)
        try:
            return jsonify(_as_json(case_id, marking.change(case_id, _parse(request.get_json()))))
        except Conflict as error:
            return jsonify(error=str(error), hand=_as_json(case_id, marking.marks(case_id))), 409

    @app.get("/<token>/images/<case_id>")
    def _image(token: str, case_id: str) -> Response:
        _known(case_id)
        response = Response(pictures.jpeg(marking.images[case_id]), mimetype="image/jpeg")
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    @app.get("/<token>/thumbnails/<case_id>")
    def _thumbnail(token: str, case_id: str) -> Response:
        _known(case_id)
        try:
            pairs = [
                tuple(float(value) for value in pair.split(",")) for pair in request.args.get("points", "").split(";")
            ]
            points = [(x, y) for x, y in pairs]
            return Response(pictures.thumbnail(marking.images[case_id], points), mimetype="image/png")
        except (ValueError, OverflowError) as error:
            return Response(str(error), 422, mimetype="text/plain")

    def _known(case_id: str) -> None:
        if case_id not in marking.images:
            abort(404)

    def _as_json(case_id: str, marks: Marks) -> dict[str, Any]:
        try:
            width, height = marking.size(case_id)
        except ImageError:  # asked for the image, the page is told why; the hand can be skipped
            width, height = 1, 1
        suggested = marking.suggestions.get(case_id)
        return {
            "id": case_id,
            "width": width,
            "height": height,
            "points": marks.points,
            "skipped": marks.skipped,
            "flagged": marks.flagged,
            "seconds": marks.seconds,
            "version": marks.version,
            "state": marks.state,
            "suggested": suggested.points
            if suggested and (suggested.width, suggested.height) == (width, height)
            else None,
        }

    return app


def _look_ahead(marking: Marking, pictures: Pictures) -> None:
    """Decode the hand that the page will open first, while the browser starts."""
    with contextlib.suppress(BonecaffeError, OSError):
        first = next((case_id for case_id, marks in marking.all() if marks.state in ("open", "begun")), marking.ids[0])
        pictures.jpeg(marking.images[first])


def _parse(message: Any) -> Marks:
    """Marks from what the page sent; AnnotateError when it is not that."""
    try:
        points = tuple(None if place is None else (float(place[0]), float(place[1])) for place in message["points"])
        marks = Marks(
            points,
            str(message["skipped"])[:_LONGEST_REASON].strip(),
            bool(message["flagged"]),
            float(message["seconds"]),
            str(message["version"]),
        )
    except (TypeError, KeyError, ValueError, IndexError, OverflowError):
        raise AnnotateError("not what this page sends") from None
    if len(points) != len(POINT_NAMES) or not 0 <= marks.seconds < 1e7:
        raise AnnotateError("seven points and a time are needed")
    return marks


class Server:
    """A running page: ``address`` to open, `run` to serve it until Ctrl-C.

    A server that was killed leaves its port and token beside the table, for its owner's eyes alone; the next one takes
    them up, so that a page which is still open goes on, with what it could not save meanwhile.
    """

    def __init__(self, marking: Marking, preparation: Preparation, port: int = 0) -> None:
        self._remembered = marking.table.with_name(f".{marking.table.name}.page")
        last_port, token = self._last()
        self._box: dict[str, Flask] = {}
        try:
            self._server = self._listen(port or last_port)
        except OSError as error:
            if port or not last_port:
                raise AnnotateError(f"port {port} of {ADDRESS}: {error.strerror}. Give another --port.") from None
            self._server = self._listen(0)
        self.port = int(self._server.effective_port)
        self._box["app"] = make_app(marking, preparation, token, self.port)
        self.address = f"http://{ADDRESS}:{self.port}/{token}/"
        try:
            write_secret(self._remembered, json.dumps({"port": self.port, "token": token}))
        except OSError as error:
            self._server.close()
            raise AnnotateError(f"{self._remembered}: {error.strerror}. Remove it, or make room.") from None

    def _listen(self, port: int) -> Any:
        # the port is known only when it is taken, and the application wants to know it
        def application(environ: Any, start: Any) -> Any:
            return self._box["app"](environ, start)

        return create_server(application, host=ADDRESS, port=port, threads=8, ident=None)

    def _last(self) -> tuple[int, str]:
        """Port and token of a server that was killed; none, and a new token, when there was none."""
        with contextlib.suppress(OSError, FilesError, ValueError, KeyError, TypeError):
            check_tree(self._remembered.parent, [self._remembered.name])
            last = json.loads(read_text(self._remembered, "settings"))
            port, token = int(last["port"]), str(last["token"])
            if len(token) >= 24 and 0 < port < 65536:
                return port, token
        return 0, secrets.token_urlsafe(18)

    def run(self) -> None:
        """Serve until interrupted."""
        self._server.run()

    def close(self) -> None:
        """Stop serving; the address is not used again."""
        self._server.close()
        remove(self._remembered)
