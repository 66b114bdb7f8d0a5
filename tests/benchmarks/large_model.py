"""INT4 weight-only on models of billions of parameters: seconds and memory, ours beside others, in one run.

    python -m tests.benchmarks.large_model --billions 0.94 1 2 4 --folder /tmp/large

Makes a decoder-like FP16 ONNX of each size under a temporary folder, quantizes it with each tool in a process
of its own and prints a table; `--json` writes the figures too. Memory is the peak of the process's anonymous
memory (RssAnon): pages of mapped files can be dropped at any time and do not count.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import multiprocessing
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from passes.base import Pass

HIDDEN, INNER = 2048, 5632
LAYER_PARAMETERS = 4 * HIDDEN * HIDDEN + 3 * HIDDEN * INNER
BLOCK = 32


def generate(path: Path, billions: float) -> int:
    """Write a decoder-like FP16 model with its weights beside it, streamed; returns its parameter count.

    Each layer has the seven products of a gated decoder block (four of attention's size, three of the feed
    forward's); attention's own arithmetic, which holds no weights, is left out.
    """
    from passes import saving

    numbers = (np.random.default_rng(0).standard_normal(1 << 23, dtype=np.float32) * 0.02).astype(np.float16)
    layers = max(1, round(billions * 1e9 / LAYER_PARAMETERS))
    x = ir.val("x", ir.DataType.FLOAT16, ["rows", HIDDEN])
    nodes: list[ir.Node] = []
    weights: list[ir.Value] = []

    def product(value: ir.Value, rows: int, columns: int, name: str) -> ir.Value:
        seed = len(weights)

        def draw() -> ir.TensorProtocol:
            start = int(np.random.default_rng(seed).integers(numbers.size // 2))
            return ir.Tensor(np.resize(numbers[start:], (rows, columns)))

        tensor = ir.LazyTensor(draw, dtype=ir.DataType.FLOAT16, shape=ir.Shape((rows, columns)), name=name)
        weights.append(
            ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT16), shape=tensor.shape, const_value=tensor)
        )
        return add("MatMul", value, weights[-1])

    def add(op_type: str, *inputs: ir.Value) -> ir.Value:
        node = ir.node(op_type, list(inputs), name=f"{op_type}_{len(nodes)}")
        node.outputs[0].name = f"value_{len(nodes)}"
        nodes.append(node)
        return node.outputs[0]

    value = x
    for layer in range(layers):
        mixed = product(value, HIDDEN, HIDDEN, f"layer.{layer}.query")
        for part in ("key", "value", "output"):
            mixed = product(mixed, HIDDEN, HIDDEN, f"layer.{layer}.{part}")
        value = add("Add", value, mixed)
        gate = add("Sigmoid", product(value, HIDDEN, INNER, f"layer.{layer}.gate"))
        up = add("Mul", gate, product(value, HIDDEN, INNER, f"layer.{layer}.up"))
        value = add("Add", value, product(up, INNER, HIDDEN, f"layer.{layer}.down"))
    value.name, value.type, value.shape = "y", x.type, x.shape
    graph = ir.Graph([x], [value], nodes=nodes, initializers=weights, opset_imports={"": 21}, name="decoder")
    saving.save(ir.Model(graph, ir_version=10), path)
    return layers * LAYER_PARAMETERS


def ours(source: Path, target: Path, algorithm: str = "rtn", form: str = "matmulnbits") -> None:
    """`quantize.int4` and the streaming saver."""
    from passes import saving
    from passes.base import PassContext
    from passes.quantize.int4 import QuantizeInt4
    from passes.target import Target

    device = Target(name="cpu", title="CPU", device="cpu", dialect="onnxruntime", precisions=("fp32", "int4"))
    model = ir.load(source)
    quantize = QuantizeInt4(block_size=BLOCK, algorithm=algorithm, form=form)
    result = quantize.apply(model, PassContext(target=device))
    assert not result.skips, result.skips
    saving.save(model, target)


def ours_search(source: Path, target: Path) -> None:
    """The same with the least-squares search, the default."""
    ours(source, target, "mse")


def ours_standard(source: Path, target: Path) -> None:
    """The same as standard ONNX, `DequantizeLinear` with block scales."""
    ours(source, target, "rtn", "standard")


def ours_fp8(source: Path, target: Path) -> None:
    """`quantize.fp8`, weights only, one scale per channel."""
    from passes.quantize.fp8 import QuantizeFp8

    _write(source, target, QuantizeFp8(activations="none"))


def ours_nvfp4(source: Path, target: Path) -> None:
    """`quantize.fp4`, NVFP4 weights with searched scales."""
    from passes.quantize.fp4 import QuantizeFp4

    _write(source, target, QuantizeFp4())


def _write(source: Path, target: Path, quantize: Pass) -> None:
    from passes import saving
    from passes.base import PassContext
    from passes.target import Target

    device = Target(name="b200", title="B200", device="cuda", dialect="tensorrt", precisions=("fp16", "fp8", "fp4"))
    model = ir.load(source)
    result = quantize.apply(model, PassContext(target=device))
    assert not result.skips, result.skips
    saving.save(model, target)


def onnxruntime_tool(source: Path, target: Path) -> None:
    """ONNX Runtime's MatMulNBitsQuantizer, round to nearest."""
    import onnx
    from onnxruntime.quantization.matmul_nbits_quantizer import MatMulNBitsQuantizer

    quantizer = MatMulNBitsQuantizer(onnx.load(source), block_size=BLOCK, is_symmetric=True, accuracy_level=4)
    quantizer.process()
    quantizer.model.save_model_to_file(str(target), use_external_data_format=True)


def modelopt(source: Path, target: Path) -> None:
    """ModelOpt's ONNX path, round to nearest."""
    from modelopt.onnx.quantization import quantize

    quantize(
        str(source), quantize_mode="int4", calibration_method="rtn_dq", block_size=BLOCK,
        calibration_eps=["cpu"], use_external_data_format=True, output_path=str(target),
    )  # fmt: skip


TOOLS: dict[str, Callable[[Path, Path], None]] = {
    "ours": ours,
    "ours, searched scales": ours_search,
    "ours, standard ONNX": ours_standard,
    "ours, fp8": ours_fp8,
    "ours, nvfp4": ours_nvfp4,
    "onnxruntime": onnxruntime_tool,
    "modelopt": modelopt,
}


def _anonymous_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("RssAnon"):
            return int(line.split()[1]) * 1024
    raise OSError("/proc/self/status has no RssAnon")


def _measured(tool: str, source: Path, target: Path, answer: Any) -> None:
    """Run one tool in this process and send its figures: seconds, peak bytes, output bytes."""
    peak, stop = [0], threading.Event()

    def watch() -> None:
        while not stop.wait(0.01):
            peak[0] = max(peak[0], _anonymous_bytes())

    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    start, busy = time.perf_counter(), time.process_time()
    TOOLS[tool](source, target)
    seconds, busy = time.perf_counter() - start, time.process_time() - busy
    stop.set()
    watcher.join()
    size = sum(item.stat().st_size for item in target.parent.iterdir())
    answer.send({"seconds": seconds, "cpu_seconds": busy, "anonymous_bytes": peak[0], "bytes": size})


def measure(tool: str, source: Path, folder: Path) -> dict[str, Any]:
    """Figures of one tool on one model, from a fresh process; "failed" holds the reason otherwise."""
    if tool == "modelopt" and importlib.util.find_spec("modelopt") is None:
        return {"failed": "not installed"}
    output = folder / "output"
    shutil.rmtree(output, ignore_errors=True)
    output.mkdir()
    context = multiprocessing.get_context("spawn")
    receive, send = context.Pipe(duplex=False)
    process = context.Process(target=_measured, args=(tool, source, output / "model.onnx", send))
    process.start()
    send.close()
    try:
        figures: dict[str, Any] = receive.recv()
    except EOFError:
        figures = {}
    process.join()
    shutil.rmtree(output)
    return figures if process.exitcode == 0 and figures else {"failed": f"exit code {process.exitcode}"}


def main() -> None:
    """Generate, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--billions", type=float, nargs="+", default=[0.94])
    parser.add_argument("--tools", nargs="+", choices=list(TOOLS), default=list(TOOLS))
    parser.add_argument("--others-up-to", type=float, default=1.0, help="largest model that other tools get")
    parser.add_argument("--repeats", type=int, default=1)
    parser.add_argument("--folder", type=Path, default=None, help="where models are written; emptied afterwards")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    rows = []
    with tempfile.TemporaryDirectory(dir=arguments.folder) as name:
        folder = Path(name)
        for billions in arguments.billions:
            source = folder / "source" / "model.onnx"
            source.parent.mkdir()
            parameters = generate(source, billions)
            for repeat in range(arguments.repeats):
                for tool in arguments.tools:
                    if not tool.startswith("ours") and billions > arguments.others_up_to:
                        continue
                    row = {"parameters": parameters, "tool": tool, "repeat": repeat}
                    row |= measure(tool, source, folder)
                    rows.append(row)
                    print(_line(row), flush=True)
            shutil.rmtree(source.parent)
    if arguments.json:
        facts = {"cpus": len(os.sched_getaffinity(0)), "python": sys.version.split()[0], "rows": rows}
        arguments.json.write_text(json.dumps(facts, indent=1))


def _line(row: dict[str, Any]) -> str:
    head = f"| {row['parameters'] / 1e9:.2f} B | {row['tool']} | "
    if "failed" in row:
        return head + f"{row['failed']} |"
    return head + (
        f"{row['seconds']:.1f} s | {row['cpu_seconds']:.1f} s | {row['anonymous_bytes'] / 1e6:.0f} MB | "
        f"{row['bytes'] / 1e6:.0f} MB |"
    )


if __name__ == "__main__":
    main()
