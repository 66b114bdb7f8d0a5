"""Reports of the shape that runs produce, for tests of their views. The figures are made up."""

from __future__ import annotations

from typing import Any

import numpy as np

from optimize.facts import (
    AccuracyResult,
    ArtifactFact,
    Energy,
    Environment,
    Flip,
    GateResult,
    Latency,
    LayerFact,
    ModelFacts,
    OutputAccuracy,
    PassRecord,
    PatternFact,
    SkipFact,
    Speedup,
    StageRecord,
    TensorError,
    ThroughputResult,
)
from optimize.report.model import Blame, Report


def accuracy(stage: str, relative_l2: float, **changes: Any) -> AccuracyResult:
    """A stage whose error is `relative_l2`, all other figures following from it."""
    if relative_l2 == 0:
        output = OutputAccuracy(
            output="embedding",
            samples=256,
            max_abs=0.0,
            mean_abs=0.0,
            relative_l2=0.0,
            sqnr_db=float("inf"),
            cosine=1.0,
            cosine_min=1.0,
            neighbour_agreement=1.0,
        )
    else:
        cosine = 1 - relative_l2**2 / 2
        output = OutputAccuracy(
            output="embedding",
            samples=256,
            max_abs=relative_l2 / 4,
            mean_abs=relative_l2 / 25,
            relative_l2=relative_l2,
            sqnr_db=float(-20 * np.log10(relative_l2)),
            cosine=cosine,
            cosine_min=1 - relative_l2**2,
            neighbour_agreement=max(0.0, 1 - relative_l2),
        )
    return AccuracyResult(stage=stage, outputs=(output,), **changes)


def latency(contender: str, title: str, median_ms: float, seed: int) -> Latency:
    """Sixty samples with the right-skewed scatter that timings have."""
    rng = np.random.default_rng(seed)
    samples = median_ms * (0.97 + rng.gamma(2.0, 0.02, size=60))
    samples[17] *= 1.6
    return Latency(
        contender=contender,
        title=title,
        samples_ms=tuple(round(float(sample), 4) for sample in samples),
        warmup_runs=8,
        mean_ms=float(samples.mean()),
        p50_ms=float(np.median(samples)),
        p90_ms=float(np.percentile(samples, 90)),
        throughput_per_s=float(8000 / np.median(samples)),
        peak_memory_bytes=int(4e6 * median_ms) + 150_000_000,
        energy=(
            Energy(
                device="CPU",
                source="RAPL, whole package",
                joules_per_sample=median_ms * 0.045 / 8,
                watts=45.0,
                runs=20,
                seconds=median_ms * 0.02,
            ),
        ),
    )


def model(ops: dict[str, int], weight_bytes: dict[str, int]) -> ModelFacts:
    """A graph with these operators and weights."""
    return ModelFacts(
        nodes=sum(ops.values()),
        ops=ops,
        parameters=22_713_216,
        weight_bytes=weight_bytes,
        size_bytes=sum(weight_bytes.values()) + 90_000,
        opset=20,
        inputs=({"name": "input_ids", "dtype": "int64", "shape": ["batch", "tokens"]},),
        outputs=({"name": "embedding", "dtype": "float32", "shape": ["batch", 384]},),
    )


