"""Gathers what a decision is made from: the launcher's attempt, MLflow's run, the registry's versions.

The order matters. The attempt is looked at before MLflow: when it is seen to have ended, everything that it
wrote is there to be read.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import datetime

from mlflow import MlflowClient

from ireko_api.handoff import Family
from ireko_api.spec import CompressionRun
from ireko_api.status import CompressionRunStatus
from ireko_operator import registry, tracking
from ireko_operator.errors import DamagedBundleError, TrackingError
from ireko_operator.launch import Launcher
from ireko_operator.reconcile.state import Observed, Outage, Registration, Stop, TrackedRun


@dataclass(frozen=True, kw_only=True)
class Subject:
    """One run and whom to ask about it."""

    run: CompressionRun
    uid: str
    launcher: Launcher
    tracking_uri: str
    connect: Callable[[], MlflowClient]
    """The client of the tracking store; called in every pass, since the store may come up later."""

    @property
    def model(self) -> str:
        """The registered model whose versions the members become."""
        return model_of(self.run)


def model_of(run: CompressionRun) -> str:
    """The registered model whose versions the members of a run become."""
    return run.spec.registry.model_name or run.metadata.name


@dataclass(frozen=True, kw_only=True)
class Tracked:
    """What MLflow says of a run, or last said before an outage."""

    run: TrackedRun | None = None
    family: Family | None = None
    registrations: tuple[Registration, ...] = ()
    outage: Outage | None = None

    @property
    def report(self) -> str | None:
        """Where the family's report is."""
        if self.run is None or self.family is None:
            return None
        return tracking.artifact_location(self.run, self.family.report)


def observe(
    subject: Subject,
    *,
    attempt_number: int | None,
    stop: Stop,
    last: Tracked,
    previous: CompressionRunStatus,
    now: datetime,
) -> tuple[Observed, Tracked]:
    """The run as it is now, and what MLflow said of it for the next pass to fall back on."""
    attempt = subject.launcher.observe(attempt_number) if attempt_number is not None else None
    training = attempt is not None and attempt.alive
    try:
        tracked = ask_mlflow(
            subject.connect(),
            uri=subject.tracking_uri,
            run=subject.run,
            uid=subject.uid,
            with_family=not training,
        )
    except TrackingError as error:
        tracked = replace(last, outage=lost(last.outage, error, now=now))
    observed = Observed(
        run=subject.run,
        attempt=attempt,
        stop=stop,
        tracking_uri=tracking.without_password(subject.tracking_uri),
        tracked=tracked.run,
        family=tracked.family,
        registrations=tracked.registrations,
        report=tracked.report,
        outage=tracked.outage,
        previous=previous,
    )
    return observed, tracked


def lost(outage: Outage | None, error: TrackingError, *, now: datetime) -> Outage:
    """The outage that an error makes known, or makes longer."""
    return Outage(
        message=str(error),
        since=outage.since if outage else now,
        refused=error.refused,
        damaged=isinstance(error, DamagedBundleError),
    )


def ask_mlflow(
    client: MlflowClient, *, uri: str, run: CompressionRun, uid: str, with_family: bool
) -> Tracked:
    """What MLflow says of a run now; `TrackingError` where it does not answer."""
    found = tracking.find_run(
        client,
        uri=uri,
        experiment=run.spec.registry.experiment,
        uid=uid,
        spec_digest=run.spec.digest(),
    )
    family = tracking.load_family(client, found, uri=uri) if found is not None and with_family else None
    if family is None:
        return Tracked(run=found)
    with tracking.answered(uri):
        registrations = registry.registrations(client, family=family, model=model_of(run))
    return Tracked(run=found, family=family, registrations=registrations)
