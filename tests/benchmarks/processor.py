"""The processor that a benchmark runs on: its description without a product name, and keeping to some cores."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
from collections.abc import Collection, Mapping
from pathlib import Path

LABELS = {
    "amx_int8": "AMX",
    "avx512_vnni": "AVX-512 VNNI",
    "avx_vnni": "AVX VNNI",
    "avx512f": "AVX-512",
    "avx2": "AVX2",
    "i8mm": "Arm i8mm",
    "asimddp": "Arm dot product",
}
"""Instruction sets that 8-bit products can use, as /proc/cpuinfo spells them, the fastest first."""

CPUINFO = Path("/proc/cpuinfo")
TOPOLOGY = Path("/sys/devices/system/cpu")


def describe(without: Collection[str] = ()) -> dict[str, object]:
    """Machine type, vendor, family, model (None where unknown), instruction sets but `without`, logical CPUs."""
    said = _cpuinfo()
    return {
        "machine": platform.machine(),
        "vendor": said.get("vendor_id"),
        "family": _whole(said, "cpu family"),
        "model": _whole(said, "model"),
        "instruction_sets": [name for name in instruction_sets() if name not in without],
        "cpus": os.cpu_count(),
    }


def instruction_sets() -> list[str]:
    """Those of `LABELS` that the processor has, in that order."""
    said = _cpuinfo()
    flags = f"{said.get('flags', '')} {said.get('Features', '')}".split()
    return [name for name in LABELS if name in flags]


def pin(count: int) -> list[int]:
    """Keep this process, and threads it starts from now on, to `count` physical cores.

    The first two cores are taken last: a system's own work tends to run there.

    Returns:
        The logical CPUs, one a core; empty where the system cannot pin or has fewer cores.
    """
    if not hasattr(os, "sched_setaffinity"):
        return []
    first: dict[str, int] = {}
    for cpu in sorted(os.sched_getaffinity(0)):
        place = TOPOLOGY / f"cpu{cpu}/topology/thread_siblings_list"
        first.setdefault(place.read_text().strip() if place.exists() else str(cpu), cpu)
    cores = list(first.values())
    if len(cores) < count:
        return []
    chosen = sorted((cores[2:] + cores[:2])[:count])
    os.sched_setaffinity(0, chosen)
    return chosen


def refuse_amx() -> None:
    """Have the system refuse AMX to this thread, and threads it starts from now on.

    A process asks Linux for the tile registers by arch_prctl(ARCH_REQ_XCOMP_PERM) before it uses them
    (Documentation/arch/x86/xstate.rst); a library that is refused takes its kernels without AMX. A seccomp filter
    (Documentation/userspace-api/seccomp_filter.rst) answers that one call with EPERM.

    Raises:
        OSError: When the system takes no such filter.
    """
    if platform.system() != "Linux" or platform.machine() != "x86_64":
        raise OSError(f"AMX can be refused on x86-64 Linux, not on {platform.system()} {platform.machine()}")
    load, equal, answer = 0x20, 0x15, 0x06  # BPF_LD|BPF_W|BPF_ABS, BPF_JMP|BPF_JEQ|BPF_K, BPF_RET|BPF_K
    steps = (
        _Step(load, 0, 0, 4), _Step(equal, 0, 5, 0xC000003E),  # seccomp_data.arch is AUDIT_ARCH_X86_64
        _Step(load, 0, 0, 0), _Step(equal, 0, 3, 158),  # .nr is arch_prctl
        _Step(load, 0, 0, 16), _Step(equal, 0, 1, 0x1023),  # .args[0] is ARCH_REQ_XCOMP_PERM
        _Step(answer, 0, 0, 0x00050000 | errno.EPERM),  # SECCOMP_RET_ERRNO
        _Step(answer, 0, 0, 0x7FFF0000),  # SECCOMP_RET_ALLOW
    )  # fmt: skip
    program = _Program(len(steps), (_Step * len(steps))(*steps))
    prctl = ctypes.CDLL(None, use_errno=True).prctl
    prctl.argtypes = [ctypes.c_int, *[ctypes.c_ulong] * 4]
    for request in ((38, 1, 0), (22, 2, ctypes.addressof(program))):  # PR_SET_NO_NEW_PRIVS, PR_SET_SECCOMP
        if prctl(*request, 0, 0) != 0:
            number = ctypes.get_errno()
            raise OSError(number, f"cannot refuse AMX: {os.strerror(number)}")


class _Step(ctypes.Structure):
    """struct sock_filter."""

    _fields_ = (("code", ctypes.c_ushort), ("yes", ctypes.c_ubyte), ("no", ctypes.c_ubyte), ("k", ctypes.c_uint))


class _Program(ctypes.Structure):
    """struct sock_fprog."""

    _fields_ = (("length", ctypes.c_ushort), ("steps", ctypes.POINTER(_Step)))


def _cpuinfo() -> Mapping[str, str]:
    """The first processor's entries; empty where the system has no such file."""
    try:
        text = CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return {}
    pairs = (line.partition(":") for line in text.partition("\n\n")[0].splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _whole(said: Mapping[str, str], key: str) -> int | None:
    return int(said[key]) if said.get(key, "").isdecimal() else None
