"""The facts of a run, in types that evaluation writes and reports read. No verdicts here."""

from __future__ import annotations

from typing import Annotated, Any, Literal

import pydantic

Finite = Annotated[float, pydantic.Field(allow_inf_nan=False)]
Seconds = Annotated[float, pydantic.Field(ge=0, allow_inf_nan=False)]
Milliseconds = Seconds
Ratio = Annotated[float, pydantic.Field(gt=0, allow_inf_nan=False)]
Bytes = Annotated[int, pydantic.Field(ge=0)]
"""Reports are drawn from these, and divided by them; whatever else a file says is no report."""


class Fact(pydantic.BaseModel):
    """Base of all facts: frozen, closed, JSON-ready (NaN and infinities are written as strings)."""

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid", ser_json_inf_nan="strings")


class OutputAccuracy(Fact):
    """One output compared with the original's, over all samples.

    Attributes:
        output: The output's name.
        samples: Number of samples (rows of axis 0) compared.
        max_abs: Largest absolute difference, in the output's units.
        mean_abs: Mean absolute difference.
        relative_l2: ||y - r|| / ||r|| over all elements; None when both are all zero.
        sqnr_db: 10 log10(||r||² / ||y - r||²); infinite when equal; None when both are all zero.
        cosine: Mean over samples of the cosine of each flattened sample; None when no sample has one.
        cosine_min: The worst sample's.
        nan: NaN values in the candidate where the reference has none.
        inf: Infinite values in the candidate where the reference is finite.
        top1_agreement: Share of samples whose largest class is the same; None when not a classification.
        neighbour_agreement: Share of samples whose nearest neighbour is the same; None when not an embedding.
        failure: Why the output cannot be accepted at all (missing, extra, other shape, non-finite), or None.
    """

    output: str
    samples: int = 0
    max_abs: float | None = None
    mean_abs: float | None = None
    relative_l2: float | None = None
    sqnr_db: float | None = None
    cosine: float | None = None
    cosine_min: float | None = None
    nan: int = 0
    inf: int = 0
    top1_agreement: float | None = None
    neighbour_agreement: float | None = None
    failure: str | None = None


class Flip(Fact):
    """One sample whose decision changed."""

    sample: int
    reference: int
    candidate: int
    label: int | None = None


class TensorError(Fact):
    """One inner value compared between the original and the optimised graph, matched by source module.

    Attributes:
        module: The source module, or the node's name where there is none.
        value: The value's name in the original graph.
        op_type: The module's computing operator, else the operator that makes the value.
        sqnr_db: As in `OutputAccuracy`, the noise of everything before included.
        cosine: As in `OutputAccuracy`.
        added: Noise power over signal power beyond that of the values it is computed from; None when not
            known.
        layers: The computing layers that it comes from.
    """

    module: str
    value: str
    op_type: str
    sqnr_db: float | None
    cosine: float | None
    added: float | None = None
    layers: tuple[str, ...] = ()


class AccuracyResult(Fact):
    """A stage's outputs against the original's on the same evaluation feeds.

    Attributes:
        stage: "export", a pass's name, "model" (optimised ONNX, unoptimised runtime) or "engine".
        outputs: One entry per expected output, and one with a failure per missing or extra one.
        metrics: Task metrics of this stage ("top1": 0.981).
        reference_metrics: The same of the original.
        decisions: How many decisions were compared; 0 when the outputs are no classes.
        flips: Samples whose decision changed (at most 1000 kept).
        flips_total: How many changed in all.
        flips_worse, flips_better: Of these, from right to wrong and from wrong to right; None without labels.
        notes: Full sentences.
    """

    stage: str
    outputs: tuple[OutputAccuracy, ...]
    metrics: dict[str, float] = {}
    reference_metrics: dict[str, float] = {}
    decisions: int = 0
    flips: tuple[Flip, ...] = ()
    flips_total: int = 0
    flips_worse: int | None = None
    flips_better: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def failures(self) -> tuple[str, ...]:
        """Why outputs cannot be accepted whatever the gates say."""
        return tuple(f"{item.output}: {item.failure}" for item in self.outputs if item.failure)


