"""Random lives of a run: whatever happens in whatever order, a few things hold.

Hypothesis chooses what KubeRay, the trainer, people, time and the network do, and when the operator looks, with
fresh or with stale eyes, or dies. The API server and MLflow's database are real.
"""

from __future__ import annotations

import itertools
import os
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import hypothesis.strategies as st
from hypothesis import HealthCheck, Phase, settings
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from mlflow import MlflowClient

from ireko_api.handoff import Failure
from ireko_operator.kube.client import KubeError
from ireko_operator.kube.keys import JOBS, Pass
from play.world import KUBERAY_FINALIZER, World, manifest

SOAK = bool(os.environ.get("IREKO_SOAK"))
COLLECTED_SECONDS = 120.0
"""The garbage collector of a new cluster takes half a minute to hear of a new kind, and as long to begin with it."""
ENDED = ("Complete", "Failed", "ValidationFailed")
LOGS = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"
NUMBERS = itertools.count(1)

FAILURES: dict[str, dict[str, Any]] = {
    "lost workers": {
        "state": "Failed",
        "job": "FAILED",
        "reason": "AppFailed",
        "message": LOGS + Failure(reason="WorkerLost", message="2 workers died.", resumable=True).to_line(),
    },
    "no word": {"state": "Failed", "job": "FAILED", "reason": "AppFailed", "message": LOGS + "Killed"},
    "wrong data": {
        "state": "Failed",
        "job": "FAILED",
        "reason": "AppFailed",
        "message": LOGS + Failure(reason="InvalidInput", message="train.jsonl is empty.").to_line(),
    },
    "not submitted": {"state": "Failed", "job": "", "reason": "SubmissionFailed"},
    "stopped": {"state": "Complete", "job": "STOPPED"},
    "refused": {"state": "ValidationFailed", "job": "", "reason": "ValidationFailed"},
}


