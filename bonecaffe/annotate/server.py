"""The page's server. It serves this machine only, behind a token, and reads nothing except the images of one folder."""

from __future__ import annotations

import contextlib
import errno
import threading
from pathlib import Path
from typing import Any

from flask import Flask, Response, abort, jsonify, request, send_from_directory

from bonecaffe import web
from bonecaffe.annotate.marking import Conflict, Marking, Marks, Places
from bonecaffe.annotate.pictures import Pictures
from bonecaffe.errors import AnnotateError, BonecaffeError, ImageError
from bonecaffe.files import followed
from bonecaffe.hands.reference_points import POINT_NAMES
from bonecaffe.recipe import Preparation

_PAGE = Path(__file__).parent / "page"
_PARTS = ("app.js", "server.js", "style.css", "view.js")
_LONGEST_REASON = 200


def make_app(marking: Marking, preparation: Preparation, token: str, port: int) -> Flask:
    """The application. Every path begins with the token, and only requests addressed to this machine are answered."""
    app = Flask(__name__, static_folder=None)
    web.guard(app, token, port)
    pictures = Pictures(marking, preparation)
    threading.Thread(target=_look_ahead, args=(marking, pictures)).start()
    answers = _Answers(marking, pictures)
    app.register_error_handler(OSError, answers.disk)
    for rule, answer in (
        ("/", answers.page),
        ("/page/<name>", answers.part),
        ("/hands", answers.hands),
        ("/hands/<case_id>", answers.hand),
        ("/images/<case_id>", answers.image),
        ("/thumbnails/<case_id>", answers.thumbnail),
    ):
        app.add_url_rule(f"/<token>{rule}", endpoint=answer.__name__, view_func=answer)
    app.add_url_rule("/<token>/hands/<case_id>", endpoint="change", view_func=answers.change, methods=["PUT"])
    return app


class _Answers:
    """One method for each request of the page. ``token`` has been checked before."""

    def __init__(self, marking: Marking, pictures: Pictures) -> None:
        self._marking, self._pictures = marking, pictures

    def disk(self, error: OSError) -> tuple[Response, int]:
        """The answer when a file could not be read or written."""
        full = error.errno in (errno.ENOSPC, errno.EDQUOT)
        remedy = "Nothing was lost. Free some space, then continue." if full else "Nothing was lost."
        message = f"{error.filename or self._marking.table}: {error.strerror or error}. {remedy}"
        return jsonify(error=message), 507 if full else 422

    def page(self, token: str) -> Response:
        """The page itself."""
        return send_from_directory(_PAGE, "index.html", max_age=0)

    def part(self, token: str, name: str) -> Response:
        """The scripts and the style sheet of the page."""
        if name not in _PARTS:
            abort(404)
        return send_from_directory(_PAGE, name, max_age=0)

    def hands(self, token: str) -> Response:
        """A summary of every hand."""
        listed = [
            {
                "id": case_id,
                "state": marks.state,
                "flagged": marks.flagged,
                "seconds": marks.seconds,
                "doubtful": self._marking.in_doubt(case_id, marks),
            }
            for case_id, marks in self._marking.all()
        ]
        return jsonify(
            hands=listed,
            table=str(self._marking.table),
            names=POINT_NAMES,
            suggested=sorted(self._marking.suggestions.keys() & self._marking.images.keys()),
        )

    def hand(self, token: str, case_id: str) -> Response:
        """All details of one hand."""
        self._check(case_id)
        return jsonify(self._as_json(case_id, self._marking.marks(case_id)))

    def change(self, token: str, case_id: str) -> tuple[Response, int] | Response:
        """Change the marks of a hand. Answers with the marks now on disk; 409 if they conflict with the change."""
        self._check(case_id)
        marks = _parse(web.json_body())
        try:
            return jsonify(self._as_json(case_id, self._marking.change(case_id, marks)))
        except Conflict as error:
            return jsonify(error=str(error), hand=self._as_json(case_id, self._marking.marks(case_id))), 409

    def image(self, token: str, case_id: str) -> Response:
        """A radiograph to look at."""
        self._check(case_id)
        response = Response(self._pictures.jpeg(case_id), mimetype="image/jpeg")
        response.headers["Cache-Control"] = "private, max-age=3600"
        return response

    def thumbnail(self, token: str, case_id: str) -> Response:
        """The image that the network will see."""
        self._check(case_id)
        try:
            pairs = [
                tuple(float(value) for value in pair.split(",")) for pair in request.args.get("points", "").split(";")
            ]
            points = [(x, y) for x, y in pairs]
            return Response(self._pictures.thumbnail(case_id, points), mimetype="image/png")
        except (ValueError, OverflowError) as error:
            return Response(str(error), 422, mimetype="text/plain")

    def _check(self, case_id: str) -> None:
        if case_id not in self._marking.images:
            abort(404)

    def _as_json(self, case_id: str, marks: Marks) -> dict[str, Any]:
        try:
            width, height = self._marking.size(case_id)
        except ImageError:  # the request for the image reports why; the hand can be skipped
            width, height = 1, 1
        offered = self._marking.suggestions.get(case_id)
        suggested = offered.points if offered and (offered.width, offered.height) == (width, height) else None
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
            "untouched": marks.untouched,
            "confirmed": marks.confirmed,
            "remarks": [] if marks.skipped else self._remarks(case_id, marks.points),
            "suggested": suggested,
            "suggested_remarks": self._remarks(case_id, suggested) if suggested else [],
        }

    def _remarks(self, case_id: str, points: Places) -> list[str]:
        """What is implausible about the points and the pixels of a complete hand, in sentences."""
        return self._marking.remarks(case_id, points) + self._pictures.remarks(case_id, points)


