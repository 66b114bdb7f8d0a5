from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest

from passes.surgery.stem_space_to_depth import StemSpaceToDepth
from tests.support.graphs import assert_same_outputs, graph, operators
from tests.support.runner import TENSORRT, context
from tests.support.tensorrt_rtx.building import build


def stem(
    kernel: tuple[int, int] = (7, 7),
    image: str = "12,20",
    channels: int = 3,
    attributes: str = "strides = [2, 2], pads = [3, 3, 3, 3]",
    tail: str = "",
    outputs: str = "float[B,8,H,W] y",
    inputs: str = "w, b",
    dtype: type[np.generic] = np.float32,
) -> ir.Model:
    """A biased convolution that opens a network; weights drawn from a fixed seed."""
    model = graph(f"y = Conv<{attributes}>(x, {inputs}) {tail}", f"float[B,{channels},{image}] x", outputs)
    rng = np.random.default_rng(1)
    width = int(attributes.partition("group = ")[2][:1] or 1)
    for name, shape in {"w": (8, channels // width, *kernel), "b": (8,)}.items():
        tensor = ir.tensor(rng.standard_normal(shape).astype(dtype), name=name)
        stored = next(value for node in model.graph for value in node.inputs if value and value.name == name)
        stored.const_value = tensor
        stored.dtype, stored.shape = tensor.dtype, tensor.shape
        model.graph.initializers[name] = stored
    return model


@pytest.mark.parametrize(
    ("kernel", "image", "pads"),
    [
        ((7, 7), "12,20", [3, 3, 3, 3]),
        ((3, 3), "8,8", [1, 1, 1, 1]),
        ((3, 3), "8,8", [0, 0, 1, 1]),
        ((2, 2), "8,6", [0, 0, 0, 0]),
        ((5, 4), "10,8", [2, 1, 2, 1]),
        ((6, 6), "8,8", [2, 2, 2, 2]),
    ],
)
def test_a_strided_stem_reads_blocks_of_pixels(kernel: tuple[int, int], image: str, pads: list[int]) -> None:
    attributes = f"strides = [2, 2], pads = {pads}"
    before, after = (stem(kernel, image, attributes=attributes) for _ in range(2))
    assert StemSpaceToDepth().apply(after, context()).rewrites == 1
    assert operators(after) == {"SpaceToDepth": 1, "Conv": 1}
    assert_same_outputs(after, before)
    assert StemSpaceToDepth().apply(after, context()).rewrites == 0


def test_seven_taps_on_three_channels_become_four_on_twelve() -> None:
    model = stem()
    StemSpaceToDepth().apply(model, context())
    conv = next(node for node in model.graph if node.op_type == "Conv")
    weight = conv.inputs[1]
    assert weight is not None
    assert weight.shape == ir.Shape((8, 12, 4, 4))
    assert list(conv.attributes["pads"].value) == [2, 2, 1, 1]


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"attributes": "strides = [1, 1], pads = [3, 3, 3, 3]"}, "strides are [1, 1], needs [2, 2]"),
        ({"image": "12,21"}, "the image is 12 × 21, needs even numbers"),
        ({"image": "S,20"}, "the image is S × 20, needs even numbers"),
        (
            {"attributes": "strides = [2, 2], pads = [3, 3, 3, 3], dilations = [2, 2]"},
            "dilations are [2, 2], needs [1, 1]",
        ),
        (
            {"attributes": "strides = [2, 2], pads = [3, 3, 3, 3], group = 2", "channels": 4},
            "the convolution has 2 groups, needs 1",
        ),
        ({"attributes": 'strides = [2, 2], auto_pad = "SAME_UPPER"'}, "padding is SAME_UPPER, needs explicit pads"),
        ({"kernel": (1, 1), "attributes": "strides = [2, 2]"}, ""),
        (
            {"kernel": (2, 2), "attributes": "strides = [2, 2], pads = [0, 0, -2, -2]", "image": "8,8"},
            "the last rows or columns are not read",
        ),
    ],
)  # fmt: skip
def test_a_look_alike_is_refused_with_the_reason(changes: dict[str, object], reason: str) -> None:
    before, after = (stem(**changes) for _ in range(2))  # type: ignore[arg-type]
    result = StemSpaceToDepth().apply(after, context())
    if reason:
        assert [miss.reason for miss in result.patterns[0].near_misses] == [reason]
        assert operators(after) == {"Conv": 1}
    else:
        assert_same_outputs(after, before)


def test_many_channels_are_left_without_a_word() -> None:
    model = stem(channels=8)
    result = StemSpaceToDepth().apply(model, context())
    assert result.rewrites == 0
    assert result.patterns[0].near_misses == ()


def test_a_weight_that_is_an_input_stays() -> None:
    model = graph("y = Conv<strides = [2, 2]>(x, w)", "float[B,3,8,8] x, float[8,3,2,2] w", "float[B,8,4,4] y")
    result = StemSpaceToDepth().apply(model, context())
    assert [miss.reason for miss in result.patterns[0].near_misses] == ["the weight is no constant, or a large one"]


def test_outputs_and_the_other_users_of_image_and_product_survive() -> None:
    arguments = {
        "tail": "z = Relu(y) a = ReduceMean(x)",
        "outputs": "float[B,8,H,W] y, float[B,8,H,W] z, float[P,Q,R,T] a",
    }
    before, after = (stem(**arguments) for _ in range(2))  # type: ignore[arg-type]
    assert StemSpaceToDepth().apply(after, context()).rewrites == 1
    assert_same_outputs(after, before)


@pytest.mark.tensorrt
def test_the_blocks_build_for_tensorrt(tmp_path: Path) -> None:
    model = stem(dtype=np.float16)
    for value in (*model.graph.inputs, *model.graph.outputs):
        value.dtype = ir.DataType.FLOAT16
    assert StemSpaceToDepth().apply(model, context(TENSORRT)).rewrites == 1
    assert build(model, tmp_path).details["counts"] == {"convolutions": {"fp16": 1}}
