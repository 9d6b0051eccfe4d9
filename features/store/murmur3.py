"""MurmurHash3 of 32 bits, by which Feast names the fields of its hashes in Redis.

In Python, because it hashes names of features once, when a plan is compiled.
Source: Austin Appleby, MurmurHash3_x86_32, seed 0.
"""

from __future__ import annotations

from typing import Final

_MASK: Final = 0xFFFFFFFF


def murmur3(data: bytes) -> int:
    """Return the hash.

    Examples:
        >>> murmur3(b"hello")
        613153351

    """
    state, whole = 0, len(data) - len(data) % 4
    for at in range(0, whole, 4):
        state ^= _mix(int.from_bytes(data[at : at + 4], "little"))
        state = (_rotate(state, 13) * 5 + 0xE6546B64) & _MASK
    state ^= _mix(int.from_bytes(data[whole:], "little"))
    state ^= len(data)
    state = ((state ^ state >> 16) * 0x85EBCA6B) & _MASK
    state = ((state ^ state >> 13) * 0xC2B2AE35) & _MASK
    return state ^ state >> 16


def field_name(view: str, feature: str) -> bytes:
    """Return the field that holds a feature in the hash of an entity; 4 bytes.

    Examples:
        >>> field_name("spending", "count_1d").hex()
        'e866d4a9'

    """
    return murmur3(f"{view}:{feature}".encode()).to_bytes(4, "little")


def _mix(word: int) -> int:
    return (_rotate(word * 0xCC9E2D51 & _MASK, 15) * 0x1B873593) & _MASK


def _rotate(word: int, by: int) -> int:
    return (word << by | word >> (32 - by)) & _MASK
