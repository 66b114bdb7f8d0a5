"""Architectures with random weights and small dimensions, exported as their sources write them."""

from __future__ import annotations

import dataclasses
import io
import warnings
from collections.abc import Callable, Iterable, Mapping
from contextlib import redirect_stderr, redirect_stdout
from typing import Any

import onnx_ir as ir
import torch
import transformers
from onnxscript.optimizer import fold_constants
from torch import nn

LAYERS = 2
"""Layers of every transformer here: one to be first and one to follow it."""


@dataclasses.dataclass(frozen=True)
class Example:
    """A module ready to export.

    Attributes:
        module: The module; its outputs are tensors.
        inputs: Example inputs by name, in order.
        dynamic: Names of the dynamic dimensions per input: {"input_ids": ("batch", "tokens")}; None is fixed.
        expected: How often each pattern is in it, as its source is written.
        optimize: Whether the exporter tidies up, which already folds batch norms; else only constants are folded.
    """

    module: nn.Module
    inputs: dict[str, torch.Tensor]
    dynamic: Mapping[str, tuple[str | None, ...]]
    expected: dict[str, int]
    optimize: bool = True


class Hidden(nn.Module):
    """A transformers model that gives its last hidden state only."""

    def __init__(
        self, model: nn.Module, names: Iterable[str], output: str = "last_hidden_state", **fixed: Any
    ) -> None:
        super().__init__()
        self.model = model
        self.names = tuple(names)
        self.output = output
        self.fixed = fixed

    def forward(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Run the model and pick the output."""
        named = dict(zip(self.names, inputs, strict=True))
        found: torch.Tensor = getattr(self.model(**named, **self.fixed), self.output)
        return found


def _text(name: str, **fields: Any) -> Callable[[str], Example]:
    def build(attention: str) -> Example:
        config = getattr(transformers, f"{name}Config")(
            **{"vocab_size": 99, "hidden_size": 32, "num_attention_heads": 4, **_depth(name), **fields}
        )
        config._attn_implementation = attention
        model = getattr(transformers, f"{name}Model")(config)
        cache: dict[str, Any] = {} if name in ("Bert", "DistilBert", "Roberta") else {"use_cache": False}
        ids = torch.randint(3, 99, (2, 8))
        inputs = {"input_ids": ids, "attention_mask": torch.ones(2, 8, dtype=torch.long)}
        axes = dict.fromkeys(inputs, ("batch", "tokens"))
        return Example(Hidden(model, inputs, **cache), inputs, axes, _expected(name))

    return build


def _depth(name: str) -> dict[str, Any]:
    if name == "DistilBert":
        return {"dim": 32, "n_layers": LAYERS, "n_heads": 4, "hidden_dim": 64}
    if name == "GPT2":
        return {"n_embd": 32, "n_layer": LAYERS, "n_head": 4}
    return {"num_hidden_layers": LAYERS, "intermediate_size": 64}


def _expected(name: str) -> dict[str, int]:
    found = {"attention": LAYERS}
    if name in ("Bert", "DistilBert", "Roberta"):
        found |= {
            "gelu": LAYERS,
            "skip_layer_norm": 2 * LAYERS + 1,
            "layer_norm": 2 * LAYERS + 1,
            "bias_gelu": LAYERS,
        }
    if name == "GPT2":
        found |= {"gelu_tanh": LAYERS, "skip_layer_norm": 2 * LAYERS + 1}
    if name in ("Llama", "Mistral", "Qwen2"):
        found |= {"rms_norm": 2 * LAYERS + 1, "rotary": 2 * LAYERS, "swiglu": LAYERS}
    if name == "Gemma":
        found |= {
            "gelu_tanh": LAYERS,
            "rms_norm": 2 * LAYERS + 1,
            "rotary": 2 * LAYERS,
        }
    if name == "Cohere":
        found |= {"layer_norm": LAYERS + 1, "rotary": 2 * LAYERS, "swiglu": LAYERS, "skip_layer_norm": LAYERS}
    if name == "Phi":
        found |= {"gelu_tanh": LAYERS, "rotary": 2 * LAYERS, "skip_layer_norm": LAYERS}
    return found


def _vit(attention: str) -> Example:
    config = transformers.ViTConfig(
        hidden_size=32,
        num_hidden_layers=LAYERS,
        num_attention_heads=4,
        intermediate_size=64,
        image_size=16,
        patch_size=4,
    )
    config._attn_implementation = attention
    model = transformers.ViTModel(config, add_pooling_layer=False)
    expected = {"attention": LAYERS, "gelu": LAYERS, "bias_gelu": LAYERS, "skip_layer_norm": 2 * LAYERS}
    return Example(
        Hidden(model, ("pixel_values",)),
        {"pixel_values": torch.randn(2, 3, 16, 16)},
        {"pixel_values": ("batch", None, None, None)},
        expected,
    )


def _clip(attention: str) -> Example:
    sizes = {"hidden_size": 32, "num_hidden_layers": LAYERS, "num_attention_heads": 4, "intermediate_size": 64}
    config = transformers.CLIPConfig(
        text_config={**sizes, "vocab_size": 99, "max_position_embeddings": 32, "eos_token_id": 2},
        vision_config={**sizes, "image_size": 16, "patch_size": 4},
        projection_dim=16,
    )
    for part in (config, config.text_config, config.vision_config):
        part._attn_implementation = attention
    inputs = {
        "input_ids": torch.randint(3, 99, (2, 8)),
        "pixel_values": torch.randn(2, 3, 16, 16),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
    }
    axes: dict[str, tuple[str | None, ...]] = {
        "input_ids": ("texts", "tokens"),
        "pixel_values": ("images", None, None, None),
        "attention_mask": ("texts", "tokens"),
    }
    expected = {
        "attention": 2 * LAYERS,
        "gelu_sigmoid": 2 * LAYERS,
        "skip_layer_norm": 4 * LAYERS,
    }
    return Example(Hidden(transformers.CLIPModel(config), inputs, "logits_per_text"), inputs, axes, expected)


def _whisper(attention: str) -> Example:
    config = transformers.WhisperConfig(
        d_model=32, encoder_layers=LAYERS, encoder_attention_heads=4, encoder_ffn_dim=64, num_mel_bins=8,
        max_source_positions=20, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=99,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    config._attn_implementation = attention
    model = transformers.WhisperModel(config).encoder
    expected = {"attention": LAYERS, "gelu": LAYERS + 2, "bias_gelu": LAYERS, "skip_layer_norm": 2 * LAYERS}
    return Example(
        Hidden(model, ("input_features",)),
        {"input_features": torch.randn(2, 8, 40)},
        {"input_features": ("batch", None, None)},
        expected,
    )


def _t5(attention: str) -> Example:
    config = transformers.T5Config(
        vocab_size=99, d_model=32, d_kv=8, d_ff=64, num_layers=LAYERS, num_heads=4, decoder_start_token_id=0
    )
    config._attn_implementation = attention
    inputs = {
        "input_ids": torch.randint(3, 99, (2, 8)),
        "attention_mask": torch.ones(2, 8, dtype=torch.long),
        "decoder_input_ids": torch.randint(3, 99, (2, 5)),
    }
    axes: dict[str, tuple[str | None, ...]] = {
        "input_ids": ("batch", "tokens"),
        "attention_mask": ("batch", "tokens"),
        "decoder_input_ids": ("batch", "targets"),
    }
    expected = {"attention": 3 * LAYERS, "rms_norm": 5 * LAYERS + 2}
    return Example(Hidden(transformers.T5Model(config), inputs, use_cache=False), inputs, axes, expected)


class Residual(nn.Module):
    """A ResNet block: two convolutions with batch norm, added to what came in."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)
        self.down = nn.Sequential(nn.Conv2d(inside, outside, 1, stride, bias=False), nn.BatchNorm2d(outside))
        for norm in (self.first_norm, self.second_norm, self.down[1]):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.running_mean)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, inside, height, width) to (batch, outside, height / stride, width / stride)."""
        inner = torch.relu(self.first_norm(self.first(x)))
        return torch.relu(self.second_norm(self.second(inner)) + self.down(x))


class ResNetLike(nn.Module):
    """Two residual blocks of the given widths and a classifier."""

    def __init__(self, widths: tuple[int, int] = (8, 16)) -> None:
        super().__init__()
        first, second = widths
        self.blocks = nn.Sequential(Residual(3, first, 2), Residual(first, second, 2))
        self.classifier = nn.Linear(second, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, 10)."""
        found: torch.Tensor = self.classifier(self.blocks(image).mean((2, 3)))
        return found


