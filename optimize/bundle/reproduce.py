"""Scripts in a bundle that make its contents again, stage by stage."""

from __future__ import annotations

import shlex
from collections.abc import Mapping

from optimize.report import wording
from optimize.report.model import Report

STEPS = ("capture", "feeds", "reference", "learn", "passes", "build baseline", "build", "accuracy", "throughput")
"""Steps that `optimize run --fresh` takes by name; what a run adds to them (memory, blame) follows by itself."""


def scripts(report: Report, model: Mapping[str, str]) -> dict[str, str]:
    """Files of the bundle's `reproduce/` folder, by name.

    Args:
        model: sha256 of the optimised ONNX file and its data, by file name.
    """
    files = {"requirements.txt": _requirements(report), "all.sh": _whole(report)}
    names = list(dict.fromkeys(stage.name for stage in report.stages if stage.name in STEPS))
    for number, name in enumerate(names, start=1):
        files[f"{number}-{name.replace(' ', '-')}.sh"] = _stage(report, name)
    files["expected.sha256"] = "".join(f"{digest}  {name}\n" for name, digest in sorted(model.items()))
    return files


def _requirements(report: Report) -> str:
    # A local version such as 2.13.0+cpu names a build that indexes may not carry.
    lines = [
        f"{name}=={version.partition('+')[0]}" for name, version in sorted(report.environment.libraries.items())
    ]
    head = f"# What {wording.one_line(report.name)} was made with; Python {report.environment.python}.\n"
    return head + "".join(f"{wording.one_line(line)}\n" for line in lines)


_PROLOGUE = """\
set -eu
here=$(cd "$(dirname "$0")" && pwd)
: "${SOURCES:?Set SOURCES to the folder that the recipe's paths start from, such as recipes.}"
out=${OUT:-$PWD/reproduced}
mkdir -p "$out"
# The recipe names its folder in one line; everything else in it is as it was.
base=$(cd "$SOURCES" && pwd | sed -e "s/'/''/g" -e 's/[&|\\\\]/\\\\&/g')
sed "s|^base: .*|base: '$base'|" "$here/../recipe.resolved.yaml" > "$out/again.yaml"
"""


def _stage(report: Report, name: str) -> str:
    record = next(stage for stage in report.stages if stage.name == name)
    took = f"took {wording.seconds(record.seconds)}" if record.outcome in ("done", "reused") else record.outcome
    return (
        "#!/bin/sh\n"
        f"# Stage '{wording.one_line(name)}' of {wording.one_line(report.name)}, which {took}.\n"
        f"# Earlier stages are taken from the store where they lie there, else made first.\n"
        f"# Key of everything that went in: {wording.one_line(record.key) or 'not recorded'}\n"
        + _PROLOGUE
        + f'exec optimize run "$out/again.yaml" ${{STORE:+--store "$STORE"}} --output "$out" '
        f"--fresh {shlex.quote(name)}\n"
    )


def _whole(report: Report) -> str:
    return (
        "#!/bin/sh\n"
        f"# Every stage of {wording.one_line(report.name)}, then the ONNX file compared with this bundle's.\n"
        + _PROLOGUE
        + 'optimize run "$out/again.yaml" ${STORE:+--store "$STORE"} --output "$out" --fresh all\n'
        # An engine may differ: builders choose by timing. The ONNX file is the same to the last bit.
        + 'cd "$out" && sha256sum --check "$here/expected.sha256"\n'
    )
