"""The types of keys. Apart from the kernels, so that who only reads keys waits for no compiler."""

from __future__ import annotations

import pyarrow as pa


def canonical_keys(keys: pa.Array | pa.ChunkedArray) -> pa.Array:
    """Return ``keys`` as one int64, large string or large binary array.

    Raises:
        TypeError: If the type can be no key (floats, booleans, nested types).
    """
    if isinstance(keys, pa.ChunkedArray):
        keys = keys.combine_chunks()
    kind = keys.type
    if pa.types.is_dictionary(kind):
        keys, kind = keys.dictionary_decode(), kind.value_type
    if pa.types.is_integer(kind):
        target = pa.int64()
    elif pa.types.is_string(kind) or pa.types.is_large_string(kind) or kind == pa.string_view():
        target = pa.large_string()
    elif (
        pa.types.is_binary(kind)
        or pa.types.is_large_binary(kind)
        or pa.types.is_fixed_size_binary(kind)
        or kind == pa.binary_view()
    ):
        target = pa.large_binary()
    elif pa.types.is_null(kind):
        target = pa.int64()
    else:
        message = f"a key must be an integer, a string or bytes; got {kind}"
        raise TypeError(message)
    return keys if kind == target else keys.cast(target)
