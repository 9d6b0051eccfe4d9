"""Loops over remembered event ids: open-addressed tables of (id's hash, hash of the payload).

A table is two arrays of one power-of-two length; hash 0 marks a free place, so no id has it.
"""

from __future__ import annotations

import numba
import numpy as np

NEW, DUPLICATE, CONFLICT, AGAIN, UNCHECKED = range(5)
"""Verdicts on a row: only ``DUPLICATE`` and ``CONFLICT`` do not count."""
NO_BLOCK = -(1 << 62)
# The low bits may be those that chose the partition, and then say nothing.
SHIFT = np.uint64(16)


@numba.njit(cache=True, nogil=True, error_model="numpy")
def find_ids(
    table: np.ndarray,
    payloads: np.ndarray,
    block: int,
    hashes: np.ndarray,
    found_block: np.ndarray,
    found_payload: np.ndarray,
) -> None:
    """Note for each row without a find yet whether the table of ``block`` has its id."""
    mask = np.uint64(len(table) - 1)
    for row in range(len(hashes)):
        if found_block[row] != NO_BLOCK:
            continue
        wanted = hashes[row]
        place = (wanted >> SHIFT) & mask
        while table[place] != np.uint64(0):
            if table[place] == wanted:
                found_block[row] = block
                found_payload[row] = payloads[place]
                break
            place = (place + np.uint64(1)) & mask


@numba.njit(cache=True, nogil=True, error_model="numpy")
def judge_rows(
    hashes: np.ndarray,
    known: np.ndarray,
    payload: np.ndarray,
    time_ms: np.ndarray,
    found_block: np.ndarray,
    found_payload: np.ndarray,
    block_ms: int,
    window_ms: int,
    first_block: int,
    latest: np.ndarray,
    verdict: np.ndarray,
    block: np.ndarray,
) -> None:
    """Decide row by row; ``block`` becomes where a row's id is to be remembered, or ``NO_BLOCK``.

    ``latest`` is an open-addressed table of rows of this batch, -1 where free, of a power-of-two
    length above the rows': it finds the last row that counted with the same id.
    """
    mask = np.uint64(len(latest) - 1)
    for row in range(len(hashes)):
        block[row] = NO_BLOCK
        verdict[row] = NEW
        if not known[row]:
            continue
        wanted = hashes[row]
        place = (wanted >> SHIFT) & mask
        while latest[place] >= 0 and hashes[latest[place]] != wanted:
            place = (place + np.uint64(1)) & mask
        before, its_payload = found_block[row], found_payload[row]
        if latest[place] >= 0:
            before, its_payload = block[latest[place]], payload[latest[place]]
        time = time_ms[row]
        if before >= first_block and (before + 1) * block_ms > time - window_ms:
            verdict[row] = DUPLICATE if its_payload == payload[row] else CONFLICT
            continue
        own = time // block_ms
        if own < first_block:
            verdict[row] = UNCHECKED
            continue
        if before >= first_block:
            verdict[row] = AGAIN
        block[row] = own
        latest[place] = row


@numba.njit(cache=True, nogil=True, error_model="numpy")
def insert_ids(
    table: np.ndarray,
    payloads: np.ndarray,
    hashes: np.ndarray,
    payload: np.ndarray,
    rows: np.ndarray,
    places: np.ndarray,
) -> None:
    """Remember ids that the table does not have, of ``rows``; ``places`` is where they went."""
    mask = np.uint64(len(table) - 1)
    for index in range(len(rows)):
        row = rows[index]
        place = (hashes[row] >> SHIFT) & mask
        while table[place] != np.uint64(0):
            place = (place + np.uint64(1)) & mask
        table[place] = hashes[row]
        payloads[place] = payload[row]
        places[index] = place


@numba.njit(cache=True, nogil=True, error_model="numpy")
def move_ids(
    table: np.ndarray, payloads: np.ndarray, new_table: np.ndarray, new_payloads: np.ndarray
) -> None:
    """Put all ids of a table into an empty larger one."""
    mask = np.uint64(len(new_table) - 1)
    for old in range(len(table)):
        if table[old] == np.uint64(0):
            continue
        place = (table[old] >> SHIFT) & mask
        while new_table[place] != np.uint64(0):
            place = (place + np.uint64(1)) & mask
        new_table[place] = table[old]
        new_payloads[place] = payloads[old]
