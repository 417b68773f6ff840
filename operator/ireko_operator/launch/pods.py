"""Pod templates: Kubernetes' strategic merge, and what the author of a run may not put into one.

The policy is Pod Security's `restricted` profile plus two rules of our own: no service account token, and
volumes only of kinds that cannot name anything outside of the run's namespace.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from ireko_api.spec import Compute
from ireko_operator.launch.platform import PolicyException


@dataclass(frozen=True, kw_only=True)
class RefusedField:
    """A field of a pod template that the policy does not take."""

    path: str
    """Below `spec.compute`, e.g. `podTemplate.spec.containers[trainer].securityContext.privileged`."""
    why: str
    """The rest of the sentence that begins with the path, e.g. `must not be true (exception Privileged)`."""


def refused_fields(
    compute: Compute, *, allowed: frozenset[PolicyException] = frozenset()
) -> tuple[RefusedField, ...]:
    """Everything in `compute` and its pod template that the policy refuses, in its order."""
    raise NotImplementedError


def merge(base: Mapping[str, Any], overlay: Mapping[str, Any]) -> dict[str, Any]:
    """`overlay` laid over the pod template `base` by Kubernetes' strategic merge; neither is changed."""
    raise NotImplementedError
