"""The start of an attempt, and everything that may hold it back."""

from __future__ import annotations

from dataclasses import replace
from datetime import datetime, timedelta

from ireko_api.reasons import ConditionType, Reason
from ireko_operator.reconcile import retry
from ireko_operator.reconcile.after_attempt import OUTAGE_RETRY
from ireko_operator.reconcile.checks import find_trouble
from ireko_operator.reconcile.following import paused, queued, starting
from ireko_operator.reconcile.records import next_number
from ireko_operator.reconcile.state import Action, EnsureFinalizer, Observed, OnCluster, StartAttempt
from ireko_operator.reconcile.verdict import Verdict

REFUSAL_RETRY = timedelta(seconds=30)
"""How often something is tried again that the API server refused."""
SETTLE_RETRY = timedelta(seconds=10)
"""How often it is looked whether the last pods of an attempt are gone, should nobody tell."""


def start(observed: Observed, cluster: OnCluster, *, now: datetime) -> Verdict:
    """The next attempt is started, unless something holds it back."""
    held_back = (
        _refused_here(observed, cluster)
        or (paused() if observed.run.spec.suspend else None)
        or _no_kuberay(cluster)
        or _untracked(observed)
        or _still_settling(observed, cluster)
        or _refused_there(cluster, now)
    )
    if held_back is not None:
        return held_back
    number = next_number(observed)
    spec = observed.run.spec
    earlier = [attempt for attempt in observed.previous.attempts if attempt.number < number]
    begin = StartAttempt(number=number, memory=retry.memory_of_next(earlier, spec=spec))
    actions: tuple[Action, ...] = (begin,) if cluster.finalizer else (EnsureFinalizer(), begin)
    if spec.compute.queue_name is not None:
        return replace(queued(observed, number, None), actions=actions)
    return replace(starting(observed, number, now=now), actions=actions)


def _refused_here(observed: Observed, cluster: OnCluster) -> Verdict | None:
    trouble = find_trouble(observed.run, platform=cluster.platform)
    if trouble is None:
        return None
    # Only other settings change that, and with these the operator starts anew.
    return Verdict(phase="Pending", reason=trouble.reason, message=trouble.message, about=ConditionType.VALID)


def _no_kuberay(cluster: OnCluster) -> Verdict | None:
    if cluster.kuberay:
        return None
    return Verdict(
        phase="Pending",
        reason=Reason.KUBERAY_MISSING,
        message="The cluster does not know RayJobs: install the KubeRay operator. The run then starts by itself.",
        about=ConditionType.CLUSTER_READY,
        requeue_after=REFUSAL_RETRY.total_seconds(),
    )


def _untracked(observed: Observed) -> Verdict | None:
    if observed.outage is None:
        return None
    return Verdict(
        phase="Pending",
        reason=Reason.TRACKING_UNREACHABLE,
        message=observed.outage.message,
        requeue_after=OUTAGE_RETRY.total_seconds(),
    )


def _still_settling(observed: Observed, cluster: OnCluster) -> Verdict | None:
    """Two trainers on one storage would spoil each other's checkpoints."""
    seen = [*cluster.earlier, *((observed.attempt,) if observed.attempt is not None else ())]
    left = [a.number for a in seen if a.alive or (a.cluster is not None and a.cluster.live_pods > 0)]
    if not left:
        return None
    return Verdict(
        phase="Pending",
        reason=Reason.WAITING,
        message=f"The last pods of attempt {' and '.join(map(str, left))} are being stopped before the next one "
        "starts.",
        requeue_after=SETTLE_RETRY.total_seconds(),
    )


def _refused_there(cluster: OnCluster, now: datetime) -> Verdict | None:
    refusal = cluster.refusal
    if refusal is None or now >= refusal.at + REFUSAL_RETRY:
        return None
    return Verdict(
        phase="Pending",
        reason=refusal.trouble.reason,
        message=refusal.trouble.message,
        about=ConditionType.CLUSTER_READY,
        requeue_after=(refusal.at + REFUSAL_RETRY - now).total_seconds(),
    )
