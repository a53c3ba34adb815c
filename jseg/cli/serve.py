"""Segment pictures on a local web page, and for other programs over HTTP.

The page (drop a picture on it) and the API (`POST /predict`) are described in docs/serve.md. One picture after the
other is segmented, in the order they come; a few may wait. Nothing is written to the disk.
"""

from __future__ import annotations

import os
import threading

from jseg.errors import ConfigError
from jseg.text import printable

EXAMPLE = "jseg serve weights/segnext_tiny_camvid.safetensors --port 8000"
DEFAULT_PIXELS = 1 << 25


def add_arguments(parser) -> None:
    """Options of `jseg serve`."""
    from jseg.cli._segmentor import add_model_arguments
    parser.add_argument("checkpoint", help="as for jseg predict: a .safetensors file, a run's folder, an .onnx file")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on (default: %(default)s, this machine alone; 0.0.0.0: every network "
                             "it is in, for everybody there)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help=f"of a picture (default: JSEG_MAX_PIXELS, else {DEFAULT_PIXELS})")
    parser.add_argument("--max-mb", type=float, default=32, metavar="N",
                        help="megabytes of a request (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS",
                        help="for a request to come in, and to wait for its turn (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=8, metavar="N",
                        help="pictures that may wait while one is segmented; others get 503 (default: %(default)s)")
    add_model_arguments(parser)


def run(args) -> int:
    """Serve until a signal ends the command."""
    from jseg.data.header import MAX_PIXELS_VARIABLE, pixel_limit
    _check_options(args)
    by_default = None if os.environ.get(MAX_PIXELS_VARIABLE) else DEFAULT_PIXELS
    with pixel_limit(by_default if args.max_pixels is None else args.max_pixels):
        return _serve(args)


def _check_options(args) -> None:
    for name, low, high in (("port", 0, 65535), ("max_mb", 0.001, 4096), ("timeout", 1, 86400), ("queue", 1, 1000)):
        if not low <= getattr(args, name) <= high:
            raise ConfigError(f"--{name.replace('_', '-')} is {getattr(args, name)}; accepted: {low} to {high}")


def _serve(args) -> int:
    try:
        from jseg.serve.app import Limits, create_app, is_loopback
        from jseg.serve.server import Server, open_socket
    except ModuleNotFoundError as error:
        if str(error.name).partition(".")[0] not in ("flask", "werkzeug", "waitress"):
            raise
        raise ConfigError(f"jseg serve needs Flask and waitress ({error}): pip install 'jseg-jittor[serve]'") from error
    from jseg.cli._segmentor import open_segmentor
    from jseg.serve.work import Desk

    with open_socket(args.host, args.port) as listener:  # before what takes long
        segmentor = open_segmentor(args)
        desk = Desk(segmentor, places=args.queue, timeout_s=args.timeout)
        desk.warm_up()
        limits = Limits(round(args.max_mb * 1e6), is_loopback(listener.getsockname()[0]))
        server = Server(create_app(desk, limits), listener, max_bytes=limits.max_bytes, places=args.queue,
                        timeout_s=args.timeout)

        def serve() -> None:
            try:
                server.run()
            finally:
                desk.close()

        threading.Thread(target=serve, daemon=True).start()
        if not limits.local:
            print("note: whoever reaches this address may use it; there is no password")
        print(f"serving {printable(segmentor.path.name)} ({len(segmentor.classes)} classes) at {_address(listener)} ; "
              "Ctrl-C ends it", flush=True)
        desk.work()
        raise RuntimeError("the server's thread ended")


def _address(listener) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
