"""The HTTP API and the page's files, as a Flask application: what is asked, what is refused, and as what it is sent.

Nothing of a request names a file: routes are fixed, uploads stay in memory, their file names are not looked at.
"""

from __future__ import annotations

import io
import ipaddress
import json
import pathlib
from typing import Any, NamedTuple
from urllib.parse import urlsplit

import flask
from werkzeug.exceptions import HTTPException

import jseg
from jseg.data.header import max_pixels
from jseg.data.overlay import background_labels
from jseg.registry import nearest
from jseg.serve.work import KINDS, Desk, Refused, Wish

__all__ = ["Limits", "create_app", "error_body", "is_loopback"]

PAGE = {"/": ("page.html", "text/html"), "/page.css": ("page.css", "text/css"),
        "/page.js": ("page.js", "text/javascript")}
HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' blob: data:; "
                               "connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Cache-Control": "no-store", "Cross-Origin-Resource-Policy": "same-origin", "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
OPTIONS = ("what", "opacity", "outlines", "legend", "min_area")
WORDS = {"1": True, "true": True, "yes": True, "0": False, "false": False, "no": False}


class Limits(NamedTuple):
    """Bytes of a request's body, and whether requests must name this machine (see `is_loopback`)."""

    max_bytes: int
    local: bool


class _Request(flask.Request):
    def _get_file_stream(self, *_: Any, **__: Any) -> io.BytesIO:
        return io.BytesIO()  # Werkzeug's own writes uploads above 500 kB to the disk


def is_loopback(host: str) -> bool:
    """Whether an address or name reaches this machine alone."""
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return host.lower() == "localhost"


def error_body(status: int, text: str) -> bytes:
    """The JSON of every error: `status` and `error`, one sentence."""
    return json.dumps({"status": status, "error": text}, ensure_ascii=False).encode() + b"\n"


def create_app(desk: Desk, limits: Limits) -> flask.Flask:
    """The application. `desk.work` runs in another thread."""
    app = flask.Flask(__name__, static_folder=None)
    app.request_class = _Request
    app.config["MAX_CONTENT_LENGTH"] = limits.max_bytes
    files = {path: ((pathlib.Path(__file__).parent / name).read_bytes(), kind) for path, (name, kind) in PAGE.items()}
    segmentor = desk.segmentor
    facts = {"model": segmentor.path.name, "version": jseg.__version__, "classes": list(segmentor.classes),
             "palette": segmentor.palette.tolist(), "clear": background_labels(segmentor.classes),
             "max_bytes": limits.max_bytes, "max_pixels": max_pixels(), "timeout_s": desk.timeout_s}

    @app.before_request
    def refuse_strangers() -> None:
        _check_origin(limits.local)

    for path in files:
        app.add_url_rule(path, path, lambda path=path: flask.Response(files[path][0], mimetype=files[path][1]))
    app.add_url_rule("/classes", "classes", lambda: facts)
    app.add_url_rule("/health", "health", lambda: {"status": "ok", "waiting": desk.waiting, "done": desk.done})

    @app.post("/predict")
    def predict() -> flask.Response:
        wish = _wish(flask.request)
        data = _picture_bytes(flask.request)
        is_gone = flask.request.environ.get("waitress.client_disconnected", lambda: False)
        reply = desk.ask(data, wish, is_gone)
        return flask.Response(reply.content, content_type=reply.type,
                              headers={"Server-Timing": f"picture;dur={reply.ms}"})

    @app.errorhandler(Refused)
    def say_refused(error: Refused) -> flask.Response:
        return _error(flask.Response(headers={"Retry-After": "5"} if error.status == 503 else {}), error.status,
                      str(error))

    @app.errorhandler(HTTPException)
    def say_error(error: HTTPException) -> flask.Response:
        said = {404: "no such address; there are /, /predict, /classes and /health",
                413: f"the request has more than {limits.max_bytes:,} bytes, the limit (--max-mb)"}
        return _error(error.get_response(), error.code or 500, said.get(error.code, error.description or error.name))

    @app.after_request
    def add_headers(response: flask.Response) -> flask.Response:
        response.headers.update(HEADERS)
        return response

    return app


def _error(response: Any, status: int, text: str) -> Any:
    response.status_code, response.data, response.content_type = status, error_body(status, text), "application/json"
    return response


def _check_origin(local: bool) -> None:
    """Refuse what another site has a browser send: under a name of its own (DNS rebinding), or from its page."""
    host = flask.request.host
    try:
        name = urlsplit(f"//{host}").hostname or ""
    except ValueError:
        name = ""
    if local and not is_loopback(name):
        raise Refused(403, "the Host header names another machine; this server answers to localhost and 127.0.0.1 only")
    origin = flask.request.headers.get("Origin")
    if flask.request.method == "POST" and origin is not None and origin.partition("://")[2] != host:
        raise Refused(403, "sent by a page of another site (Origin header)")


def _picture_bytes(request: flask.Request) -> bytes:
    """The picture: the body itself, or the field `image` of a form."""
    kind = request.mimetype
    if kind == "multipart/form-data":
        found = request.files.getlist("image")
        if len(found) != 1:
            raise Refused(400, f"the form has {len(found)} files called image; send one, as in: curl -F "
                               "image=@street.jpg")
        data = found[0].read()
    elif kind.startswith("image/") or kind == "application/octet-stream":
        data = request.get_data()
    else:
        raise Refused(415, "Content-Type: accepted are image/*, application/octet-stream, and multipart/form-data with "
                           "a field image; as in: curl -F image=@street.jpg")
    if not data:
        raise Refused(400, "the picture is empty (0 bytes)")
    return data


def _wish(request: flask.Request) -> Wish:
    """What the query, or without a word in it the Accept header, asks for."""
    unknown = [name for name in request.args if name not in OPTIONS]
    if unknown:
        raise Refused(400, f"unknown option {unknown[0][:40]!r}{nearest(unknown[0][:40], OPTIONS)}; known: "
                           f"{', '.join(OPTIONS)}")
    words = list(dict.fromkeys(filter(None, request.args.get("what", "").split(","))))
    if not words:
        asked = request.accept_mimetypes.best_match(["image/png", "application/json", KINDS["polygons"]], "image/png")
        words = [{"image/png": "labels", "application/json": "json"}.get(asked, "polygons")]
    known = (*KINDS, "json")
    wrong = [word[:40] for word in words if word not in known]
    if wrong:
        raise Refused(400, f"what={wrong[0]!r}{nearest(wrong[0], known)}; known: {', '.join(known)}")
    kinds = tuple(word for word in words if word != "json")
    return Wish(kinds, len(words) > 1 or not kinds, opacity=_number(request, "opacity", 0.5, 0, 1),
                outlines=_flag(request, "outlines", True), legend=_flag(request, "legend", False),
                min_area=int(_number(request, "min_area", 1, 1, 1 << 30)))


def _number(request: flask.Request, name: str, default: float, low: float, high: float) -> float:
    text = request.args.get(name, str(default))
    try:
        value = float(text)
    except ValueError:
        value = float("nan")
    if not low <= value <= high:
        raise Refused(400, f"{name}={text[:40]!r}; accepted: {low} to {high}")
    return value


def _flag(request: flask.Request, name: str, default: bool) -> bool:
    text = request.args.get(name, str(int(default)))
    if text.lower() not in WORDS:
        raise Refused(400, f"{name}={text[:40]!r}; accepted: 1 or 0")
    return WORDS[text.lower()]
