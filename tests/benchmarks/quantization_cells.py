"""One cell of the quantization table: makes one quantized model in a process of its own and measures itself.

    python -m tests.benchmarks.quantization_cells <cell> <folder>

`folder` holds source.onnx, fused.onnx and calibration.npz; the model goes to <folder>/<cell>.onnx, and one line
of JSON with seconds and peak memory to standard output. Only what a cell needs is imported, so that a ModelOpt
cell runs in an environment that has ModelOpt.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

Arrays = dict[str, np.ndarray]


def calibration(folder: Path) -> list[Arrays]:
    """The calibration batches, in order."""
    stored = np.load(folder / "calibration.npz")
    count = len([key for key in stored if key.startswith("input_ids")])
    return [{name: stored[f"{name}_{i}"] for name in ("input_ids", "attention_mask")} for i in range(count)]


def ours(folder: Path, out: Path, name: str, options: dict[str, Any], before: tuple[str, ...] = ()) -> None:
    """One of our passes on the cleaned and fused model, after those of `before`."""
    import onnx_ir as ir

    from passes import registry, saving
    from tests.support.calibration import Batches
    from tests.support.runner import context

    model = ir.load(folder / "fused.onnx")
    world = context(calibration=Batches(tuple(calibration(folder))))
    for first in before:
        registry.find(first)().apply(model, world)
    registry.find(name).model_validate(options).apply(model, world)
    saving.save(model, out)


def simulated(folder: Path, out: Path, name: str, options: dict[str, Any]) -> None:
    """One of our formats that a CPU does not run as it is, lowered to operators that it runs."""
    import onnx_ir as ir

    from passes import registry, saving
    from tests.support.calibration import Batches
    from tests.support.runner import TENSORRT, context

    model = ir.load(folder / "fused.onnx")
    world = context(TENSORRT, calibration=Batches(tuple(calibration(folder))))
    registry.find(name).model_validate(options).apply(model, world)
    registry.find("quantize.simulate")().apply(model, context())
    saving.save(model, out)


def ort_dynamic(folder: Path, out: Path, per_channel: bool) -> None:
    """ONNX Runtime's dynamic tool."""
    from onnxruntime.quantization import QuantType, quantize_dynamic

    quantize_dynamic(folder / "source.onnx", out, per_channel=per_channel, weight_type=QuantType.QInt8)


def ort_static(folder: Path, out: Path, method: str) -> None:
    """ONNX Runtime's static tool, weights per channel, uint8 activations, Q/DQ."""
    from onnxruntime.quantization import CalibrationDataReader, CalibrationMethod, QuantType, quantize_static

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.left: Iterator[Arrays] = iter(calibration(folder))

        def get_next(self) -> Arrays | None:
            return next(self.left, None)

    quantize_static(
        folder / "source.onnx", out, Reader(), per_channel=True, activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8, calibrate_method=getattr(CalibrationMethod, method),
        op_types_to_quantize=["MatMul", "Gemm"],
    )  # fmt: skip


def ort_int4(folder: Path, out: Path) -> None:
    """ONNX Runtime's weight-only tool: MatMulNBits, block 32, symmetric, round to nearest."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    tool = MatMulNBitsQuantizer(
        onnx.load(folder / "source.onnx"), block_size=32, is_symmetric=True, accuracy_level=4
    )
    tool.process()
    tool.model.save_model_to_file(str(out))


def modelopt(folder: Path, out: Path, mode: str, method: str) -> None:
    """ModelOpt's ONNX path on the CPU, FP32 around the quantized layers."""
    from modelopt.onnx.quantization import quantize

    batches = calibration(folder)
    longest = max(batch["input_ids"].shape[1] for batch in batches)
    padded = {
        name: np.concatenate(
            [np.pad(batch[name], ((0, 0), (0, longest - batch[name].shape[1]))) for batch in batches]
        )
        for name in ("input_ids", "attention_mask")
    }
    quantize(
        str(folder / "source.onnx"), quantize_mode=mode, calibration_method=method, calibration_data=padded,
        calibration_eps=["cpu"], high_precision_dtype="fp32", output_path=str(out),
    )  # fmt: skip


def modelopt_torch(folder: Path, out: Path, config: str) -> None:
    """ModelOpt's torch side on the module itself, its quantizers placed in the exported graph by our pass."""
    import onnx_ir as ir

    from optimize.sources.modelopt_learning import learn
    from optimize.sources.torch_module import TorchSource
    from passes import lessons, registry, saving
    from tests.support.runner import CPU, context

    batches = calibration(folder)
    source = TorchSource(factory="examples/minilm.py:build")
    asked = {"config": config}
    learned = learn(source.torch_model(), asked, lambda: iter(batches), len(batches), lambda *_: None)
    file = folder / f"{config}.npz"
    lessons.write(learned, file)
    model = ir.load(folder / "source.onnx")
    any_processor = CPU.model_copy(update={"instructions": ()})  # else seven bits where this one would saturate
    world = context(any_processor, lessons={lessons.key(asked): str(file)})
    registry.find("quantize.modelopt_torch").model_validate(asked).apply(model, world)
    saving.save(model, out)


DYNAMIC = {"weight_bits": 8}
STATIC = {"activations": "static", "weight_bits": 8}
"""The same weights whatever the processor."""

