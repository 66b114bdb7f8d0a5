"""Calibrates a copy of a PyTorch module with NVIDIA ModelOpt and reads what its quantizers learned.

ModelOpt's quantized modules do not go through the modern exporter, so the plain module is exported as always and
only numbers are taken from here: per layer the formats, ranges and pre-scales, in ModelOpt's own configurations.
"""

from __future__ import annotations

import copy
import importlib.metadata
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from optimize.engines.base import Progress
from optimize.errors import BackendMissing, StageFailed
from optimize.sources.quiet import quiet
from optimize.sources.torch_model import TorchModel
from passes.lessons import Grid, LayerLesson, Lessons

if TYPE_CHECKING:
    import torch

Array = np.ndarray[Any, Any]
Batches = Callable[[], Iterable[Mapping[str, Array]]]

GRIDS: dict[Any, Grid] = {8: "int8", 4: "int4", (4, 3): "fp8", (2, 1): "nvfp4"}
"""ModelOpt's `num_bits` → format."""


def learn(
    model: TorchModel, asked: Mapping[str, Any], batches: Batches, samples: int, progress: Progress
) -> Lessons:
    """Quantize the module in place with ModelOpt and read its quantizers.

    Args:
        model: The module, used up by this.
        asked: {"config": a name in `modelopt.torch.quantization`, or "auto"; for that "formats" and
            "effective_bits"}.
        batches: Gives the calibration batches anew on each call.
        samples: Number of batches, for progress.
        progress: Called with (what, done, total).

    Raises:
        BackendMissing: When ModelOpt cannot be imported.
        StageFailed: When ModelOpt stops, or learned nothing.
    """
    try:
        with quiet():
            import modelopt.torch.quantization as mtq
    except ImportError as error:
        raise BackendMissing(
            f"NVIDIA ModelOpt cannot be imported: {error}.", hint='pip install "model-optimize[modelopt]"'
        ) from error
    plain = _plain(model.module)
    try:
        if asked["config"] == "auto":
            notes = _search(mtq, model, asked, batches, samples, progress)
        else:
            notes = ()
            config = copy.deepcopy(getattr(mtq, asked["config"]))
            mtq.quantize(model.module, config, _forward_loop(model, batches, samples, progress))
    except Exception as error:  # ModelOpt raises whatever PyTorch does
        line = " ".join(str(error).split())[:300]
        raise StageFailed(
            f"ModelOpt stopped at {asked['config']}: {type(error).__name__}: {line}.",
            hint="Use another configuration, or our own quantize passes.",
        ) from error
    layers, unread = _read(model.module, plain)
    if not any(layer.weight or layer.input for layer in layers):
        raise StageFailed(
            f"ModelOpt's {asked['config']} enabled no quantizer of a linear or convolution layer.",
            hint="The module may use functions instead of torch.nn layers; use our own quantize passes.",
        )
    if unread:
        few = ", ".join(unread[:3]) + (" and others" if len(unread) > 3 else "")
        notes = (
            *notes,
            f"ModelOpt also quantizes in {len(unread)} places without stored weights, not placed here: {few}.",
        )
    return Lessons(layers, notes, f"ModelOpt {importlib.metadata.version('nvidia-modelopt')}")


def _forward_loop(
    model: TorchModel, batches: Batches, total: int, progress: Progress
) -> Callable[[torch.nn.Module], None]:
    import torch

    def run(module: torch.nn.Module) -> None:
        with torch.no_grad():
            for done, batch in enumerate(batches(), start=1):
                model.call(_tensors(batch))
                progress("ModelOpt calibrates", done, total)

    return run


def _search(
    mtq: Any, model: TorchModel, asked: Mapping[str, Any], batches: Batches, total: int, progress: Progress
) -> tuple[str, ...]:
    """ModelOpt's AutoQuantize: a format per layer under a mean number of bits per weight."""
    import torch

    generator = torch.Generator().manual_seed(0)

    def loss(output: Any, batch: Any) -> torch.Tensor:
        # A random sign per element: the squared gradient then is, on average, the diagonal of the squared
        # error's second derivative (Hutchinson), so no labels are needed.
        leaves = torch.utils._pytree.tree_leaves(output)
        floats = [leaf for leaf in leaves if isinstance(leaf, torch.Tensor) and leaf.is_floating_point()]
        signs = [torch.randint(0, 2, leaf.shape, generator=generator).to(leaf.dtype) * 2 - 1 for leaf in floats]
        return torch.stack([(leaf * sign).sum() for leaf, sign in zip(floats, signs, strict=True)]).sum()

    done = 0

    def step(module: torch.nn.Module, batch: Mapping[str, torch.Tensor]) -> Any:
        nonlocal done
        done += 1
        progress("ModelOpt searches", done, 0)
        return model.call(batch)

    model.module.requires_grad_(True)
    _, state = mtq.auto_quantize(
        model.module,
        constraints={"effective_bits": asked["effective_bits"]},
        quantization_formats=[copy.deepcopy(getattr(mtq, name)) for name in asked["formats"]],
        data_loader=_Loader(batches, total),
        forward_step=step,
        loss_func=loss,
        num_calib_steps=total,
        num_score_steps=total,
    )
    best = state.get("best", {}) if isinstance(state, Mapping) else {}
    constraints = best.get("constraints", {}) if isinstance(best, Mapping) else {}
    reached = constraints.get("effective_bits") if isinstance(constraints, Mapping) else None
    said = f", reached {float(reached):.3g}" if reached is not None else ""
    return (f"AutoQuantize was asked for {asked['effective_bits']:g} bits per weight{said}; {done} steps.",)


