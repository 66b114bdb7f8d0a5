"""The examples' models: they are what they say, and they are captured as the recipes need them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from examples import digits, minilm
from optimize.sources.torch_module import TorchSource

ROOT = Path(__file__).parents[2]


def test_the_digits_network_learns_and_is_the_same_each_time() -> None:
    network = digits.trained()
    held_out = digits.digits.evaluation()
    with torch.no_grad():
        predicted = network(torch.from_numpy(held_out["image"])).argmax(1).numpy()
    assert (predicted == held_out["label"]).mean() >= 0.98
    again = digits.trained().state_dict()
    assert all(torch.equal(weight, again[name]) for name, weight in network.state_dict().items())


def test_minilm_puts_like_sentences_together() -> None:
    from transformers import AutoTokenizer

    module = minilm.build()["module"].eval()
    tokenizer = AutoTokenizer.from_pretrained(minilm.folder(), local_files_only=True)
    sentences = ["A cat sits on the mat.", "On the rug there is a kitten.", "Shares fell sharply on Monday."]
    tokens = tokenizer(sentences, padding=True, return_tensors="pt")
    with torch.no_grad():
        embedding = module(tokens["input_ids"], tokens["attention_mask"]).numpy()
        length = int(tokens["attention_mask"][0].sum())
        alone = module(tokens["input_ids"][:1, :length], tokens["attention_mask"][:1, :length]).numpy()
    np.testing.assert_allclose(np.linalg.norm(embedding, axis=1), 1, rtol=1e-5)
    assert embedding[0] @ embedding[1] > embedding[0] @ embedding[2] + 0.3
    assert length < tokens["input_ids"].shape[1]
    np.testing.assert_allclose(alone[0], embedding[0], atol=1e-5)  # padding changes nothing


@pytest.mark.slow
def test_minilm_is_captured_with_both_dimensions_dynamic() -> None:
    captured = TorchSource(factory="examples/minilm.py:build", base=ROOT).capture(lambda *_: None)
    assert [(spec.name, spec.shape) for spec in captured.inputs] == [
        ("input_ids", ("batch", "tokens")),
        ("attention_mask", ("batch", "tokens")),
    ]
    assert [(spec.name, spec.shape) for spec in captured.outputs] == [("embedding", ("batch", 384))]
    assert captured.exporter.startswith("torch.onnx.export(dynamo=True), torch")
    assert not captured.notes
    assert len(captured.checks) == 4
    assert all(check["relative_l2"] < 1e-5 for check in captured.checks)
