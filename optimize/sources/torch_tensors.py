"""What a PyTorch module returns, flattened, and tensors as arrays."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.errors import UsageError

if TYPE_CHECKING:
    import torch


def to_numpy(tensor: torch.Tensor) -> np.ndarray[Any, Any]:
    """An array sharing the tensor's memory where it can; bfloat16 becomes ml_dtypes' type."""
    import ml_dtypes
    import torch

    tensor = tensor.detach().cpu().contiguous()
    if tensor.dtype == torch.bfloat16:
        return np.asarray(tensor.view(torch.int16).numpy()).view(ml_dtypes.bfloat16)
    return np.asarray(tensor.numpy())


def dtype_name(dtype: torch.dtype) -> str:
    """NumPy's name of a torch type: torch.float32 → "float32"."""
    return str(dtype).removeprefix("torch.")


def flat_outputs(result: Any) -> list[tuple[str, torch.Tensor]]:
    """The tensors a module returned, in order, each with its key ("" when it has none).

    Raises:
        UsageError: When there is none, or something else than tensors is among them.
    """
    import torch

    leaves, _ = torch.utils._pytree.tree_flatten_with_path(result)
    found: list[tuple[str, torch.Tensor]] = []
    for path, leaf in leaves:
        if leaf is None:
            continue
        if not isinstance(leaf, torch.Tensor):
            raise UsageError(
                f"the module returns a {type(leaf).__name__}; expected tensors.",
                hint="Wrap it in a module that returns tensors only.",
            )
        keys = [str(getattr(part, "key", getattr(part, "name", ""))) for part in path]
        found.append((".".join(key for key in keys if key), leaf))
    if not found:
        raise UsageError("the module returns no tensor.")
    return found