class _Loader:
    """The batches as tensors, read anew on each turn: one is in memory at a time."""

    def __init__(self, batches: Batches, total: int) -> None:
        self._batches, self._total = batches, total

    def __iter__(self) -> Iterator[dict[str, torch.Tensor]]:
        return (_tensors(batch) for batch in self._batches())

    def __len__(self) -> int:
        return self._total


def _tensors(batch: Mapping[str, Array]) -> dict[str, torch.Tensor]:
    import torch

    return {name: torch.from_numpy(np.ascontiguousarray(array)) for name, array in batch.items()}


def _plain(module: torch.nn.Module) -> dict[str, tuple[Array, Array]]:
    """Largest magnitude and norm per output channel of every layer's weight, before ModelOpt changes it."""
    import torch

    # Their weight is (out, in, …).
    kinds = (torch.nn.Linear, torch.nn.Conv1d, torch.nn.Conv2d, torch.nn.Conv3d)
    found = {}
    for name, layer in module.named_modules():
        if isinstance(layer, kinds):
            rows = layer.weight.detach().float().reshape(layer.weight.shape[0], -1)
            found[name] = (rows.abs().amax(1).cpu().numpy(), rows.norm(dim=1).cpu().numpy())
    return found


def _read(
    module: torch.nn.Module, plain: Mapping[str, tuple[Array, Array]]
) -> tuple[tuple[LayerLesson, ...], list[str]]:
    """Every layer's lesson in module order, and enabled quantizers that belong to none."""
    layers = []
    read: set[str] = set()
    for name, layer in module.named_modules():
        if name not in plain:
            continue
        read |= {f"{name}.weight_quantizer", f"{name}.input_quantizer"}
        layers.append(_lesson(name, layer, *plain[name]))
    enabled = [
        name
        for name, item in module.named_modules()
        if type(item).__name__.endswith("Quantizer") and getattr(item, "is_enabled", False)
    ]
    unread = [name for name in enabled if not any(name == seen or name.startswith(f"{seen}.") for seen in read)]
    return tuple(layers), unread


def _lesson(name: str, layer: Any, plain_amax: Array, plain_norm: Array) -> LayerLesson:
    empty = LayerLesson(name, None, None, 0, None, None, None, plain_amax, plain_norm)
    weight, activation = getattr(layer, "weight_quantizer", None), getattr(layer, "input_quantizer", None)
    if weight is None or activation is None:
        return LayerLesson(**{**vars(empty), "reason": "ModelOpt has no quantizers for it"})
    try:
        kind, amax, block = _quantizer(weight, layer.weight)
        input_kind, input_amax, _ = _quantizer(activation, None)
    except ValueError as error:
        return LayerLesson(**{**vars(empty), "reason": str(error)})
    factors = getattr(activation, "pre_quant_scale", None)
    if kind is None and input_kind is None:
        return LayerLesson(**{**vars(empty), "reason": "ModelOpt chose to leave it in floating point"})
    return LayerLesson(
        name, kind, amax, block, input_kind, input_amax,
        None if factors is None else factors.detach().float().reshape(-1).cpu().numpy(), plain_amax, plain_norm,
    )  # fmt: skip


def _quantizer(quantizer: Any, weight: torch.Tensor | None) -> tuple[Grid | None, Array | None, int]:
    """`(format, amax, block)` of one quantizer.

    Raises:
        ValueError: When it is of a kind that cannot be written down, in words.
    """
    if not hasattr(quantizer, "num_bits"):
        raise ValueError(f"ModelOpt quantizes it twice in a row ({type(quantizer).__name__})")
    if not quantizer.is_enabled:
        return None, None, 0
    grid = GRIDS.get(quantizer.num_bits)
    blocks = quantizer.block_sizes or {}
    if grid is None or getattr(quantizer, "is_mx_format", False):
        raise ValueError(f"ModelOpt quantizes it to {quantizer.num_bits} bits in blocks {blocks}, not placed here")
    if getattr(quantizer, "_unsigned", False) or getattr(quantizer, "rotate_is_enabled", False):
        raise ValueError("ModelOpt quantizes it unsigned or rotated, not placed here")
    if quantizer._dynamic or quantizer.amax is None:
        raise ValueError("ModelOpt quantizes it anew on every run; it learned no range")
    values = quantizer.amax.detach().float().cpu().numpy()
    block = int(blocks.get(-1, 0) or 0)
    if grid == "nvfp4":
        if block != 16 or values.size != 1:
            raise ValueError(f"ModelOpt quantizes it in FP4 blocks {blocks}, not placed here")
        return grid, values.reshape(()), 16
    if weight is None:
        if values.size != 1:
            raise ValueError(
                f"ModelOpt's input has a range of shape {list(values.shape)}, one per tensor is placed"
            )
        return grid, values.reshape(()), 0
    if block:
        return grid, values.reshape(weight.shape[0], -1), block
    if values.size not in (1, weight.shape[0]):
        raise ValueError(f"ModelOpt's weight has ranges of shape {list(values.shape)}, per channel are placed")
    return grid, values.reshape(() if values.size == 1 else -1), 0
