"""Where a model's time goes: matrix products with weights, attention, and the rest, in milliseconds a call."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

CALLS = 8
PRODUCTS, ATTENTION, REST = "matrix products and convolutions", "attention", "the rest"
GROUPS = (PRODUCTS, ATTENTION, REST)

INTEGER = (
    "DynamicQuantizeMatMul",
    "MatMulIntegerToFloat",
    "MatMulInteger",
    "QLinearMatMul",
    "QGemm",
    "QLinearConv",
)
MATRIX = ("Gemm", "MatMul", "FusedMatMul", "FusedGemm", "Conv", "FusedConv", "MatMulNBits", *INTEGER)
FUSED_ATTENTION = ("Attention", "MultiHeadAttention", "GroupQueryAttention", "QAttention")
OVER_SCORES = ("Softmax", "IsNaN", "Where", "MatMul", "FusedMatMul", "MatMulIntegerToFloat", "Add", "Mul", "Div")
"""On two values of rank 4 and more these are inside an attention, in a graph with a softmax. The profiler does not
tell the shape of a product's packed weight."""

TORCH_PRODUCTS = ("aten::addmm", "aten::mm", "aten::convolution", "mkldnn::", "aten::mkldnn", "aten::_convolution")
TORCH_ATTENTION = (
    "aten::_scaled_dot_product",
    "aten::bmm",
    "aten::baddbmm",
    "aten::_softmax",
    "aten::_safe_softmax",
)


def of_graph(
    path: Path, feeds: dict[str, np.ndarray[Any, Any]], threads: int, config: Mapping[str, str] | None = None
) -> dict[str, float]:
    """Milliseconds by group as ONNX Runtime's profiler sees them: each node's median over calls, summed."""
    options = onnxruntime.SessionOptions()
    for key, value in (config or {}).items():
        options.add_session_config_entry(key, value)
    options.intra_op_num_threads, options.enable_profiling = threads, True
    options.profile_file_prefix = str(path.with_suffix(""))
    opened = onnxruntime.InferenceSession(str(path), options, ["CPUExecutionProvider"])
    for _ in range(CALLS):
        opened.run(None, feeds)
    log = Path(opened.end_profiling())
    events = [
        event
        for event in json.loads(log.read_text())
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time")
    ]
    log.unlink()
    attends = any(event["args"]["op_name"] == "Softmax" for event in events)
    times: dict[tuple[str, str], list[float]] = {}
    for event in events:
        times.setdefault((_group(event["args"], attends), event["name"]), []).append(event["dur"] / 1000)
    found = dict.fromkeys(GROUPS, 0.0)
    for (group, _), values in times.items():
        found[group] += float(np.median(values))
    return found


def _group(arguments: dict[str, Any], attends: bool) -> str:
    operator = arguments["op_name"]
    ranks = [len(shape) for entry in arguments["input_type_shape"] for shape in entry.values()]
    over_scores = operator in OVER_SCORES and min(ranks[:2], default=0) >= 4
    if over_scores and operator in MATRIX and len(ranks) < 2:
        over_scores = False
    if operator in FUSED_ATTENTION or (attends and over_scores):
        return ATTENTION
    return PRODUCTS if operator in MATRIX else REST


def of_torch(run: Callable[[], object]) -> dict[str, float]:
    """Milliseconds by group as torch's profiler sees them on the calling thread, without the profiler's share."""
    import torch  # here, so that ONNX graphs are profiled where torch is not installed

    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        for _ in range(CALLS):
            run()
    found = dict.fromkeys(GROUPS, 0.0)
    for entry in profile.key_averages():
        group = REST
        if entry.key.startswith(TORCH_ATTENTION):
            group = ATTENTION
        elif entry.key.startswith(TORCH_PRODUCTS):
            group = PRODUCTS
        found[group] += entry.self_cpu_time_total / CALLS / 1000
    return found