class Energy(Fact):
    """What one contender takes from one device, run after run without a pause.

    Attributes:
        device: "GPU" or "CPU".
        source: Who counted, and what: "NVML, whole device", idle power and other processes included.
        joules_per_sample: Per row of the batch axis.
        watts: Mean power meanwhile.
        runs: How many runs were metered.
        seconds: How long they took.
    """

    device: str
    source: str
    joules_per_sample: float
    watts: float
    runs: int
    seconds: float


class Latency(Fact):
    """One contender's timing.

    Attributes:
        contender: "original", "exported" or "optimized".
        title: What ran: "torch 2.13.0 eager, 2 threads".
        device: "cpu" or "cuda": where it ran; None where that was not recorded.
        samples_ms: Every timed run, in order.
        warmup_runs: Runs thrown away until stable.
        p50_ms, p90_ms, p99_ms: Percentiles; None when there are too few samples for one.
        throughput_per_s: Samples (rows of the batch axis) per second at the median.
        peak_memory_bytes: Peak resident memory of a process that loads and runs this contender alone.
        energy: One entry per device that counts it.
        details: Device state, stages of a GPU run (H2D, compute, D2H).
    """

    contender: str
    title: str
    device: str | None = None
    samples_ms: tuple[Milliseconds, ...]
    warmup_runs: int
    mean_ms: Milliseconds
    p50_ms: Milliseconds
    p90_ms: Milliseconds | None = None
    p99_ms: Milliseconds | None = None
    throughput_per_s: float
    peak_memory_bytes: Bytes | None = None
    energy: tuple[Energy, ...] = ()
    details: dict[str, Any] = {}

    @property
    def own_energy(self) -> Energy | None:
        """What the device that ran it took; None where that device's counter could not be read."""
        kind = {"cuda": "GPU", "cpu": "CPU"}.get(self.device or "")
        return next((item for item in self.energy if kind in (item.device, None)), None)


class Speedup(Fact):
    """How much faster `of` is than `over`: ratio of medians with a bootstrap confidence interval.

    Attributes:
        ratio: latency(over) / latency(of); above 1 means `of` is faster.
        low, high: 95 % interval.
        is_significant: False when the interval holds 1: "no significant difference".
    """

    of: str
    over: str
    ratio: Ratio
    low: Ratio
    high: Ratio
    is_significant: bool


class ThroughputResult(Fact):
    """All contenders timed in turns, in one process, on the same feeds.

    Attributes:
        shapes: Shape of each input that was fed.
        threads: Threads per operator that each contender was allowed.
        speedups: At least optimized over original, and optimized over exported.
        energy_missing: Why a device's energy could not be measured; "" when it was.
    """

    shapes: dict[str, tuple[int, ...]]
    threads: int
    contenders: tuple[Latency, ...]
    speedups: tuple[Speedup, ...]
    energy_missing: str = ""
    notes: tuple[str, ...] = ()


class Roofline(Fact):
    """A floor for the latency of one run.

    Attributes:
        operations: Multiplications and additions of matrix products and convolutions.
        bytes_moved: Weights as stored, inputs and outputs.
        precision: In which the operations were assumed to run.
        compute_ms: Operations over the target's peak rate.
        memory_ms: Bytes over the target's bandwidth.
        floor_ms: The larger of both.
        bound: "compute" or "memory".
        sizes: Size of each dynamic axis it was counted for.
        uncounted: Operators whose shapes could not be known; the floor is too low by their share.
        source: Where the rates come from.
    """

    operations: float
    bytes_moved: float
    precision: str
    compute_ms: float
    memory_ms: float
    floor_ms: float
    bound: str
    sizes: dict[str, int]
    uncounted: tuple[str, ...] = ()
    source: str = ""


