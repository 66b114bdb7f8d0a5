"""Token vectors to one vector a text with Triton's Python backend; self-contained: needs numpy."""

# mypy: ignore-errors

import numpy as np
import triton_python_backend_utils as triton


def sound(array):
    """The array, when the backend and NumPy agree on how arrays lie in memory.

    A backend built for NumPy 1 hands out arrays without strides under NumPy 2 and reads answers as zeros, without
    an error.
    """
    if not array.flags.c_contiguous:
        raise triton.TritonModelException(
            f"this server's Python backend was not built for NumPy {np.__version__}; install numpy<2 beside it"
        )
    return array


class TritonPythonModel:
    """One instance of the pooling."""

    def execute(self, requests):
        """Average (batch, tokens, width) vectors over real tokens, and scale each to length 1."""
        responses = []
        for request in requests:
            vectors = sound(triton.get_input_tensor_by_name(request, "vectors").as_numpy())
            mask = triton.get_input_tensor_by_name(request, "mask").as_numpy()[..., None].astype(np.float32)
            mean = (vectors * mask).sum(axis=1) / np.maximum(mask.sum(axis=1), 1e-9)
            length = np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-12)
            tensor = triton.Tensor("pooled", np.ascontiguousarray((mean / length).astype(np.float32)))
            responses.append(triton.InferenceResponse(output_tensors=[tensor]))
        return responses
