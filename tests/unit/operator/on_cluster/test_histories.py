"""Whatever happens around a run, in whatever order: what must hold after every single event."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from world import MAX_ATTEMPTS, World

from ireko_api.handoff import Failure, Family
from ireko_api.reasons import Reason
from ireko_api.status import CompressionRunStatus
from ireko_operator.reconcile.state import Decision, RegisterMembers

Event = Callable[[World], None]
LOST = Failure(reason="WorkerLost", message="Workers died.", resumable=True)
DIVERGED = Failure(reason="Diverged", message="The loss became NaN.")
SAVED = Failure(reason="Interrupted", message="Saved.", resumable=True)


def the_trainer_gets_to_work(world: World) -> None:
    """The ordinary way of an attempt from its RayJob to its work, the queue on its side."""
    for _ in range(5):
        job = world.current()
        if job is not None and job.view.workload is not None and job.view.suspended:
            world.queue_moves_on()
        world.kuberay_moves_on()


EVENTS: dict[str, Event] = {
    "KubeRay moves on": World.kuberay_moves_on,
    "the trainer gets to work": the_trainer_gets_to_work,
    "the queue moves on": World.queue_moves_on,
    "the trainer succeeds": World.trainer_succeeds,
    "the trainer fails": lambda world: world.trainer_fails(LOST),
    "the trainer fails for good": lambda world: world.trainer_fails(DIVERGED),
    "the trainer is interrupted": lambda world: world.trainer_fails(SAVED),
    "memory runs out": lambda world: world.trainer_fails(None, out_of_memory=True),
    "the head is lost": World.head_is_lost,
    "the RayJob vanishes": World.job_vanishes,
    "somebody deletes the RayJob": World.somebody_deletes_the_job,
    "pods linger": World.pods_linger,
    "pods end": World.pods_end,
    "MLflow comes or goes": World.mlflow_comes_and_goes,
    "the user pauses or resumes": World.user_pauses_or_resumes,
    "the operator forgets": World.operator_forgets_the_last_status,
    "a moment passes": lambda world: world.time_passes(5),
    "a while passes": lambda world: world.time_passes(61),
    "an hour passes": lambda world: world.time_passes(3601),
    "the run is deleted": World.delete_run,
}
ORDINARY = ["the trainer gets to work"] * 12 + ["a while passes"] * 6 + ["the trainer succeeds"] * 2
RARE = ["the run is deleted", "the trainer fails for good", "an hour passes"]
WEIGHED = ORDINARY + [name for name in EVENTS if name not in RARE] * 2 + RARE
UNDER_WAY = (Reason.IN_PROGRESS, Reason.SUSPENDED, Reason.DELETING)


def check(world: World, decision: Decision) -> None:
    """What holds of a run after it was reconciled."""
    status = decision.status
    assert CompressionRunStatus.model_validate_json(status.model_dump_json(by_alias=True)) == status
    succeeded = next(c for c in status.conditions if c.type == "Succeeded")
    over = status.phase in ("Succeeded", "Failed")
    assert (succeeded.status != "Unknown") is over
    assert over or succeeded.reason in UNDER_WAY
    assert status.phase != "Succeeded" or status.registered == "2/2"
    assert sum(a.outcome == "Failed" for a in status.attempts) <= MAX_ATTEMPTS
    running = [a.number for a in status.attempts if a.outcome == "Running"]
    assert running in ([], [max((a.number for a in status.attempts), default=0)])


def check_nothing_new(world: World, decision: Decision) -> None:
    """Deciding again, at once or at any time before it was asked for, changes nothing."""
    wait = decision.requeue_after
    for later in (0.0, 86400.0 if wait is None else wait * 0.5, 86400.0 if wait is None else wait * 0.999):
        again = world.decide(later=later)
        assert [a for a in again.actions if not isinstance(a, RegisterMembers)] == []
        assert again.status == decision.status


@settings(deadline=None, max_examples=120, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(st.sampled_from(WEIGHED), min_size=10, max_size=40),
    queue=st.sampled_from([None, None, "gpus"]),
)
def test_whatever_happens_a_run_is_well_looked_after(
    events: list[str], queue: str | None, family: Family
) -> None:
    world = World(family_to_be=family, queue=queue)
    check(world, world.reconcile())
    for event in events:
        before = world.status
        EVENTS[event](world)
        if world.gone:
            return
        decision = world.reconcile()
        if world.gone:
            return
        check(world, decision)
        check_nothing_new(world, decision)
        if before.phase in ("Succeeded", "Failed"):
            assert decision.status.phase == before.phase


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(
        st.sampled_from([name for name in WEIGHED if name not in RARE]),
        max_size=20,
    ),
    queue=st.sampled_from([None, "gpus"]),
)
def test_a_run_that_is_left_alone_comes_to_its_end(
    events: list[str], queue: str | None, family: Family
) -> None:
    """After any history: with MLflow back, the pause over and time passing, every run ends."""
    world = World(family_to_be=family, queue=queue)
    world.reconcile()
    for event in events:
        EVENTS[event](world)
        world.reconcile()
        if world.gone:
            return
    world.outage, world.suspend = None, False
    for _ in range(60):
        world.reconcile()
        if world.status.phase in ("Succeeded", "Failed"):
            break
        world.pods_end()
        world.kuberay_moves_on()
        job = world.current()
        if job is not None and job.view.workload is not None and job.view.suspended:
            world.queue_moves_on()
        world.trainer_succeeds()
        world.time_passes(61)
    assert world.status.phase in ("Succeeded", "Failed")
    world.reconcile()
    assert not world.finalizer
    assert not any(job.lives and job.deleted_at is None for job in world.jobs.values())


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    events=st.lists(st.sampled_from([name for name in WEIGHED if name != "the run is deleted"]), max_size=20),
    kuberay_is_away=st.booleans(),
)
def test_a_deleted_run_goes_after_any_history(
    events: list[str], kuberay_is_away: bool, family: Family
) -> None:
    world = World(family_to_be=family)
    world.reconcile()
    for event in events:
        EVENTS[event](world)
        world.reconcile()
        if world.gone:
            return
    world.delete_run()
    for _ in range(5):
        if world.gone:
            break
        decision = world.reconcile()
        if not kuberay_is_away:
            world.kuberay_moves_on()
        world.time_passes(max(200.0, decision.requeue_after or 0))
    assert world.gone
    assert all(job.deleted_at is not None for job in world.jobs.values() if job.lives)


def test_the_memory_of_attempts_grows_up_to_what_the_user_allows(family: Family) -> None:
    world = World(family_to_be=family)
    sizes = []
    for _ in range(MAX_ATTEMPTS):
        world.reconcile()
        sizes.append(world.status.attempts[-1].memory)
        for _ in range(3):
            world.kuberay_moves_on()
        world.trainer_fails(None, out_of_memory=True)
        world.reconcile()
        world.time_passes(600)
    assert sizes == ["2Gi", "3Gi", "4608Mi"]
    assert world.status.phase == "Failed"
    assert world.status.reason == "OutOfMemory"


@pytest.mark.parametrize(("failures", "waits"), [(1, 30), (2, 60), (3, 120), (5, 480), (6, 600), (20, 600)])
def test_the_back_off_doubles_up_to_ten_minutes(failures: int, waits: int) -> None:
    from cluster_runs import record, run_with

    from ireko_operator.reconcile.retry import backoff

    attempts = [record(number, "Failed") for number in range(1, failures + 1)]
    attempts.append(record(99, "Interrupted"))
    assert backoff(attempts, compute=run_with(maxAttempts=32).spec.compute) == timedelta(seconds=waits)


def test_every_reason_that_the_trainer_can_give_is_known_and_classed() -> None:
    from typing import get_args

    from ireko_operator.reconcile.retry import FINAL

    reasons = get_args(Failure.model_fields["reason"].annotation)
    known = {Reason(reason) for reason in reasons}
    assert known & FINAL == {Reason.INVALID_INPUT, Reason.NOTHING_FITS, Reason.DIVERGED}


def test_a_world_is_not_content_with_two_attempts(family: Family) -> None:
    """The checks above can fail: a second living RayJob is noticed."""
    world = World(family_to_be=family)
    world.reconcile()
    world.jobs[1].view = replace(world.jobs[1].view, deployment_status="Running")
    with pytest.raises(AssertionError, match="two attempts"):
        world._start(2)
