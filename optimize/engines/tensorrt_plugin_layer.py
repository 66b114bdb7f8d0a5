"""MatMulNBits as a layer of TensorRT: a plugin in Python that launches the Triton kernels."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np

from optimize.engines.tensorrt_plugin_choice import workspace_bytes

NAME, VERSION, NAMESPACE = "MatMulNBits", "1", ""
"""As the ONNX parser looks the layer up."""

_FIELDS = ("k", "n", "bits", "block_size")

_kept: list[Any] = []
"""TensorRT holds bare pointers to plugins made in Python, for as long as the process may use an engine."""


@dataclasses.dataclass(frozen=True)
class _Pointer:
    """A device address as Triton takes it."""

    address: int
    dtype: Any

    def data_ptr(self) -> int:
        return self.address


def creator(api: Any) -> Any:
    """The creator to register with this TensorRT module."""
    bases = (api.IPluginV3, api.IPluginV3OneCore, api.IPluginV3OneBuild, api.IPluginV3OneRuntime)

    class Plugin(*bases):  # type: ignore[misc]
        """x `(…, K)` float16, codes `(N, blocks, block)` uint8, scales `(N, blocks)` float16 → `(…, N)` float16."""

        def __init__(self, numbers: dict[str, int]) -> None:
            for base in bases:
                base.__init__(self)
            self.numbers = numbers
            self.num_outputs, self.plugin_namespace = 1, NAMESPACE
            self.plugin_name, self.plugin_version = NAME, VERSION

        def get_capability_interface(self, kind: Any) -> Any:
            return self

        def clone(self) -> Any:
            made = Plugin(self.numbers)
            _kept.append(made)
            return made

        def attach_to_context(self, context: Any) -> Any:
            return self.clone()

        def get_output_data_types(self, types: Any) -> Any:
            return [types[0]]

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expressions: Any) -> Any:
            rank = len(inputs[0])
            shape = api.DimsExprs(rank)
            for axis in range(rank - 1):
                shape[axis] = inputs[0][axis]
            shape[rank - 1] = expressions.constant(self.numbers["n"])
            return [shape]

        def get_fields_to_serialize(self) -> Any:
            self._fields = _fields(api, self.numbers)  # Read after this returns.
            return self._fields

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            return None

        def on_shape_change(self, inputs: Any, outputs: Any) -> None:
            return None

        def supports_format_combination(self, position: int, in_out: Any, inputs: int) -> bool:
            # The parser of TensorRT for RTX 1.6.1 hands the codes' bytes on as INT8.
            bytes_ = (api.DataType.UINT8, api.DataType.INT8)
            asked = in_out[position].desc
            is_linear = asked.format == api.TensorFormat.LINEAR
            return bool(is_linear and asked.type in (bytes_ if position == 1 else (api.DataType.HALF,)))

        def get_valid_tactics(self) -> Any:
            return []

        def set_tactic(self, tactic: int) -> None:
            return None

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            most_rows = math.prod(list(inputs[0].max)[:-1])
            k, n, block = (self.numbers[name] for name in ("k", "n", "block_size"))
            return workspace_bytes(most_rows, n, -(-k // block), block)

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            import torch

            from optimize.engines.tensorrt_plugin_kernels import launch

            k, n, block = (self.numbers[name] for name in ("k", "n", "block_size"))
            half = torch.float16
            addresses = (inputs[0], inputs[1], inputs[2], outputs[0], workspace)
            types = (half, torch.uint8, half, half, torch.float32)
            x, codes, scales, y, space = (
                _Pointer(at or 0, kind) for at, kind in zip(addresses, types, strict=True)
            )
            rows = math.prod(input_desc[0].dims) // k
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                launch(x, codes, scales, y, space, rows, n, k, block)

    class Creator(api.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = _fields(api, dict.fromkeys(_FIELDS, 0))

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name.lower(): field for field in fields}
            numbers = {key: int(np.asarray(given[key].data).reshape(-1)[0]) for key in _FIELDS}
            made = Plugin(numbers)
            _kept.append(made)
            return made

    made = Creator()
    _kept.append(made)
    return made


def _fields(api: Any, numbers: dict[str, int]) -> Any:
    return api.PluginFieldCollection(
        [
            api.PluginField(name, np.array([value], np.int32), api.PluginFieldType.INT32)
            for name, value in numbers.items()
        ]
    )