def passing(**changes: Any) -> Report:
    """A sentence-embedding model taken to INT8, every gate held."""
    timed = (
        latency("original", "torch 2.13.0 eager, 2 threads", 116.0, 1),
        latency("exported", "onnxruntime 1.32.0, exported model", 83.0, 2),
        latency("optimized", "onnxruntime 1.32.0, int8", 37.0, 3),
    )
    layers = tuple(
        LayerFact(
            name=f"encoder.layer.{layer}.{part}",
            op_type="MatMul",
            weight="float32" if (layer, part) == (0, "attention.self.query") else "int8",
            activation="float32" if (layer, part) == (0, "attention.self.query") else "uint8",
            parameters=384 * 384,
        )
        for layer in range(6)
        for part in (
            "attention.self.query",
            "attention.self.key",
            "attention.self.value",
            "attention.output.dense",
            "intermediate.dense",
            "output.dense",
        )
    )
    fields: dict[str, Any] = {
        "tool_version": "0.1.0",
        "name": "minilm-int8-cpu",
        "recipe": {
            "schema_version": 1,
            "name": "minilm-int8-cpu",
            "source": {"kind": "torch", "factory": "examples/minilm/model.py:build"},
            "engine": {"kind": "onnxruntime"},
            "passes": [{"name": "clean.simplify", "options": {}}, {"name": "quantize.int8", "options": {}}],
            "gates": {"accuracy.cosine.min": 0.99, "speedup.min": 1.5, "size.max": 4e7},
        },
        "recipe_sha256": "5d41402abc4b2a76b9719d911017c592ae1f3e2d9cbb7a5f40b2e7c8a1d00f3e",
        "started_at": "2026-01-02T03:04:05Z",
        "command": "optimize run recipes/minilm-int8-cpu.yaml",
        "target": {"name": "cpu", "instructions": ["AVX512", "VNNI"]},
        "source": {"exporter": "torch.onnx dynamo", "checked_shapes": 3},
        "data": {"calibration": {"samples": 128, "sha256": "ab" * 32}, "evaluation": {"samples": 256}},
        "environment": Environment(
            python="3.11.2",
            platform="Linux x86_64",
            processor="An x86 processor",
            cores=2,
            memory_bytes=25_000_000_000,
            libraries={"onnx": "1.21.0", "onnxruntime": "1.32.0", "torch": "2.13.0"},
            instructions=("avx2", "avx512f", "avx512_vnni"),
        ),
        "stages": (
            StageRecord(name="feeds", outcome="done", key="0" * 64, seconds=0.8),
            StageRecord(name="capture", outcome="reused", key="1" * 64, seconds=11.2),
            StageRecord(name="reference", outcome="done", key="2" * 64, seconds=4.1),
            StageRecord(
                name="passes", outcome="done", key="3" * 64, seconds=38.0, peak_anonymous_bytes=812_000_000
            ),
            StageRecord(name="build", outcome="done", key="4" * 64, seconds=2.4),
            StageRecord(name="accuracy", outcome="done", key="5" * 64, seconds=15.3),
            StageRecord(name="throughput", outcome="done", key="6" * 64, seconds=68.0),
        ),
        "exported": model(
            {"MatMul": 48, "Add": 74, "Where": 7, "IsNaN": 6, "Softmax": 6, "LayerNormalization": 13},
            {"float32": 90_852_864, "int64": 4_320},
        ),
        "optimized": model(
            {
                "DynamicQuantizeMatMul": 36,
                "com.microsoft.MultiHeadAttention": 6,
                "SkipLayerNormalization": 12,
                "LayerNormalization": 1,
                "Add": 2,
            },
            {"int8": 10_616_832, "float32": 12_400_000},
        ),
        "passes": (
            PassRecord(
                name="clean.simplify",
                options={},
                seconds=1.2,
                nodes_before=300,
                nodes_after=154,
                patterns=(PatternFact(name="constant", found=92), PatternFact(name="identity", found=14)),
                accuracy=accuracy("clean.simplify", 1.1e-7),
            ),
            PassRecord(
                name="fuse.attention",
                options={"expect": {"attention": 6}},
                seconds=0.9,
                nodes_before=154,
                nodes_after=94,
                patterns=(
                    PatternFact(
                        name="attention",
                        found=6,
                        expected=6,
                        near_misses=(
                            SkipFact(
                                node="node_softmax_6",
                                reason="Softmax axis is 1, needs last",
                                module="pooler.attention",
                            ),
                        ),
                    ),
                ),
                accuracy=accuracy("fuse.attention", 3.4e-7),
            ),
            PassRecord(
                name="quantize.int8",
                options={"granularity": "per_channel"},
                seconds=35.1,
                nodes_before=94,
                nodes_after=170,
                patterns=(PatternFact(name="MatMul", found=35),),
                skips=(
                    SkipFact(
                        node="node_MatMul_3",
                        reason="SQNR 9.1 dB is under the floor of 12 dB",
                        module="encoder.layer.0.attention.self.query",
                    ),
                ),
                figures={"weight bytes before": 90_852_864, "weight bytes after": 23_016_832},
                notes=("One layer stays in float32 because its range has outliers.",),
                accuracy=accuracy("quantize.int8", 0.072),
            ),
        ),
        "accuracy": (
            accuracy("export", 9.8e-8),
            accuracy("clean.simplify", 1.1e-7),
            accuracy("fuse.attention", 3.4e-7),
            accuracy("quantize.int8", 0.072),
            accuracy(
                "engine",
                0.0765,
                metrics={"spearman": 0.8123},
                reference_metrics={"spearman": 0.8154},
                flips=(Flip(sample=3, reference=17, candidate=20),),
                flips_total=1,
            ),
        ),
        "layers": layers,
        "throughput": ThroughputResult(
            shapes={"input_ids": (8, 128), "attention_mask": (8, 128)},
            threads=2,
            contenders=timed,
            speedups=(
                Speedup(of="optimized", over="original", ratio=3.13, low=3.06, high=3.22, is_significant=True),
                Speedup(of="optimized", over="exported", ratio=2.24, low=2.18, high=2.29, is_significant=True),
            ),
            notes=("The machine's clock was not held fixed.",),
        ),
        "artifacts": (
            ArtifactFact(
                label="optimised ONNX",
                file="model.onnx",
                kind="onnx",
                sha256="c0ffee" * 10 + "beef",
                size_bytes=23_106_832,
                made_by="optimize 0.1.0",
            ),
            ArtifactFact(
                label="engine",
                file="engine/model.ort.onnx",
                kind="onnxruntime",
                sha256="deadbeef" * 8,
                size_bytes=23_300_000,
                made_by="onnxruntime 1.32.0",
            ),
        ),
        "engine": {"kind": "onnxruntime", "placement": {"CPUExecutionProvider": 112}},
        "gates": (
            GateResult(gate="accuracy.cosine.min", limit=0.99, value=0.99707, passed=True),
            GateResult(gate="speedup.min", limit=1.5, value=3.13, passed=True),
            GateResult(gate="size.max", limit=4e7, value=23_106_832.0, unit="bytes", passed=True),
        ),
    }
    return Report(**(fields | changes))


