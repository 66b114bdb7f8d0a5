"""How much nearest-neighbour agreement depends on the sentences: the INT8 recipe's model on sets of 256 each.

    python -m tests.benchmarks.neighbour_sets out/minilm-int8-cpu/model.onnx [--out docs/neighbour-sets.md]

`optimize run recipes/minilm-int8-cpu.yaml` makes the model. The first set is the recipe's own, the second the
quantization table's; nothing was chosen on any other.
"""

from __future__ import annotations

import argparse
import datetime
import itertools
import tempfile
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from calibration_data import docstrings
from tests.benchmarks.quantization_table import ROOT, Arrays, as_written, cosines, nearest, prepare

SIZE, SETS = 256, 9


def main(arguments: Sequence[str] | None = None) -> None:
    """Compare set by set, then write the page."""
    parser = argparse.ArgumentParser(prog="python -m tests.benchmarks.neighbour_sets", description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "neighbour-sets.md")
    asked = parser.parse_args(arguments)
    rows = []
    with tempfile.TemporaryDirectory() as folder:
        prepare(Path(folder), SIZE)
        for number in range(SETS):
            sentences = itertools.islice(docstrings.sentences("evaluation"), number * SIZE, None)
            batches: list[Arrays] = list(docstrings.batches(sentences, SIZE, 8, 128))
            expected = as_written(Path(folder) / "source.onnx", batches)
            got = as_written(asked.model, batches)
            angles = cosines(expected, got)
            rows.append((float((nearest(expected) == nearest(got)).mean()), angles.mean(), angles.min()))
            print(number + 1, rows[-1], flush=True)
    asked.out.write_text(page(rows), encoding="utf-8")


def page(rows: Sequence[tuple[float, float, float]]) -> str:
    """The page; `rows` are (agreement, mean cosine, least cosine) of each set."""
    shares = np.array([row[0] for row in rows])
    told = [
        f"| {number} | {share:.3f} | {mean:.4f} | {least:.4f} |"
        for number, (share, mean, least) in enumerate(rows, 1)
    ]
    reached = int((shares >= 0.95).sum())
    return "\n".join(
        [
            "# Nearest neighbours, set by set",
            "",
            f"Written by `python -m tests.benchmarks.neighbour_sets`, {datetime.date.today()}; not edited by hand.",
            "",
            f"The model of `recipes/minilm-int8-cpu.yaml` against FP32, on {len(rows)} sets of {SIZE} sentences "
            "that share none with each other or with the calibration's; the first is the recipe's evaluation, the "
            "second the [quantization table](quantization-table.md)'s. *Agreement*: the share of sentences whose "
            "nearest sentence in the set is the same; one sentence is 0.004.",
            "",
            "| set | agreement | cosine mean | least |",
            "|---:|---:|---:|---:|",
            *told,
            "",
            f"Agreement over all: {shares.mean():.3f}, from {shares.min():.3f} to {shares.max():.3f}, standard "
            f"deviation {shares.std(ddof=1):.3f}; 0.95 is reached in {reached} of {len(rows)} sets.",
            "",
        ]
    )


if __name__ == "__main__":
    main()
