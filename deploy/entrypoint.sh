#!/bin/sh
# numba refuses a cache that it cannot write to, and the image's file system is read-only: the
# kernels that were compiled with the image are copied to where they may be added to.
set -eu
if [ ! -d "$NUMBA_CACHE_DIR" ]; then
    cp -R "${HEADRACE_KERNELS:-/app/kernels}" "$NUMBA_CACHE_DIR"
fi
exec "$@"
