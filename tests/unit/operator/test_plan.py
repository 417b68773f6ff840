"""The state machine of a run as a table: what is seen, what is done, what is said."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from signal import SIGKILL, SIGTERM
from typing import Any

import pytest

from ireko_api.handoff import Failure, Family, Progress
from ireko_api.status import Attempt as AttemptStatus
from ireko_api.status import CompressionRunStatus
from ireko_operator.launch import Attempt
from ireko_operator.reconcile.on_laptop import OUTAGE_GRACE, STOP_GRACE
from ireko_operator.reconcile.plan import plan
from ireko_operator.reconcile.state import (
    Observed,
    Outage,
    RegisterMembers,
    Registration,
    StartAttempt,
    Stop,
    StopAttempt,
    TrackedRun,
)

NOW = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
ALIVE = Attempt(number=1, alive=True)
STOPPING = Attempt(number=1, alive=True, stopping_since=NOW - STOP_GRACE / 2)
STUCK = Attempt(number=1, alive=True, stopping_since=NOW - STOP_GRACE * 2)
WELL = Attempt(number=1, alive=False, exit_code=0)
BAD_INPUT = Failure(reason="InvalidInput", message="data.train: empty")
FAILED = Attempt(number=1, alive=False, exit_code=1, failure=BAD_INPUT)
MUTE = Attempt(number=1, alive=False, exit_code=1)
SAVED = Attempt(number=1, alive=False, exit_code=3)
KILLED = Attempt(number=1, alive=False, signal=SIGKILL)
KILLED_IN_A_CONTAINER = Attempt(number=1, alive=False, exit_code=137)
ENDED_BY_OUR_SIGNAL = Attempt(number=1, alive=False, signal=SIGTERM, stopping_since=NOW)
AWAY = Outage(message="MLflow does not answer.", since=NOW)
LONG_AWAY = Outage(message="MLflow does not answer.", since=NOW - OUTAGE_GRACE * 2)
REFUSED = Outage(message="MLflow refused.", since=NOW, refused=True)


@dataclass(frozen=True, kw_only=True)
class Case:
    seen: dict[str, Any]
    """Changes to a run that nobody has started; `family` and `registrations` True mean: as they should be."""
    phase: str
    reason: str = ""
    """Of the first condition that is not True."""
    does: tuple[type, ...] = ()
    done: bool = False


CASES = {
    "a new run starts the trainer": Case(seen={}, phase="Running", reason="Training", does=(StartAttempt,)),
    "a run asked to stop before it began": Case(
        seen={"stop": Stop.GENTLY}, phase="Interrupted", reason="Interrupted", done=True
    ),
    "nothing starts while MLflow is away": Case(
        seen={"outage": AWAY}, phase="Failed", reason="TrackingUnreachable", done=True
    ),
    "a living trainer is left alone": Case(seen={"attempt": ALIVE}, phase="Running", reason="Training"),
    "an outage does not disturb training": Case(
        seen={"attempt": ALIVE, "outage": LONG_AWAY}, phase="Running", reason="Training"
    ),
    "an old family does not distract from a living trainer": Case(
        seen={"attempt": ALIVE, "family": True}, phase="Running", reason="Training"
    ),
    "a living trainer is asked to stop": Case(
        seen={"attempt": ALIVE, "stop": Stop.GENTLY}, phase="Running", reason="Training", does=(StopAttempt,)
    ),
    "a stopping trainer is given its time": Case(
        seen={"attempt": STOPPING, "stop": Stop.GENTLY}, phase="Running", reason="Training"
    ),
    "a trainer that does not stop is killed": Case(
        seen={"attempt": STUCK, "stop": Stop.GENTLY}, phase="Running", reason="Training", does=(StopAttempt,)
    ),
    "a trainer is killed when nobody wants to wait": Case(
        seen={"attempt": STOPPING, "stop": Stop.NOW}, phase="Running", reason="Training", does=(StopAttempt,)
    ),
    "a trainer that said why it failed": Case(
        seen={"attempt": FAILED}, phase="Failed", reason="InvalidInput", done=True
    ),
    "a trainer that failed without a word": Case(
        seen={"attempt": MUTE}, phase="Failed", reason="TrainerDied", done=True
    ),
    "a trainer that failed is not hidden by an outage": Case(
        seen={"attempt": FAILED, "outage": AWAY}, phase="Failed", reason="InvalidInput", done=True
    ),
    "a trainer that saved its state": Case(
        seen={"attempt": SAVED}, phase="Interrupted", reason="Interrupted", done=True
    ),
    "a killed trainer": Case(seen={"attempt": KILLED}, phase="Interrupted", reason="TrainerDied", done=True),
    "a trainer killed in a container": Case(
        seen={"attempt": KILLED_IN_A_CONTAINER}, phase="Interrupted", reason="TrainerDied", done=True
    ),
    "a trainer that our signal ended too early": Case(
        seen={"attempt": ENDED_BY_OUR_SIGNAL}, phase="Interrupted", reason="TrainerDied", done=True
    ),
    "a trainer that ended well and handed nothing over": Case(
        seen={"attempt": WELL}, phase="Failed", reason="TrainerDied", done=True
    ),
    "a finished trainer is waited for while MLflow is away": Case(
        seen={"attempt": WELL, "outage": AWAY}, phase="Running", reason="TrackingUnreachable"
    ),
    "waiting for MLflow ends": Case(
        seen={"attempt": WELL, "outage": LONG_AWAY}, phase="Failed", reason="TrackingUnreachable", done=True
    ),
    "nobody waits for MLflow after Ctrl-C": Case(
        seen={"attempt": WELL, "outage": AWAY, "stop": Stop.GENTLY},
        phase="Failed",
        reason="TrackingUnreachable",
        done=True,
    ),
    "a finished family is registered": Case(
        seen={"attempt": WELL, "family": True}, phase="Running", reason="Registering", does=(RegisterMembers,)
    ),
    "a family finished earlier is registered without a trainer": Case(
        seen={"family": True}, phase="Running", reason="Registering", does=(RegisterMembers,)
    ),
    "a family counts whatever ended the trainer after it": Case(
        seen={"attempt": KILLED, "family": True},
        phase="Running",
        reason="Registering",
        does=(RegisterMembers,),
    ),
    "registration is tried again while MLflow is away": Case(
        seen={"attempt": WELL, "family": True, "outage": AWAY},
        phase="Running",
        reason="Registering",
        does=(RegisterMembers,),
    ),
    "registration gives up on a long outage": Case(
        seen={"attempt": WELL, "family": True, "outage": LONG_AWAY},
        phase="Failed",
        reason="TrackingUnreachable",
        done=True,
    ),
    "a refused registration is not repeated": Case(
        seen={"attempt": WELL, "family": True, "outage": REFUSED},
        phase="Failed",
        reason="RegistrationFailed",
        done=True,
    ),
    "a registered family is the end": Case(
        seen={"attempt": WELL, "family": True, "registrations": True}, phase="Succeeded", done=True
    ),
    "a finished run that is asked for again": Case(
        seen={"family": True, "registrations": True}, phase="Succeeded", done=True
    ),
    "a finished run stays finished when it is asked to stop": Case(
        seen={"family": True, "registrations": True, "stop": Stop.GENTLY}, phase="Succeeded", done=True
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_every_state_leads_to_one_decision(
    case: Case, observed: Callable[..., Observed], family: Family, registered: tuple[Registration, ...]
) -> None:
    seen = dict(case.seen)
    if seen.get("family"):
        seen["family"] = family
    if seen.get("registrations"):
        seen["registrations"] = registered

    decision = plan(observed(**seen), now=NOW)

    assert decision.status.phase == case.phase
    assert tuple(type(action) for action in decision.actions) == case.does
    assert decision.done is case.done
    open_conditions = [condition for condition in decision.status.conditions if condition.status != "True"]
    assert (open_conditions[0].reason if open_conditions else "") == case.reason


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_the_same_state_a_second_later_changes_nothing_in_the_status(
    case: Case, observed: Callable[..., Observed], family: Family, registered: tuple[Registration, ...]
) -> None:
    replaced = {"family": family, "registrations": registered}
    seen = {key: replaced.get(key, value) if value is True else value for key, value in case.seen.items()}
    first = plan(observed(**seen), now=NOW).status
    if "attempt" not in seen and first.attempts:
        seen["attempt"] = ALIVE
        first = plan(observed(**seen, previous=first), now=NOW).status

    second = plan(observed(**seen, previous=first), now=NOW + timedelta(seconds=1)).status

    assert second == first


@pytest.mark.parametrize(
    ("attempt", "stop", "force"),
    [(ALIVE, Stop.GENTLY, False), (STUCK, Stop.GENTLY, True), (ALIVE, Stop.NOW, True)],
)
def test_force_is_used_only_when_patience_is_over(
    attempt: Attempt, stop: Stop, force: bool, observed: Callable[..., Observed]
) -> None:
    decision = plan(observed(attempt=attempt, stop=stop), now=NOW)

    assert decision.actions == (StopAttempt(number=1, force=force),)


def test_a_resumed_run_counts_its_attempts_and_closes_the_one_that_nobody_saw_end(
    observed: Callable[..., Observed],
) -> None:
    earlier = AttemptStatus(number=4, started_at=NOW - timedelta(hours=1))

    decision = plan(observed(previous=CompressionRunStatus(attempts=(earlier,))), now=NOW)

    assert decision.actions == (StartAttempt(number=5),)
    assert [(attempt.number, attempt.outcome) for attempt in decision.status.attempts] == [
        (4, "Interrupted"),
        (5, "Running"),
    ]


def test_an_attempt_keeps_its_start_and_gets_its_end(observed: Callable[..., Observed]) -> None:
    started = NOW - timedelta(hours=1)
    previous = CompressionRunStatus(attempts=(AttemptStatus(number=1, started_at=started),))

    (attempt,) = plan(observed(attempt=FAILED, previous=previous), now=NOW).status.attempts

    assert (attempt.started_at, attempt.finished_at, attempt.outcome) == (started, NOW, "Failed")
    assert attempt.message == BAD_INPUT.message


def test_a_transition_time_moves_only_when_the_condition_does(
    observed: Callable[..., Observed], family: Family
) -> None:
    training = plan(observed(attempt=ALIVE), now=NOW).status

    after = plan(
        observed(attempt=WELL, family=family, previous=training), now=NOW + timedelta(minutes=1)
    ).status

    times = {condition.type: condition.last_transition_time for condition in after.conditions}
    assert times["Trained"] == NOW + timedelta(minutes=1)
    assert times["Valid"] == times["Registered"] == times["Succeeded"] == NOW


def test_a_killed_trainer_is_explained_by_memory(observed: Callable[..., Observed]) -> None:
    status = plan(observed(attempt=KILLED), now=NOW).status

    message = status.conditions[-1].message
    assert "SIGKILL" in message
    assert "memory ran out" in message


def test_progress_and_members_reach_the_status(
    observed: Callable[..., Observed], family: Family, registered: tuple[Registration, ...]
) -> None:
    progress = Progress(
        stage="widths",
        stage_index=1,
        stage_count=5,
        step=30,
        total_steps=60,
        percent=40,
        eta_seconds=90,
        updated_at=NOW,
    )
    tracked = TrackedRun(run_id="r-1", artifact_uri="file:///a", progress=progress)

    status = plan(
        observed(tracked=tracked, family=family, registrations=registered, report="/r.html"), now=NOW
    ).status

    assert status.progress is not None
    assert (status.progress.stage, status.progress.percent, status.progress.eta_seconds) == ("widths", 40, 90)
    assert [member.model_uri for member in status.members] == ["models:/demo@gateway", "models:/demo@sensor"]
    assert status.members[0].metrics == {"accuracy": 0.9}, "NaN has no place in a status"
    assert status.mlflow is not None
    assert status.mlflow.run_id == "r-1"
    assert CompressionRunStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status


def test_only_complete_registration_is_success(
    observed: Callable[..., Observed], family: Family, registered: tuple[Registration, ...]
) -> None:
    decision = plan(observed(family=family, registrations=registered[:1]), now=NOW)

    assert decision.actions == (RegisterMembers(family=family),)
    assert not decision.done
