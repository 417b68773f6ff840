"""`python -m rig`: the rig for a person, and for the steps of a Makefile."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from rig.binaries import HELM, KUBERAY, KUBERNETES, KUEUE, find_or_build
from rig.errors import RigError
from rig.network import MAX_NODES
from rig.standing import CLAIM, Place, down, hold, up

Nodes = Annotated[int, typer.Option(min=1, max=MAX_NODES, help="How many nodes.")]

Directory = Annotated[Path, typer.Option(help="Where the cluster keeps its state.")]

app = typer.Typer(add_completion=False, pretty_exceptions_enable=False, no_args_is_help=True)


@app.callback()
def rig() -> None:
    """A real Kubernetes on this machine, without Docker."""


@app.command()
def binaries() -> None:
    """Find or build the programs of the rig, and print the folders that hold them."""
    for module in (KUBERNETES, KUBERAY, KUEUE, HELM):
        print(find_or_build(module).directory)


@app.command(name="up")
def start(nodes: Nodes = 2, directory: Directory = Place.directory) -> None:
    """Start a cluster with KubeRay, MLflow and Ireko, and say how to use it."""
    place = Place(directory.resolve())
    up(place, nodes=nodes)
    programs = ":".join(str(find_or_build(module).directory) for module in (KUBERNETES, HELM))
    print(place.notes.read_text(encoding="utf-8"))
    print(f"The cluster is up. The claim `{CLAIM}` in the namespace `default` is the folder")
    print(f"    {place.storage}")
    print("To use the cluster from this shell:")
    print(f"    export KUBECONFIG={place.kubeconfig} PATH={programs}:$PATH")
    print("    kubectl apply -f examples/quickstart.yaml")
    print("    kubectl get crun --watch")
    print("End it with: make cluster-down")


@app.command(name="down")
def stop(directory: Directory = Place.directory) -> None:
    """End the cluster and remove all of it."""
    print("The cluster is gone." if down(Place(directory.resolve())) else "No cluster was up.")


@app.command(name="hold", hidden=True)
def keep(nodes: Nodes = 2, directory: Directory = Place.directory) -> None:
    """Hold the cluster until told to end: what `up` starts in the background."""
    hold(Place(directory), nodes=nodes)


def main() -> None:
    """Run the command line; what does not work is one sentence, not a stack trace."""
    try:
        app()
    except RigError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
