"""What the state of an attempt means: whether it lives, and why it ended."""

from __future__ import annotations

from ireko_operator.launch import ClusterView


def is_live(view: ClusterView) -> bool:
    """Whether the job of an attempt may still do something: it has not ended, suspended or not."""
    if view.deployment_status in ("Complete", "Failed"):
        return False
    return view.deployment_status != "ValidationFailed"
