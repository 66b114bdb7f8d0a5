"""`optimize bundle`: hand a finished run over, and check what was handed over."""

from __future__ import annotations

import enum
from pathlib import Path
from typing import Annotated

import typer

from optimize import console, errors

app = typer.Typer(
    help="Hand a finished run over as one verified folder, archive or Triton repository.", no_args_is_help=True
)

TRITON = "Triton model repository"


class Form(enum.Enum):
    """What a bundle is written as."""

    plain = "plain"
    triton = "triton"


class BackendName(enum.Enum):
    """Triton's backends."""

    auto = "auto"
    onnxruntime = "onnxruntime"
    tensorrt = "tensorrt"
    python = "python"


class PoolingName(enum.Enum):
    """What follows a model that gives token vectors."""

    none = "none"
    mean = "mean"


BundleArgument = Annotated[
    Path, typer.Argument(metavar="BUNDLE", help="A bundle: a folder or a .tar, .tar.gz, .tgz.", show_default=False)
]
DigestOption = Annotated[
    str | None,
    typer.Option("--sha256", help="The manifest's digest as its publisher gave it.", show_default=False),
]


@app.command()
def create(
    run: Annotated[
        Path, typer.Argument(metavar="RUN", help="The output folder of `optimize run`.", show_default=False)
    ],
    output: Annotated[
        Path, typer.Option("--output", "-o", help="A new folder, or a file ending in .tar, .tar.gz or .tgz.")
    ],
    format_: Annotated[
        Form, typer.Option("--format", help="A plain bundle, or a model repository for Triton Inference Server.")
    ] = Form.plain,
    name: Annotated[
        str | None, typer.Option(help="The model's name.", show_default="the run's", rich_help_panel=TRITON)
    ] = None,
    model_version: Annotated[
        int,
        typer.Option(help="Version; added when OUTPUT serves the model already.", rich_help_panel=TRITON),
    ] = 1,
    versions_kept: Annotated[
        int | None,
        typer.Option(
            help="Newest versions served at once.",
            show_default="1, or as the repository has it",
            rich_help_panel=TRITON,
        ),
    ] = None,
    backend: Annotated[
        BackendName, typer.Option(help="Python is self-contained ONNX Runtime.", rich_help_panel=TRITON)
    ] = BackendName.auto,
    instances: Annotated[int, typer.Option(help="Copies that run at once.", rich_help_panel=TRITON)] = 1,
    max_batch: Annotated[
        int | None,
        typer.Option(help="Largest batch.", show_default="what the engine takes", rich_help_panel=TRITON),
    ] = None,
    measure: Annotated[
        bool,
        typer.Option(help="Time the engine here, prefer batch sizes that pay.", rich_help_panel=TRITON),
    ] = True,
    tokenizer: Annotated[
        Path | None,
        typer.Option(help="A tokenizer.json; adds an ensemble that takes text.", rich_help_panel=TRITON),
    ] = None,
    pooling: Annotated[
        PoolingName, typer.Option(help="A last step over token vectors.", rich_help_panel=TRITON)
    ] = PoolingName.none,
    allow_failed: Annotated[
        bool, typer.Option("--allow-failed", help="Bundle a run whose gates do not hold, too.")
    ] = False,
    allow_libraries: Annotated[
        bool,
        typer.Option(
            "--allow-libraries",
            help="Let timing load native libraries that the run names; only runs you trust.",
            rich_help_panel=TRITON,
        ),
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the manifest as JSON.")] = False,
) -> None:
    """Bundle engine, ONNX, manifest, report, recipe and scripts that make it again."""
    import hashlib

    from optimize.cli.progress import StepProgress

    progress = StepProgress()
    if format_ is Form.triton:
        from optimize.bundle.triton import repository
        from optimize.bundle.triton.options import ServingOptions

        options = ServingOptions(
            name=name,
            version=model_version,
            versions_kept=versions_kept,
            backend=backend.value,
            instances=instances,
            max_batch=max_batch,
            tokenizer=tokenizer,
            pooling=pooling.value,
        )
        manifest = repository.write(
            run,
            output,
            options,
            measure=measure,
            allow_failed=allow_failed,
            allow_libraries=allow_libraries,
            progress=progress,
        )
    else:
        from optimize.bundle import building

        manifest = building.bundle(run, output, allow_failed=allow_failed, progress=progress)
    progress.clear()
    if as_json:
        console.out_json(manifest.model_dump(mode="json"))
        return
    size = sum(entry.size_bytes for entry in manifest.files)
    console.out(f"{output}: {len(manifest.files)} files, {size:,} bytes, verdict {manifest.verdict}")
    console.out(f"manifest sha256 {hashlib.sha256(manifest.text().encode()).hexdigest()}")


@app.command()
def verify(
    bundle: BundleArgument,
    sha256: DigestOption = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print what was found as JSON.")] = False,
) -> int:
    """Check every file against the manifest; an archive is read, not unpacked. Ends with 1 when it is damaged."""
    from optimize.bundle import verifying

    found = verifying.verify(bundle, sha256=sha256)
    if as_json:
        console.out_json(
            {
                "sha256": found.sha256,
                "problems": list(found.problems),
                "manifest": found.manifest.model_dump(mode="json"),
            }
        )
    else:
        for problem in found.problems:
            console.err(f"error: {problem}")
        manifest = found.manifest
        state = "damaged" if found.problems else "sound"
        console.out(f"{bundle}: {state}, {len(manifest.files)} files; {manifest.name}: {manifest.headline}")
        console.out(f"manifest sha256 {found.sha256}")
    return errors.GATE_FAILED if found.problems else errors.PASSED


@app.command()
def unpack(
    bundle: BundleArgument,
    output: Annotated[Path, typer.Option("--output", "-o", help="A new folder.")],
) -> None:
    """Unpack an archive into a new folder, whole and verified or not at all."""
    from optimize.bundle import archive

    manifest = archive.unpack(bundle, output)
    console.out(f"{output}: {len(manifest.files)} files of {manifest.name}")
