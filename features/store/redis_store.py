"""The online store in Redis: fenced writes, markers, rebuild requests. One server, or its replicas.

Layout in ``features.store.layout``, what runs inside Redis in ``features.store.scripts``; why in
docs/adr/0007.
"""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Any, Final

from redis.exceptions import NoScriptError, ResponseError

from headrace.features.store.connection import TIMEOUT_S, RedisConnection
from headrace.features.store.errors import StoreFullError, StoreUnavailableError
from headrace.features.store.layout import KeyLayout, key_values, marker_key
from headrace.features.store.markers import REBUILD, marker_text, read_marker, read_markers
from headrace.features.store.packing import WritePacker
from headrace.features.store.port import EntityRows, Marker, Rebuild
from headrace.features.store.resp import command
from headrace.features.store.scripts import BEAT, OPEN, WRITE
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    import pyarrow as pa

    from headrace.features.store.scripts import Script
    from headrace.features.store.views import OnlineEntity

# Rows that are packed and sent in one go: a few MB.
_BLOCK_ROWS: Final = 4_000
_DELETE_KEYS: Final = 1_000
# Redis 6.2 wraps the error of a command within a script, 7 does not.
_FULL: Final = "OOM command not allowed"
_PROGRESS: Final = b"progress:"


class RedisOnlineStore:
    """``OnlineStore`` in Redis.

    Args:
        url: Where Redis is.
        timeout_s: How long to wait for each of its answers.

    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self._redis = RedisConnection(url, timeout_s)
        self._packers: dict[OnlineEntity, WritePacker] = {}

    def write(
        self, entity: OnlineEntity, partition: int, lineage: int, rows: EntityRows, clock_ms: int
    ) -> int:
        """Write what is not older than what is there; see ``OnlineStore.write``."""
        packer = self._packers.get(entity)
        if packer is None:
            packer = self._packers[entity] = WritePacker(entity, WRITE.sha)
        written = 0
        for first in range(0, len(rows), _BLOCK_ROWS):
            block = rows.part(first, first + _BLOCK_ROWS)
            data, calls = packer.pack(partition, lineage, block, clock_ms)
            replies = self._evaluate(WRITE, [data], calls)
            written += sum(reply for reply in replies if isinstance(reply, int))
            failed = [n for n, reply in enumerate(replies) if isinstance(reply, ResponseError)]
            if failed:
                # The keys of a failed call may be written in part, each of them whole or not.
                size = packer.keys_a_call
                done = first + sum(len(block.part(n * size, n * size + size)) for n in failed)
                refused = len(rows) - first - len(block) + done - first
                raise self._refusal(replies[failed[0]], len(rows) - refused, refused)
        return written

    def delete(self, entity: OnlineEntity, keys: pa.Array) -> int:
        """Erase the keys' hashes, with what every pipeline wrote there."""
        layout = KeyLayout.of(entity)
        names = [layout.key(value) for value in key_values(entity.key_kind, keys)]
        parts = [names[n : n + _DELETE_KEYS] for n in range(0, len(names), _DELETE_KEYS)]
        return sum(self._run([(b"UNLINK", *part) for part in parts]))

    def open(self, entity: OnlineEntity, partition: int, token: str, now_ms: int) -> Marker:
        """Return the marker, or start a lineage above all others and above the wall clock.

        Above the clock, because after a FLUSHALL nothing tells of earlier lineages, and a writer
        that has not noticed may still be writing with one.
        """
        arguments = (b"%d" % partition, token.encode(), b"%d" % now_ms)
        text, rebuild, run = self._script(OPEN, marker_key(entity), arguments)
        return read_marker(text, int(rebuild), run.decode())

    def beat(self, entity: OnlineEntity, partition: int, marker: Marker) -> Marker | None:
        """Keep the marker if the server and the lineage are those that it came from.

        A server that was started again may hold less than when it was asked last.
        """
        arguments = (b"%d" % partition, b"%d" % marker.lineage, marker.server.encode())
        rebuild = self._script(BEAT, marker_key(entity), (*arguments, marker_text(marker)))
        return None if rebuild is None else dataclasses.replace(marker, rebuild=int(rebuild))

    def request_rebuild(self, entity: OnlineEntity) -> int:
        """Count up the requests, which writers see when they beat."""
        (number,) = self._run([(b"HINCRBY", marker_key(entity), REBUILD, b"1")])
        return int(number)

    def report_rebuild(self, entity: OnlineEntity, partition: int, progress: Rebuild) -> None:
        """Keep the report beside the marker."""
        text = b"%d:%d:%d" % (progress.request, progress.written, progress.total)
        field = _PROGRESS + b"%d" % partition
        self._run([(b"HSET", marker_key(entity), field, text)])

    def rebuilds(self, entity: OnlineEntity) -> Mapping[int, Rebuild]:
        """Return the reports by partition."""
        return {
            int(field[len(_PROGRESS) :]): Rebuild(*map(int, text.split(b":")))
            for field, text in self._fields(entity).items()
            if field.startswith(_PROGRESS)
        }

    def markers(self, entity: OnlineEntity) -> Mapping[int, Marker]:
        """Return the markers by partition."""
        return read_markers(self._fields(entity))

    def close(self) -> None:
        """Close the connections."""
        self._redis.close()

    def _fields(self, entity: OnlineEntity) -> dict[bytes, bytes]:
        (flat,) = self._run([(b"HGETALL", marker_key(entity))])
        return dict(zip(flat[::2], flat[1::2], strict=True))

    def _run(self, commands: Sequence[Sequence[bytes]]) -> list[Any]:
        replies = self._redis.run([b"".join(map(command, commands))], len(commands))
        for reply in replies:
            if isinstance(reply, ResponseError):
                raise self._refusal(reply, 0, 0)
        return replies

    def _script(self, script: Script, key: bytes, arguments: Sequence[bytes]) -> Any:
        data = command((b"EVALSHA", script.sha.encode(), b"1", key, *arguments))
        (reply,) = self._evaluate(script, [data], 1)
        if isinstance(reply, ResponseError):
            raise self._refusal(reply, 0, 0)
        return reply

    def _evaluate(
        self, script: Script, data: Sequence[bytes | memoryview], calls: int
    ) -> list[Any]:
        """Run calls of a script, which a new server has to be taught first."""
        replies = self._redis.run(data, calls)
        if any(isinstance(reply, NoScriptError) for reply in replies):
            self._run([(b"SCRIPT", b"LOAD", script.text.encode())])
            replies = self._redis.run(data, calls)
        return replies

    def _refusal(
        self, error: ResponseError, written: int, refused: int
    ) -> StoreFullError | StoreUnavailableError:
        if _FULL in str(error):
            rule, hint = "have room for all keys", "raise its maxmemory, or serve fewer views"
            got = f"its limit after {written} of {written + refused}"
            text = explain("Redis", rule, got, self._redis.name, hint)
            return StoreFullError(text, written, refused)
        text = explain("Redis", "take what is written", str(error), self._redis.name)
        return StoreUnavailableError(text)
