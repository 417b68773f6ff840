"""Restarts, name clashes, suspension, deletion and refusals, against a real API server."""

from __future__ import annotations

from collections.abc import Callable
from datetime import timedelta

import pytest

from ireko_api.handoff import Failure
from ireko_operator.kube.client import FencedError, NotFoundError
from ireko_operator.kube.keys import JOBS, RUNS
from play.world import World, manifest

LOGS = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"


def failed(world: World, *, number: int = 1, failure: Failure | None = None) -> None:
    said = f"\x1b[31mTraceback\x1b[0m\n{failure.to_line()}" if failure else "Traceback\nboom"
    world.play("Failed", "FAILED", number=number, reason="AppFailed", message=LOGS + said)


@pytest.mark.parametrize("failure", ["InvalidInput", "NothingFits", "Diverged"])
def test_what_the_trainer_said_last_is_what_the_run_failed_by(world: World, failure: str) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    failed(world, failure=Failure(reason=failure, message="train.jsonl is empty."))  # type: ignore[arg-type]
    world.settle()
    assert world.status()["phase"] == "Failed"
    assert world.reason("Trained") == ("False", failure)
    assert "train.jsonl is empty." in world.condition("Trained")["message"]
    assert len(world.jobs()) == 1
    assert ("Warning", failure) in world.events()


