"""Takes a large generated model through the passes: `python -m tests.reliability.scale --billions 7`.

Each case runs `optimize run --until passes` as a user would and reads the report: seconds, peak anonymous memory
of the passes' process, and how far the preflight estimate was off. Writes `docs/reliability/scale.json`.
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
    started = time.monotonic()
    result = subprocess.run([sys.executable, "-m", "optimize", *words], capture_output=True, text=True, check=False)
    seconds = time.monotonic() - started
    if result.returncode != 0:
        raise SystemExit(f"{name}: {result.stderr}")
    report = json.loads((output / "report.json").read_text())
    stages = {item["name"]: item for item in report["stages"]}
    peaks = {step: (stages[step]["peak_anonymous_bytes"] or 0) / 1e6 for step in ("capture", "passes")}
    size = sum(item.stat().st_size for item in output.glob("model*"))
    shutil.rmtree(store)
    shutil.rmtree(output)
    return {
        "format": name,
        "parameters": report["exported"]["parameters"],
        "seconds": round(seconds, 1),
        "seconds_passes": round(stages["passes"]["seconds"], 1),
        "peak_anonymous_mb": {step: round(value) for step, value in peaks.items()},
        "size_gb": round(size / 1e9, 2),
    }


def main() -> None:
    """Generate, run, write the figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--billions", type=float, default=7.0)
    parser.add_argument("--folder", type=Path, help="Where the model is generated; a temporary folder if absent.")
    parser.add_argument("--only", choices=[name for name, *_ in CASES])
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=given.folder) as scratch:
        large_model.generate(Path(scratch) / "model.onnx", parameters=round(given.billions * 1e9))
        wanted = [item for item in CASES if given.only in (None, item[0])]
        facts = [case(Path(scratch), *item) for item in wanted]
    RESULT.parent.mkdir(parents=True, exist_ok=True)
    RESULT.write_text(json.dumps(facts, indent=2) + "\n")


if __name__ == "__main__":
    main()
