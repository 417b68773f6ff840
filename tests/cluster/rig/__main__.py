"""`python -m rig`: the rig for a person, and for the steps of a Makefile."""

from __future__ import annotations

import sys

import typer

from rig.binaries import HELM, KUBERAY, KUBERNETES, find_or_build
from rig.errors import RigError

app = typer.Typer(help=__doc__, add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def rig() -> None:
    """A real Kubernetes on this machine, without Docker."""


@app.command()
def binaries() -> None:
    """Find or build the programs of the rig, and print the folders that hold them."""
    for module in (KUBERNETES, KUBERAY, HELM):
        print(find_or_build(module).directory)


def main() -> None:
    """Run the command line; what does not work is one sentence, not a stack trace."""
    try:
        app()
    except RigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
