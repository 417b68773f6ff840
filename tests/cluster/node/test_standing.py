"""What `make cluster` starts: a cluster for a person, with everything installed, that goes when it is told to."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

from rig.binaries import KUBERNETES, find_or_build
from rig.cluster import programs_in_pods, require_visible
from rig.fixtures import skipping
from rig.machine import require_node_tier


def rig(*arguments: str) -> str:
    """What `python -m rig` prints."""
    command = [sys.executable, "-m", "rig", *arguments]
    environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parents[1])}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False, timeout=1600)
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_a_cluster_stands_with_ireko_in_it_until_it_is_told_to_go(tmp_path: Path, repository: Path) -> None:
    with skipping("node tier"):
        require_node_tier()
        require_visible(programs_in_pods())
    place = f"--directory={tmp_path / 'cluster'}"
    kubectl = str(find_or_build(KUBERNETES).path("kubectl"))
    try:
        said = rig("up", "--nodes=1", place)
        (exported,) = [line for line in said.splitlines() if "export KUBECONFIG=" in line]
        kubeconfig = exported.split("KUBECONFIG=")[1].split()[0]
        environment = {**os.environ, "KUBECONFIG": kubeconfig}
        listed = subprocess.run(
            [kubectl, "get", "deployments", "--all-namespaces", "-o", "name"],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout.split()  # fmt: skip
        assert {name.split("/")[1] for name in listed} == {"ireko", "ireko-mlflow", "kuberay-operator"}
        example = repository / "examples" / "quickstart.yaml"
        applied = subprocess.run(
            [kubectl, "apply", "--dry-run=server", "-f", str(example)],
            capture_output=True, text=True, check=True, env=environment,
        ).stdout  # fmt: skip
        assert "compressionrun.ireko.dev/quickstart created" in applied
    finally:
        gone = rig("down", place)
    assert gone == "The cluster is gone.\n"
    assert not (tmp_path / "cluster").exists()
    assert rig("down", place) == "No cluster was up.\n"
