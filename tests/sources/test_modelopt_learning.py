"""What ModelOpt learns of a PyTorch module: its quantizers' numbers, and the same outputs once they are placed."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from optimize.errors import StageFailed
from optimize.sources.modelopt_learning import learn
from optimize.sources.torch_capture import capture_module
from optimize.sources.torch_model import TorchModel, torch_model
from passes import lessons
from passes.quantize.modelopt_torch import QuantizeModelOptTorch
from tests.support.runner import CPU, context, run

torch = pytest.importorskip("torch")
pytestmark = pytest.mark.skipif(
    importlib.util.find_spec("modelopt") is None, reason='nvidia-modelopt is not installed (the extra "modelopt")'
)

ANY = CPU.model_copy(update={"precisions": ("fp32", "int8", "fp8", "int4", "fp4")})


class Net(torch.nn.Module):
    """A convolution with a batch normalisation, then two linear layers."""

    def __init__(self, convolution: bool) -> None:
        super().__init__()
        self.convolution = convolution
        if convolution:
            self.conv = torch.nn.Conv2d(4, 32, 3, padding=1)
            self.norm = torch.nn.BatchNorm2d(32)
            self.norm.running_var.uniform_(0.5, 2)
            self.norm.running_mean.normal_()
        self.first = torch.nn.Linear(32 if convolution else 256, 128)
        self.second = torch.nn.Linear(128, 64)

    def forward(self, x: Any) -> Any:
        h = torch.relu(self.norm(self.conv(x))).mean((2, 3)) if self.convolution else x.flatten(1)
        return self.second(torch.relu(self.first(h)))


def model(convolution: bool = True) -> TorchModel:
    torch.manual_seed(0)
    example = torch.randn(4, 4, 8, 8)
    built = {"module": Net(convolution), "inputs": {"x": example}, "dynamic_axes": {"x": {0: "batch"}}}
    return torch_model({**built, "output_names": ["y"], "ranges": {"batch": (1, 4, 16)}}, {}, what="Net")


def batches() -> Iterator[dict[str, np.ndarray]]:
    rng = np.random.default_rng(0)
    return iter([{"x": rng.standard_normal((8, 4, 8, 8)).astype(np.float32)} for _ in range(3)])


def quiet(what: str, done: int, total: int) -> None:
    """Progress nobody watches."""


@pytest.mark.parametrize(
    ("asked", "convolution"),
    [
        ({"config": "INT8_DEFAULT_CFG"}, True),
        ({"config": "INT8_SMOOTHQUANT_CFG"}, True),
        ({"config": "FP8_DEFAULT_CFG"}, True),
        ({"config": "INT4_AWQ_CFG"}, False),
        ({"config": "auto", "formats": ["INT8_DEFAULT_CFG", "FP8_DEFAULT_CFG"], "effective_bits": 8.0}, False),
    ],
    ids=lambda value: value["config"] if isinstance(value, dict) else "",
)
def test_the_exported_model_with_what_was_learned_gives_what_modelopts_module_gives(
    asked: dict[str, Any], convolution: bool, tmp_path: Path
) -> None:
    exported = capture_module(model(convolution), None, quiet).model
    quantized = model(convolution)
    learned = learn(quantized, asked, batches, 3, quiet)
    for layer in learned.layers:
        module = quantized.module.get_submodule(layer.module)
        assert layer.weight_amax is not None
        np.testing.assert_array_equal(layer.weight_amax.ravel(), module.weight_quantizer.amax.numpy().ravel())
        if layer.input is not None:
            assert layer.input_amax == module.input_quantizer.amax
    lessons.write(learned, tmp_path / "lessons.npz")
    world = context(ANY, lessons={lessons.key(asked): str(tmp_path / "lessons.npz")})
    plain = exported.clone()
    result = QuantizeModelOptTorch.model_validate(asked).apply(exported, world)
    assert set(result.changed) == {"conv", "first", "second"} if convolution else {"first", "second"}
    unseen = np.random.default_rng(9).standard_normal((16, 4, 8, 8)).astype(np.float32)
    with torch.no_grad():
        meant = quantized.module(torch.from_numpy(unseen)).numpy()
    got = run(exported, {"x": unseen})["y"]
    # The same steps; sums in another order can move a number across a rounding boundary now and then.
    assert np.linalg.norm(got - meant) <= 2e-3 * np.linalg.norm(meant)
    assert np.linalg.norm(run(plain, {"x": unseen})["y"] - meant) > 4e-3 * np.linalg.norm(meant)


def test_fp4_ranges_are_learned_without_a_gpu() -> None:
    used = model(convolution=False)
    weight = used.module.second.weight.detach().numpy().copy()
    learned = {
        layer.module: layer for layer in learn(used, {"config": "NVFP4_DEFAULT_CFG"}, batches, 3, quiet).layers
    }
    second = learned["second"]
    assert (second.weight, second.input, second.block) == ("nvfp4", "nvfp4", 16)
    assert second.weight_amax == np.abs(weight).max()
    assert learned["first"].input_amax == max(np.abs(batch["x"]).max() for batch in batches())


def test_a_configuration_that_stops_is_a_failed_stage_with_modelopts_words() -> None:
    with pytest.raises(StageFailed, match="ModelOpt stopped at NVFP4_AWQ_LITE_CFG: AssertionError"):
        learn(model(convolution=False), {"config": "NVFP4_AWQ_LITE_CFG"}, batches, 3, quiet)


def test_a_module_without_layers_that_modelopt_knows_is_refused() -> None:
    class Product(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(torch.ones(4, 4))

        def forward(self, x: Any) -> Any:
            return x @ self.weight

    built = {"module": Product(), "inputs": {"x": torch.ones(2, 4)}, "dynamic_axes": {"x": {0: "batch"}}}
    used = torch_model({**built, "output_names": ["y"]}, {}, what="Product")
    with pytest.raises(StageFailed, match=r"stopped|enabled no quantizer"):
        learn(used, {"config": "INT8_DEFAULT_CFG"}, lambda: iter([{"x": np.ones((2, 4), np.float32)}]), 1, quiet)
