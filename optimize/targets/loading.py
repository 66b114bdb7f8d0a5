"""Reads a target from `optimize/targets/<name>.yaml`: a device's facts, what its engine does anywhere
(`engines/`), and what it does on the device's family (`families/`)."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from optimize.errors import UsageError
from passes.target import Target

_FOLDER = Path(__file__).parent
OWN_PROCESSOR = "cpu"
"""The target whose instruction sets are those of the machine at hand."""
_CPU_INSTRUCTIONS = (
    "avx2", "fma", "f16c", "avx_vnni", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16",
    "amx_tile", "amx_int8", "amx_bf16", "asimd", "asimddp", "i8mm", "sve",
)  # fmt: skip
"""Those whose presence changes what is fast for matrix work, as /proc/cpuinfo spells them."""


@functools.cache
def names() -> tuple[str, ...]:
    """Every target's name."""
    return tuple(sorted(path.stem for path in _FOLDER.glob("*.yaml")))


def engines_of(name: str) -> tuple[str, ...]:
    """The engines that a target lists, without loading its facts into types."""
    return tuple(_engines(_read(name)))


def load(name: str, engine_kind: str) -> Target:
    """The target as one engine uses it.

    Raises:
        UsageError: When there is no such target, or the engine does not run on it.
    """
    if name not in names():
        raise UsageError(f"target: no target is called '{name}'.", hint=f"Known: {', '.join(names())}.")
    data = dict(_read(name))
    engines = _engines(data)
    del data["family"]
    if engine_kind not in engines:
        raise UsageError(
            f"target '{name}' is not run by the engine '{engine_kind}'.",
            hint=f"Engines for it: {', '.join(engines)}.",
        )
    engine = dict(engines[engine_kind])
    sources = {**data.pop("sources", {}), **engine.pop("sources", {})}
    facts = {**data, **engine, "name": name, "sources": sources}
    if name == OWN_PROCESSOR:
        facts["instructions"] = cpu_instructions()
    return Target.model_validate(facts)


def _engines(data: dict[str, Any]) -> dict[str, Any]:
    """What each engine does: on every device, and on the device's family, which prevails."""
    family = _read(f"families/{data['family']}")
    return {
        kind: _merged(_read(f"engines/{kind}") if (_FOLDER / f"engines/{kind}.yaml").exists() else {}, facts)
        for kind, facts in family.items()
    }


def _merged(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return {key: _merged(base.get(key), over[key]) if key in over else base[key] for key in {**base, **over}}


@functools.cache
def _read(name: str) -> dict[str, Any]:
    data: dict[str, Any] = YAML(typ="safe", pure=True).load(_FOLDER / f"{name}.yaml")
    return data


@functools.cache
def cpu_instructions() -> tuple[str, ...]:
    """This machine's instruction sets that matter, in a fixed order; empty where the system does not tell."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        return ()
    flags = {
        word
        for line in text.splitlines()
        if line.partition(":")[0].strip() in ("flags", "Features")
        for word in line.partition(":")[2].split()
    }
    return tuple(name for name in _CPU_INSTRUCTIONS if name in flags)
