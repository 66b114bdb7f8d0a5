"""Why the whole of onnxscript's ONNX Runtime fusions is not run: what it makes of models that ours keep."""

from __future__ import annotations

import onnx_ir as ir
import onnxruntime
import pytest

from tests.support.runner import CPU, context

zoo = pytest.importorskip("tests.support.zoo", reason="needs torch and transformers", exc_type=ImportError)

pytestmark = pytest.mark.slow


def test_its_fusions_leave_a_gpt2_that_onnx_runtime_refuses_and_ours_do_not() -> None:
    """A product's `Gemm` loses the reshape that made its input a matrix (onnxscript 0.7.2).

    When this fails, their rules hold there: measure them again in `tests/benchmarks/fusion_latency.py`.
    """
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    from tests.support.coverage import cover

    exported = ir.to_proto(zoo.export("gpt2", "sdpa")[0])
    theirs, _ = optimize_for_ort(ir.from_proto(exported))
    with pytest.raises(Exception, match=r"Gemm.*Input 0 expected to have rank 2 but has rank 3"):
        onnxruntime.InferenceSession(ir.to_proto(theirs).SerializeToString())
    ours = cover(ir.from_proto(exported), ir.from_proto(exported), context(CPU))
    assert ours.error < 2**-14
    assert ours.total("attention") > 0