def _look_ahead(marking: Marking, pictures: Pictures) -> None:
    """Decode the hand that the page will open first, while the browser starts."""
    with contextlib.suppress(BonecaffeError, OSError):
        incomplete = (case_id for case_id, marks in marking.all() if marks.state in ("unmarked", "partial"))
        first = next(incomplete, marking.ids[0])
        pictures.jpeg(first)


def _parse(message: Any) -> Marks:
    """Marks from a message of the page; 400 for anything else."""
    try:
        points = tuple(
            None if place is None else (web.number(place[0]), web.number(place[1])) for place in message["points"]
        )
        marks = Marks(
            points,
            str(message["skipped"])[:_LONGEST_REASON].strip(),
            bool(message["flagged"]),
            web.number(message["seconds"]),
            str(message["version"]),
            confirmed=message.get("confirmed") is True,
        )
    except (TypeError, KeyError, ValueError, IndexError, OverflowError, AttributeError):
        abort(400, "the marks are not in the form that this page sends")
    if len(points) != len(POINT_NAMES) or not 0 <= marks.seconds < 1e7:
        abort(400, "the marks need seven points and a time in seconds")
    return marks


class Server:
    """A running page: ``address`` to open, `run` to serve it until Ctrl-C.

    A killed server leaves its port and token in a file next to the table, which only its owner can read. The next
    server uses them again. A page that is still open can then continue, and saves what it could not save meanwhile.
    """

    def __init__(self, marking: Marking, preparation: Preparation, port: int = 0) -> None:
        table = followed(marking.table)
        self._remembered = web.RememberedAddress(table.with_name(f".{table.name}.page"))
        self._listener, token = web.listen(port, self._remembered, AnnotateError)
        self.port = int(self._listener.effective_port)
        self._listener.application = make_app(marking, preparation, token, self.port)
        self.address = f"http://{web.ADDRESS}:{self.port}/{token}/"

    def run(self) -> None:
        """Serve until interrupted."""
        self._listener.run()

    def close(self) -> None:
        """Stop serving; the address is not used again."""
        self._listener.close()
        self._remembered.forget()
