"""Takes the requests: waitress, with limits on size and time, errors as JSON, and nothing on the disk.

What is added to waitress 3: a request whose head and body have not come within the time limit is answered with 408,
however it trickles in; after an error the connection stays open for reading until the client has read the answer or the
time is over, because closing it at once, with unread data, takes the answer away from the client.
"""

from __future__ import annotations

import logging
import socket
import time
from typing import Any

from waitress.adjustments import Adjustments
from waitress.channel import HTTPChannel
from waitress.server import TcpWSGIServer
from waitress.task import ErrorTask
from waitress.utilities import Error

from jseg.errors import ConfigError
from jseg.serve.app import HEADERS, error_body

__all__ = ["Server", "open_socket"]

MAX_CONNECTIONS = 32  # each may hold a body in memory
HEADER_BYTES = 1 << 15
_SPARE_THREADS = 3  # for the page and for refusals, while all others wait for the model
_IN_MEMORY = 1 << 40  # waitress writes what is longer to the disk
_TEXTS = {408: "the request did not come whole in time (--timeout)",
          413: "the request has more bytes than the limit (--max-mb)",
          431: f"the request's headers have more than {HEADER_BYTES:,} bytes"}


def open_socket(host: str, port: int) -> socket.socket:
    """Listen on an address, 0 for a free port.

    Raises:
        ConfigError: the address is taken, not of this machine, or not allowed.
    """
    listener = None
    try:
        family, kind, number, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM,
                                                              flags=socket.AI_PASSIVE)[0]
        listener = socket.socket(family, kind, number)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind(address)
        listener.listen(128)
    except (OSError, UnicodeError) as error:
        if listener is not None:
            listener.close()
        why = getattr(error, "strerror", None) or error
        raise ConfigError(f"--host {host} --port {port}: cannot listen there ({why}); give another --port (0: any free "
                          "one) or --host") from error
    return listener


class _Late(Error):
    code, reason = 408, "Request Timeout"


class _JsonErrorTask(ErrorTask):
    def execute(self) -> None:
        error = self.request.error
        body = error_body(error.code, _TEXTS.get(error.code, str(error.body)))
        self.status = f"{error.code} {error.reason}"
        self.response_headers.extend([("Content-Type", "application/json"), *HEADERS.items()])
        self.set_close_on_finish()
        self.content_length = len(body)
        self.channel.refused = True
        self.write(body)


class _Channel(HTTPChannel):
    error_task_class = _JsonErrorTask
    refused = False  # the answer is an error of the server
    lingers_since = 0.0  # when that answer was sent; what the client still sends is dropped
    request_since = 0.0  # when the first bytes of the request came

    def received(self, data: bytes) -> bool:
        if self.lingers_since:
            return False
        self.request_since = self.request_since or time.time()
        taken = super().received(data)
        if self.request is None:
            self.request_since = 0.0
        return taken

    def check_time(self, now: float) -> None:
        """Refuse a request that takes too long to come; close a connection that lingers too long."""
        if self.lingers_since:
            self.will_close = now - self.lingers_since > self.adj.channel_timeout
        elif self.request is not None and now - self.request_since > self.adj.channel_timeout:
            with self.requests_lock:
                late, self.request = self.request, None
                late.parse_header(b"GET / HTTP/1.0\r\n")
                late.error = _Late("")
                late.completed = True
                self.requests.append(late)
                if len(self.requests) == 1:
                    self.server.add_task(self)

    def handle_close(self) -> None:
        if not (self.refused and self.connected and self.will_close) or self.lingers_since:
            super().handle_close()
            return
        self.lingers_since, self.will_close = time.time(), False
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            super().handle_close()


class Server(TcpWSGIServer):
    """A WSGI server on an open socket; `run()` serves for ever.

    Args:
        listener: from `open_socket`.
        max_bytes: of a request's body.
        places: how many requests may wait for the model, see `Desk`.
        timeout_s: for a request to come whole, and for a silent connection to be closed, in seconds.
    """

    channel_class = _Channel

    def __init__(self, application: Any, listener: socket.socket, *, max_bytes: int, places: int, timeout_s: float):
        logging.getLogger("waitress").setLevel(logging.ERROR)
        # an adjustment is a whole number; -1: whether a client leaves is seen while its request is answered
        adjustments = Adjustments(
            sockets=[listener], threads=places + 1 + _SPARE_THREADS, connection_limit=MAX_CONNECTIONS,
            channel_timeout=max(1, round(timeout_s)), cleanup_interval=1, max_request_body_size=max_bytes + 1,
            max_request_header_size=HEADER_BYTES, inbuf_overflow=_IN_MEMORY, outbuf_overflow=_IN_MEMORY,
            outbuf_high_watermark=_IN_MEMORY, channel_request_lookahead=1, log_socket_errors=False, ident=None,
            asyncore_use_poll=True)
        super().__init__(application, {}, True, listener, adj=adjustments, bind_socket=False,
                         sockinfo=(listener.family, listener.type, listener.proto, listener.getsockname()))

    def maintenance(self, now: float) -> None:
        """Once a second: look at the time that each connection takes."""
        super().maintenance(now)
        for channel in list(self.active_channels.values()):
            channel.check_time(now)