class Life(RuleBasedStateMachine):
    """One run, from being applied to being gone."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.name = f"life-{next(NUMBERS)}"
        self.uids: set[str] = set()
        self.world.requests.failures.clear()
        self.world.restart()
        self._apply()

    # --- the operator ---

    @rule()
    def operator_looks(self) -> None:
        self.world.see()
        self._look()

    @rule()
    def operator_looks_with_stale_eyes(self) -> None:
        self._look()

    @rule()
    def operator_looks_until_content(self) -> None:
        if self.world.requests.failures:
            return
        self.world.settle(self.name)
        self._is_getting_somewhere(self._look())

    @rule()
    def operator_dies(self) -> None:
        self.world.restart()

    @rule(failures=st.lists(st.sampled_from(["unsent", "unanswered"]), min_size=1, max_size=3))
    def network_fails(self, failures: list[Any]) -> None:
        self.world.requests.failures.extend(failures)

    @rule(seconds=st.sampled_from([2, 20, 70, 700]))
    def time_passes(self, seconds: int) -> None:
        self.world.pass_time(seconds)

    # --- people ---

    @rule(suspend=st.booleans())
    @precondition(lambda self: self._exists())
    def person_pauses_or_resumes(self, suspend: bool) -> None:
        self.world.edit(self.name, suspend=suspend)

    @rule()
    @precondition(lambda self: self._exists())
    def person_deletes_the_run(self) -> None:
        self.world.delete(self.name)

    @rule()
    @precondition(lambda self: not self._exists())
    def person_applies_it_anew(self) -> None:
        self._apply()

    @rule()
    @precondition(lambda self: self._live())
    def person_deletes_the_job(self) -> None:
        job = self._live()[0]["metadata"]
        self.world.hands.delete(JOBS, namespace=self.world.namespace, name=job["name"], uid=job["uid"])

    # --- KubeRay and the trainer ---

    @rule()
    @precondition(lambda self: self._live())
    def kuberay_goes_on(self) -> None:
        job = self._live()[0]
        if job["metadata"].get("deletionTimestamp"):
            self.world.let_go(job["metadata"]["name"])
            return
        if KUBERAY_FINALIZER not in job["metadata"].get("finalizers", ()):
            self.world.hold(job["metadata"]["name"])
        state = job.get("status", {}).get("jobDeploymentStatus", "")
        if job["spec"].get("suspend"):
            self._play(job, "Suspended" if state in ("", "Suspending", "Suspended") else "Suspending")
        elif state in ("Suspending", "Suspended", ""):
            self._play(job, "Initializing")
        else:
            self._play(job, "Running", "RUNNING")

    @rule(how=st.sampled_from(sorted(FAILURES)))
    @precondition(lambda self: self._at_work())
    def trainer_fails(self, how: str) -> None:
        told = dict(FAILURES[how])
        self._play(self._at_work()[0], told.pop("state"), told.pop("job"), **told)

    @rule()
    @precondition(lambda self: self._at_work() and self._exists())
    def trainer_finishes(self) -> None:
        self.world.finish(number=self._number(self._at_work()[0]), name=self.name)

    @rule(percent=st.integers(0, 100))
    @precondition(lambda self: self._at_work() and self._exists())
    def trainer_gets_on(self, percent: int) -> None:
        self.world.progress(percent, number=self._number(self._at_work()[0]), name=self.name)

    # --- what holds ---

    @invariant()
    def at_most_one_attempt_lives(self) -> None:
        by_run = Counter(job["metadata"]["labels"]["ireko.dev/run-uid"] for job in self._live())
        assert all(count == 1 for count in by_run.values()), self._live()

    @invariant()
    def nothing_is_registered_twice(self) -> None:
        found = MlflowClient(self.world.tracking_uri).search_model_versions(f"name = '{self.name}'")
        versions = Counter(
            (version.tags["ireko.run.uid"], version.tags["device.target"]) for version in found
        )
        assert all(count == 1 for count in versions.values()), versions

    @invariant()
    def a_run_that_is_over_stays_over(self) -> None:
        if not self._exists():
            return
        run = self.world.run(self.name)
        phase = (run.get("status") or {}).get("phase")
        uid = run["metadata"]["uid"]
        if phase in ("Succeeded", "Failed"):
            self.uids.add(f"{uid} {phase}")
        ends = {end for end in self.uids if end.startswith(uid)}
        assert len(ends) <= 1, ends
        assert not ends or f"{uid} {phase}" in ends

    def teardown(self) -> None:
        """In the end everything goes well: the run comes to its end, can be deleted and leaves nothing."""
        with self._undisturbed():
            if self._exists() and not self.world.run(self.name)["metadata"].get("deletionTimestamp"):
                self.world.edit(self.name, suspend=False)
                self._until(lambda: self.world.status(self.name).get("phase") in ("Succeeded", "Failed"))
                self.world.delete(self.name)
            self._until(lambda: not self._exists())
            self.world.wait(self._nothing_is_left, seconds=COLLECTED_SECONDS)

    # --- how ---

    def _apply(self) -> None:
        self.world.apply(manifest(self.name, compute={"retryBackoffSeconds": 10, "maxAttempts": 5}))

    def _look(self) -> Pass | None:
        try:
            return self.world.look(self.name)
        except KubeError:
            return None  # the queue would try again

    def _is_getting_somewhere(self, seen: Pass | None) -> None:
        """A run that is not over has something that lives, a time at which it is looked at, or a pause."""
        if seen is None or not self._exists():
            return
        status = self.world.status(self.name)
        summary = [item for item in status.get("conditions", ()) if item["type"] == "Succeeded"]
        if self.world.run(self.name)["metadata"].get("deletionTimestamp") and not summary:
            return
        assert summary, status
        if summary[0]["status"] == "Unknown":
            paused = status["phase"] == "Suspended"
            assert self._live() or seen.requeue_after is not None or paused, status

    @contextmanager
    def _undisturbed(self) -> Iterator[None]:
        self.world.requests.failures.clear()
        yield

    def _until(self, reached: Any) -> None:
        for _ in range(40):
            self.world.settle(self.name)
            if reached():
                return
            for job in self._live():
                self._help_along(job)
            self.world.pass_time(130)
        raise AssertionError(f"{self.name} came to no end: {self._exists()} {self._jobs()}")

    def _nothing_is_left(self) -> bool:
        """The garbage collector deletes what the run owned, and KubeRay lets it go."""
        jobs = self._jobs()
        for job in jobs:
            if job["metadata"].get("deletionTimestamp"):
                self.world.let_go(job["metadata"]["name"])
        return not jobs

    def _help_along(self, job: Mapping[str, Any]) -> None:
        """KubeRay and the trainer do what they should."""
        if job["metadata"].get("deletionTimestamp"):
            self.world.let_go(job["metadata"]["name"])
        elif job["spec"].get("suspend"):
            self._play(job, "Suspended")
        elif self._exists():
            self.world.finish(number=self._number(job), name=self.name)

    def _exists(self) -> bool:
        return self.world.exists(self.name)

    def _jobs(self) -> list[Mapping[str, Any]]:
        return [
            job for job in self.world.jobs() if job["metadata"]["labels"].get("ireko.dev/run") == self.name
        ]

    def _live(self) -> list[Mapping[str, Any]]:
        return [job for job in self._jobs() if job.get("status", {}).get("jobDeploymentStatus") not in ENDED]

    def _at_work(self) -> list[Mapping[str, Any]]:
        """Jobs that KubeRay says are running, of the run as it is now."""
        if not self._exists():
            return []
        uid = self.world.run(self.name)["metadata"]["uid"]
        return [
            job
            for job in self._live()
            if job.get("status", {}).get("jobDeploymentStatus") == "Running"
            and job["metadata"]["labels"]["ireko.dev/run-uid"] == uid
        ]

    def _number(self, job: Mapping[str, Any]) -> int:
        return int(job["metadata"]["labels"]["ireko.dev/attempt"])

    def _play(self, job: Mapping[str, Any], state: str, of_ray: str = "", **told: Any) -> None:
        self.world.play_job(job["metadata"]["name"], state, of_ray, **told)


def test_whatever_happens_a_run_has_one_attempt_one_registration_and_an_end(world: World) -> None:
    made = type("LifeInThisWorld", (Life,), {"world": world})
    run_state_machine_as_test(
        made,
        settings=settings(
            max_examples=int(os.environ.get("IREKO_SOAK_LIVES", "150")) if SOAK else 8,
            stateful_step_count=40 if SOAK else 25,
            deadline=None,
            derandomize=not SOAK,
            database=None,
            print_blob=True,
            phases=(
                Phase.generate,
            ),  # a shorter life that fails costs more time to find than to read this one
            suppress_health_check=list(HealthCheck),
        ),
    )