class ModelFacts(Fact):
    """What a graph is made of.

    Attributes:
        ops: Count per operator ("com.microsoft.MultiHeadAttention": 6; the standard domain has no prefix).
        parameters: Number of weight elements.
        weight_bytes: Bytes per data type.
        size_bytes: Of the file with its external data.
    """

    nodes: int
    ops: dict[str, int]
    parameters: int
    weight_bytes: dict[str, Bytes]
    size_bytes: Bytes
    opset: int
    inputs: tuple[dict[str, Any], ...]
    outputs: tuple[dict[str, Any], ...]


class LayerFact(Fact):
    """One computing layer of the optimised graph and the formats it works in.

    Attributes:
        name: The source module ("encoder.layer.0.attention.self.query"), or the node's name without one.
        op_type: Such as "MatMul", "Conv", "com.microsoft.MultiHeadAttention".
        weight: Stored format of its weight ("int8", "int4 ×32", "float8_e4m3"); "" without one.
        activation: Format of its input activations ("int8"); "float32" when not quantized.
        parameters: Elements of its weight; 0 without one.
    """

    name: str
    op_type: str
    weight: str = ""
    activation: str = ""
    parameters: int = 0


class SkipFact(Fact):
    """A place a pass left alone, with its reason."""

    node: str
    reason: str
    module: str = ""


class PatternFact(Fact):
    """A pattern's count, and what came close."""

    name: str
    found: int
    expected: int | None = None
    near_misses: tuple[SkipFact, ...] = ()


class PassRecord(Fact):
    """One pass as it ran."""

    name: str
    options: dict[str, Any]
    seconds: Seconds
    nodes_before: int
    nodes_after: int
    patterns: tuple[PatternFact, ...] = ()
    skips: tuple[SkipFact, ...] = ()
    changed: tuple[str, ...] = ()
    figures: dict[str, float | int | str] = {}
    notes: tuple[str, ...] = ()
    accuracy: AccuracyResult | None = None


class ArtifactFact(Fact):
    """A file of the output folder."""

    label: str
    file: str
    kind: str
    sha256: str
    size_bytes: int
    made_by: str = ""
    details: dict[str, Any] = {}


class StepEstimate(Fact):
    """What one step of a run will need, said before it starts.

    Attributes:
        step: The step's name, as in `StageRecord`; "digests" and "output" for the run's own work between steps.
        seconds: Wall time; None when it hangs on things that only running tells.
        peak_anonymous_bytes: Peak anonymous memory of the step's process; None when unknown.
        written_bytes: Bytes it leaves on the disk.
        is_floor: True when the step may need more: the figures count what is certain, the weights.
    """

    step: str
    seconds: Seconds | None = None
    peak_anonymous_bytes: Bytes | None = None
    written_bytes: Bytes = 0
    is_floor: bool = False


class StageRecord(Fact):
    """One step of the run.

    Attributes:
        outcome: "done" (computed now), "reused" (from the store), "failed", "not run".
        key: The store's key, sha256 of everything that went in.
        seconds: Wall time; of the original computation when reused.
        peak_anonymous_bytes: Peak anonymous memory of the step's process.
        expected: The estimate made before the run; None where none was made.
        error: The sentence, when it failed.
    """

    name: str
    outcome: Literal["done", "reused", "failed", "not run"]
    key: str = ""
    seconds: Seconds = 0.0
    peak_anonymous_bytes: Bytes | None = None
    expected: StepEstimate | None = None
    error: str = ""
    notes: tuple[str, ...] = ()


class GateResult(Fact):
    """One gate as it was judged.

    Attributes:
        gate: As the recipe spells it: "accuracy.cosine.min".
        limit: The limit in the figure's unit.
        value: The figure measured; None when it could not be had, which fails the gate.
        unit: "", "ms", "bytes", "dB", "1/s", "%", "J".
        passed: Whether it holds.
        note: Why it has no value, or how near the limit it is.
    """

    gate: str
    limit: float
    value: float | None
    unit: str = ""
    passed: bool
    note: str = ""


class Environment(Fact):
    """Where the run happened; nothing that names a person or a path."""

    python: str
    platform: str
    processor: str
    cores: int
    memory_bytes: int
    libraries: dict[str, str]
    devices: tuple[str, ...] = ()
    instructions: tuple[str, ...] = ()