class ConvNeXtBlock(nn.Module):
    """A depthwise convolution, layer norm over channels, and a two-layer perceptron."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(width, width, 7, padding=3, groups=width)
        self.norm = nn.LayerNorm(width)
        self.up = nn.Linear(width, 4 * width)
        self.down = nn.Linear(4 * width, width)
        self.scale = nn.Parameter(torch.full((width,), 0.5))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """(batch, width, height, width) to the same."""
        inner = self.norm(self.depthwise(x).permute(0, 2, 3, 1))
        inner = self.down(nn.functional.gelu(self.up(inner))) * self.scale
        return x + inner.permute(0, 3, 1, 2)


class ConvNeXtLike(nn.Module):
    """A patch embedding, two blocks and a classifier."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.stem = nn.Sequential(nn.Conv2d(3, width, 4, 4), nn.BatchNorm2d(width), nn.GELU())
        self.blocks = nn.Sequential(ConvNeXtBlock(width), ConvNeXtBlock(width))
        self.classifier = nn.Linear(width, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, 10)."""
        found: torch.Tensor = self.classifier(self.blocks(self.stem(image)).mean((2, 3)))
        return found


class UNetLike(nn.Module):
    """Two residual blocks of group norm, SiLU and convolution, as in diffusion models."""

    def __init__(self, width: int = 8) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norms = nn.ModuleList([nn.GroupNorm(4, width), nn.GroupNorm(2, width)])
        self.convolutions = nn.ModuleList([nn.Conv2d(width, width, 3, padding=1) for _ in range(2)])
        for norm in self.norms:
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        """(batch, 3, height, width) to (batch, channels, height, width)."""
        x: torch.Tensor = self.stem(image)
        for norm, convolution in zip(self.norms, self.convolutions, strict=True):
            x = x + convolution(nn.functional.silu(norm(x)))
        return x


def _image(module: type[nn.Module], **expected: int) -> Callable[[str], Example]:
    def build(attention: str) -> Example:
        axes: dict[str, tuple[str | None, ...]] = {"image": ("batch", None, None, None)}
        return Example(module(), {"image": torch.randn(2, 3, 32, 32)}, axes, expected, optimize=False)

    return build


GROUPED = {"num_key_value_heads": 2}
ZOO: dict[str, Callable[[str], Example]] = {
    "bert": _text("Bert"),
    "distilbert": _text("DistilBert"),
    "roberta": _text("Roberta", pad_token_id=1),
    "vit": _vit,
    "gpt2": _text("GPT2"),
    "llama": _text("Llama", **GROUPED),
    "mistral": _text("Mistral", head_dim=8, sliding_window=None, **GROUPED),
    "qwen2": _text("Qwen2", **GROUPED),
    "gemma": _text("Gemma", head_dim=8, num_key_value_heads=1, pad_token_id=0),
    "phi": _text("Phi"),
    "cohere": _text("Cohere", pad_token_id=0, **GROUPED),
    "t5": _t5,
    "whisper-encoder": _whisper,
    "clip": _clip,
    "resnet-like": _image(ResNetLike, conv_batch_norm=6),
    "convnext-like": _image(ConvNeXtLike, conv_batch_norm=1, gelu=3, bias_gelu=2),
    "unet-like": _image(UNetLike, group_norm=2, silu=2),
}
"""Builders by name; each takes the attention implementation, "sdpa" or "eager"."""

WITHOUT_ATTENTION = ("resnet-like", "convnext-like", "unet-like")


def export(name: str, attention: str = "sdpa", longest: int = 16) -> tuple[ir.Model, Example]:
    """Export an architecture with dynamic dimensions of 2 to `longest`; the same weights on every call."""
    torch.manual_seed(0)
    example = ZOO[name](attention)
    example.module.eval()
    return exported(example, longest), example


def exported(example: Example, longest: int) -> ir.Model:
    """Export an example with dynamic dimensions of 2 to `longest`."""
    named = {
        part: torch.export.Dim(part, min=2, max=longest)
        for axes in example.dynamic.values()
        for part in axes
        if part
    }
    shapes: Any = tuple(
        {axis: named[part] for axis, part in enumerate(axes) if part} for axes in example.dynamic.values()
    )
    if isinstance(example.module, Hidden):
        shapes = (shapes,)
    with warnings.catch_warnings(), redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        warnings.simplefilter("ignore")
        program = torch.onnx.export(
            example.module,
            tuple(example.inputs.values()),
            dynamo=True,
            dynamic_shapes=shapes,
            verbose=False,
            optimize=example.optimize,
            input_names=list(example.inputs),
            output_names=["result"],
        )
    assert program is not None
    if not example.optimize:
        fold_constants(program.model)
    model: ir.Model = program.model
    return model
