"""Energy per run, from the counters that devices keep: NVML's for a GPU, RAPL's for a processor's package.

Both count the whole device, idle power and other processes included, so a contender runs without a pause while
it is metered, and the figures of contenders are comparable with each other.
"""

from __future__ import annotations

import importlib.util
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal, Protocol

from optimize.engines import tensorrt_device
from optimize.errors import BackendMissing
from optimize.facts import Energy

SECONDS = 2.0
"""NVML's counter moves every 20 to 100 ms, RAPL's every millisecond: a hundredth or less of this."""

LEAST_RUNS = 3

POWERCAP = Path("/sys/class/powercap")


class Meter(Protocol):
    """A counter of energy.

    Attributes:
        device: "GPU" or "CPU".
        source: Who counts, and what.
    """

    device: str
    source: str

    def joules(self) -> float:
        """Energy since the first reading or any earlier moment; only differences mean something.

        Raises:
            BackendMissing: When the counter does not answer any more.
        """


class Rapl:
    """The packages of this machine's processors, as Linux's powercap tree shows them (Intel and AMD alike).

    Raises:
        OSError: When a counter may not be read.
    """

    device = "CPU"
    source = "RAPL, whole package"

    def __init__(self, packages: Sequence[Path]) -> None:
        self._packages = packages
        self._ranges = [int((path / "max_energy_range_uj").read_text()) for path in packages]
        self._last = self._read()
        self._total = 0

    def joules(self) -> float:
        """Since the first reading; a counter that began anew at its range's end is seen as one that went on."""
        try:
            now = self._read()
        except OSError as error:
            raise BackendMissing(f"{error.filename} could not be read again ({error.strerror})") from None
        for before, after, whole in zip(self._last, now, self._ranges, strict=True):
            self._total += after - before if after >= before else after - before + whole
        self._last = now
        return self._total / 1e6

    def _read(self) -> list[int]:
        return [int((path / "energy_uj").read_text()) for path in self._packages]


class Nvml:
    """The first visible GPU.

    Raises:
        BackendMissing: When it cannot be asked.
    """

    device = "GPU"
    source = "NVML, whole device"

    def __init__(self) -> None:
        if importlib.util.find_spec("pynvml") is None:
            raise BackendMissing("the Python package of NVML is not installed (pip install nvidia-ml-py)")
        import pynvml

        try:
            pynvml.nvmlInit()
            self._handle = pynvml.nvmlDeviceGetHandleByUUID(tensorrt_device.uuid())
            pynvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)
        except pynvml.NVMLError as error:
            raise BackendMissing(f"NVML does not count this GPU's energy ({error})") from None
        self._nvml = pynvml

    def joules(self) -> float:
        """Since the driver was loaded."""
        try:
            return float(self._nvml.nvmlDeviceGetTotalEnergyConsumption(self._handle)) / 1e3
        except self._nvml.NVMLError as error:
            raise BackendMissing(f"NVML could not read this GPU's energy again ({error})") from None


def meters(device: Literal["cpu", "cuda"], powercap: Path = POWERCAP) -> tuple[tuple[Meter, ...], str]:
    """The counters that tell what a run on `device` takes, and why one is missing ("" when none is).

    Args:
        device: Where the optimised engine runs; a GPU's run costs its processor's energy too.
        powercap: Linux's tree of power counters.
    """
    found: list[Meter] = []
    missing: list[str] = []
    if device == "cuda":
        try:
            found.append(Nvml())
        except BackendMissing as error:
            missing.append(f"GPU: {error.message}")
    try:
        found.append(Rapl(_packages(powercap)))
    except BackendMissing as error:
        missing.append(f"CPU: {error.message}")
    except OSError as error:
        missing.append(f"CPU: {error.filename} may not be read ({error.strerror}); RAPL's counters belong to root")
    return tuple(found), "; ".join(missing)


def _packages(powercap: Path) -> list[Path]:
    """Folders of whole packages; their parts (cores, memory) lie below them and are counted in them.

    Raises:
        BackendMissing: When there is none.
    """
    found = [
        path
        for path in sorted(powercap.glob("intel-rapl:*"))
        if path.name.count(":") == 1 and (path / "name").read_text().startswith("package")
    ]
    if not found:
        raise BackendMissing(
            f"no package counter under {powercap}: the processor or the system has no RAPL, or this is a virtual "
            "machine, which is shown none"
        )
    return found


def use(
    call: Callable[[], object], meters: Sequence[Meter], samples: int
) -> tuple[tuple[Energy, ...], tuple[str, ...]]:
    """Run without a pause for `SECONDS` and read every meter before and after.

    Args:
        call: One run; returns when its result is there.
        meters: As `meters` gives them.
        samples: Rows of the batch in one run.

    Returns:
        One entry per meter that could be read both times, and a sentence for each other one: a counter that goes
        away takes nothing but its own figure with it.
    """
    problems: list[str] = []
    before = _read(meters, problems)
    if not before:
        return (), tuple(problems)
    started, runs = time.monotonic(), 0
    while runs < LEAST_RUNS or time.monotonic() - started < SECONDS:
        call()
        runs += 1
    seconds = time.monotonic() - started
    after = _read(list(before), problems)
    used = tuple(
        Energy(
            device=meter.device,
            source=meter.source,
            joules_per_sample=(joules - before[meter]) / (runs * samples),
            watts=(joules - before[meter]) / seconds,
            runs=runs,
            seconds=seconds,
        )
        for meter, joules in after.items()
    )
    return used, tuple(problems)


def _read(meters: Sequence[Meter], problems: list[str]) -> dict[Meter, float]:
    """What every meter shows now; one that does not answer goes to `problems` instead."""
    shown: dict[Meter, float] = {}
    for meter in meters:
        try:
            shown[meter] = meter.joules()
        except BackendMissing as error:
            problems.append(f"{meter.device}: {error.message}")
    return shown
