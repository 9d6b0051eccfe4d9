"""A TCP proxy between a client and a server that can be made slow, silent or unreachable."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections import deque

CHUNK_BYTES = 1 << 16
TURN_S = 0.005


class FaultProxy:
    """Forwards to a port of this machine, over threads of its own, until closed.

    Attributes:
        delay_s: Each piece of data is held back for so long, both ways.
        silent: Everything is taken and nothing forwarded; once it ends, what was taken is.
        refuses: All connections are cut at once.
        port: Where it listens.

    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self.delay_s = 0.0
        self.silent = False
        self.refuses = False
        self._ending = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self._threads = [threading.Thread(target=self._accept, daemon=True)]
        self._threads[0].start()

    def close(self) -> None:
        """Cut all connections and listen no more."""
        self._ending.set()
        with contextlib.suppress(OSError):
            socket.create_connection(("127.0.0.1", self.port), 1).close()
        for thread in self._threads:
            thread.join(10)
        self._listener.close()

    def _accept(self) -> None:
        while not self._ending.is_set():
            client, _ = self._listener.accept()
            thread = threading.Thread(target=self._serve, args=(client,), daemon=True)
            self._threads.append(thread)
            thread.start()

    def _serve(self, client: socket.socket) -> None:
        with client, contextlib.suppress(OSError):
            server = socket.create_connection(("127.0.0.1", self._target_port), 5)
            with server:
                self._pump(client, server)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        while not (self._ending.is_set() or self.refuses):
            readable, _, _ = select.select([client, server], [], [], TURN_S)
            for one in readable:
                data = one.recv(CHUNK_BYTES)
                if not data:
                    return
                other = server if one is client else client
                waiting.append((time.monotonic() + self.delay_s, other, data))
            while waiting and not self.silent and waiting[0][0] <= time.monotonic():
                _, target, data = waiting.popleft()
                target.sendall(data)
