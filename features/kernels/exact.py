"""Order-free sums: fixed point in three int64 limbs of weights 2**0, 2**-32 and 2**-64.

Adding and removing are integer operations, so the order of events, late inserts, tiles and aborts
cannot change a bit. Domain: finite x with |x| < 2**40; what lies below 2**-64 of a value is cut
off (no value with |x| >= 2**-12 has such bits). The fractional limbs are left unnormalised: 2**31
values fit before one could overflow.
"""

from __future__ import annotations

import math

import numpy as np

from headrace.features.kernels.compiled import inlined

_TWO_32 = 4294967296.0
_TWO_MINUS_64 = 2.0**-64
_MASK = 0xFFFFFFFF
_ONE = np.uint64(1)
_U32 = np.uint64(32)
_U64 = 64


@inlined
def limbs_of(x: float) -> tuple[int, int, int]:
    """Return ``x`` as three limbs of the same sign; each step is exact."""
    whole = math.trunc(x)
    rest = (x - whole) * _TWO_32
    middle = math.trunc(rest)
    low = math.trunc((rest - middle) * _TWO_32)
    return whole, middle, low


@inlined
def _leading_zeros(x: np.uint64) -> int:
    count = 0
    for step in (32, 16, 8, 4, 2, 1):
        if (x >> np.uint64(_U64 - step)) == np.uint64(0):
            count += step
            x = x << np.uint64(step)
    return count


@inlined
def float_of(whole: int, middle: int, low: int) -> float:
    """Return the sum as the nearest float64, ties to even."""
    middle += low >> 32
    low &= _MASK
    whole += middle >> 32
    middle &= _MASK
    high = np.uint64(whole)
    fraction = (np.uint64(middle) << _U32) | np.uint64(low)
    sign = 1.0
    if whole < 0:
        sign = -1.0
        fraction = ~fraction + _ONE
        high = ~high
        if fraction == np.uint64(0):
            high = high + _ONE
    if high == np.uint64(0):
        return sign * np.float64(fraction) * _TWO_MINUS_64
    shift = _leading_zeros(high)
    top = high
    if shift > 0:
        top = (high << np.uint64(shift)) | (fraction >> np.uint64(_U64 - shift))
        fraction = fraction << np.uint64(shift)
    # 64 bits and one sticky bit round in a single step as all 128 would.
    if fraction != np.uint64(0):
        top = top | _ONE
    return sign * math.ldexp(np.float64(top), -shift)
