"""Loads and stores at addresses, for kernels. Nothing is checked: the kernel proves its bounds.

Why addresses and not arrays: numba counts references to each array that a function is given, which
made the walker four times slower than what it does. Little-endian, as every machine numba runs on.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Final

from llvmlite import ir
from numba import types
from numba.extending import intrinsic

if TYPE_CHECKING:
    import numpy as np

_INT64: Final = ir.IntType(64)


def _pointer(builder: Any, address: Any, bits: int) -> Any:
    return builder.inttoptr(address, ir.IntType(bits).as_pointer())


def _address_of(typing_context: Any, array: Any) -> Any:  # noqa: ARG001 - numba's protocol.
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:
        data = context.make_array(signature.args[0])(context, builder, arguments[0]).data
        return builder.ptrtoint(data, _INT64)

    return types.int64(array), generate


def _load8(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - numba's protocol.
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.zext(builder.load(_pointer(builder, arguments[0], 8), align=1), _INT64)

    return types.int64(types.int64), generate


def _load64(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - numba's protocol.
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.load(_pointer(builder, arguments[0], 64), align=1)

    return types.int64(types.int64), generate


def _load32(typing_context: Any, address: Any) -> Any:  # noqa: ARG001 - numba's protocol.
    def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
        return builder.sext(builder.load(_pointer(builder, arguments[0], 32), align=1), _INT64)

    return types.int64(types.int64), generate


def _store(bits: int) -> Any:
    def typed(typing_context: Any, address: Any, value: Any) -> Any:  # noqa: ARG001
        def generate(context: Any, builder: Any, signature: Any, arguments: Any) -> Any:  # noqa: ARG001
            value = arguments[1]
            if bits != _INT64.width:
                value = builder.trunc(value, ir.IntType(bits))
            builder.store(value, _pointer(builder, arguments[0], bits), align=1)
            return context.get_dummy_value()

        return types.void(types.int64, types.int64), generate

    return intrinsic(typed)


if TYPE_CHECKING:

    def address_of(array: np.ndarray) -> int:
        """Return where the array's data begin, signed: numba's ``ctypes.data`` is not.

        The sum of an unsigned and a signed number is a float to numba.
        """

    def load8(address: int) -> int:
        """Return the byte at the address, 0 to 255."""

    def load32(address: int) -> int:
        """Return the four bytes from the address, signed."""

    def load64(address: int) -> int:
        """Return the eight bytes from the address, signed."""

    def store8(address: int, value: int) -> None:
        """Write the low 8 bits of the value at the address."""

    def store32(address: int, value: int) -> None:
        """Write the low 32 bits of the value from the address."""

    def store64(address: int, value: int) -> None:
        """Write the value as eight bytes from the address."""

else:
    address_of = intrinsic(_address_of)
    load8 = intrinsic(_load8)
    load32 = intrinsic(_load32)
    load64 = intrinsic(_load64)
    store8, store32, store64 = _store(8), _store(32), _store(64)
