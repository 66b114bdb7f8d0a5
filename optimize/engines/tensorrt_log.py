"""TensorRT's messages, kept instead of printed; and its progress, passed on."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

from optimize.engines.base import Progress

_NOISE = (
    "catchCudaError",
    "Thread context has not been set",
    "is unsupported in TensorRT-RTX",
    "Int64 binding",
)
_ERROR_CODE = re.compile(r"^(?:\[\S+\] |\S+: )?Error Code \d+: [\w ]+ \((.*)\)\s*$", re.DOTALL)
_SOURCE = re.compile(r"\s*In \S+ at \S+:\d+\s*|^\w+\.cpp:\d+: |\[?\w+\.(?:h|cpp):\d+: \w+\]? ?")

LAYERS = "Layers:"
"""How the message starts that lists a built engine's layers (at detailed profiling verbosity)."""


class Messages:
    """What a TensorRT library said.

    Attributes:
        errors, warnings: In order, cleaned of source positions.
        layers: The list of the built engine's layers, as text; empty when it gave none.
        memory: Bytes by kind, from "Total Weights Memory: 131328 bytes": {"Weights": 131328}.
    """

    def __init__(self) -> None:
        self.errors: list[str] = []
        self.warnings: list[str] = []
        self.layers = ""
        self.memory: dict[str, int] = {}

    def first_error(self, otherwise: str) -> str:
        """The first error, which is the cause where others follow from it; `otherwise` when there is none."""
        return self.errors[0] if self.errors else otherwise

    def last_error(self, otherwise: str) -> str:
        """The latest error, or `otherwise` when there is none."""
        return self.errors[-1] if self.errors else otherwise


def cleaned(message: str) -> str:
    """A message's own words: without error numbers and positions in the library's sources.

    "IBuilder::x: Error Code 4: API Usage Error (no output. In validate at /_src/a.cpp:3)" → "no output."
    """
    lines = [line for line in message.splitlines() if not any(noise in line for noise in _NOISE)]
    words = []
    for line in lines:
        match = _ERROR_CODE.match(line.strip())
        words.append(_SOURCE.sub(" ", match[1] if match else line).strip())
    return " ".join(word for word in words if word)


def logger(api: Any, messages: Messages) -> Any:
    """An `ILogger` that fills `messages`; `api` is the TensorRT module."""
    severity = api.ILogger.Severity

    class Recorder(api.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            api.ILogger.__init__(self)

        def log(self, level: Any, text: str) -> None:
            if level in (severity.INTERNAL_ERROR, severity.ERROR, severity.WARNING):
                said = cleaned(text)
                kept = messages.warnings if level == severity.WARNING else messages.errors
                if said and said not in kept:
                    kept.append(said)
            elif text.startswith(LAYERS):
                messages.layers = text
            elif match := re.match(r"Total (\w+) Memory: (\d+) bytes", text):
                messages.memory[match[1]] = int(match[2])

    return Recorder()


def monitor(api: Any, progress: Progress) -> tuple[Any, Callable[[], None]]:
    """An `IProgressMonitor` that passes every step on, and a call that raises what `progress` raised.

    An exception cannot cross the library, so it cancels the build and waits to be raised again.
    """
    raised: list[BaseException] = []
    steps: dict[str, int] = {}

    class Monitor(api.IProgressMonitor):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IProgressMonitor.__init__(self)

        def phase_start(self, name: str, parent: str | None, count: int) -> None:
            steps[name] = count

        def phase_finish(self, name: str) -> None:
            steps.pop(name, None)

        def step_complete(self, name: str, step: int) -> bool:
            if raised:
                return False
            try:
                progress(name, step + 1, steps.get(name, 0))
            except BaseException as error:
                raised.append(error)
                return False
            return True

    def reraise() -> None:
        if raised:
            raise raised[0]

    return Monitor(), reraise
