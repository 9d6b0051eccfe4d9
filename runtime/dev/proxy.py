"""A TCP proxy between a client and a server that can be made slow, silent or unreachable."""

from __future__ import annotations

import contextlib
import select
import socket
import struct
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


class KafkaFaultProxy(FaultProxy):
    """A proxy that knows Kafka's frames: it loses commits of transactions, or their answers.

    ``lose_answers`` and ``lose_requests`` count down with each that is lost. The broker's own
    address is replaced by the proxy's, so that clients stay with it.
    """

    END_TXN = 26

    def __init__(self, target_port: int) -> None:
        self.lose_answers = 0
        self.lose_requests = 0
        self.lost = 0
        super().__init__(target_port)

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        asked: dict[int, int] = {}
        own, theirs = (b"127.0.0.1" + struct.pack(">i", p) for p in (self.port, self._target_port))
        pending = {client: b"", server: b""}
        while not (self._ending.is_set() or self.refuses):
            readable, _, _ = select.select([client, server], [], [], TURN_S)
            for one in readable:
                data = one.recv(CHUNK_BYTES)
                if not data:
                    return
                frames, pending[one] = self._frames(pending[one] + data)
                for frame in frames:
                    if one is client:
                        key, _, number = struct.unpack_from(">hhi", frame, 4)
                        asked[number] = key
                        if not self._loses(key, "lose_requests"):
                            server.sendall(frame)
                    else:
                        key = asked.pop(struct.unpack_from(">i", frame, 4)[0])
                        if not self._loses(key, "lose_answers"):
                            client.sendall(frame.replace(theirs, own))

    def _loses(self, key: int, what: str) -> bool:
        left = getattr(self, what)
        if key != self.END_TXN or not left:
            return False
        setattr(self, what, left - 1)
        self.lost += 1
        return True

    @staticmethod
    def _frames(data: bytes) -> tuple[list[bytes], bytes]:
        frames = []
        while len(data) >= 4:
            size = 4 + int.from_bytes(data[:4], "big")
            if len(data) < size:
                break
            frames.append(data[:size])
            data = data[size:]
        return frames, data
