"""Pods that hang before their first container: when they are asked about, and what the answers mean."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from typing import Any

import pytest

from ireko_api.reasons import Reason
from ireko_operator.kube.objects import PodObject, pod_object
from ireko_operator.launch.hangs import Hangs, failed_mount, hangs_since

BOUND = datetime(2026, 5, 4, 12, 0, 0, tzinfo=UTC)
SECRET = 'MountVolume.SetUp failed for volume "token" : secret "token" not found'
TIMED_OUT = "Unable to attach or mount volumes: unmounted volumes=[token]: context deadline exceeded"


def after(seconds: float) -> datetime:
    return BOUND + timedelta(seconds=seconds)


def condition(kind: str, status: str) -> dict[str, Any]:
    return {"type": kind, "status": status, "lastTransitionTime": BOUND.isoformat()}


SCHEDULED = condition("PodScheduled", "True")
WAITS = {"name": "trainer", "state": {"waiting": {"reason": "ContainerCreating"}}}


def pod(name: str = "head", *, deleting: bool = False, **status: Any) -> PodObject:
    metadata: dict[str, Any] = {"name": name, "namespace": "models", "uid": name, "resourceVersion": "1"}
    if deleting:
        metadata["deletionTimestamp"] = BOUND.isoformat()
    said = {"phase": "Pending", "conditions": [SCHEDULED], "containerStatuses": [WAITS], **status}
    return pod_object({"metadata": metadata, "status": said})


def event(reason: str, note: str = "", *, version: int) -> dict[str, Any]:
    return {"metadata": {"resourceVersion": str(version)}, "reason": reason, "note": note}


@pytest.mark.parametrize(
    ("hangs", "seen"),
    [
        (True, pod()),
        (True, pod(containerStatuses=[])),
        (True, pod(conditions=[SCHEDULED, condition("PodReadyToStartContainers", "False")])),
        (
            True,
            pod(initContainerStatuses=[{"name": "i", "state": {"waiting": {"reason": "PodInitializing"}}}]),
        ),
        (False, pod(conditions=[])),
        (False, pod(conditions=[condition("PodScheduled", "False")])),
        (False, pod(conditions=[SCHEDULED, condition("PodReadyToStartContainers", "True")])),
        (False, pod(deleting=True)),
        (False, pod(phase="Running")),
        (False, pod(phase="Failed")),
        (False, pod(initContainerStatuses=[{"name": "i", "state": {"running": {}}}])),
        (False, pod(initContainerStatuses=[{"name": "i", "state": {"terminated": {"exitCode": 0}}}])),
        (
            False,
            pod(
                containerStatuses=[{"name": "trainer", "state": {"waiting": {"reason": "ImagePullBackOff"}}}]
            ),
        ),
    ],
)
def test_a_pod_hangs_that_has_a_node_and_not_one_container(seen: PodObject, hangs: bool) -> None:
    assert hangs_since(seen) == (BOUND if hangs else None)


@pytest.mark.parametrize(
    ("events", "said"),
    [
        ([], None),
        ([event("Scheduled", version=1)], None),
        ([event("Scheduled", version=1), event("FailedMount", SECRET, version=2)], SECRET),
        ([event("FailedMount", SECRET, version=2), event("FailedMount", TIMED_OUT, version=3)], SECRET),
        ([event("FailedMount", TIMED_OUT, version=3)], TIMED_OUT),
        (
            [event("FailedMount", SECRET, version=2), event("FailedAttachVolume", "in use", version=9)],
            "in use",
        ),
        # What was mended: the kubelet has come as far as the image.
        ([event("FailedMount", SECRET, version=2), event("Pulling", "Pulling image", version=10)], None),
    ],
)
def test_the_last_word_about_a_volume_counts_unless_the_kubelet_has_got_further(
    events: list[dict[str, Any]], said: str | None
) -> None:
    assert failed_mount(events) == said


@pytest.mark.parametrize(
    ("note", "reason", "named"),
    [
        (SECRET, Reason.SECRET_MISSING, 'secret "token"'),
        (
            'MountVolume.SetUp failed for volume "token" : references non-existent secret key: TOKEN',
            Reason.SECRET_MISSING,
            "TOKEN",
        ),
        (
            'MountVolume.SetUp failed for volume "cfg" : configmap "settings" not found',
            Reason.CONFIG_MAP_MISSING,
            '"settings"',
        ),
        (
            'MountVolume.SetUp failed for volume "cfg" : references non-existent config key: a.yaml',
            Reason.CONFIG_MAP_MISSING,
            "a.yaml",
        ),
        (
            'MountVolume.SetUp failed for volume "nfs" : mount failed: exit status 32\nMounting command: mount',
            Reason.STORAGE_MISSING,
            '"nfs"',
        ),
        (
            'Multi-Attach error for volume "pvc-1" Volume is already used by pod(s) x',
            Reason.STORAGE_MISSING,
            "pvc-1",
        ),
    ],
)
def test_what_cannot_be_mounted_is_named_with_what_to_do(note: str, reason: Reason, named: str) -> None:
    hangs = Hangs()
    hangs.take(pod(), [event("FailedMount", note, version=2)], now=after(30))
    (trouble,) = hangs.troubles([pod()])
    assert trouble.reason is reason
    assert named in trouble.message
    assert "head" in trouble.message
    assert trouble.message.endswith(reason.remedy)


def test_nobody_is_asked_before_mounting_has_had_its_time() -> None:
    hangs = Hangs()
    assert hangs.next_question_in([pod()], now=after(5)) == 15
    assert hangs.pod_to_ask_about([pod()], now=after(5)) is None
    assert hangs.pod_to_ask_about([pod()], now=after(20)) == pod()
    assert hangs.next_question_in([pod(phase="Running")], now=after(5)) is None


def test_it_is_asked_less_and_less_often_and_about_each_pod_in_turn() -> None:
    pods = [pod("head"), pod("worker")]
    hangs, now, asked = Hangs(), after(20), []
    for _ in range(7):
        seen = hangs.pod_to_ask_about(pods, now=now)
        assert seen is not None
        hangs.take(seen, [], now=now)
        assert hangs.pod_to_ask_about(pods, now=now) is None
        wait = hangs.next_question_in(pods, now=now)
        assert wait is not None
        asked.append((seen.meta.name, wait))
        now += timedelta(seconds=wait)
    assert [name for name, _ in asked] == ["head", "worker"] * 3 + ["head"]
    assert [wait for _, wait in asked] == [20, 40, 80, 160, 160, 160, 160]


def test_a_pod_that_gets_on_takes_its_trouble_with_it() -> None:
    hangs, failing = Hangs(), [event("FailedMount", SECRET, version=2)]
    hangs.take(pod(), failing, now=after(20))
    assert hangs.troubles([pod(phase="Running")]) == ()
    hangs.take(pod(), [*failing, event("Pulling", version=3)], now=after(40))
    assert hangs.troubles([pod()]) == ()


def test_the_next_hang_is_asked_about_as_quickly_as_the_first() -> None:
    hangs, now = Hangs(), after(20)
    for _ in range(4):
        hangs.take(pod(), [], now=now)
    assert hangs.next_question_in([pod()], now=now) == 160
    assert hangs.next_question_in([pod(phase="Running")], now=now) is None
    assert hangs.pod_to_ask_about([pod("another")], now=now) == pod("another")
