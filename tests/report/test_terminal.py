from __future__ import annotations

import io
from pathlib import Path

from rich.console import Console

from optimize.report import terminal
from optimize.report.model import Report
from tests.support import reports


def shown(report: Report, width: int = 120, **options: bool) -> str:
    stream = io.StringIO()
    terminal.show(report, Path("out/a"), console=Console(file=stream, width=width, **options))  # type: ignore[arg-type]
    return stream.getvalue()


def test_verdict_numbers_and_gates_are_shown() -> None:
    text = shown(reports.failing())
    assert text.startswith("FAIL  3.1 × faster, 3.9 × smaller, cosine 0.843\n")
    assert "accuracy.cosine.min      0.843    >= 0.99   missed" in text
    assert "Most was lost in quantize.int8." in text
    assert text.endswith("out/a/report.html\n")
    assert "\n  - quantize.int8: {skip: [encoder.layer.5.output.dense]}\n" in text


def test_a_broken_run_says_what_broke() -> None:
    assert "Stage 'build' failed: TensorRT: no kernel" in shown(reports.broken())


def test_names_cannot_steer_the_terminal_nor_use_richs_markup() -> None:
    text = shown(reports.hostile("\x1b]0;owned\x07[red]\r"), width=400)
    assert "\x1b" not in text
    assert "\x07" not in text
    assert "\r" not in text
    assert "\\x1b]0;owned\\x07[red]" in text


def test_the_stage_that_added_most_stands_out() -> None:
    text = shown(reports.failing(), force_terminal=True)
    line = next(line for line in text.splitlines() if "quantize.int8" in line and "0.580" in line)
    assert line.startswith("\x1b[1mquantize.int8")
