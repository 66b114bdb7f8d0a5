"""Serves an ONNX Runtime engine with Triton's Python backend; self-contained: needs numpy and onnxruntime."""

# mypy: ignore-errors

import json
import os

import numpy as np
import onnxruntime
import triton_python_backend_utils as triton


def sound(array):
    """The array, when the backend and NumPy agree on how arrays lie in memory.

    A backend built for NumPy 1 hands out arrays without strides under NumPy 2 and reads answers as zeros, without
    an error. The warm-up comes through here, so such a server never becomes ready.
    """
    if not array.flags.c_contiguous:
        raise triton.TritonModelException(
            f"this server's Python backend was not built for NumPy {np.__version__}; install numpy<2 beside it"
        )
    return array


class TritonPythonModel:
    """One instance of the model."""

    def initialize(self, args):
        """Open the engine that lies beside this file, as it was measured."""
        folder = os.path.dirname(os.path.abspath(__file__))
        with open(os.path.join(folder, "serving.json"), encoding="utf-8") as file:
            serving = json.load(file)
        if serving["is_optimized"] and onnxruntime.__version__ != serving["version"]:
            raise triton.TritonModelException(
                f"the engine was saved by onnxruntime {serving['version']}, this is {onnxruntime.__version__}; "
                "a saved graph holds operators private to its version: install that one, or build the engine again"
            )
        options = onnxruntime.SessionOptions()
        if serving["is_optimized"]:
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        if serving["threads"]:
            options.intra_op_num_threads = serving["threads"]
        for key, value in serving["session_options"].items():
            options.add_session_config_entry(key, value)
        self.session = onnxruntime.InferenceSession(
            os.path.join(folder, "engine", serving["file"]),
            options,
            providers=[(name, values) for name, values in serving["providers"]],
            disabled_optimizers=serving["disabled_optimizers"],
        )
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.is_batched = json.loads(args["model_config"])["max_batch_size"] > 0

    def execute(self, requests):
        """Run the batch that the server put together once, and hand each request its rows."""
        arrays = [
            {name: sound(triton.get_input_tensor_by_name(request, name).as_numpy()) for name in self.inputs}
            for request in requests
        ]
        if not self.is_batched:
            return [self._run(feeds) for feeds in arrays]
        responses = [None] * len(requests)
        for members in self._alike(arrays):
            feeds = {name: np.concatenate([arrays[at][name] for at in members]) for name in self.inputs}
            try:
                results = self.session.run(self.outputs, feeds)
            except Exception as error:
                for at in members:
                    responses[at] = triton.InferenceResponse(error=triton.TritonError(str(error)))
                continue
            start = 0
            for at in members:
                stop = start + len(arrays[at][self.inputs[0]])
                responses[at] = self._response([result[start:stop] for result in results])
                start = stop
        return responses

    def _alike(self, arrays):
        """Positions of requests that have the same shapes but for the batch."""
        groups = {}
        for at, feeds in enumerate(arrays):
            groups.setdefault(tuple(feeds[name].shape[1:] for name in self.inputs), []).append(at)
        return groups.values()

    def _run(self, feeds):
        try:
            return self._response(self.session.run(self.outputs, feeds))
        except Exception as error:
            return triton.InferenceResponse(error=triton.TritonError(str(error)))

    def _response(self, results):
        tensors = [
            triton.Tensor(name, np.ascontiguousarray(array))
            for name, array in zip(self.outputs, results, strict=True)
        ]
        return triton.InferenceResponse(output_tensors=tensors)
