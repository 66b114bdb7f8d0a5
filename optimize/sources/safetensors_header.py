"""Whether a safetensors file is whole, by its header alone: weights are not read."""

from __future__ import annotations

from pathlib import Path

from optimize.errors import UsageError


def check(path: Path) -> int:
    """Number of tensors in the file.

    Raises:
        UsageError: When the header is damaged, or names bytes that the file does not have.
    """
    import safetensors

    try:
        with safetensors.safe_open(str(path), framework="numpy") as file:
            return len(file.keys())
    except (safetensors.SafetensorError, OSError, ValueError) as error:
        line = " ".join(str(error).split())[:200]
        raise UsageError(
            f"'{path.name}' is not a safetensors file, or it is damaged: {line}.", hint="Copy it again."
        ) from error
