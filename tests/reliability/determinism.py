"""Runs a recipe with several thread counts and hash seeds: `python -m tests.reliability.determinism RECIPE …`.

Every artifact must be the same bytes each time, in folders of different names; what comes after the build writes
none. Writes `docs/reliability/determinism.json`. For two machines, `--digests FILE` on each writes what it made and
on what, and `--ours FILE --against FILE` compares.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import subprocess
import tempfile
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from tests.reliability import crash
from tests.support import tiny

Digests = dict[str, dict[str, str]]
"""Recipe → artifact → sha256."""

RESULT = Path("docs/reliability/determinism.json")
GENERATED = {
    "perceptron-int8-static": "quantize.int8: {activations: static}",
    "perceptron-int4": "quantize.int4: {block_size: 32}",
    "perceptron-fp16": "cast.fp16",
}
VARIANTS = ({"OMP_NUM_THREADS": "1", "PYTHONHASHSEED": "1"}, {"OMP_NUM_THREADS": "2", "PYTHONHASHSEED": "2"})


def compare(recipe: Path, scratch: Path) -> dict[str, Any]:
    """Run the recipe once per variant, nothing shared; which artifacts are the same bytes and which are not."""
    found = [made(recipe, scratch / f"run-{number}", variant) for number, variant in enumerate(VARIANTS)]
    names = sorted({name for item in found for name in item})
    return {
        "recipe": recipe.name,
        "between": "1 and 2 threads, two hash seeds, two folders",
        "same": [name for name in names if len({item.get(name) for item in found}) == 1],
        "different": [name for name in names if len({item.get(name) for item in found}) > 1],
    }


def made(recipe: Path, folder: Path, variant: Mapping[str, str]) -> dict[str, str]:
    """Run the recipe in an empty folder; sha256 of every artifact.

    Raises:
        SystemExit: When the run fails.
    """
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
    return crash.artifacts(folder / "out")


def generated(folder: Path) -> list[Path]:
    """Recipes that need no other package: a perceptron with random weights, in integers and in low precision."""
    found = []
    for name, lines in GENERATED.items():
        place = folder / name
        place.mkdir()
        tiny.write_model(place / "tiny.onnx", width=256)
        text = tiny.RECIPE.replace("name: tiny", f"name: {name}").replace("  - ${passes}", f"  - fuse\n  - {lines}")
        found.append(place / f"{name}.yaml")
        found[-1].write_text(text + "calibration: {data: random, samples: 32}\n")
    return found


def digests(recipes: Sequence[Path]) -> Digests:
    """sha256 of every artifact of every recipe, as this machine makes them."""
    with tempfile.TemporaryDirectory() as scratch:
        return {recipe.name: made(recipe, Path(scratch) / recipe.stem, {}) for recipe in recipes}


def beside(
    ours: dict[str, dict[str, str]], theirs: dict[str, dict[str, str]], machines: str
) -> list[dict[str, Any]]:
    """Which artifacts two machines made alike."""
    found = []
    for recipe in ours.keys() & theirs.keys():
        left, right = ours[recipe], theirs[recipe]
        names = {*left, *right} - {*crash.NOT_COMPARED}
        same = {name for name in names if left.get(name) == right.get(name)}
        found.append(
            {"recipe": recipe, "between": machines, "same": sorted(same), "different": sorted(names - same)}
        )
    return sorted(found, key=lambda row: str(row["recipe"]))


def machine() -> str:
    """Processor and the versions that artifacts depend on."""
    model = Path("/proc/cpuinfo").read_text().partition("model name\t: ")[2].partition("\n")[0]
    packages = ", ".join(f"{name} {metadata.version(name)}" for name in ("numpy", "onnxruntime", "onnx", "onnx-ir"))
    return f"{model or platform.machine()}, Python {platform.python_version()}, {packages}"


def main() -> None:
    """Run and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("recipes", type=Path, nargs="*", help="Beside the generated ones.")
    parser.add_argument("--digests", type=Path, help="Only run once and write the artifacts' digests here.")
    parser.add_argument("--against", type=Path, help="The other machine's digests.")
    parser.add_argument("--ours", type=Path, help="This machine's digests; the rows are added.")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory() as scratch:
        recipes = [*given.recipes, *generated(Path(scratch))]
        if given.digests:
            made_here = {"machine": machine(), "digests": digests(recipes)}
            given.digests.write_text(json.dumps(made_here, indent=2) + "\n")
            return
        if given.ours and given.against:
            facts = json.loads(RESULT.read_text()) if RESULT.exists() else []
            sides = [json.loads(path.read_text()) for path in (given.ours, given.against)]
            between = "; ".join(side["machine"] for side in sides)
            facts = [row for row in facts if row["between"] != between]
            facts += beside(*(side["digests"] for side in sides), between)
        else:
            facts = [compare(recipe, Path(scratch) / f"{recipe.stem}-runs") for recipe in recipes]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
