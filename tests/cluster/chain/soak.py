"""`python -m chain.soak`: run after run on real nodes, each disturbed at a random moment, until the time is over.

The last line of the output is one JSON object: how many runs were disturbed, how many of them ended in the registry
that an undisturbed run ends in, how many lost something, and how many have something twice.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

from chain import small_run
from chain.faults import FAULTS
from chain.place import Place, Registered
from rig.cluster import running_cluster
from rig.errors import RigError
from rig.kuberay import install_kuberay
from rig.mlflow import install_mlflow

REPOSITORY = Path(__file__).resolve().parents[3]
_DATA = Path(os.environ.get("IREKO_TEST_DATA", REPOSITORY.parent / "shared" / "data"))
_NAMESPACE = "soak"
_MODEL = "reference"


@dataclass(kw_only=True)
class Report:
    """What came of all trials."""

    seed: int
    trials: int = 0
    survived: int = 0
    lost: int = 0
    """Runs that did not end well, or without one of the models that they should have registered."""
    duplicated: int = 0
    """Runs that registered something more than once."""
    seconds: int = 0


def outcome(registered: Registered, *, expected: Registered) -> str:
    """`survived`, `lost` or `duplicated`: what a registry shows of a run that should have come to `expected`."""
    if registered == expected:
        return "survived"
    twice = [count for count in Counter(registered["versions"].values()).values() if count > 1]
    return "duplicated" if twice or len(registered["versions"]) > len(expected["versions"]) else "lost"


def rounds(faults: Sequence[str], *, chance: random.Random) -> Iterator[str]:
    """All faults in a random order, again and again: a short soak has seen each of them."""
    while True:
        yield from chance.sample(faults, len(faults))


class Soak:
    """Trials one after the other against what an undisturbed run came to."""

    def __init__(self, place: Place, *, faults: list[str], chance: random.Random) -> None:
        self._place = place
        self._faults = rounds(faults, chance=chance)
        self._chance = chance
        began = time.monotonic()
        self._expected = self._run(_MODEL, fault=None, after=0)
        self._usual_seconds = time.monotonic() - began

    def trial(self, number: int) -> str:
        """One run and one fault; what became of it."""
        fault = next(self._faults)
        after = self._chance.uniform(0, self._usual_seconds)
        name = f"trial-{number}"
        print(f"{name}: {fault} after {after:.0f} s", flush=True)
        try:
            result = outcome(self._run(name, fault=fault, after=after), expected=self._expected)
        except RigError:
            traceback.print_exc()
            result = "lost"
        print(f"{name}: {result}", flush=True)
        return result

    def _run(self, name: str, *, fault: str | None, after: float) -> Registered:
        self._place.apply(small_run.manifest(name))
        if fault is not None:
            time.sleep(after)
            FAULTS[fault](self._place, name)
        self._place.wait_for_success(name)
        registered = self._place.registered(name)
        self._place.kubectl("delete", "crun", name, "--timeout=600s", timeout=620)
        return registered


@contextmanager
def place_to_soak(directory: Path, *, sst2: Path) -> Iterator[Place]:
    """Two nodes with everything installed."""
    with running_cluster(directory, nodes=2) as cluster:
        install_kuberay(cluster)
        install_mlflow(cluster)
        namespace = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": _NAMESPACE}}
        cluster.apply("-f", "-", manifest=namespace)
        storage = cluster.shared_storage(_NAMESPACE, small_run.CLAIM)
        small_run.write_inputs(storage, sst2=sst2)
        place = Place(cluster=cluster, namespace=_NAMESPACE, storage=storage)
        place.install()
        yield place


def soak(soaked: Soak, *, seed: int, minutes: float, trials: int | None) -> Report:
    """Trials until the time is over, or there were enough of them."""
    report = Report(seed=seed)
    began = time.monotonic()
    while time.monotonic() - began < minutes * 60 and report.trials != trials:
        report.trials += 1
        result = soaked.trial(report.trials)
        setattr(report, result, getattr(report, result) + 1)
    report.seconds = round(time.monotonic() - began)
    return report


def main() -> int:
    """Soak as the command line says; 0 when every run survived."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minutes", type=float, default=60, help="begin no trial after that (default: 60)")
    parser.add_argument("--trials", type=int, help="end after so many")
    parser.add_argument("--seed", type=int, default=0, help="of the faults and their moments (default: 0)")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="only this one (may be repeated)")
    parser.add_argument("--sst2", type=Path, default=_DATA / "glue" / "sst2", help="folder of the sentences")
    options = parser.parse_args()
    faults = options.fault or list(FAULTS)
    with (
        tempfile.TemporaryDirectory(prefix="ireko-soak-") as directory,
        place_to_soak(Path(directory), sst2=options.sst2) as place,
    ):
        soaked = Soak(place, faults=faults, chance=random.Random(options.seed))
        report = soak(soaked, seed=options.seed, minutes=options.minutes, trials=options.trials)
    print(json.dumps(asdict(report)))
    return 0 if report.survived == report.trials else 1


if __name__ == "__main__":
    sys.exit(main())
