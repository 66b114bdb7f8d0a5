"""A device address in the form that Triton takes."""

from __future__ import annotations

import dataclasses
from typing import Any


@dataclasses.dataclass(frozen=True)
class Pointer:
    """An address and the torch type of what lies there."""

    address: int
    dtype: Any

    def data_ptr(self) -> int:
        """The address, as a tensor gives it."""
        return self.address
