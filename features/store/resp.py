"""Commands in the bytes of Redis's protocol, packed once where they stay the same."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable


def bulk(argument: bytes) -> bytes:
    """Return an argument of a command in Redis's protocol."""
    return b"$%d\r\n%b\r\n" % (len(argument), argument)


def command(arguments: Iterable[bytes]) -> bytes:
    r"""Return a command in Redis's protocol.

    Examples:
        >>> command([b"GET", b"a"])
        b'*2\r\n$3\r\nGET\r\n$1\r\na\r\n'

    """
    parts = [bulk(argument) for argument in arguments]
    return b"*%d\r\n%b" % (len(parts), b"".join(parts))
