"""The HTTP server of /healthz, /readyz and /metrics: one small thread pool of the standard library."""

from __future__ import annotations

import threading
from collections.abc import Callable
from http import HTTPStatus
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.exposition import CONTENT_TYPE_LATEST

from ireko_operator.errors import OperatorError

Complaints = Callable[[], list[str]]


class HealthServer:
    """Answers in threads of its own from `start` to `stop`."""

    def __init__(
        self, *, host: str, port: int, registry: CollectorRegistry, healthy: Complaints, ready: Complaints
    ) -> None:
        """`healthy` and `ready` give the sentences that speak against it; `OperatorError` if the port is taken."""

        class Handler(_Handler):
            pages: ClassVar = {
                "/healthz": lambda: _verdict(healthy()),
                "/readyz": lambda: _verdict(ready()),
                "/metrics": lambda: (HTTPStatus.OK, CONTENT_TYPE_LATEST, generate_latest(registry)),
            }

        try:
            self._server = ThreadingHTTPServer((host, port), Handler)
        except OSError as error:
            raise OperatorError(
                f"Cannot listen on {host}:{port} ({error.strerror}): choose another --host or --port."
            ) from error
        self._server.daemon_threads = True
        self._thread = threading.Thread(target=self._server.serve_forever, name="http", daemon=True)

    @property
    def port(self) -> int:
        """The port that it listens on."""
        return int(self._server.server_address[1])

    def start(self) -> None:
        """Begin to answer."""
        self._thread.start()

    def stop(self) -> None:
        """Answer nothing any more."""
        self._server.shutdown()
        self._server.server_close()


Page = tuple[HTTPStatus, str, bytes]


class _Handler(BaseHTTPRequestHandler):
    pages: ClassVar[dict[str, Callable[[], Page]]]
    server_version = "ireko"
    sys_version = ""
    timeout = 10  # a client that says nothing does not keep a thread

    def do_GET(self) -> None:
        page = self.pages.get(self.path.partition("?")[0])
        status, kind, body = (
            page() if page is not None else (HTTPStatus.NOT_FOUND, "text/plain", b"No such page.\n")
        )
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the name of the base class
        """Probes and scrapes come every few seconds; nobody wants to read of them."""


def _verdict(complaints: list[str]) -> Page:
    status = HTTPStatus.SERVICE_UNAVAILABLE if complaints else HTTPStatus.OK
    return status, "text/plain; charset=utf-8", ("\n".join(complaints or ["ok"]) + "\n").encode()
