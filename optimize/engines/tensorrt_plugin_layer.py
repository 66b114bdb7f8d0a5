"""MatMulNBits as a layer of TensorRT: a plugin in Python that launches the Triton kernels."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from optimize.engines import tensorrt_dense_layer
from optimize.engines.tensorrt_dense_choice import BITS
from optimize.engines.tensorrt_plugin_choice import workspace_bytes
from optimize.engines.tensorrt_plugin_pointer import Pointer

NAME, VERSION, NAMESPACE = "MatMulNBits", "1", ""
"""As the ONNX parser looks the layer up."""

_FIELDS = ("k", "n", "bits", "block_size")

refusals: list[str] = []
"""Why layers refused what a build gave them: TensorRT tells no more than that they did."""

_kept: list[Any] = []
"""TensorRT holds bare pointers to plugins made in Python, for as long as the process may use an engine."""


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

        def check(self, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> None:
            """Raises ValueError where these shapes are not those of the layer's numbers."""
            _check(self.numbers, inputs, output)

        def configure_plugin(self, inputs: Any, outputs: Any) -> None:
            try:
                self.check([list(each.max) for each in inputs], list(outputs[0].max))
            except ValueError as error:
                refusals.append(str(error))
                raise

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
            x, codes, scales, y, space = (Pointer(at or 0, kind) for at, kind in zip(addresses, types, strict=True))
            self.check([list(each.dims) for each in input_desc], list(output_desc[0].dims))
            rows = math.prod(input_desc[0].dims) // k
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                launch(x, codes, scales, y, space, rows, n, k, block)

    class Dense(Plugin):
        """x `(…, K)` float16, bytes of w, a constant, perhaps a residual → y float16: `tensorrt_dense`."""

        def __init__(self, numbers: dict[str, int]) -> None:
            super().__init__(numbers)
            tensorrt_dense_layer.check_fields(numbers)

        def clone(self) -> Any:
            made = Dense(self.numbers)
            _kept.append(made)
            return made

        def get_output_shapes(self, inputs: Any, shape_inputs: Any, expressions: Any) -> Any:
            return [tensorrt_dense_layer.output_shape(api, self.numbers, inputs, expressions)]

        def check(self, inputs: Sequence[Sequence[int]], output: Sequence[int]) -> None:
            tensorrt_dense_layer.check_shapes(self.numbers, inputs, output)

        def get_workspace_size(self, inputs: Any, outputs: Any) -> int:
            return 0

        def enqueue(
            self, input_desc: Any, output_desc: Any, inputs: Any, outputs: Any, workspace: int, stream: int
        ) -> None:
            import torch

            shapes = [list(each.dims) for each in input_desc]
            self.check(shapes, list(output_desc[0].dims))
            with torch.cuda.stream(torch.cuda.ExternalStream(stream)):
                tensorrt_dense_layer.enqueue(self.numbers, inputs, outputs, shapes)

    class Creator(api.IPluginCreatorV3One):  # type: ignore[misc]
        def __init__(self) -> None:
            api.IPluginCreatorV3One.__init__(self)
            self.name, self.plugin_namespace, self.plugin_version = NAME, NAMESPACE, VERSION
            self.field_names = _fields(api, dict.fromkeys(tensorrt_dense_layer.FIELDS, 0))

        def create_plugin(self, name: str, fields: Any, phase: Any) -> Any:
            given = {field.name.lower(): int(np.asarray(field.data).reshape(-1)[0]) for field in fields}
            is_dense = given["bits"] == BITS
            names = tensorrt_dense_layer.FIELDS if is_dense else _FIELDS
            made = (Dense if is_dense else Plugin)({key: given[key] for key in names})
            _kept.append(made)
            return made

    made = Creator()
    _kept.append(made)
    return made


def _check(numbers: Mapping[str, int], inputs: Sequence[Sequence[int]], output: Sequence[int]) -> None:
    """Refuse codes and scales of other sizes than the numbers of a product in 8 bits say."""
    k, n, block = (numbers[name] for name in ("k", "n", "block_size"))
    (x, codes, scales), blocks = inputs, -(-k // block)
    sizes = math.prod(codes) == n * blocks * block and math.prod(scales) == n * blocks
    if not (sizes and x[-1] == k and list(output) == [*x[:-1], n]):
        raise ValueError(f"the built-in plugin's layer {dict(numbers)} does not fit its operands: {inputs}.")


def _fields(api: Any, numbers: dict[str, int]) -> Any:
    return api.PluginFieldCollection(
        [
            api.PluginField(name, np.array([value], np.int32), api.PluginFieldType.INT32)
            for name, value in numbers.items()
        ]
    )
