"""The command `optimize`: options that all commands share, and the one place that catches errors."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from optimize import console, errors
from optimize.cli import (
    bench,
    bundle,
    cache,
    check,
    convert,
    diff,
    doctor,
    inspect,
    passes,
    recipe,
    report,
    roofline,
    run,
    sweep,
)
from optimize.cli.settings import settings

app = typer.Typer(
    name="optimize",
    help="A model-optimization compiler: PyTorch or ONNX in, a verified and faster engine out.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    epilog="Exit codes: 0 pass, 1 a gate failed, 2 recipe or usage error, 3 backend missing, 4 a stage failed, "
    "130 interrupted.",
)
app.command("run")(run.run)
app.command("check")(check.check)
app.command("convert")(convert.convert)
app.command("inspect")(inspect.inspect)
app.command("diff")(diff.diff)
app.command("bench")(bench.bench)
app.command("sweep")(sweep.sweep)
app.command("roofline")(roofline.roofline)
app.command("doctor")(doctor.doctor)
app.add_typer(passes.app, name="passes")
app.add_typer(recipe.app, name="recipe")
app.add_typer(report.app, name="report")
app.add_typer(bundle.app, name="bundle")
app.add_typer(cache.app, name="cache")


def _show_version(wanted: bool) -> None:
    if wanted:
        from optimize.version import __version__

        console.out(f"optimize {__version__}")
        raise typer.Exit


@app.callback()
def _common(
    log_level: Annotated[
        str, typer.Option(help="How much the libraries' own logging shows: debug, info, warning, error.")
    ] = "error",
    debug: Annotated[bool, typer.Option("--debug", help="Show tracebacks and keep the steps' logs.")] = False,
    quiet: Annotated[bool, typer.Option("--quiet", "-q", help="No progress, only results.")] = False,
    version: Annotated[
        bool, typer.Option("--version", callback=_show_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    import logging

    level = logging.getLevelNamesMapping().get(log_level.upper())
    if level is None:
        raise errors.UsageError(f"--log-level: expected debug, info, warning or error, got '{log_level}'.")
    logging.basicConfig(level=level)
    settings.debug, settings.quiet = debug, quiet


def main() -> None:
    """Run the command line; every outcome has its exit code, and 1 always means a gate failed."""
    try:
        result = app(standalone_mode=False)
        code = result if isinstance(result, int) else errors.PASSED
    except errors.OptimizeError as error:
        if settings.debug:
            _trace()
        console.err(f"error: {error.message}")
        if error.hint:
            console.err(f"  → {error.hint}")
        code = error.exit_code
    except (KeyboardInterrupt, typer.Abort):
        console.err("interrupted; finished steps are kept, the next run goes on from there.")
        code = errors.INTERRUPTED
    except (BrokenPipeError, SystemExit):
        # The command-line library turns a closed pipe into SystemExit(1), which here would mean a failed gate.
        _forget_output()
        code = errors.PIPE_CLOSED
    except OSError as error:
        # A disk that is full, a folder that may not be written: the machine's doing, and no defect.
        if settings.debug:
            _trace()
        place = f"'{error.filename}': " if error.filename is not None else ""
        console.err(f"error: {place}{error.strerror or error}.")
        code = errors.STAGE_FAILED
    except Exception as error:
        code = _unexpected(error)
    sys.exit(code)


def _forget_output() -> None:
    """Point standard output at nothing, so that the interpreter's last flush has nobody to fail on."""
    import os

    os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def _unexpected(error: Exception) -> int:
    """Wrong usage as the command-line library reports it, else a defect of ours."""
    shown = getattr(error, "format_message", None)
    if shown is not None:
        context = getattr(error, "ctx", None)
        if context is not None:
            console.err(context.get_usage())
        console.err(f"error: {shown()}")
        return errors.USAGE
    _trace() if settings.debug else None
    console.err(f"internal error: {type(error).__name__}: {error}")
    console.err("  → This is a defect of optimize; run again with --debug and report what it prints.")
    return errors.INTERNAL


def _trace() -> None:
    import traceback

    console.err(traceback.format_exc())
