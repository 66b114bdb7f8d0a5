"""Python's garbage collector at rest, where its work would disturb or hang."""

from __future__ import annotations

import contextlib
import gc
from collections.abc import Iterator


@contextlib.contextmanager
def at_rest() -> Iterator[None]:
    """Collect once, then not inside the block.

    While timing, a collection is noise. While TensorRT calls back to log, it holds a lock: a collection that starts
    in that call may free an object of the library from an earlier failure, which logs and waits for ever.
    """
    was_on = gc.isenabled()
    gc.collect()
    gc.disable()
    try:
        yield
    finally:
        if was_on:
            gc.enable()
