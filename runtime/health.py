"""A small HTTP server for a long-running process: /metrics, /live and /ready, whatever it is doing.

It runs on threads of its own, so that a long replay or a busy event loop cannot make the process
look dead.
"""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING, cast
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server

from prometheus_client import make_wsgi_app

if TYPE_CHECKING:
    from collections.abc import Callable, Iterable
    from wsgiref.types import StartResponse, WSGIEnvironment

    from prometheus_client import CollectorRegistry


class _QuietHandler(WSGIRequestHandler):
    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 -- the base's name
        """Say nothing: a probe each second is no news."""


class _Server(WSGIServer):
    daemon_threads = True


class HealthServer:
    """Serves probes and metrics on ``host:port``; port 0 takes a free one."""

    def __init__(
        self,
        host: str,
        port: int,
        registry: CollectorRegistry,
        is_live: Callable[[], bool],
        is_ready: Callable[[], bool],
    ) -> None:
        self._metrics = make_wsgi_app(registry)
        self._probes = {"/live": is_live, "/ready": is_ready}
        self._server = make_server(
            host, port, self._answer, server_class=_Server, handler_class=_QuietHandler
        )
        self._thread = threading.Thread(
            target=self._server.serve_forever, name="headrace-health", daemon=True
        )
        self._thread.start()

    @property
    def url(self) -> str:
        """Return the server's root address."""
        host, port = self._server.server_address[:2]
        return f"http://{host!s}:{port}"

    def close(self) -> None:
        """Stop serving and free the port."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def _answer(self, environ: WSGIEnvironment, start: StartResponse) -> Iterable[bytes]:
        path = environ.get("PATH_INFO", "/")
        if path == "/metrics":
            return cast("Iterable[bytes]", self._metrics(environ, start))
        probe = self._probes.get(path)
        if probe is None:
            start("404 Not Found", [("Content-Type", "text/plain")])
            return [b"known: /metrics /live /ready\n"]
        fine = probe()
        start("200 OK" if fine else "503 Service Unavailable", [("Content-Type", "text/plain")])
        return [b"yes\n" if fine else b"no\n"]
