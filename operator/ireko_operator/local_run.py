"""One `ireko run`: takes the lock, puts the reconcile together for this machine and follows it to its end."""

from __future__ import annotations

import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType

from mlflow import MlflowClient

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator import tracking
from ireko_operator.launch.local import LocalLauncher
from ireko_operator.reconcile.local import Ended, LocalReconcile
from ireko_operator.reconcile.observe import Subject
from ireko_operator.reconcile.state import Observed, Stop
from ireko_operator.render import View
from ireko_operator.workdir import Workdir, write_atomically

TRAINER_COMMAND = (sys.executable, "-m", "ireko_trainer")


@dataclass(frozen=True, kw_only=True)
class LocalRun:
    """What one `ireko run` was asked for."""

    run: CompressionRun
    manifest: Path
    workdir: Workdir
    tracking_uri: str
    environment: Mapping[str, str]
    """Of the trainer."""
    command: Sequence[str] = TRAINER_COMMAND


def follow(job: LocalRun, view: View) -> Ended:
    """Bring the run to an end; raises `LockedError` while another process does so."""
    directory = job.workdir.run(job.run.metadata.name)
    with directory.locked(notice=view.say) as descriptor, _stopping(view) as stop:
        uid = job.run.metadata.uid or directory.uid()
        launcher = LocalLauncher(
            directory=directory, command=job.command, environment=job.environment, inherited=(descriptor,)
        )
        subject = Subject(
            run=job.run,
            uid=uid,
            launcher=launcher,
            tracking_uri=job.tracking_uri,
            connect=_connecting(job, view),
        )
        return LocalReconcile(
            subject=subject,
            request=lambda number: _request(job, uid=uid, attempt=number),
            registering=job.workdir.registry_lock(subject.model),
            stop=stop,
            report=_reporting(view),
            save=lambda status: write_atomically(
                directory.status, status.model_dump_json(by_alias=True, indent=2)
            ),
            status=directory.read_status() or CompressionRunStatus(),
        ).run()


def _request(job: LocalRun, *, uid: str, attempt: int) -> RunRequest:
    name = job.run.metadata.name
    served = job.tracking_uri.startswith(("http:", "https:", "databricks"))
    return RunRequest(
        name=name,
        namespace=job.run.metadata.namespace,
        uid=uid,
        spec_digest=job.run.spec.digest(),
        spec=job.run.spec,
        base_dir=str(job.manifest.resolve().parent),
        storage=str(job.workdir.run(name).storage(uid)),
        tracking_uri=job.tracking_uri,
        artifact_location=None if served else job.workdir.artifact_location,
        attempt=attempt,
    )


def _connecting(job: LocalRun, view: View) -> Callable[[], MlflowClient]:
    """Connects on the first call and again until it succeeds once."""
    clients: list[MlflowClient] = []

    def connect() -> MlflowClient:
        if not clients:
            if job.tracking_uri == job.workdir.tracking_uri and not job.workdir.database.exists():
                view.say(f"Creating the MLflow database {job.workdir.database}.")
            clients.append(tracking.connect(job.tracking_uri))
        return clients[0]

    return connect


def _reporting(view: View) -> Callable[[CompressionRunStatus, Observed], None]:
    """Says what changed since the pass before."""
    said: set[str] = set()

    def report(status: CompressionRunStatus, observed: Observed) -> None:
        if observed.attempt is not None and observed.attempt.alive:
            sentence = (
                f"Attempt {observed.attempt.number}; the trainer's output goes to {observed.attempt.log}."
            )
            if sentence not in said:
                view.say(sentence)
                said.add(sentence)
        waiting = next((c.message for c in status.conditions if c.type == "Registered" and c.message), "")
        if waiting and status.phase == "Running" and waiting not in said:
            view.say(waiting)
            said.add(waiting)
        if (
            observed.tracked is not None
            and observed.tracked.progress is not None
            and status.phase == "Running"
        ):
            view.progress(observed.tracked.progress)

    return report


@contextmanager
def _stopping(view: View) -> Iterator[Callable[[], Stop]]:
    """Ctrl-C, SIGTERM and a closed terminal ask the trainer to save its state; a second one does not wait."""
    received: list[int] = []
    told = 0

    def receive(number: int, _frame: FrameType | None) -> None:
        received.append(number)

    def stop() -> Stop:
        nonlocal told
        if received and told == 0:
            view.say(
                "Stopping: the trainer saves its state first. Ctrl-C again kills it at its last checkpoint."
            )
        wanted = Stop(min(len(received), int(Stop.NOW)))
        told = len(received)
        return wanted

    before = {
        number: signal.signal(number, receive) for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
    }
    try:
        yield stop
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