def failing(**changes: Any) -> Report:
    """The same model, too far from the original, with the layers to blame."""
    blame = Blame(
        stage="quantize.int8",
        tensors=(
            TensorError(
                module="encoder.layer.5.output.dense",
                value="linear_35",
                op_type="MatMul",
                sqnr_db=4.2,
                cosine=0.81,
                added=0.31,
            ),
            TensorError(
                module="encoder.layer.4.output.dense",
                value="linear_29",
                op_type="MatMul",
                sqnr_db=9.7,
                cosine=0.95,
            ),
        ),
        reason="Before it: accuracy.cosine 1. After it: accuracy.cosine 0.843.",
        remedy="  - quantize.int8: {skip: [encoder.layer.5.output.dense]}",
        check="Tried: with these lines every missed accuracy gate holds (accuracy.cosine 0.9962).",
    )
    fields: dict[str, Any] = {
        "accuracy": (
            accuracy("export", 9.8e-8),
            accuracy("clean.simplify", 1.1e-7),
            accuracy("fuse.attention", 3.4e-7),
            accuracy("quantize.int8", 0.58),
            accuracy("engine", 0.56),
        ),
        "gates": (
            GateResult(gate="accuracy.cosine.min", limit=0.99, value=0.843, passed=False),
            GateResult(gate="latency.p99.max", limit=50.0, value=None, unit="ms", passed=False,
                       note="60 samples are too few for a 99th percentile"),
            GateResult(gate="speedup.min", limit=1.5, value=3.13, passed=True),
            GateResult(gate="size.max", limit=4e7, value=23_106_832.0, unit="bytes", passed=True),
        ),
        "blame": blame,
    }  # fmt: skip
    return passing(**(fields | changes))


def broken(**changes: Any) -> Report:
    """A run whose build failed: what came before is there, what follows is not."""
    fields: dict[str, Any] = {
        "stages": (
            StageRecord(name="feeds", outcome="done", seconds=0.8),
            StageRecord(name="capture", outcome="done", seconds=11.2),
            StageRecord(name="passes", outcome="done", seconds=38.0),
            StageRecord(
                name="build", outcome="failed", seconds=2.0, error="TensorRT: no kernel for node 'conv_3'."
            ),
            StageRecord(name="accuracy", outcome="not run"),
            StageRecord(name="throughput", outcome="not run"),
        ),
        "accuracy": (),
        "throughput": None,
        "gates": (),
        "artifacts": (),
        "engine": {},
    }
    return passing(**(fields | changes))


def hostile(text: str) -> Report:
    """A report in which everything that comes from a model or a user is `text`."""
    report = failing()
    passes = tuple(
        record.model_copy(
            update={
                "skips": (SkipFact(node=text, reason=text, module=text),),
                "notes": (text,),
                "figures": {text: text},
                "options": {text: text},
                "changed": (text,),
            }
        )
        for record in report.passes
    )
    final = report.accuracy[-1].model_copy(
        update={
            "outputs": (OutputAccuracy(output=text, failure=text),),
            "metrics": {text: 0.5},
            "notes": (text,),
        }
    )
    assert report.throughput is not None
    assert report.optimized is not None
    return report.model_copy(
        update={
            "name": text,
            "command": text,
            "recipe": {text: text},
            "target": {text: text},
            "source": {text: text},
            "data": {text: {text: text}},
            "engine": {text: text},
            "passes": passes,
            "accuracy": (*report.accuracy[:-1], final),
            "layers": (LayerFact(name=text, op_type=text, weight=text, activation=text, parameters=4),),
            "stages": (StageRecord(name=text, outcome="failed", error=text, notes=(text,)),),
            "optimized": report.optimized.model_copy(update={"ops": {text: 3}, "weight_bytes": {text: 9}}),
            "throughput": report.throughput.model_copy(
                update={
                    "contenders": tuple(
                        item.model_copy(update={"title": text}) for item in report.throughput.contenders
                    ),
                    "notes": (text,),
                }
            ),
            "artifacts": (
                ArtifactFact(label=text, file=text, kind=text, sha256="0" * 64, size_bytes=1, made_by=text),
            ),
            "gates": (GateResult(gate="accuracy.cosine.min", limit=1, value=None, passed=False, note=text),),
            "blame": Blame(
                stage=text,
                tensors=(TensorError(module=text, value=text, op_type=text, sqnr_db=1.0, cosine=0.5),),
                remedy=text,
                reason=text,
                check=text,
            ),
            "notes": (text,),
        }
    )
