"""Timing contenders in turns on one GPU, with CUDA events."""

from __future__ import annotations

import dataclasses
import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch


@dataclasses.dataclass(frozen=True)
class Contender:
    """Something that runs the case once.

    Attributes:
        name: As the table spells it.
        step: Puts one inference on `stream`; returns without waiting.
        stream: The CUDA stream that it runs on.
    """

    name: str
    step: Callable[[], Any]
    stream: torch.cuda.Stream


def interleaved(
    contenders: Sequence[Contender], *, rounds: int, warmup: int = 10, repeats: int = 5
) -> Mapping[str, list[float]]:
    """Milliseconds per inference of each contender, one sample a round, all contenders in every round.

    Each sample is the mean of `repeats` inferences back to back, from one event to the next; the order of
    contenders turns with the round, so that none always follows the same one.
    """
    samples: dict[str, list[float]] = {contender.name: [] for contender in contenders}
    for contender in contenders:
        with torch.cuda.stream(contender.stream):
            for _ in range(warmup):
                contender.step()
        contender.stream.synchronize()
    for number in range(rounds):
        shift = number % len(contenders)
        for contender in (*contenders[shift:], *contenders[:shift]):
            start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
            with torch.cuda.stream(contender.stream):
                contender.step()  # Warms the caches that another contender has just filled.
                start.record(contender.stream)
                for _ in range(repeats):
                    contender.step()
                end.record(contender.stream)
            end.synchronize()
            samples[contender.name].append(start.elapsed_time(end) / repeats)
    return samples


def summary(samples: Sequence[float]) -> dict[str, float]:
    """Median and the middle half of the samples, in milliseconds."""
    low, middle, high = statistics.quantiles(samples, n=4)
    return {"median_ms": middle, "p25_ms": low, "p75_ms": high}
