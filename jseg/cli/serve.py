"""Segment pictures on a local web page, and for other programs over HTTP.

The page (drop a picture on it) and the API (`POST /predict`) are described in docs/serve.md. One picture after the other
is segmented, in the order they come; a few may wait. Nothing is written to the disk.
"""

from __future__ import annotations

import threading

from jseg.errors import ConfigError

EXAMPLE = "jseg serve weights/segnext_tiny_camvid.safetensors --port 8000"
DEFAULT_PIXELS = 1 << 25


def add_arguments(parser) -> None:
    """Options of `jseg serve`."""
    parser.add_argument("checkpoint", help="as for jseg predict: a .safetensors file, a run's folder, an .onnx file")
    parser.add_argument("--host", default="127.0.0.1",
                        help="address to listen on (default: %(default)s, this machine alone; 0.0.0.0: every network it "
                             "is in, for everybody there)")
    parser.add_argument("--port", type=int, default=8000, help="0 takes a free one (default: %(default)s)")
    parser.add_argument("--max-pixels", type=int, metavar="N",
                        help=f"of a picture (default: JSEG_MAX_PIXELS, else {DEFAULT_PIXELS})")
    parser.add_argument("--max-mb", type=float, default=32, metavar="N",
                        help="megabytes of a request (default: %(default)s)")
    parser.add_argument("--timeout", type=float, default=30, metavar="SECONDS",
                        help="for a request to come in, and to wait for its turn (default: %(default)s)")
    parser.add_argument("--queue", type=int, default=8, metavar="N",
                        help="pictures that may wait while one is segmented; others get 503 (default: %(default)s)")
    parser.add_argument("--tta", action="store_true", help="average over scales and flips")
    parser.add_argument("--impl", choices=("auto", "jittor"), default="auto",
                        help="kernels (default) or plain operators")
    parser.add_argument("--runtime", choices=("onnxruntime", "openvino"), default="onnxruntime",
                        help="what runs an .onnx file (default: %(default)s)")
    parser.add_argument("--allow-nonfinite", action="store_true", help="use weights that hold NaN or inf all the same")


def run(args) -> int:
    """Serve until a signal ends the command."""
    import os

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
        import flask  # noqa: F401
        import waitress  # noqa: F401
    except ImportError as error:
        raise ConfigError(f"jseg serve needs Flask and waitress ({error}): pip install 'jseg-jittor[serve]'") from error
    from jseg.engine.predict import InferenceSegmentor
    from jseg.serve.app import Limits, create_app, is_loopback
    from jseg.serve.server import Server, open_socket
    from jseg.serve.work import Desk

    listener = open_socket(args.host, args.port)  # before what takes long
    segmentor = InferenceSegmentor(args.checkpoint, tta=args.tta, impl=args.impl, runtime=args.runtime,
                                   allow_nonfinite=args.allow_nonfinite)
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
    print(f"serving {segmentor.path.name} ({len(segmentor.classes)} classes) at {_address(listener)}; Ctrl-C ends it",
          flush=True)
    if not limits.local:
        print("note: whoever reaches this address may use it; there is no password")
    desk.work()
    raise RuntimeError("the server's thread ended")


def _address(listener) -> str:
    host, port = listener.getsockname()[:2]
    return f"http://[{host}]:{port}/" if ":" in host else f"http://{host}:{port}/"
