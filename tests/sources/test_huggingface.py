"""Hugging Face folders: the task read off the folder, captured offline, code and pickles refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from optimize.engines.base import AxisRange
from optimize.errors import StageFailed, UsageError
from optimize.sources.huggingface import HuggingFaceSource


def ignore(*_: object) -> None:
    """Progress nobody watches."""


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    import transformers

    transformers.utils.logging.disable_progress_bar()
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        hidden_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        intermediate_size=16,
        vocab_size=50,
        max_position_embeddings=32,
    )
    folder = tmp_path_factory.mktemp("llama")
    transformers.LlamaForCausalLM(config).save_pretrained(folder)
    return folder


def test_a_folder_is_captured_with_batch_and_tokens_dynamic(llama: Path) -> None:
    source = HuggingFaceSource(path=str(llama))
    assert source.check() is None
    captured = source.capture(ignore)
    assert [(spec.name, spec.shape) for spec in captured.inputs] == [
        ("input_ids", ("batch", "tokens")),
        ("attention_mask", ("batch", "tokens")),
    ]
    assert [(spec.name, spec.shape) for spec in captured.outputs] == [("logits", ("batch", "tokens", 50))]
    assert captured.ranges == {"batch": AxisRange(1, 8, 64), "tokens": AxisRange(2, 32, 32)}
    assert len(captured.checks) == 4
    assert all(check["relative_l2"] < 1e-5 for check in captured.checks)
    feeds = {name: np.ones((1, 5), np.int64) for name in ("input_ids", "attention_mask")}
    with source.original(threads=1) as original:
        assert original.run(feeds)["logits"].shape == (1, 5, 50)


def test_the_files_that_decide_are_configuration_and_weights(llama: Path) -> None:
    names = {path.name for path in HuggingFaceSource(path=str(llama)).files()}
    assert {"config.json", "model.safetensors"} <= names


def folder_with(folder: Path, config: dict[str, Any] | None, *files: str) -> HuggingFaceSource:
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    for name in files:
        (folder / name).write_bytes(b"")
    return HuggingFaceSource(path=folder.name, base=folder.parent)


@pytest.mark.parametrize(
    ("architecture", "task"),
    [
        ("BertModel", "feature-extraction"),
        ("BertForSequenceClassification", "text-classification"),
        ("LlamaForCausalLM", "causal-lm"),
        ("GPT2LMHeadModel", "causal-lm"),
        ("ViTForImageClassification", "image-classification"),
    ],
)
def test_the_architecture_names_the_task(architecture: str, task: str, tmp_path: Path) -> None:
    config = {"model_type": "any", "architectures": [architecture]}
    assert folder_with(tmp_path, config)._resolved_task(config) == task


BERT = {"model_type": "bert", "architectures": ["BertModel"]}


@pytest.mark.parametrize(
    ("config", "files", "sentence"),
    [
        (None, (), "is no Hugging Face folder: it has no config.json"),
        ({}, (), "names no model_type"),
        (BERT, (), "holds no weights"),
        (BERT, ("pytorch_model.bin",), r"keeps its weights as a pickle \(pytorch_model.bin\).*--allow-pickle"),
        ({**BERT, "auto_map": {"AutoModel": "x.Net"}}, ("model.safetensors",), "brings its own code"),
        ({"model_type": "x", "architectures": ["XDecoder"]}, ("model.safetensors",), r"\(XDecoder\).*source.task"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    config: dict[str, Any] | None, files: tuple[str, ...], sentence: str, tmp_path: Path
) -> None:
    source = folder_with(tmp_path, config, *files)
    with pytest.raises(UsageError, match=sentence) as caught:
        source.capture(ignore)
    assert source.check() == str(caught.value)


def test_a_damaged_configuration_names_the_place(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": }')
    with pytest.raises(UsageError, match=r"config.json' is not valid JSON: .*line 1 column 16"):
        HuggingFaceSource(path=str(tmp_path)).capture(ignore)


def test_damaged_weights_are_an_error_in_one_line(llama: Path, tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(UsageError, match=r"'model.safetensors' is not a safetensors file") as caught:
        HuggingFaceSource(path=str(tmp_path)).capture(ignore)
    assert "\n" not in str(caught.value)
    assert HuggingFaceSource(path=str(tmp_path)).check() == str(caught.value)


def test_weights_of_another_model_are_an_error_in_one_line(llama: Path, tmp_path: Path) -> None:
    from safetensors.numpy import save_file

    (tmp_path / "config.json").write_text((llama / "config.json").read_text())
    save_file({"model.embed_tokens.weight": np.zeros((3, 3), np.float32)}, tmp_path / "model.safetensors")
    with pytest.raises(StageFailed, match="transformers cannot load") as caught:
        HuggingFaceSource(path=str(tmp_path)).capture(ignore)
    assert "\n" not in str(caught.value)


def test_a_name_that_is_no_folder_is_not_looked_up_anywhere(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"there is no folder .* Nothing is downloaded"):
        HuggingFaceSource(path="bert-base-uncased", base=tmp_path).capture(ignore)


@pytest.mark.parametrize(
    ("config", "said"),
    [
        ("[" * 100_000, "valid JSON"),
        ('{"model_type": "x", "architectures": 7}', "no task fits its architecture"),
        ('{"model_type": "x", "architectures": [{"a": 1}, null]}', "no task fits its architecture"),
        ('{"model_type": "x", "layers": ' + "9" * 5000 + "}", "valid JSON"),
    ],
)
def test_a_config_of_another_form_is_a_sentence(tmp_path: Path, config: str, said: str) -> None:
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"")
    assert said in str(HuggingFaceSource(path=str(tmp_path)).check())


def test_a_config_that_never_ends_is_a_sentence(tmp_path: Path) -> None:
    (tmp_path / "config.json").symlink_to("/dev/zero")
    assert "no plain file" in str(HuggingFaceSource(path=str(tmp_path)).check())
