"""Numbers in words, the same in every view: three significant digits, a unit, a true minus sign."""

from __future__ import annotations

import math
import re

from optimize.console import printable

ABSENT = "—"


def one_line(text: str) -> str:
    """Text from a model or a user on one line, control characters and direction overrides made visible."""
    return printable(" ".join(text.split()))


def number(value: float | None, digits: int = 3) -> str:
    """Significant digits without needless zeros: 0.0123, 1,240, 1.2e-07."""
    if value is None:
        return ABSENT
    if math.isnan(value):
        return "NaN"
    if math.isinf(value):
        return "∞" if value > 0 else "−∞"
    if value == 0:
        return "0"
    size = abs(value)
    if size < 1e-4 or size >= 1e9:
        mantissa, exponent = f"{value:.{digits - 1}e}".split("e")
        text = f"{mantissa}e{int(exponent)}"
    elif size >= 10 ** (digits - 1):
        text = f"{value:,.0f}"
    else:
        text = f"{value:.{digits - 1 - math.floor(math.log10(size))}f}"
    return text.replace("-", "−", 1) if value < 0 else text


def ratio(value: float | None) -> str:
    """ "3.1 ×"."""
    return ABSENT if value is None else f"{number(value, 3 if value >= 10 or value < 1 else 2)} ×"


def size(count: float | None, digits: int = 3) -> str:
    """Bytes in decimal units: "23.4 MB"."""
    if count is None:
        return ABSENT
    for unit, factor in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if abs(count) >= factor:
            return f"{number(count / factor, digits)} {unit}"
    return f"{number(count, digits)} B" if count % 1 else f"{count:,.0f} B"


def milliseconds(value: float | None, digits: int = 3) -> str:
    """ "34.2 ms", "1.24 s", "820 µs"."""
    if value is None:
        return ABSENT
    if abs(value) >= 1000:
        return f"{number(value / 1000, digits)} s"
    if 0 < abs(value) < 0.1:
        return f"{number(value * 1000, digits)} µs"
    return f"{number(value, digits)} ms"


def joules(value: float | None, digits: int = 3) -> str:
    """ "1.24 J", "34.2 mJ", "820 µJ"."""
    if value is None:
        return ABSENT
    for unit, factor in (("J", 1.0), ("mJ", 1e-3)):
        if abs(value) >= factor or value == 0:
            return f"{number(value / factor, digits)} {unit}"
    return f"{number(value * 1e6, digits)} µJ"


def seconds(value: float | None) -> str:
    """ "4 min 12 s", "8.31 s", "12 ms"."""
    if value is None:
        return ABSENT
    if value >= 60:
        return f"{int(value // 60)} min {int(value % 60)} s"
    if value < 0.001:
        return "0 ms" if value == 0 else "under 1 ms"
    return f"{number(value)} s" if value >= 1 else f"{number(value * 1000)} ms"


def decibel(value: float | None) -> str:
    """ "31.4 dB"."""
    return ABSENT if value is None else f"{number(value)} dB"


def likeness(value: float | None) -> str:
    """A figure whose news is how far it is from 1: as many nines as there are (up to six), "0.99987".

    Rounded towards zero, so that 0.99996 never reads as 1.
    """
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return number(value)
    if value >= 1:
        return "1" if value == 1 else f"{value:.6g}"
    if value <= 0.9:
        return f"{value:.3f}".replace("-", "−")
    digits = min(6, 2 - math.floor(math.log10(1 - value)))
    scale = 10**digits
    return f"{math.floor(value * scale) / scale:.{digits}f}"


def share(value: float | None) -> str:
    """A share as per cent: "98.2 %"; rounded towards zero just below 100."""
    if value is None:
        return ABSENT
    if not math.isfinite(value):
        return number(value)
    percent = value * 100
    if 99.9 < percent < 100:
        percent = math.floor(percent * 100) / 100
        return f"{percent:.2f} %"
    return f"{percent:.1f} %".replace("-", "−")


def measured(value: float | None, unit: str, digits: int = 3) -> str:
    """A gate's figure in its unit (see `optimize.figures`)."""
    if value is None:
        return ABSENT
    if unit == "bytes":
        return size(value, digits)
    if unit == "ms":
        return milliseconds(value, digits)
    if unit == "J":
        return joules(value, digits)
    if not unit and 0.9 < value < 1:
        return likeness(value)
    return f"{number(value, digits)} {'/s' if unit == '1/s' else unit}".strip()


def limit(value: float, unit: str) -> str:
    """A gate's limit, as round as the recipe wrote it."""
    if unit in ("bytes", "ms", "J"):
        return re.sub(r"(\.\d*?)0+ ", r"\1 ", measured(value, unit)).replace(". ", " ")
    return f"{value:g} {'/s' if unit == '1/s' else unit}".strip().replace("-", "−")


def against(value: float | None, bound: float, unit: str) -> tuple[str, str]:
    """A figure and its limit, with digits enough that two different ones never read alike."""
    right = limit(bound, unit)
    for digits in range(3, 9):
        left = measured(value, unit, digits)
        if value == bound or left != right:
            break
    return left, right


def count(how_many: int, noun: str) -> str:
    """ "1 pass", "3 passes"."""
    if how_many == 1:
        return f"1 {noun}"
    plural = noun + ("es" if noun.endswith(("s", "x", "sh", "ch")) else "s")
    return f"{how_many:,} {plural}"
