"""The part of TensorRT for RTX's Python interface that TensorRT's bindings lack: which GPUs to build for.

Copied into the assembled module. The bindings know every other call by the same place in the library's
interface tables; these four stand at places 55 to 58 of the builder configuration's, found by calling them:
they answer with their own names in the library's messages (version 1.6.1).
"""

from __future__ import annotations

import ctypes
import enum
from typing import Any


class ComputeCapability(enum.IntEnum):
    """Targets of ahead-of-time building; CURRENT is the GPU of this machine."""

    NONE = 0
    CURRENT = 1
    SM75 = 75
    SM80 = 80
    SM86 = 86
    SM89 = 89
    SM120 = 120


_SET_COUNT, _COUNT, _SET, _GET = 55, 56, 57, 58


def _call(config: Any, place: int, result: Any, *arguments: int) -> Any:
    """Call entry `place` of a configuration's interface table."""
    pointer = ctypes.c_void_p
    interface = pointer.from_address(id(config) + 2 * ctypes.sizeof(pointer)).value or 0
    implementation = pointer.from_address(interface + ctypes.sizeof(pointer)).value or 0
    table = pointer.from_address(implementation).value or 0
    function = pointer.from_address(table + place * ctypes.sizeof(pointer)).value or 0
    kinds = [ctypes.c_int32] * len(arguments)
    return ctypes.CFUNCTYPE(result, pointer, *kinds)(function)(implementation, *arguments)


def add_to(config_class: Any) -> None:
    """Give `IBuilderConfig` the members that TensorRT for RTX documents."""
    config_class.num_compute_capabilities = property(
        lambda config: _call(config, _COUNT, ctypes.c_int32),
        lambda config, count: _call(config, _SET_COUNT, ctypes.c_bool, count),
    )
    config_class.set_compute_capability = lambda config, capability, index: _call(
        config, _SET, ctypes.c_bool, int(capability), index
    )
    config_class.get_compute_capability = lambda config, index: ComputeCapability(
        _call(config, _GET, ctypes.c_int32, index)
    )
