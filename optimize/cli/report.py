"""`optimize report`: a finished run's report.json as a page, a comment, or what a CI system reads."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from optimize import console, errors

if TYPE_CHECKING:
    from optimize.report.model import Report

app = typer.Typer(help="Show a finished run's report, or turn it into another format.", no_args_is_help=True)

ReportArgument = Annotated[
    Path, typer.Argument(metavar="REPORT", help="A report.json, or the folder it lies in.", show_default=False)
]
OutputOption = Annotated[
    Path | None,
    typer.Option("--output", "-o", help="File to write.", show_default="standard output"),
]
RecipeFileOption = Annotated[
    str | None,
    typer.Option("--recipe-file", help="Path of the recipe in the repository.", show_default="as it was run"),
]


def _read(path: Path) -> Report:
    from optimize.report import reading

    return reading.read(path)


def _give(text: str, output: Path | None) -> None:
    if output is None:
        console.out_document(text)
        return
    from optimize.report import writing

    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        writing.publish(output, text)
    except OSError as error:
        raise errors.UsageError(f"--output {output}: {error.strerror}.") from None


@app.command()
def show(
    report: ReportArgument,
    exit_code: Annotated[
        bool, typer.Option("--exit-code", help="End as the run did: 0 pass, 1 a gate failed, 4 a stage failed.")
    ] = False,
) -> int:
    """Print the summary: verdict, the three numbers, gates, where the rest went."""
    from optimize.report import terminal

    read = _read(report)
    terminal.show(read)
    codes = {"PASS": errors.PASSED, "FAIL": errors.GATE_FAILED, "ERROR": errors.STAGE_FAILED}
    return codes[read.verdict] if exit_code else errors.PASSED


@app.command()
def html(report: ReportArgument, output: OutputOption = None) -> None:
    """A self-contained page: no script, no network."""
    from optimize.report import html as view

    _give(view.render(_read(report)), output)


@app.command()
def markdown(report: ReportArgument, output: OutputOption = None) -> None:
    """Markdown short enough for a pull-request comment."""
    from optimize.report import markdown as view

    _give(view.render(_read(report)), output)


@app.command()
def junit(report: ReportArgument, output: OutputOption = None) -> None:
    """JUnit XML: a test case per stage, output and gate."""
    from optimize.report import junit as view

    _give(view.render(_read(report)), output)


@app.command()
def github(report: ReportArgument, recipe_file: RecipeFileOption = None) -> None:
    """GitHub Actions: annotations on standard output, Markdown into $GITHUB_STEP_SUMMARY where it is set."""
    import os

    from optimize.report import github as view

    read = _read(report)
    for line in view.commands(read, recipe_file):
        console.out(line)
    summary = os.environ.get("GITHUB_STEP_SUMMARY")
    if summary:
        try:
            view.append_summary(read, Path(summary))
        except OSError as error:
            raise errors.UsageError(f"$GITHUB_STEP_SUMMARY ({summary}): {error.strerror}.") from None


@app.command()
def gitlab(report: ReportArgument, output: OutputOption = None, recipe_file: RecipeFileOption = None) -> None:
    """GitLab's Code Quality JSON."""
    from optimize.report import gitlab as view

    _give(view.render(_read(report), recipe_file), output)


@app.command()
def flips(report: ReportArgument, output: OutputOption = None) -> None:
    """CSV of the evaluation samples whose decision changed, at most the first thousand."""
    from optimize.report import flips as view
    from optimize.report import headline

    final = headline.final_accuracy(_read(report))
    if final is None or not final.decisions:
        raise errors.UsageError(
            f"{report}: no decisions were compared.", hint="evaluate.kind: classification compares them."
        )
    if final.flips_total > len(final.flips):
        console.err(f"{final.flips_total:,} decisions changed; the first {len(final.flips):,} are listed.")
    _give(view.render(final), output)


@app.command()
def prometheus(report: ReportArgument, output: OutputOption = None) -> None:
    """Figures for node_exporter's textfile collector; write it as NAME.prom into the collector's folder."""
    from optimize.report import prometheus as view

    _give(view.render(_read(report)), output)


@app.command()
def schema(output: OutputOption = None) -> None:
    """The JSON Schema of report.json."""
    from optimize.report import schema as view

    _give(view.text(), output)
