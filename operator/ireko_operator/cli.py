"""The `ireko` command line.

Exit status: 0 done, 1 something for the user to mend, 2 a mistake in the command, 3 interrupted or killed,
so that the same command goes on. MLflow is imported inside the commands that need it, because that takes
seconds.
"""

from __future__ import annotations

import json
import os
import shlex
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NoReturn

import typer
import yaml
from rich.console import Console

from ireko_api.crd import custom_resource_definition
from ireko_api.spec import CompressionRun
from ireko_operator.errors import ManifestError, OperatorError, UsageError
from ireko_operator.manifest import find_problem_lines, load_run
from ireko_operator.process.command import operator
from ireko_operator.render import Row, error_console, family_table, table_console, view_for
from ireko_operator.result import EXIT_STATUS, result_of
from ireko_operator.workdir import Workdir

if TYPE_CHECKING:
    from ireko_operator.reconcile.local import Ended

DEFAULT_WORKDIR = Path(".ireko")

app = typer.Typer(
    help="Cut one teacher language model into a family of smaller models, one for each class of devices.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
)
app.command()(operator)


class Output(StrEnum):
    """How a result is printed."""

    TEXT = "text"
    JSON = "json"


WorkdirOption = Annotated[
    Path,
    typer.Option(
        "--workdir", help="Where runs, checkpoints, the MLflow database and its artifacts are kept."
    ),
]
OutputOption = Annotated[
    Output, typer.Option("--output", "-o", help="How to print the result: for people, or one JSON object.")
]
TrackingOption = Annotated[
    str | None,
    typer.Option(
        "--tracking-uri",
        help="MLflow tracking store. Default: spec.registry.trackingUri, else $MLFLOW_TRACKING_URI, "
        "else a database "
        "in the working directory.",
    ),
]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"ireko {version('ireko')}")
        raise typer.Exit


@app.callback()
def _common(
    _version: Annotated[
        bool,
        typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit."),
    ] = False,
) -> None:
    """Cut one teacher language model into a family of smaller models, one for each class of devices."""


@app.command()
def run(
    file: Annotated[Path, typer.Argument(help="The manifest of one CompressionRun.", show_default=False)],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    output: OutputOption = Output.TEXT,
    tracking_uri: TrackingOption = None,
) -> None:
    """Execute a run on this machine, or go on with it, and register its models.

    Running the same manifest again continues where an earlier run stopped; a finished one is only shown.
    """
    again = _command_to_go_on(file, workdir=workdir, tracking_uri=tracking_uri)
    try:
        manifest = load_run(file)
        ended = _follow(manifest, file=file, workdir=Workdir.at(workdir), tracking_uri=tracking_uri)
    except OperatorError as error:
        _fail(error, again=None if isinstance(error, ManifestError | UsageError) else again)
    except KeyboardInterrupt:  # before the reconcile took Ctrl-C over
        error_console().print(f"Interrupted before anything was started. Go on with: {again}")
        raise typer.Exit(EXIT_STATUS["Interrupted"]) from None
    status = ended.status
    if output is Output.JSON:
        typer.echo(
            json.dumps(
                result_of(status, name=manifest.metadata.name, tracking_uri=ended.observed.tracking_uri),
                indent=2,
            )
        )
    if status.phase == "Succeeded":
        _show_success(ended, table_console(stderr=output is Output.JSON))
    else:
        _show_failure(ended, again=again)
    raise typer.Exit(EXIT_STATUS[status.phase])


@app.command()
def validate(
    files: Annotated[list[Path], typer.Argument(help="Manifests to check.", show_default=False)],
) -> None:
    """Check manifests and print every problem at once, one line each."""
    exit_status = 0
    for file in files:
        try:
            lines = find_problem_lines(file)
        except UsageError as error:
            error_console().print(str(error))
            exit_status = error.exit_code
            continue
        typer.echo("\n".join(lines) if lines else f"{file}: valid")
        exit_status = max(exit_status, 1 if lines else 0)
    raise typer.Exit(exit_status)


@app.command()
def crd() -> None:
    """Print the CustomResourceDefinition of CompressionRun as YAML."""
    typer.echo(
        yaml.safe_dump(custom_resource_definition(), sort_keys=False, allow_unicode=True, width=110), nl=False
    )


