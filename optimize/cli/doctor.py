"""`optimize doctor`: what is here, what does not fit together, and the command that mends it."""

from __future__ import annotations

from typing import Annotated

import typer

from optimize import console


def doctor(
    target: Annotated[str | None, typer.Option(help="Also check this machine against a target.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="For machines.")] = False,
) -> int:
    """Check libraries and devices against each other (and a target); ends with 3 when something must be mended."""
    from optimize.errors import MISSING, PASSED
    from optimize.pipeline import environment, health

    here = environment.describe()
    findings = health.examine(here, target)
    if as_json:
        console.out_json(
            {
                "environment": here.model_dump(mode="json"),
                "findings": [finding.model_dump(mode="json") for finding in findings],
            }
        )
    else:
        console.out(f"python       {here.python} on {here.platform}")
        console.out(f"processor    {here.processor}, {here.cores} cores, {here.memory_bytes / 1e9:.1f} GB")
        console.out(f"             {' '.join(here.instructions) or 'no instruction set that speeds INT8 up'}")
        console.out(f"devices      {'; '.join(here.devices) or 'no NVIDIA device seen'}")
        for name, version in here.libraries.items():
            console.out(f"{name:<18} {version}")
        for finding in findings:
            console.out(
                f"{'ok ' if finding.ok else '!! '} {finding.what}{f' → {finding.remedy}' if finding.remedy else ''}"
            )
    return PASSED if all(finding.ok or finding.optional for finding in findings) else MISSING
