"""Why a pod that has its node starts no container: the kubelet says so in events and nowhere else.

Watching events would mean hearing every word that is said in the cluster. So they are asked for, those of one pod at
a time, once that pod has hung for longer than mounting takes, and less and less often while it goes on hanging.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any

from ireko_operator.kube.objects import PodObject
from ireko_operator.launch import Trouble
from ireko_operator.launch.troubles import of_mount

HANGS_AFTER = timedelta(seconds=20)
"""How long mounting may take before anybody is asked."""
_FIRST_PAUSE, _LONGEST_PAUSE = timedelta(seconds=20), timedelta(seconds=160)
"""Between two questions. The kubelet itself tries again after at most 122 s."""

_NOT_STARTED = ("", "ContainerCreating", "PodInitializing")
_FAILED_TO_MOUNT = ("FailedMount", "FailedAttachVolume", "FailedMapVolume")
_SUMMARY = "Unable to attach or mount volumes"
"""What the kubelet says every two minutes beside the cause, and what names none."""

Body = Mapping[str, Any]


@dataclass(kw_only=True)
class Hangs:
    """What was asked about the pods of one run that hang, and what was answered."""

    questions: int = 0
    """Since the first of them began to hang."""
    asked: dict[str, datetime] = field(default_factory=dict)
    """When each was last asked about, by uid."""
    said: dict[str, Trouble] = field(default_factory=dict)
    """The last answer about each, by uid."""

    def pod_to_ask_about(self, pods: Sequence[PodObject], *, now: datetime) -> PodObject | None:
        """The pod whose events are worth reading now."""
        hanging = self._keep(pods)
        due = [pod for pod, since in hanging if now >= since + HANGS_AFTER]
        if not due or now < self._next_question():
            return None
        return min(due, key=lambda pod: (pod.meta.uid in self.asked, self.asked.get(pod.meta.uid, now)))

    def take(self, pod: PodObject, events: Sequence[Body], *, now: datetime) -> None:
        """Take in the events of a pod."""
        self.questions += 1
        self.asked[pod.meta.uid] = now
        message = failed_mount(events)
        if message is None:
            self.said.pop(pod.meta.uid, None)
        else:
            self.said[pod.meta.uid] = of_mount(pod, message)

    def next_question_in(self, pods: Sequence[PodObject], *, now: datetime) -> float | None:
        """Seconds until a pod is to be asked about; None where none hangs."""
        hanging = self._keep(pods)
        if not hanging:
            return None
        due = max(min(since for _, since in hanging) + HANGS_AFTER, self._next_question())
        return max(0.0, (due - now).total_seconds())

    def troubles(self, pods: Sequence[PodObject]) -> tuple[Trouble, ...]:
        """What keeps those of `pods` from starting that hang still."""
        return tuple(
            self.said[pod.meta.uid]
            for pod in pods
            if pod.meta.uid in self.said and hangs_since(pod) is not None
        )

    def _keep(self, pods: Sequence[PodObject]) -> list[tuple[PodObject, datetime]]:
        """The pods that hang and since when; whatever is known of others is forgotten."""
        hanging = [(pod, since) for pod in pods if (since := hangs_since(pod)) is not None]
        uids = {pod.meta.uid for pod, _ in hanging}
        for known in (self.asked, self.said):
            for uid in known.keys() - uids:
                del known[uid]
        if not hanging:
            self.questions = 0
        return hanging

    def _next_question(self) -> datetime:
        if not self.asked:
            return datetime.min.replace(tzinfo=UTC)
        pause = min(_LONGEST_PAUSE, _FIRST_PAUSE * (1 << min(self.questions - 1, 8)))
        return max(self.asked.values()) + pause


def hangs_since(pod: PodObject) -> datetime | None:
    """When a pod got its node on which it has started no container yet; None where it has, or is over."""
    if pod.meta.deleting is not None or pod.phase not in ("", "Pending"):
        return None
    told = {condition.type: condition for condition in pod.conditions}
    scheduled, mounted = told.get("PodScheduled"), told.get("PodReadyToStartContainers")
    if scheduled is None or scheduled.status != "True" or (mounted is not None and mounted.status == "True"):
        return None
    started = any(
        container.running or container.exit_code is not None or container.waiting_reason not in _NOT_STARTED
        for container in pod.containers
    )
    return None if started else scheduled.since


def failed_mount(events: Sequence[Body]) -> str | None:
    """The kubelet's sentence about a volume that it cannot mount; None where it has got any further since."""
    in_order = sorted(events, key=lambda event: int(event["metadata"]["resourceVersion"]), reverse=True)
    if not in_order or in_order[0].get("reason") not in _FAILED_TO_MOUNT:
        return None
    notes = [event.get("note") or "" for event in in_order if event.get("reason") in _FAILED_TO_MOUNT]
    return next((note for note in notes if not note.startswith(_SUMMARY)), notes[0])
