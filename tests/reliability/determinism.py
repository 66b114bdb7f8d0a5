"""Runs a recipe with several thread counts and hash seeds: `python -m tests.reliability.determinism`.

Every artifact must be the same bytes each time, in folders of different names; what comes after the build writes
none. Writes `docs/reliability/determinism.json`.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from tests.reliability import crash

RESULT = Path("docs/reliability/determinism.json")
VARIANTS = ({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}, {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2"})


def compare(recipe: Path, scratch: Path) -> dict[str, Any]:
    """Run the recipe once per variant, nothing shared; which artifacts are the same bytes and which are not."""
    found = []
    for number, variant in enumerate(VARIANTS):
        folder = scratch / f"run-{number}"  # the same depth: a resolved recipe tells its files' way from itself
        folder.mkdir(parents=True)
        result = subprocess.run(
            [*crash.command(recipe.resolve(), folder / "store", folder / "out"), "--until", "build"],
            env={**os.environ, **variant},
            capture_output=True,
            text=True,
            check=False,
        )
        if result.returncode not in (0, 1):
            raise SystemExit(result.stderr)
        found.append(crash.artifacts(folder / "out"))
    names = sorted({name for item in found for name in item})
    return {
        "recipe": recipe.name,
        "same": [name for name in names if len({item.get(name) for item in found}) == 1],
        "different": [name for name in names if len({item.get(name) for item in found}) > 1],
    }


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="*", default=[crash.RECIPE])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        facts = [compare(recipe, Path(scratch) / recipe.stem) for recipe in given.recipes]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
