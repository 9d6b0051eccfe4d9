"""A TCP proxy between a client and a server that can be made slow, silent or unreachable."""

from __future__ import annotations

import contextlib
import random
import select
import socket
import struct
import threading
import time
from collections import deque
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from collections.abc import Callable

Moment = Literal["before", "after", "answered"]
CHUNK_BYTES = 1 << 16
TURN_S = 0.005
#: TCP sends what was lost again after at least so long.
STALL_S = 0.2


class FaultProxy:
    """Forwards to a port of this machine, over threads of its own, until closed.

    Attributes:
        delay_s: Each piece of data is held back for so long, both ways.
        jitter_s: So much longer or shorter, evenly drawn; the order stays.
        stall_odds: How likely a piece takes ``STALL_S`` longer, as if it had to be sent again.
        dead_before_s: Connections older than this (``time.monotonic()``) stay open, and nothing
            that is sent over them arrives, for ever: the other machine is gone without a word.
        silent: Everything is taken and nothing forwarded; once it ends, what was taken is.
        refuses: All connections are cut at once.
        port: Where it listens.

    """

    def __init__(self, target_port: int, seed: int = 0) -> None:
        self._target_port = target_port
        self._random = random.Random(seed)  # noqa: S311 -- no secrets
        self.delay_s = 0.0
        self.jitter_s = 0.0
        self.stall_odds = 0.0
        self.dead_before_s = 0.0
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

    def _delay_s(self) -> float:
        delay_s = self.delay_s
        if self.jitter_s:
            delay_s += self._random.uniform(-self.jitter_s, self.jitter_s)
        if self.stall_odds and self._random.random() < self.stall_odds:
            delay_s += STALL_S
        return delay_s

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        born_s = time.monotonic()
        while not (self._ending.is_set() or self.refuses):
            readable, _, _ = select.select([client, server], [], [], TURN_S)
            for one in readable:
                data = one.recv(CHUNK_BYTES)
                if not data:
                    return
                if born_s < self.dead_before_s:
                    continue
                other = server if one is client else client
                waiting.append((time.monotonic() + self._delay_s(), other, data))
            while waiting and not self.silent and waiting[0][0] <= time.monotonic():
                _, target, data = waiting.popleft()
                target.sendall(data)


class KafkaFaultProxy(FaultProxy):
    """A proxy that knows Kafka's frames: it loses or holds what ends transactions, or strikes then.

    ``lose_answers`` and ``lose_requests`` count down with each request to end a transaction (or
    answer to one) that is lost. ``hold_requests`` counts down with each that is kept back; a new
    producer ends the keeping back, and once that has opened its next transaction, what was kept is
    delivered, as a network would that was slow beyond all patience. The broker's own address is
    replaced by the proxy's, so that clients stay with it.
    """

    INIT_PRODUCER_ID, ADD_PARTITIONS, ADD_OFFSETS, END_TXN, COMMIT_OFFSETS = 22, 24, 25, 26, 28

    def __init__(self, target_port: int, seed: int = 0) -> None:
        self.lose_answers = 0
        self.lose_requests = 0
        self.hold_requests = 0
        self.lost = 0
        #: What the broker said to each request that it got late: Kafka's error codes.
        self.late_answers: list[int] = []
        self._held: list[bytes] = []
        self._strike: tuple[int, Moment, Callable[[], None]] | None = None
        super().__init__(target_port, seed)

    @property
    def held(self) -> int:
        """How many requests are kept back now."""
        return len(self._held)

    def strike(
        self,
        key: int,
        moment: Moment,
        act: Callable[[], None],
    ) -> None:
        """Act once, at the next request of a kind.

        ``before``: the broker will never get it. ``after``: it is on its way. ``answered``: the
        broker has answered, and the client will never know. The connection stands still meanwhile.
        """
        self._strike = key, moment, act

    @property
    def struck(self) -> bool:
        """Whether what ``strike`` was told has happened, or nothing was told."""
        return self._strike is None

    def _pump(self, client: socket.socket, server: socket.socket) -> None:
        asked: dict[int, int] = {}
        own, theirs = (b"127.0.0.1" + struct.pack(">i", p) for p in (self.port, self._target_port))
        pending = {client: b"", server: b""}
        waiting: deque[tuple[float, socket.socket, bytes]] = deque()
        born_s = time.monotonic()
        while not (self._ending.is_set() or self.refuses):
            readable, _, _ = select.select([client, server], [], [], TURN_S)
            for one in readable:
                data = one.recv(CHUNK_BYTES)
                if not data:
                    return
                if born_s < self.dead_before_s:
                    continue
                frames, pending[one] = self._frames(pending[one] + data)
                for frame in frames:
                    due_s = time.monotonic() + self._delay_s()
                    if one is client:
                        key, _, number = struct.unpack_from(">hhi", frame, 4)
                        asked[number] = key
                        waiting.append((due_s, server, frame))
                    else:
                        waiting.append((due_s, client, frame))
            while waiting and not self.silent and waiting[0][0] <= time.monotonic():
                _, target, frame = waiting.popleft()
                if target is server:
                    self._forward(frame, server)
                else:
                    key = asked.pop(struct.unpack_from(">i", frame, 4)[0])
                    self._answer(key, frame.replace(theirs, own), client)

    def _forward(self, frame: bytes, server: socket.socket) -> None:
        key = struct.unpack_from(">h", frame, 4)[0]
        if key == self.INIT_PRODUCER_ID:
            self.hold_requests = 0
        if self._act(key, "before") or self._loses(key, "lose_requests"):
            return
        if key == self.END_TXN and self.hold_requests:
            self.hold_requests -= 1
            self._held.append(frame)
            return
        server.sendall(frame)
        self._act(key, "after")

    def _answer(self, key: int, frame: bytes, client: socket.socket) -> None:
        if self._act(key, "answered") or self._loses(key, "lose_answers"):
            return
        client.sendall(frame)
        if key == self.ADD_PARTITIONS and self._held and not self.hold_requests:
            late, self._held = self._held, []
            for one in late:
                self.late_answers.append(self._deliver(one))

    def _deliver(self, frame: bytes) -> int:
        """Send an EndTxn request on a connection of its own and return the answer's error code."""
        with socket.create_connection(("127.0.0.1", self._target_port), 10) as broker:
            broker.sendall(frame)
            answer = b""
            while not (found := self._frames(answer)[0]):
                data = broker.recv(CHUNK_BYTES)
                if not data:
                    raise ConnectionError("the broker must answer a request that comes late")
                answer += data
        # Size, correlation id, throttle time, error code: as of versions 0 to 2, which clients use.
        return int(struct.unpack_from(">iiih", found[0])[3])

    def _act(self, key: int, moment: Moment) -> bool:
        strike = self._strike
        if strike is None or strike[:2] != (key, moment):
            return False
        strike[2]()
        self._strike = None
        return True

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
