"""What dies on the nodes while a run trains; it ends in the registry that an undisturbed run ends in.

`make soak` has all of `faults.FAULTS`, at random moments. Here are those that no other tier has: a pod with a
trainer in it dies under a real kubelet, with the operator, and a pause takes real pods away and brings others.
"""

from __future__ import annotations

from chain import small_run
from chain.faults import kill_operator, kill_worker_pod, suspend_and_resume
from chain.place import Object, Place, Seen

NAME = "disturbed"


def test_a_pause_a_lost_worker_and_a_dead_operator_change_nothing(place: Place, undisturbed: Seen) -> None:
    place.install()
    place.apply(small_run.manifest(NAME))
    place.wait_for(NAME, "its training", trains)
    suspend_and_resume(place, NAME)
    place.wait_for(NAME, "its training again", trains)
    kill_worker_pod(place, NAME)
    kill_operator(place, NAME)
    status = place.wait_for_success(NAME)
    assert status["registered"] == f"{len(small_run.TARGETS)}/{len(small_run.TARGETS)}"
    assert place.registered(NAME) == undisturbed.registered
    place.kubectl("delete", "crun", NAME, "--timeout=300s", timeout=320)


def trains(status: Object) -> bool:
    """Whether the trainer has said how far it is, in an attempt that runs."""
    return status.get("phase") == "Running" and status.get("progress") is not None