def test_an_attempt_lost_to_its_surroundings_is_followed_by_another(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    failed(world, failure=Failure(reason="WorkerLost", message="2 workers died.", resumable=True))
    world.settle()
    assert world.reason("Trained")[1] == "BackingOff"
    world.clock.ahead += timedelta(seconds=40)
    world.settle()
    assert sorted(job["metadata"]["labels"]["ireko.dev/attempt"] for job in world.jobs())[-1] == "2"
    world.play("Running", "RUNNING", number=2)
    world.settle()
    world.finish(number=2)
    world.settle()
    assert world.status()["phase"] == "Succeeded"
    assert [attempt["outcome"] for attempt in world.status()["attempts"]] == ["Failed", "Succeeded"]


@pytest.mark.parametrize("moment", ["before anything", "after the job", "while it runs", "after its end"])
def test_a_new_operator_goes_on_where_the_old_one_stood(world: World, moment: str) -> None:
    world.apply(manifest())
    if moment != "before anything":
        world.settle()
    if moment == "while it runs":
        world.play("Running", "RUNNING")
    if moment == "after its end":
        world.finish()
    world.restart()
    world.settle()
    if moment != "after its end":
        world.finish()
        world.settle()
    assert world.status()["phase"] == "Succeeded"
    assert world.telemetry.writes["create rayjobs"] == 1
    assert world.telemetry.writes["create configmaps"] == 1


def test_a_job_whose_status_was_never_written_is_taken_over(world: World) -> None:
    world.start()
    world.hands.apply(
        RUNS,
        namespace=world.namespace,
        name="demo",
        subresource="status",
        manager="ireko-operator-status",
        body={"apiVersion": "ireko.dev/v1alpha1", "kind": "CompressionRun", "metadata": {"name": "demo"}},
    )
    world.restart()
    world.settle()
    assert len(world.jobs()) == 1
    assert [attempt["number"] for attempt in world.status()["attempts"]] == [1]


def test_somebody_elses_job_of_the_same_name_is_not_touched_and_said_to_be_in_the_way(world: World) -> None:
    world.apply(manifest())
    name = world.job_name()
    theirs = {
        "apiVersion": "ray.io/v1",
        "kind": "RayJob",
        "metadata": {"name": name, "namespace": world.namespace},
        "spec": {"entrypoint": "true"},
    }
    world.hands.create(JOBS, namespace=world.namespace, body=theirs, manager="somebody")
    world.settle()
    status, reason = world.reason("ClusterReady")
    assert (status, reason) == ("False", "PodRefused")
    assert name in world.condition("ClusterReady")["message"]
    (job,) = world.jobs()
    world.hands.delete(JOBS, namespace=world.namespace, name=name, uid=job["metadata"]["uid"])
    world.clock.ahead += timedelta(seconds=90)
    world.settle()
    assert world.job()["metadata"]["ownerReferences"]
    assert world.reason("ClusterReady")[0] == "Unknown"


def test_a_quota_that_refuses_the_job_is_named_and_its_end_is_noticed(world: World) -> None:
    with world.quota("none", hard={"count/rayjobs.ray.io": "0"}):
        world.start()
        assert world.reason("ClusterReady") == ("False", "QuotaExceeded")
        assert "count/rayjobs.ray.io" in world.condition("ClusterReady")["message"]
    world.clock.ahead += timedelta(seconds=90)
    world.settle()
    assert len(world.jobs()) == 1
    assert world.reason("ClusterReady")[0] == "Unknown"


def test_nothing_is_written_behind_a_closed_fence(world: World) -> None:
    world.apply(manifest())
    world.fence.open = False
    with pytest.raises(FencedError):
        world.step()
    assert world.jobs() == []
    assert world.telemetry.writes.total() == 0


def test_a_pause_takes_the_pods_away_and_its_end_gives_them_back(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    world.edit(suspend=True)
    world.settle()
    assert world.job()["spec"]["suspend"] is True
    world.play("Suspended")
    world.settle()
    assert world.reason("Admitted") == ("False", "Suspended")
    assert world.status()["phase"] == "Suspended"
    world.edit(suspend=False)
    world.settle()
    assert world.job()["spec"]["suspend"] is False
    world.play("Running", "RUNNING")
    world.settle()
    world.finish()
    world.settle()
    assert world.status()["phase"] == "Succeeded"
    assert len(world.status()["attempts"]) == 1


def _nothing(world: World) -> None:
    return None


def _running(world: World) -> None:
    world.play("Running", "RUNNING")


def _suspended(world: World) -> None:
    world.edit(suspend=True)
    world.settle()
    world.play("Suspended")


def _failed(world: World) -> None:
    failed(world)


@pytest.mark.parametrize("state", [_nothing, _running, _suspended, _failed])
def test_deletion_stops_the_job_first_in_whatever_state_it_is(
    world: World, state: Callable[[World], object]
) -> None:
    world.start()
    job = world.job_name()
    state(world)
    world.settle()
    world.hold(job)
    world.delete()
    world.settle()
    assert world.exists()
    assert world.job()["metadata"].get("deletionTimestamp")
    world.let_go(job)
    world.settle()
    assert not world.exists()
    assert world.jobs() == []
    assert world.look().changed is False


def test_a_run_that_is_over_is_held_back_by_nobody(world: World) -> None:
    world.start()
    world.finish()
    world.settle()
    assert not world.run()["metadata"].get("finalizers")
    world.operator.close()
    world.delete()
    assert not world.exists()
    world.wait(lambda: not world.jobs())


def test_a_run_that_is_deleted_before_it_was_seen_starts_nothing(world: World) -> None:
    world.apply(manifest())
    world.delete()
    world.step()
    assert world.jobs() == []


def test_a_run_made_anew_under_its_old_name_starts_from_nothing(world: World) -> None:
    world.start()
    world.finish()
    world.settle()
    first = world.run()["metadata"]["uid"]
    world.delete()
    world.settle()
    world.start()
    assert world.run()["metadata"]["uid"] != first
    assert world.status()["phase"] != "Succeeded"
    assert [attempt["number"] for attempt in world.status()["attempts"]] == [1]
    (job,) = [job for job in world.jobs() if not job["metadata"].get("deletionTimestamp")]
    assert job["metadata"]["labels"]["ireko.dev/run-uid"] != first


def test_a_deletion_that_was_not_heard_of_is_found_out(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.see()
    world.take_finalizers_away(JOBS, RUNS)
    world.delete()
    world.wait(lambda: not world.exists())
    assert world.look().changed is False
    assert world.cache.snapshot((world.namespace, "demo")) is None


def test_a_run_whose_time_to_live_is_over_is_deleted_with_what_it_made(world: World) -> None:
    world.start(compute={"ttlSecondsAfterFinished": 60})
    world.finish()
    world.settle()
    assert world.exists()
    done = world.step()
    assert done.requeue_after is not None
    assert done.requeue_after <= 61
    world.clock.ahead += timedelta(seconds=70)
    world.settle()
    world.settle()
    assert not world.exists()
    world.wait(lambda: not world.jobs())


def test_a_job_that_vanished_is_found_missing_and_the_run_goes_on(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    job = world.job()["metadata"]
    world.hands.delete(JOBS, namespace=world.namespace, name=job["name"], uid=job["uid"])
    world.settle()
    world.clock.ahead += timedelta(seconds=90)
    world.settle()
    (attempt,) = [item for item in world.status()["attempts"] if item["outcome"] == "Running"]
    assert world.job(attempt["number"])["metadata"]["uid"] != job["uid"]


def test_an_attempt_that_is_given_up_is_written_down_before_mlflow_has_answered(world: World) -> None:
    world.start(compute={"pendingDeadlineSeconds": 60})
    world.pass_time(70)
    world.step()
    (attempt,) = world.status()["attempts"]
    assert (attempt["outcome"], attempt["reason"]) == ("Failed", "Unschedulable")
    world.settle()
    assert world.reason("Trained")[1] == "BackingOff"
    assert world.telemetry.writes["create rayjobs"] == 1


def test_runs_of_one_name_in_a_namespace_that_is_gone_are_forgotten(world: World) -> None:
    world.start()
    key = (world.namespace, "demo")
    world.delete()
    world.settle()
    assert key not in world.operator._memories
    with pytest.raises(NotFoundError):
        world.run()
