"""Bytes to Redis and replies back: redis-py's connections, without its work for each command."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from redis import ConnectionPool
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.exceptions import RedisError, ResponseError
from redis.exceptions import TimeoutError as RedisTimeoutError
from redis.retry import Retry

from headrace.features.store.errors import StoreUnavailableError
from headrace.runtime.errors import explain

if TYPE_CHECKING:
    from collections.abc import Sequence

#: No script keeps Redis for longer than milliseconds: who waits so long has lost it.
TIMEOUT_S: Final = 5.0


class RedisConnection:
    """Pipelines of packed commands, over a pool of connections: threads may share it.

    Args:
        url: ``redis://`` or ``rediss://``, with user, password and database as redis-py reads them.
        timeout_s: How long to wait for a connection, and for each reply.

    """

    def __init__(self, url: str, timeout_s: float = TIMEOUT_S) -> None:
        self.name = _without_password(url)
        try:
            self._pool = ConnectionPool.from_url(
                url,
                protocol=2,
                retry=Retry(NoBackoff(), 0),
                socket_timeout=timeout_s,
                socket_connect_timeout=timeout_s,
            )
        except ValueError as error:
            text = explain("redis.url", "be a URL of Redis", self.name, "settings", str(error))
            raise StoreUnavailableError(text) from None

    def run(self, data: Sequence[bytes | memoryview], replies: int) -> list[Any]:
        """Send commands and return the reply of each; what Redis refused stands there as an error.

        Raises:
            StoreUnavailableError: If Redis cannot be reached or does not answer in time.

        """
        try:
            connection: Any = self._pool.get_connection()
        except RedisError as error:
            raise self._unavailable(error) from error
        try:
            connection.send_packed_command(data, check_health=False)
            return [_reply(connection) for _ in range(replies)]
        except (RedisConnectionError, RedisTimeoutError) as error:
            raise self._unavailable(error) from error
        except BaseException:
            connection.disconnect()  # Replies may be on their way that nobody will read.
            raise
        finally:
            self._pool.release(connection)

    def close(self) -> None:
        """Close all connections."""
        self._pool.disconnect()

    def _unavailable(self, error: Exception) -> StoreUnavailableError:
        hint = "see 'headrace status'"
        text = explain("Redis", "answer", str(error).rstrip("."), self.name, hint)
        return StoreUnavailableError(text)


def _reply(connection: Any) -> Any:
    try:
        return connection.read_response(disable_decoding=True)
    except ResponseError as error:
        return error


def _without_password(url: str) -> str:
    """Return the URL without what stands before the host."""
    scheme, separator, rest = url.partition("://")
    return f"{scheme}{separator}{rest.rpartition('@')[2]}" if separator else url
