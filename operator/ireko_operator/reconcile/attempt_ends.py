"""What the state of an attempt means: whether it lives, and why it ended.

KubeRay says less than it seems to. A job that was stopped is `Complete`, one that it refuses is in a state that
it does not call terminal, and its reason for a failure is nearly always `AppFailed`. What the trainer itself
recorded comes first, then what the pods tell, then KubeRay's word.
"""

from __future__ import annotations

from dataclasses import dataclass
from signal import SIGKILL, Signals

from ireko_api.handoff import EXIT_INTERRUPTED, FAMILY_ARTIFACT, Failure
from ireko_api.reasons import Reason
from ireko_api.status import Outcome
from ireko_operator.launch import Attempt, ClusterView

_SIGNAL_EXIT_BASE = 128
"""Shells and containers report death by signal n as exit status 128 + n."""

_ENDED = ("Complete", "Failed", "ValidationFailed")
_BY_KUBERAY = {
    "SubmissionFailed": Reason.SUBMISSION_FAILED,
    "JobDeploymentStatusTransitionGracePeriodExceeded": Reason.SUBMISSION_FAILED,
    "JobStatusCheckTimeoutExceeded": Reason.HEAD_LOST,
    "PreRunningDeadlineExceeded": Reason.UNSCHEDULABLE,
    "DeadlineExceeded": Reason.DEADLINE_EXCEEDED,
    "ValidationFailed": Reason.RAY_JOB_INVALID,
}
_LOST_HEADS = ("Ray head pod not found", "Ray job not found in RayCluster")
"""What KubeRay's messages say when the head went away under a job that it calls `AppFailed`."""
_EFFECTS_OF_MEMORY = ("WorkerLost", "Internal", "Interrupted")
"""What a trainer says that sees others die around it."""


@dataclass(frozen=True, kw_only=True)
class Ending:
    """How an attempt ended, for its record."""

    number: int
    outcome: Outcome
    reason: Reason | None = None
    """None where the outcome says it all."""
    message: str = ""


def is_live(view: ClusterView) -> bool:
    """Whether the job of an attempt may still do something: it has not ended, suspended or not."""
    return view.deployment_status not in _ENDED


def starts(view: ClusterView) -> bool:
    """Whether a live attempt has not come as far as running its job yet."""
    return view.deployment_status not in ("Running", "Suspending", *_ENDED)


def succeeded(attempt: Attempt) -> bool:
    """Whether the trainer says that it did everything; what it handed over is looked at elsewhere."""
    if attempt.cluster is not None:
        return (
            attempt.cluster.job_status == "SUCCEEDED"
            and attempt.cluster.deployment_status != "ValidationFailed"
        )
    return attempt.exit_code == 0


def ending_on_cluster(attempt: Attempt, view: ClusterView, *, tracked: Failure | None) -> Ending:
    """How an attempt ended that handed over no family; `tracked` is what MLflow holds of its failure."""
    failure = attempt.failure or tracked
    if failure is not None and not (view.out_of_memory and failure.reason in _EFFECTS_OF_MEMORY):
        return _told(attempt, failure)
    reason = _reason_on_cluster(view)
    return Ending(
        number=attempt.number,
        outcome="Failed",
        reason=reason,
        message=_sentence(attempt, view, reason),
    )


def handed_nothing_over(attempt: Attempt) -> Ending:
    """A trainer that ended with success and of which MLflow holds no family."""
    message = (
        f"The trainer ended with success, but MLflow holds no {FAMILY_ARTIFACT} of this run. Was the MLflow run "
        f"deleted or the database exchanged meanwhile?{_log(attempt)}"
    )
    return Ending(number=attempt.number, outcome="Failed", reason=Reason.TRAINER_DIED, message=message)


def ending_on_a_laptop(attempt: Attempt) -> Ending:
    """How a process ended that did not end with success."""
    failure = attempt.failure
    if attempt.exit_code == EXIT_INTERRUPTED:
        message = failure.message if failure else "The trainer saved its state and ended."
        return _interrupted(attempt, Reason.INTERRUPTED, message)
    if _death_signal(attempt) is not None:
        return _interrupted(attempt, Reason.TRAINER_DIED, _describe_death(attempt))
    if failure is not None:
        return _told(attempt, failure)
    message = (
        f"The trainer ended with exit status {attempt.exit_code} without saying why; "
        f"its output is in {attempt.log}."
    )
    return Ending(number=attempt.number, outcome="Failed", reason=Reason.TRAINER_DIED, message=message)


def _told(attempt: Attempt, failure: Failure) -> Ending:
    outcome: Outcome = "Interrupted" if failure.reason == "Interrupted" else "Failed"
    return Ending(
        number=attempt.number, outcome=outcome, reason=Reason(failure.reason), message=failure.message
    )


def _interrupted(attempt: Attempt, reason: Reason, message: str) -> Ending:
    return Ending(number=attempt.number, outcome="Interrupted", reason=reason, message=message)


def _reason_on_cluster(view: ClusterView) -> Reason:
    if view.deployment_status == "ValidationFailed":
        return Reason.RAY_JOB_INVALID
    if view.out_of_memory:
        return Reason.OUT_OF_MEMORY
    if view.deployment_status == "Complete" and view.job_status == "STOPPED":
        return Reason.CANCELLED
    if view.head_lost or any(words in view.message for words in _LOST_HEADS):
        return Reason.HEAD_LOST
    return _BY_KUBERAY.get(view.reason, Reason.TRAINER_DIED)


def _sentence(attempt: Attempt, view: ClusterView, reason: Reason) -> str:
    what = {
        Reason.RAY_JOB_INVALID: "KubeRay refuses the RayJob",
        Reason.OUT_OF_MEMORY: "A pod of the attempt was killed at its memory limit",
        Reason.CANCELLED: "The Ray job was stopped from outside",
        Reason.HEAD_LOST: "The pod that leads the Ray cluster was lost",
        Reason.SUBMISSION_FAILED: "KubeRay could not hand the trainer over to the Ray cluster",
        Reason.UNSCHEDULABLE: "The pods did not run in time",
        Reason.DEADLINE_EXCEEDED: "The RayJob took longer than it may",
        Reason.TRAINER_DIED: "The trainer ended without saying why",
    }[reason]
    said = f": {view.message}" if view.message else "."
    return f"{what}{said}{_log(attempt)}"


def _log(attempt: Attempt) -> str:
    return f" Its output is in {attempt.log}." if attempt.log else ""


def _death_signal(attempt: Attempt) -> int | None:
    if attempt.signal is not None:
        return attempt.signal
    code = attempt.exit_code or 0
    return code - _SIGNAL_EXIT_BASE if code > _SIGNAL_EXIT_BASE else None


def _describe_death(attempt: Attempt) -> str:
    number = _death_signal(attempt)
    try:
        name = Signals(number or 0).name
    except ValueError:
        name = f"signal {number}"
    if attempt.stopping_since is not None:
        return (
            f"The trainer ended by {name} before it had saved its state; "
            "the run goes on from its last checkpoint."
        )
    cause = ""
    if number == SIGKILL:
        cause = (
            " Most often that means that memory ran out: lower spec.pipeline.mlfs.batchSize or the maxLength of "
            "the data, or give it more memory."
        )
    return f"The trainer was killed by {name}.{cause} Its output is in {attempt.log}."
