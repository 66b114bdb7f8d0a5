"""Takes a large generated model through the passes: `python -m tests.reliability.scale --billions 7`.

Each case runs `optimize run --until passes` as a user would and reads the report: seconds, peak anonymous memory
and bytes written, each beside what the estimate said before the run. Writes `docs/reliability/scale.json`.
"""

from __future__ import annotations

import argparse
import json
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from optimize.pipeline import preflight
from optimize.recipe import reading
from tests.benchmarks import large_model

RESULT = Path("docs/reliability/scale.json")
RECIPE = """\
schema_version: 1
name: scale
source: {{kind: onnx, path: model.onnx}}
target: {target}
engine: {{kind: {engine}}}
passes:
  - clean
  - fuse
  - {quantize}
"""
CASES = (
    ("int4", "quantize.int4: {block_size: 32}", "cpu", "onnxruntime"),
    ("fp8", "quantize.fp8: {activations: none}", "h200", "tensorrt"),
    ("nvfp4", "quantize.fp4: {activations: none}", "b200", "tensorrt"),
)


def case(folder: Path, name: str, quantize: str, target: str, engine: str) -> dict[str, Any]:
    """Run one format on the model in `folder`."""
    recipe = folder / f"{name}.yaml"
    recipe.write_text(RECIPE.format(quantize=quantize, target=target, engine=engine))
    output, store = folder / f"out-{name}", folder / f"store-{name}"
    words = ["run", str(recipe), "--until", "passes", "--store", str(store), "--output", str(output)]
    loaded = reading.load(recipe)
    whole = preflight.plan(loaded, store, output=output, until="passes").estimate
    assert whole is not None
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "optimize", *words], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if result.returncode != 0:
        raise SystemExit(f"{name}: {result.stderr}")
    report = json.loads((output / "report.json").read_text())
    stages = {item["name"]: item for item in report["stages"]}
    size = sum(item.stat().st_size for item in output.glob("model*"))
    facts: dict[str, Any] = {
        "format": name,
        "billions": round(report["exported"]["parameters"] / 1e9, 2),
        "nodes": report["exported"]["nodes"],
        "run_s": beside(seconds, whole.seconds, 1),
    }
    for step in ("capture", "passes"):
        expected = stages[step]["expected"]
        facts[f"{step}_s"] = beside(stages[step]["seconds"], expected["seconds"], 1)
        facts[f"{step}_mb"] = beside(
            stages[step]["peak_anonymous_bytes"] / 1e6, expected["peak_anonymous_bytes"] / 1e6, 0
        )
    facts["written_mb"] = beside(size / 1e6, stages["passes"]["expected"]["written_bytes"] / 1e6, 0)
    shutil.rmtree(store)
    shutil.rmtree(output)
    return facts


def beside(measured: float, expected: float, digits: int) -> str:
    """Measured, expected, and by how much the expectation was off."""
    off = (expected - measured) / measured if measured else 0.0
    return f"{measured:,.{digits}f} (expected {expected:,.{digits}f}, {off:+.0%})"


def main() -> None:
    """Generate, run, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--billions", type=float, nargs="+", default=[0.5, 1.0, 2.0, 7.0])
    parser.add_argument("--folder", type=Path, help="Where the model is generated; a temporary folder if absent.")
    parser.add_argument("--only", choices=[name for name, *_ in CASES])
    given = parser.parse_args()
    wanted = [item for item in CASES if given.only in (None, item[0])]
    facts = json.loads(RESULT.read_text()) if RESULT.exists() else []
    for billions in given.billions:
        with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
            large_model.generate(Path(scratch) / "model.onnx", billions)
            for item in wanted:
                found = case(Path(scratch), *item)
                sys.stderr.write(f"{found}\n")
                facts = [row for row in facts if same(row) != same(found)] + [found]
                RESULT.parent.mkdir(parents=True, exist_ok=True)
                RESULT.write_text(json.dumps(sorted(facts, key=same), indent=2) + "\n")


def same(row: dict[str, Any]) -> tuple[float, int]:
    """What a later run of a row replaces, and the order of rows."""
    return row["billions"], [name for name, *_ in CASES].index(row["format"])


if __name__ == "__main__":
    main()
