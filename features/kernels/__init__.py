"""Hot loops compiled with numba: keys and slots, exact sums, rings and windows. No I/O, no clock."""
