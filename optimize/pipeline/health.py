"""Libraries and devices held against each other: what does not fit, and the command that mends it."""

from __future__ import annotations

import importlib.util
import re

from optimize.engines import registry
from optimize.facts import Environment, Fact

_FLOORS = {"onnx": (1, 20), "onnxruntime": (1, 24), "onnxscript": (0, 7), "onnx-ir": (1, 1), "torch": (2, 11)}

_LEAST_DRIVER = {12: (525, 60), 13: (580, 65)}
"""Oldest Linux driver per CUDA major version (CUDA Toolkit release notes, minor version compatibility)."""


class Finding(Fact):
    """One thing looked at.

    Attributes:
        what: What was found, one line.
        ok: Whether it is as it should be.
        optional: Whether a run can do without it.
        remedy: The command that mends it.
    """

    what: str
    ok: bool
    optional: bool = False
    remedy: str = ""


def examine(here: Environment, target: str | None) -> tuple[Finding, ...]:
    """Everything that can be said without running a model."""
    findings = []
    for name, floor in _FLOORS.items():
        version = here.libraries.get(name)
        if version is None:
            findings.append(
                Finding(
                    what=f"{name} is not installed",
                    ok=False,
                    optional=name == "torch",
                    remedy="pip install 'model-optimize[torch]'" if name == "torch" else f"pip install {name}",
                )
            )
        elif _numbers(version)[:2] < floor:
            wanted = ".".join(map(str, floor))
            findings.append(
                Finding(
                    what=f"{name} {version} is older than {wanted}",
                    ok=False,
                    remedy=f"pip install '{name}>={wanted}'",
                )
            )
    if "onnxruntime" in here.libraries and "onnxruntime-gpu" in here.libraries:
        findings.append(
            Finding(
                what="onnxruntime and onnxruntime-gpu are both installed and overwrite each other",
                ok=False,
                remedy="pip uninstall onnxruntime onnxruntime-gpu && pip install onnxruntime-gpu",
            )
        )
    findings.extend(_driver(here))
    for kind in registry.kinds():
        engine = registry.create({"kind": kind})
        problem = engine.check()
        idle = None if problem else engine.check_run()
        findings.append(
            Finding(
                what=f"engine {kind}: {problem or (f'builds, and cannot run: {idle}' if idle else 'ready')}",
                ok=problem is None,
                optional=kind != "onnxruntime",
            )
        )
    if target is not None:
        findings.extend(_against(here, target))
    return tuple(findings)


def _driver(here: Environment) -> list[Finding]:
    """The driver against the CUDA that torch and TensorRT were built for."""
    drivers = [match.group(1) for device in here.devices if (match := re.search(r"driver ([\d.]+)", device))]
    if not drivers:
        return []
    findings = []
    built_for: dict[int, list[str]] = {}
    for name, version in here.libraries.items():
        if match := re.search(r"\+cu(\d\d)", version):
            built_for.setdefault(int(match.group(1)), []).append(f"{name} {version}")
    for major, names in sorted(built_for.items()):
        least = _LEAST_DRIVER.get(major)
        if least is not None and _numbers(drivers[0])[:2] < least:
            wanted = ".".join(map(str, least))
            what = f"driver {drivers[0]} is older than CUDA {major} needs ({wanted}), for {', '.join(names)}"
            findings.append(Finding(what=what, ok=False, remedy=f"install NVIDIA driver {wanted} or newer"))
    if len(built_for) > 1:
        what = "built for different CUDA versions: " + "; ".join(", ".join(names) for names in built_for.values())
        findings.append(Finding(what=what, ok=False, remedy="install all of them for one CUDA version"))
    torch = here.libraries.get("torch", "")
    if torch.endswith("+cpu"):
        what = f"torch {torch} is a CPU build on a machine with a GPU: the original is timed on the CPU"
        findings.append(Finding(what=what, ok=False, optional=True, remedy="install torch's CUDA build"))
    return findings


def _against(here: Environment, target: str) -> list[Finding]:
    from optimize.targets import loading

    wanted = loading.load(target, "onnxruntime" if target.startswith("cpu") else "tensorrt")
    if wanted.device == "cuda":
        capability = f"compute capability {wanted.compute_capability}"
        fits = any(capability in device for device in here.devices)
        seen = "; ".join(here.devices) or "no NVIDIA device"
        what = f"target {target} needs {capability}; here: {seen}"
        return [Finding(what=what, ok=fits, remedy="" if fits else _other_target(here))]
    missing = [name for name in wanted.instructions if name not in here.instructions]
    what = (
        f"target {target} needs {', '.join(missing)}, which this processor lacks"
        if missing
        else f"target {target} fits"
    )
    remedy = f"in the recipe: target: {loading.OWN_PROCESSOR}" if missing else ""
    return [Finding(what=what, ok=not missing, remedy=remedy)]


def _other_target(here: Environment) -> str:
    """What to do on a machine that lacks the target's GPU."""
    from optimize.targets import loading

    if not here.devices:
        missing = importlib.util.find_spec("pynvml") is None
        see = "pip install nvidia-ml-py, without which none is seen" if missing else "install the NVIDIA driver"
        return f"{see}; on a machine without a GPU, in the recipe: target: {loading.OWN_PROCESSOR}"
    fitting = []
    for name in loading.names():
        if "tensorrt" in loading.engines_of(name):
            capability = f"compute capability {loading.load(name, 'tensorrt').compute_capability},"
            fitting += [name] * any(capability in device for device in here.devices)
    return f"in the recipe: target: {' or '.join(fitting)}" if fitting else "no known target fits this device"


def _numbers(version: str) -> tuple[int, ...]:
    found = []
    for part in version.split("+")[0].split("."):
        digits = "".join(character for character in part if character.isdigit())
        if not digits:
            break
        found.append(int(digits))
    return tuple(found)
