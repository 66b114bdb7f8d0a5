"""The child's side of `optimize.pipeline.child`: runs one stage and reports over a pipe."""

from __future__ import annotations

import errno
import importlib
import json
import os
import sys
import tempfile
import threading
import time
import traceback
from pathlib import Path
from typing import Any

from optimize import errors
from optimize.pipeline import dependencies, memory, write_guard

_PROGRESS_PERIOD_S = 0.1


def main() -> None:
    """Read the request from standard input, run the stage, write events to the given file descriptor."""
    events = os.fdopen(int(sys.argv[1]), "wb")
    request = json.loads(sys.stdin.buffer.readline())
    threading.Thread(target=_end_with_parent, daemon=True).start()
    if request["store"] is not None:
        write_guard.protect(Path(request["store"]), writable=(Path(request["directory"]),))
        # Python tries to write there. Compilers that a stage starts only ask whether they may, and are told wrong.
        os.environ["TMPDIR"] = tempfile.gettempdir()
    stage = request["stage"]
    last = 0.0

    def send(event: dict[str, Any]) -> None:
        events.write(json.dumps(event).encode() + b"\n")
        events.flush()

    def progress(what: str, done: int, total: int) -> None:
        nonlocal last
        now = time.monotonic()
        if now - last < _PROGRESS_PERIOD_S and done < total:
            return
        last = now
        send({"progress": [what, done, total]})

    watch = memory.AnonymousPeak()
    reads = dependencies.Reads()
    try:
        module = importlib.import_module(f"optimize.pipeline.stages.{stage}")
        with watch:
            if request["runs_user_code"]:
                reads.start()
            facts = module.run(request["payload"], Path(request["directory"]), progress)
        send(
            {
                "facts": facts,
                "peak_anonymous_bytes": watch.peak_bytes,
                "dependencies": reads.digests(exclude=Path(request["directory"])),
            }
        )
    except errors.OptimizeError as error:
        traceback.print_exc()
        send({"error": {"kind": type(error).__name__, "message": error.message, "hint": error.hint}})
    except MemoryError:
        traceback.print_exc()
        send({"error": {"kind": "StageFailed", "message": f"{stage}: not enough memory."}})
    except OSError as error:
        traceback.print_exc()
        hint = "Free some space, or choose another disk with --store." if error.errno == errno.ENOSPC else ""
        send({"error": {"kind": "StageFailed", "message": f"{stage}: {error}.", "hint": hint}})
    except Exception as error:
        traceback.print_exc()
        send({"error": {"kind": "", "message": f"{stage}: {type(error).__name__}: {error}"}})
    events.close()
    sys.stdout.flush()
    sys.stderr.flush()
    # Libraries' exit handlers (thread pools, compilers) have nothing left to do that anyone waits for.
    os._exit(0)


def _end_with_parent() -> None:
    """The parent holds the other end of standard input: its end is ours, however it died."""
    while os.read(0, 4096):
        pass
    os._exit(errors.INTERRUPTED)


if __name__ == "__main__":
    main()
