"""Hot loops compiled with numba: keys, slots, exact sums, rings, windows. No I/O, no clock."""
