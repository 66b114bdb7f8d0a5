"""A few architectures as torch exports them; `python -m tests.benchmarks.fusion_table` runs all of them."""

from __future__ import annotations

import onnx_ir as ir
import pytest

from tests.support.runner import CPU, TENSORRT, context

zoo = pytest.importorskip("tests.support.zoo", reason="needs torch and transformers", exc_type=ImportError)

pytestmark = pytest.mark.slow
EVERYWHERE = TENSORRT.model_copy(update={"attention": ("fp32", "fp16")})


@pytest.fixture(scope="module", params=["bert", "llama", "resnet-like"])
def exported(request):  # type: ignore[no-untyped-def]
    model, example = zoo.export(request.param, "sdpa")
    return ir.to_proto(model), example.expected


@pytest.mark.parametrize("target", [CPU, EVERYWHERE], ids=["onnxruntime", "tensorrt"])
def test_everything_that_the_source_says_is_found_with_equal_outputs(exported, target) -> None:  # type: ignore[no-untyped-def]
    from tests.support.coverage import cover

    proto, expected = exported
    result = cover(ir.from_proto(proto), ir.from_proto(proto), context(target))
    left_to_tensorrt = ("skip_layer_norm", "bias_gelu")
    wanted = {
        pattern: count for pattern, count in expected.items() if target is CPU or pattern not in left_to_tensorrt
    }
    assert {pattern: result.total(pattern) for pattern in wanted} == wanted
    assert result.error < 2**-14
    assert result.nodes_after < result.nodes_before
