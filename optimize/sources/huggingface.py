"""A folder in the Hugging Face layout: config.json, safetensors weights, tokenizer or preprocessor."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from optimize import foreign_files
from optimize.engines.base import Progress, Session
from optimize.errors import StageFailed, UsageError
from optimize.sources import safetensors_header
from optimize.sources.axes import RangeLike
from optimize.sources.base import Capture
from optimize.sources.quiet import quiet
from optimize.sources.torch_capture import capture_module
from optimize.sources.torch_model import TorchModel, torch_model

if TYPE_CHECKING:
    import torch

TASKS: dict[str, tuple[tuple[str, ...], str, str]] = {
    "text-classification": (("ForSequenceClassification",), "AutoModelForSequenceClassification", "logits"),
    "causal-lm": (("ForCausalLM", "LMHeadModel"), "AutoModelForCausalLM", "logits"),
    "image-classification": (("ForImageClassification",), "AutoModelForImageClassification", "logits"),
    "feature-extraction": (("Model",), "AutoModel", "last_hidden_state"),
}
"""Task → ends of the architecture's class name (the first that fits counts), class that loads it, output kept."""

LARGEST_CONFIG = 16_000_000
"""Bytes; those that are published have thousands."""

PICKLED = (".bin", ".pt", ".pth", ".ckpt")
TYPICAL_TOKENS = 128
LONGEST_TOKENS = 512
EXAMPLE_TOKENS = 16


