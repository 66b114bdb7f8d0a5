"""What NVIDIA device is here, asked of the driver itself: no library to import, nothing initialised twice."""

from __future__ import annotations

import ctypes
from uuid import UUID

import pydantic

from optimize.errors import BackendMissing

_MAJOR, _MINOR = 75, 76
"""CU_DEVICE_ATTRIBUTE_COMPUTE_CAPABILITY_MAJOR and _MINOR of the CUDA driver interface."""


class Device(pydantic.BaseModel):
    """A GPU as its driver describes it.

    Attributes:
        name: "NVIDIA H200".
        compute_capability: "9.0".
        driver: Highest CUDA version the driver serves, "13.0".
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    compute_capability: str
    driver: str


def uuid() -> str:
    """The first visible device's identity as NVML spells it, "GPU-…", whatever its number is there.

    Raises:
        BackendMissing: When there is no driver or no device.
    """
    require()
    driver = ctypes.CDLL("libcuda.so.1")
    handle, found = ctypes.c_int(), (ctypes.c_ubyte * 16)()
    driver.cuDeviceGet(ctypes.byref(handle), 0)
    driver.cuDeviceGetUuid_v2(ctypes.byref(found), handle)
    return f"GPU-{UUID(bytes=bytes(found))}"


def find() -> Device | None:
    """The first visible device, or None."""
    try:
        return require()
    except BackendMissing:
        return None


def require() -> Device:
    """The first visible device.

    Raises:
        BackendMissing: When there is no driver or no device.
    """
    hint = "Run on a machine with an NVIDIA GPU and its driver."
    try:
        driver = ctypes.CDLL("libcuda.so.1")
    except OSError as error:
        raise BackendMissing("no GPU here: the NVIDIA driver is not installed.", hint=hint) from error
    count, version, handle = ctypes.c_int(), ctypes.c_int(), ctypes.c_int()
    code = driver.cuInit(0) or driver.cuDeviceGetCount(ctypes.byref(count))
    if code or count.value == 0:
        raise BackendMissing(f"no GPU here: the NVIDIA driver sees none (CUDA error {code}).", hint=hint)
    name = ctypes.create_string_buffer(256)
    driver.cuDeviceGet(ctypes.byref(handle), 0)
    driver.cuDeviceGetName(name, len(name), handle)
    driver.cuDriverGetVersion(ctypes.byref(version))
    parts = []
    for attribute in (_MAJOR, _MINOR):
        value = ctypes.c_int()
        driver.cuDeviceGetAttribute(ctypes.byref(value), attribute, handle)
        parts.append(value.value)
    return Device(
        name=name.value.decode(),
        compute_capability=f"{parts[0]}.{parts[1]}",
        driver=f"{version.value // 1000}.{version.value % 1000 // 10}",
    )
