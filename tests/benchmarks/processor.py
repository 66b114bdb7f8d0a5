"""The processor that a benchmark runs on: its description without a product name, and keeping to some cores."""

from __future__ import annotations

import os
import platform
from collections.abc import Mapping
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


def describe() -> dict[str, object]:
    """Machine type, vendor, family, model (None where unknown), instruction sets, logical CPUs."""
    said = _cpuinfo()
    return {
        "machine": platform.machine(),
        "vendor": said.get("vendor_id"),
        "family": _whole(said, "cpu family"),
        "model": _whole(said, "model"),
        "instruction_sets": instruction_sets(),
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