@app.command()
def show(
    name: Annotated[str, typer.Argument(help="Name of the registered model: that of the run, as a rule.")],
    workdir: WorkdirOption = DEFAULT_WORKDIR,
    output: OutputOption = Output.TEXT,
    tracking_uri: TrackingOption = None,
) -> None:
    """Show a registered family: its members, their sizes, their quality and their aliases."""
    place = Workdir.at(workdir)
    uri = _tracking_uri(given=tracking_uri, manifest=None, workdir=place)
    try:
        if uri == place.tracking_uri and not place.database.exists():
            raise OperatorError(
                f"There is no MLflow database {place.database}: name the directory of a run with "
                "--workdir, or a "
                f"server with --tracking-uri."
            )
        from ireko_operator import show as registered
        from ireko_operator.tracking import connect, without_password

        members = registered.load_members(connect(uri), name=name, uri=uri)
    except OperatorError as error:
        _fail(error, again=None)
    if output is Output.JSON:
        typer.echo(
            json.dumps(registered.as_json(members, name=name, tracking_uri=without_password(uri)), indent=2)
        )
        return
    table = family_table(
        registered.rows(members), name=name, teacher_size_bytes=registered.teacher_size_bytes(members)
    )
    table_console().print(table)


def _follow(run: CompressionRun, *, file: Path, workdir: Workdir, tracking_uri: str | None) -> Ended:
    environment = dict(os.environ)  # before MLflow adds to it
    console = error_console()
    with view_for(console) as view:
        from ireko_operator.local_run import LocalRun, follow

        job = LocalRun(
            run=run,
            manifest=file,
            workdir=workdir,
            tracking_uri=_tracking_uri(
                given=tracking_uri, manifest=run.spec.registry.tracking_uri, workdir=workdir
            ),
            environment=environment,
        )
        return follow(job, view)


def _tracking_uri(*, given: str | None, manifest: str | None, workdir: Workdir) -> str:
    return given or manifest or os.environ.get("MLFLOW_TRACKING_URI") or workdir.tracking_uri


def _command_to_go_on(file: Path, *, workdir: Path, tracking_uri: str | None) -> str:
    command = ["ireko", "run", str(file)]
    if workdir != DEFAULT_WORKDIR:
        command += ["--workdir", str(workdir)]
    if tracking_uri is not None:
        command += ["--tracking-uri", tracking_uri]
    return shlex.join(command)


def _fail(error: OperatorError, *, again: str | None) -> NoReturn:
    console = error_console()
    console.print(str(error))
    if again is not None:
        console.print(f"Then go on with: {again}")
    raise typer.Exit(error.exit_code)


def _show_failure(ended: Ended, *, again: str) -> None:
    console = error_console()
    summary = next(condition for condition in ended.status.conditions if condition.type == "Succeeded")
    console.print(f"{ended.status.phase}: {summary.message}")
    attempt = ended.observed.attempt
    if attempt is not None and attempt.failure is None and attempt.log_tail:
        console.print(f"The last lines of {attempt.log}:")
        for line in attempt.log_tail:
            console.print(f"    {line}")
    console.print(f"{'Go on' if ended.status.phase == 'Interrupted' else 'Then go on'} with: {again}")


def _show_success(ended: Ended, console: Console) -> None:
    family = ended.observed.family
    assert family is not None  # what Succeeded means
    registered = {member.target: member for member in ended.status.members}
    rows = [
        Row(
            target=member.target,
            version=registered[member.target].version,
            model_uri=registered[member.target].model_uri,
            size_bytes=member.size_bytes,
            parameters=member.parameters,
            average_bits=member.average_bits,
            metric=member.metric,
            quality=member.metrics.get(member.metric),
            teacher_quality=family.teacher.metrics.get(member.metric),
        )
        for member in family.members
    ]
    console.print(family_table(rows, name=family.name, teacher_size_bytes=family.teacher.size_bytes))
    console.print(f"Report: {ended.status.report}", markup=False, highlight=False)
    console.print("Load a member:", markup=False)
    console.print(
        f"    export MLFLOW_TRACKING_URI={shlex.quote(ended.observed.tracking_uri)}", highlight=False
    )
    console.print(f'    mlflow.pyfunc.load_model("{rows[0].model_uri}")', markup=False, highlight=False)


def main() -> None:
    """The entry point of the `ireko` command."""
    app()


if __name__ == "__main__":
    main()
