"""What a device with an engine can run, as far as a pass needs to know it."""

from __future__ import annotations

from typing import Literal

import pydantic

Precision = Literal["fp32", "tf32", "fp16", "bf16", "fp8", "int8", "int4", "fp4"]


class QuantizeRules(pydantic.BaseModel):
    """Where quantize/dequantize pairs pay on this target.

    Attributes:
        ops: Operator types to quantize, per format: {"int8": ("MatMul", "Gemm", "Conv")}.
        block_sizes: Legal block sizes per format: {"int4": (32, 64, 128)}.
        asymmetric: Formats whose zero point may be non-zero.
        residual_adds: Formats in which what is added to a quantized convolution's result is quantized too.
        convolution_results: Formats whose convolutions need a quantized result to run in that format.
        repeat_before: Operators that only move or choose values, per format: the pair behind one is repeated in
            front of it, so that it joins or moves 8 bits.
        attention_matmuls: Formats in which the two products inside attention may be quantized.
        one_scale_in_fp16: Operator types, per format, whose weights need one scale in all where they compute in
            FP16: with one per channel the engine keeps the unscaled sums in that type, and they overflow.
        keep_first: Operator types, per format, that stay in floating point as the model's first layer.
        keep_last: The same as the model's last layer.
        integer_ops: Whether the engine runs integer operators (MatMulInteger and kin) faster than Q/DQ.
        sources: Where each rule comes from, by rule name.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    ops: dict[str, tuple[str, ...]] = {}
    block_sizes: dict[str, tuple[int, ...]] = {}
    asymmetric: tuple[str, ...] = ()
    residual_adds: tuple[str, ...] = ()
    convolution_results: tuple[str, ...] = ()
    repeat_before: dict[str, tuple[str, ...]] = {}
    attention_matmuls: tuple[str, ...] = ()
    one_scale_in_fp16: dict[str, tuple[str, ...]] = {}
    keep_first: dict[str, tuple[str, ...]] = {}
    keep_last: dict[str, tuple[str, ...]] = {}
    integer_ops: bool = False
    sources: dict[str, str] = {}


class Target(pydantic.BaseModel):
    """A device as one engine uses it.

    Attributes:
        name: As recipes spell it: "cpu", "h200".
        title: As reports spell it: "NVIDIA H200 (Hopper, compute capability 9.0)".
        device: Kind of device.
        dialect: Which engine family reads the graph; decides the operators that passes write.
        opset: Highest standard opset that the engine reads.
        precisions: Precisions the hardware computes or loads fast.
        emulated: Precisions the engine accepts but emulates: legal, slower.
        attention: Precisions in which a fused attention layer exists.
        compute_capability: Such as "9.0", for NVIDIA devices.
        memory_bytes: Device memory (None: the machine's own).
        bandwidth_bytes_per_s: Peak memory bandwidth.
        peak_ops_per_s: Peak dense rate per precision (multiply and add count as two).
        instructions: CPU instruction sets that matter ("avx512_vnni", "amx_int8").
        quantize: Placement rules.
        sources: Where each fact comes from, by field name.
    """

    model_config = pydantic.ConfigDict(frozen=True, extra="forbid")

    name: str
    title: str
    device: Literal["cpu", "cuda"]
    dialect: Literal["onnxruntime", "tensorrt"]
    opset: int = 23
    precisions: tuple[Precision, ...] = ("fp32",)
    emulated: tuple[Precision, ...] = ()
    attention: tuple[Precision, ...] = ()
    compute_capability: str | None = None
    memory_bytes: int | None = None
    bandwidth_bytes_per_s: float | None = None
    peak_ops_per_s: dict[Precision, float] = {}
    instructions: tuple[str, ...] = ()
    quantize: QuantizeRules = QuantizeRules()
    sources: dict[str, str] = {}

    @property
    def sums_in_16_bits(self) -> bool:
        """Whether products of 8 bits are summed in saturating 16 bits first: AVX2 without VNNI."""
        return "avx2" in self.instructions and not {"avx_vnni", "avx512_vnni"} & set(self.instructions)
