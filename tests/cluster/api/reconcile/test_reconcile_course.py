"""The course of a run that nothing disturbs, and what the operator writes on its way."""

from __future__ import annotations

from typing import Any

from mlflow import MlflowClient

from ireko_operator.kube.keys import FINALIZER
from play.world import World, manifest


def test_a_new_run_gets_its_finalizer_and_one_job_that_it_owns(world: World) -> None:
    world.start()
    run, (job,) = world.run(), world.jobs()
    assert run["metadata"]["finalizers"] == [FINALIZER]
    (owner,) = job["metadata"]["ownerReferences"]
    assert (owner["kind"], owner["uid"]) == ("CompressionRun", run["metadata"]["uid"])
    assert owner["controller"] is True
    labels = job["metadata"]["labels"]
    assert labels["ireko.dev/run-uid"] == run["metadata"]["uid"]
    assert labels["ireko.dev/attempt"] == "1"
    assert len(job["metadata"]["name"]) <= 47
    assert world.request().uid == run["metadata"]["uid"]
    (attempt,) = world.status()["attempts"]
    assert attempt["number"] == 1
    assert attempt["rayJob"] == job["metadata"]["name"]


def test_what_is_written_belongs_to_two_managers(world: World) -> None:
    world.start()
    managers = {
        (entry["manager"], entry["operation"], entry.get("subresource", ""))
        for entry in world.run()["metadata"]["managedFields"]
    }
    assert ("ireko-operator", "Apply", "") in managers
    assert ("ireko-operator-status", "Apply", "status") in managers
    fields = next(
        entry["fieldsV1"]
        for entry in world.run()["metadata"]["managedFields"]
        if entry["manager"] == "ireko-operator"
    )
    assert set(fields) == {"f:metadata"}


def test_a_pass_over_a_run_without_news_asks_nobody_anything(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    world.see()
    with world.requests.during() as made:
        for _ in range(3):
            done = world.look()
            assert done.changed is False
    assert made == []


def test_the_operators_own_writes_are_no_news_to_it(world: World) -> None:
    world.apply(manifest())
    assert world.see() == {(world.namespace, "demo")}
    world.look()
    assert world.see() == set()


def test_stale_eyes_start_no_second_job_and_write_no_second_status(world: World) -> None:
    world.apply(manifest())
    world.see()
    for _ in range(3):
        world.look()
    assert len(world.jobs()) == 1
    assert world.telemetry.writes["apply compressionruns/status"] == 1
    assert world.telemetry.writes["create rayjobs"] == 1


def test_a_family_that_was_handed_over_is_registered_and_the_run_succeeds(world: World) -> None:
    world.start()
    world.play("Initializing")
    world.settle()
    world.play("Running", "RUNNING")
    world.settle()
    world.progress(40)
    world.settle()
    assert world.status()["progress"]["percent"] == 40
    family = world.finish()
    world.settle()

    status = world.status()
    assert status["phase"] == "Succeeded"
    assert world.reason("Trained") == ("True", "FamilyComplete")
    assert world.reason("Registered") == ("True", "AllRegistered")
    assert world.reason("Succeeded") == ("True", "Complete")
    assert {member["target"]: member["modelUri"] for member in status["members"]} == {
        "gateway": "models:/demo@gateway",
        "sensor": "models:/demo@sensor",
    }
    model = MlflowClient(world.tracking_uri).get_registered_model("demo")
    assert set(model.aliases) == {member.target for member in family.members}
    assert world.telemetry.outcomes == {
        "attempt Started": 1,
        "attempt Succeeded": 1,
        "registration done": 1,
        "run Succeeded": 1,
    }


def test_a_whole_life_takes_at_most_twelve_writes(world: World) -> None:
    world.start()
    for state, job in (("Initializing", ""), ("Running", "PENDING"), ("Running", "RUNNING")):
        world.play(state, job)
        world.settle()
    world.finish()
    world.settle()
    assert world.status()["phase"] == "Succeeded"
    world.delete()
    world.settle()
    assert not world.exists()
    assert world.telemetry.writes.total() <= 12, world.telemetry.writes


def test_people_are_told_of_the_steps(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    world.finish()
    world.settle()
    assert world.events() == [
        ("Normal", "AttemptStarted"),
        ("Normal", "FamilyComplete"),
        ("Normal", "Complete"),
    ]


def test_progress_is_written_once_per_interval(world: World) -> None:
    world.start()
    world.play("Running", "RUNNING")
    world.settle()
    written = []
    for percent in (10, 11, 12):
        world.progress(percent)
        done = world.step()
        written.append(world.status()["progress"]["percent"])
        assert percent == 10 or (done.requeue_after is not None and done.requeue_after <= 15)
    assert written == [10, 10, 10]
    world.clock.ahead = _seconds(16)
    world.step()
    assert world.status()["progress"]["percent"] == 12


def test_a_finished_run_is_left_alone_by_the_next_operator(world: World) -> None:
    world.start()
    world.finish()
    world.settle()
    before = world.run()
    world.restart()
    world.see()
    with world.requests.during() as made:
        world.look()
    assert made == []
    assert world.run() == before


def _seconds(number: float) -> Any:
    from datetime import timedelta

    return timedelta(seconds=number)
