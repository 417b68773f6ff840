"""The objects of one attempt on a cluster, computed from the run and the administrator's settings alone.

No text of the run reaches a shell: KubeRay puts the entrypoint into a script as it stands, so it is a
constant, and the specification travels in a ConfigMap.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Any

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRun
from ireko_operator.launch import Memory
from ireko_operator.launch.platform import Platform

LABEL_MANAGED_BY = "app.kubernetes.io/managed-by"
MANAGED_BY = "ireko"
LABEL_RUN = "ireko.dev/run"
LABEL_RUN_UID = "ireko.dev/run-uid"
LABEL_ATTEMPT = "ireko.dev/attempt"

ENTRYPOINT = "python -m ireko_trainer /etc/ireko/request.json"
REQUEST_FILE = "request.json"
TRAINER_CONTAINER = "trainer"

_LONGEST_STEM = 30


@dataclass(frozen=True, kw_only=True)
class AttemptManifests:
    """What one attempt is made of; both have the same name."""

    config_map: dict[str, Any]
    """Holds the request under `request.json`."""
    rayjob: dict[str, Any]


def attempt_name(*, run: str, uid: str, number: int) -> str:
    """The name of an attempt's objects: the same for the same attempt, at most 47 characters, a DNS-1035 label."""
    stem = run if run[0].isalpha() else f"r-{run}"
    digest = hashlib.sha256(uid.encode()).hexdigest()[:6]
    return f"{stem[:_LONGEST_STEM].rstrip('-')}-{digest}-{number}"


def attempt_labels(*, run: str, uid: str, number: int) -> dict[str, str]:
    """The labels of everything that belongs to an attempt."""
    return {
        LABEL_MANAGED_BY: MANAGED_BY,
        LABEL_RUN: run,
        LABEL_RUN_UID: uid,
        LABEL_ATTEMPT: str(number),
    }


def request_of(run: CompressionRun, *, number: int, platform: Platform) -> RunRequest:
    """What the trainer of an attempt is started with; the run has its uid and its storage."""
    raise NotImplementedError


def build_attempt(
    run: CompressionRun, *, number: int, memory: Memory, platform: Platform
) -> AttemptManifests:
    """The ConfigMap and the RayJob of an attempt.

    The run has its uid and its storage, and `reconcile.checks.find_troubles` finds nothing wrong with it.
    """
    raise NotImplementedError