CELLS: dict[str, Callable[[Path, Path], None]] = {
    "int8 | dynamic, per channel | ours": lambda f, o: ours(f, o, "quantize.int8", DYNAMIC),
    "int8 | dynamic, per channel | ONNX Runtime": lambda f, o: ort_dynamic(f, o, True),
    "int8 | dynamic, per tensor | ONNX Runtime": lambda f, o: ort_dynamic(f, o, False),
    "int8 | static min-max | ours": lambda f, o: ours(f, o, "quantize.int8", STATIC),
    "int8 | static min-max | ONNX Runtime": lambda f, o: ort_static(f, o, "MinMax"),
    "int8 | static min-max | ModelOpt": lambda f, o: modelopt(f, o, "int8", "max"),
    "int8 | static entropy | ours": lambda f, o: ours(f, o, "quantize.int8", {**STATIC, "calibration": "entropy"}),
    "int8 | static entropy | ONNX Runtime": lambda f, o: ort_static(f, o, "Entropy"),
    "int8 | static entropy | ModelOpt": lambda f, o: modelopt(f, o, "int8", "entropy"),
    "int8 | static min-max, torch side | ModelOpt": lambda f, o: modelopt_torch(f, o, "INT8_DEFAULT_CFG"),
    "int8 | static, SmoothQuant 1, torch side | ModelOpt": lambda f, o: modelopt_torch(
        f, o, "INT8_SMOOTHQUANT_CFG"
    ),
    "int8 | static MSE | ours": lambda f, o: ours(f, o, "quantize.int8", {**STATIC, "calibration": "mse"}),
    "int8 | static, SmoothQuant 0.8 | ours": lambda f, o: ours(f, o, "quantize.int8", {**STATIC, "smooth": 0.8}),
    "int8 | static, SmoothQuant 0.8, GPTQ | ours": lambda f, o: ours(
        f, o, "quantize.int8", {**STATIC, "smooth": 0.8, "rounding": "output", "bias_correction": True}
    ),
    "int8 | static, outliers split, SmoothQuant 0.6, GPTQ | ours": lambda f, o: ours(
        f,
        o,
        "quantize.int8",
        {**STATIC, "smooth": 0.6, "rounding": "output", "bias_correction": True},
        before=("surgery.split_outliers",),
    ),
    "fp8 | static, per tensor | ours": lambda f, o: simulated(f, o, "quantize.fp8", {}),
    "fp8 | static, per tensor | ModelOpt": lambda f, o: modelopt(f, o, "fp8", "max"),
    "fp8 | static, per tensor, torch side | ModelOpt": lambda f, o: modelopt_torch(f, o, "FP8_DEFAULT_CFG"),
    "fp8 | static, GPTQ in turn | ours": lambda f, o: simulated(f, o, "quantize.fp8", {"rounding": "output"}),
    "fp8 | static, SmoothQuant 0.5, GPTQ in turn | ours": lambda f, o: simulated(
        f, o, "quantize.fp8", {"rounding": "output", "smooth": 0.5}
    ),
    "int4 | block 32, MSE scales | ours": lambda f, o: ours(f, o, "quantize.int4", {"algorithm": "mse"}),
    "int4 | block 32, HQQ | ours": lambda f, o: ours(f, o, "quantize.int4", {"algorithm": "hqq"}),
    "int4 | block 32 with zero points, HQQ | ours": lambda f, o: ours(
        f, o, "quantize.int4", {"algorithm": "hqq", "symmetric": False}
    ),
    "int4 | block 32, AWQ | ours": lambda f, o: ours(f, o, "quantize.int4", {"algorithm": "awq"}),
    "int4 | block 32, GPTQ | ours": lambda f, o: ours(
        f, o, "quantize.int4", {"algorithm": "gptq", "in_turn": False}
    ),
    "int4 | block 32, GPTQ in turn | ours": lambda f, o: ours(f, o, "quantize.int4", {"algorithm": "gptq"}),
    "int4 | block 32, nearest | ONNX Runtime": ort_int4,
    "int4 | block 32, nearest | ModelOpt": lambda f, o: modelopt(f, o, "int4", "rtn_dq"),
    "int4 | block 32, AWQ clip | ModelOpt": lambda f, o: modelopt(f, o, "int4", "awq_clip"),
    "int4 | block 128, GPTQ | ours": lambda f, o: ours(
        f, o, "quantize.int4", {"algorithm": "gptq", "block_size": 128}
    ),
    "int4 | block 128, AWQ lite, torch side | ModelOpt": lambda f, o: modelopt_torch(f, o, "INT4_AWQ_CFG"),
    "fp4 | NVFP4 weights, block 16 | ours": lambda f, o: simulated(f, o, "quantize.fp4", {}),
    "fp4 | NVFP4 weights, GPTQ in turn | ours": lambda f, o: simulated(f, o, "quantize.fp4", {"algorithm": "gptq"}),
}
"""Every cell by "format | algorithm | whose"."""

OURS_DYNAMIC = "int8 | dynamic, per channel | ours"
ATTENTION_IN_QATTENTION = "int8 | dynamic, per channel, attention in QAttention | ours"
ATTENTION_PRODUCTS = "int8 | dynamic, per channel, attention's products in 8 bits | ours"
TRIED = (ATTENTION_IN_QATTENTION, ATTENTION_PRODUCTS)
"""Not in the table: `integer_attention.py` makes them of `OURS_DYNAMIC`, no pass does; `int8_latency.py` times
them."""


def file_name(cell: str) -> str:
    """A cell's model file."""
    return "".join(letter if letter.isalnum() else "_" for letter in cell) + ".onnx"


def main() -> None:
    """Make one model and say what it took."""
    cell, folder = sys.argv[1], Path(sys.argv[2])
    started = time.perf_counter()
    CELLS[cell](folder, folder / file_name(cell))
    print(json.dumps({"seconds": time.perf_counter() - started, "peak_bytes": peak_bytes()}))


def peak_bytes() -> int:
    """Most memory this program held (Linux). `getrusage` would count what the parent held before exec."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024
    raise LookupError("/proc/self/status has no VmHWM; the table needs Linux")


if __name__ == "__main__":
    main()