class HuggingFaceSource:
    """A local folder; nothing is downloaded and no code in it is run.

    Args:
        path: The folder, relative to `base`.
        task: What the model is for; "auto" reads it off the architecture in config.json.
        attention: Attention implementation, "sdpa" or "eager".
        opset: Opset to export at; None leaves the exporter's own choice.
        ranges: Axis name ("batch", "tokens") → range.
        base: Folder that a relative path starts from.
        allow_pickle: Load weights from pickled files, by PyTorch's restricted reader.
    """

    kind: ClassVar[str] = "huggingface"

    def __init__(
        self,
        *,
        path: str,
        task: str = "auto",
        attention: str = "sdpa",
        opset: int | None = None,
        ranges: Mapping[str, RangeLike] | None = None,
        base: Path = Path(),
        allow_pickle: bool = False,
    ) -> None:
        self._path, self._task, self._attention = base / path, task, attention
        self._opset, self._ranges, self._allow_pickle = opset, dict(ranges or {}), allow_pickle
        self._built: TorchModel | None = None

    def check(self) -> str | None:
        for library in ("torch", "transformers", "safetensors"):
            if importlib.util.find_spec(library) is None:
                return f'{library} is not installed. Install it with: pip install "model-optimize[huggingface]"'
        try:
            self._resolved_task(self._config())
            self._weights()
        except UsageError as error:
            return str(error)
        return None

    def files(self) -> tuple[Path, ...]:
        """Configuration, weights and tokenizer: every file of the folder itself that the result hangs on."""
        self._config()
        kept = (".json", ".safetensors", ".txt", ".model", *(PICKLED if self._allow_pickle else ()))
        return tuple(sorted(path for path in self._path.iterdir() if path.suffix in kept and path.is_file()))

    def capture(self, progress: Progress) -> Capture:
        progress(f"load {self._path.name}", 0, 0)
        return capture_module(self.torch_model(), self._opset, progress)

    def original(
        self, *, threads: int | None = None, compiled: bool = False, device: Literal["cpu", "cuda"] = "cpu"
    ) -> Session:
        return self.torch_model().session(threads=threads, compiled=compiled, device=device)

    def _config(self) -> dict[str, Any]:
        if not self._path.is_dir():
            raise UsageError(f"there is no folder '{self._path}'.", hint="Nothing is downloaded; name a folder.")
        file = self._path / "config.json"
        try:
            config = foreign_files.json_data(foreign_files.content(file, LARGEST_CONFIG))
        except FileNotFoundError as error:
            raise UsageError(f"'{self._path}' is no Hugging Face folder: it has no config.json.") from error
        except OSError as error:
            raise UsageError(f"'{file}' cannot be read: {error.strerror}.") from error
        except ValueError as error:
            raise UsageError(f"'{file}' is not valid JSON: {error}.") from error
        if not isinstance(config, dict) or "model_type" not in config:
            raise UsageError(f"'{file}' names no model_type.")
        if "auto_map" in config:
            raise UsageError(
                f"'{self._path.name}' is a model that brings its own code (auto_map in config.json).",
                hint="Code from a model folder is not run; build it in a factory: source: {kind: torch, …}.",
            )
        return config

    def _weights(self) -> None:
        names = [path.name for path in self._path.iterdir()]
        whole = [name for name in names if name.endswith(".safetensors")]
        if whole:
            for name in sorted(whole):
                safetensors_header.check(self._path / name)
            return
        pickled = [name for name in names if name.endswith(PICKLED)]
        if not pickled:
            raise UsageError(f"'{self._path}' holds no weights (*.safetensors).")
        if not self._allow_pickle:
            raise UsageError(
                f"'{self._path.name}' keeps its weights as a pickle ({sorted(pickled)[0]}).",
                hint="Convert them to safetensors, or pass --allow-pickle if you trust the file.",
            )

    def _resolved_task(self, config: Mapping[str, Any]) -> str:
        if self._task != "auto":
            if self._task not in TASKS:
                raise UsageError(f"task '{self._task}' is not one of: auto, {', '.join(TASKS)}.")
            return self._task
        given = config.get("architectures")
        architectures = [str(name) for name in given] if isinstance(given, list) else []
        for architecture in architectures:
            for task, (endings, _, _) in TASKS.items():
                if architecture.endswith(endings):
                    return task
        raise UsageError(
            f"'{self._path.name}': no task fits its architecture ({', '.join(architectures) or 'not given'}).",
            hint=f"Set source.task to one of: {', '.join(TASKS)}.",
        )

    def torch_model(self) -> TorchModel:
        """The module, made once."""
        if self._built is None:
            config = self._config()
            task = self._resolved_task(config)
            self._weights()
            self._built = torch_model(self._build(task), self._ranges, what=f"'{self._path.name}'")
        return self._built

    def _build(self, task: str) -> dict[str, Any]:
        # Both before transformers is imported: it reads them once.
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
        import torch
        import transformers

        _, loader, output = TASKS[task]
        network = self._network(getattr(transformers, loader), self._attention)
        if task == "image-classification":
            return self._images(network, output)
        return self._text(network, output, torch)

    def _network(self, loader: Any, attention: str | None) -> Any:
        try:
            with quiet():
                return loader.from_pretrained(
                    self._path,
                    local_files_only=True,
                    trust_remote_code=False,
                    use_safetensors=not self._allow_pickle or None,
                    weights_only=True,
                    attn_implementation=attention,
                )
        except Exception as error:  # transformers raises OSError, ValueError, KeyError, safetensors' own
            line = " ".join(str(error).split())[:300]
            if attention is not None and "does not support an attention implementation" in line:
                return self._network(loader, None)  # a model with one way of attention, or none
            raise StageFailed(f"transformers cannot load '{self._path.name}': {line}") from error

    def _text(self, network: Any, output: str, torch: Any) -> dict[str, Any]:
        config = network.config.get_text_config()
        accepted = self._tokenizer_inputs()
        longest = min(int(getattr(config, "max_position_embeddings", 0) or LONGEST_TOKENS), LONGEST_TOKENS)
        shape = (2, min(EXAMPLE_TOKENS, longest))
        ids = torch.randint(1, config.vocab_size, shape, generator=torch.Generator().manual_seed(0))
        inputs = {"input_ids": ids, "attention_mask": torch.ones(shape, dtype=torch.int64)}
        if "token_type_ids" in accepted:
            inputs["token_type_ids"] = torch.zeros(shape, dtype=torch.int64)
        axes = {0: "batch", 1: "tokens"}
        return {
            "module": one_output(network, output),
            "inputs": inputs,
            "dynamic_axes": dict.fromkeys(inputs, axes),
            "output_names": [output],
            "ranges": {"batch": (1, 8, 64), "tokens": (2, min(TYPICAL_TOKENS, longest), longest)},
        }

    def _tokenizer_inputs(self) -> tuple[str, ...]:
        file = self._path / "tokenizer_config.json"
        if not file.is_file():
            return ("input_ids", "attention_mask")
        import transformers

        try:
            with quiet():
                tokenizer = transformers.AutoTokenizer.from_pretrained(
                    self._path, local_files_only=True, trust_remote_code=False
                )
        except Exception as error:  # as above
            line = " ".join(str(error).split())[:300]
            raise StageFailed(f"the tokenizer of '{self._path.name}' cannot be loaded: {line}") from error
        return tuple(tokenizer.model_input_names)

    def _images(self, network: Any, output: str) -> dict[str, Any]:
        import torch

        size = getattr(network.config, "image_size", None) or self._preprocessor_size()
        height, width = (size, size) if isinstance(size, int) else (int(size[0]), int(size[1]))
        channels = int(getattr(network.config, "num_channels", 3))
        pixels = torch.randn((2, channels, height, width), generator=torch.Generator().manual_seed(0))
        return {
            "module": one_output(network, output),
            "inputs": {"pixel_values": pixels},
            "dynamic_axes": {"pixel_values": {0: "batch"}},
            "output_names": [output],
            "ranges": {"batch": (1, 8, 64)},
        }

    def _preprocessor_size(self) -> Any:
        file = self._path / "preprocessor_config.json"
        try:
            data = foreign_files.json_data(foreign_files.content(file, LARGEST_CONFIG))
        except FileNotFoundError:
            data = {}
        except (OSError, ValueError) as error:
            raise UsageError(f"'{file}' cannot be read: {error}.") from error
        size = data.get("size") if isinstance(data, dict) else None
        if isinstance(size, dict):
            if "shortest_edge" in size:
                return int(size["shortest_edge"])
            if "height" in size and "width" in size:
                return (size["height"], size["width"])
        return size if isinstance(size, int) else 224


def one_output(network: torch.nn.Module, output: str) -> torch.nn.Module:
    """A module that returns one of a model's outputs; the others would be dead weight in the engine."""
    import torch

    class OneOutput(torch.nn.Module):  # type: ignore[misc]  # torch is opaque to the type checker
        def __init__(self) -> None:
            super().__init__()
            self.model = network

        def forward(
            self,
            input_ids: Any = None,
            attention_mask: Any = None,
            token_type_ids: Any = None,
            pixel_values: Any = None,
        ) -> Any:
            inputs = {
                "input_ids": input_ids,
                "attention_mask": attention_mask,
                "token_type_ids": token_type_ids,
                "pixel_values": pixel_values,
            }
            given = {name: value for name, value in inputs.items() if value is not None}
            if hasattr(self.model.config, "use_cache"):
                given["use_cache"] = False
            return getattr(self.model(**given), output)

    return OneOutput()
