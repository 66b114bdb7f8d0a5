"""What passes are given of the world: the judge of candidates compares with outputs that are kept on disk."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from optimize.engines.onnxruntime import OnnxRuntimeEngine
from optimize.pipeline import batches
from optimize.pipeline.watching import StoredCalibration, StoredJudge
from passes.quantize._held_out import WithoutLast
from tests.support import runner

MODEL = """<ir_version: 10, opset_import: ["" : 20]>
g (float[batch, 4] x) => (float[batch, 4] y) <float[1] half = {0.5}> { y = Mul(x, half) }"""


def test_a_candidate_is_scored_against_the_reference_which_runs_once(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    feeds = [{"x": rng.normal(size=(3, 4)).astype(np.float32)} for _ in range(2)]
    batches.write(tmp_path / "calibration", feeds)
    reference = ir.from_onnx_text(MODEL)
    ran: list[ir.Model] = []

    def run(model: ir.Model, given: dict[str, np.ndarray], outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        ran.append(model)
        return runner.run(model, given, outputs)

    judge = StoredJudge(
        calibration=StoredCalibration(tmp_path / "calibration", 6, run),  # type: ignore[arg-type]
        reference=reference, engine=OnnxRuntimeEngine(), ranges={}, scratch=tmp_path, kind="auto",
        simulate=lambda model: model,
    )  # fmt: skip
    wrong = ir.from_onnx_text(MODEL.replace("0.5", "-0.4"))
    assert judge.accuracy(ir.from_onnx_text(MODEL))["relative_l2"] == 0
    scored = judge.accuracy(wrong)
    assert scored["cosine"] == pytest.approx(-1)
    assert scored["relative_l2"] == pytest.approx(1.8)
    assert sum(model is reference for model in ran) == len(feeds)
    assert batches.count(tmp_path / "judge-reference") == len(feeds)


@pytest.mark.parametrize(("count", "held_out"), [(3, 0), (4, 1), (8, 2)])
def test_the_last_quarter_of_the_batches_is_scored_and_no_other(count: int, held_out: int, tmp_path: Path) -> None:
    feeds = [{"x": np.full((2, 4), place, np.float32)} for place in range(1, count + 1)]
    batches.write(tmp_path / "calibration", feeds)
    given: list[int] = []

    def run(model: ir.Model, fed: dict[str, np.ndarray], outputs: tuple[str, ...] = ()) -> dict[str, np.ndarray]:
        given.append(int(fed["x"][0, 0]))
        return runner.run(model, fed, outputs)

    calibration = StoredCalibration(tmp_path / "calibration", 2 * count, run)  # type: ignore[arg-type]
    judge = StoredJudge(
        calibration=calibration, reference=ir.from_onnx_text(MODEL), engine=OnnxRuntimeEngine(), ranges={},
        scratch=tmp_path, kind="auto", simulate=lambda model: model,
    )  # fmt: skip
    assert judge.accuracy(ir.from_onnx_text(MODEL))["relative_l2"] == 0
    assert judge.held_out == held_out
    fitted = WithoutLast(calibration, judge.held_out)
    assert fitted.samples == 2 * (count - held_out)
    left = [int(each["x"][0, 0]) for each in fitted.feeds()]
    seen = [int(each["y"][0, 0] * 2) for each in fitted.observe(ir.from_onnx_text(MODEL), ["y"])]
    assert left == seen == list(range(1, count - held_out + 1))
    scored = list(range(1, count + 1))[-held_out:] if held_out else left
    assert given[: 2 * len(scored)] == scored * 2
