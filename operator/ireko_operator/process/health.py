"""Whether this process is well: what /healthz and /readyz answer, from what is known of it.

/healthz fails when nothing but a restart helps: watches that have ended or deliver nothing, a queue that nobody works
off. An API server or an MLflow that is away is no illness: restarting does not bring them back.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

from ireko_operator.kube.keys import Kind
from ireko_operator.process.backlog import Depth

DEAF_SECONDS = 210.0
"""A connection that died silently is replaced after 70 s without a word; three times that is not the network."""
WATCHES_DOWN_SECONDS = 180.0
STUCK_SECONDS = 180.0
HUNG_SECONDS = 900.0
"""Of one pass. The longest is a registration, which copies models into an artifact store."""


@dataclass(frozen=True, kw_only=True)
class Vitals:
    """The process at one moment."""

    leading: bool
    dead: tuple[str, ...] = ()
    """Threads that should run and do not."""
    stopping: bool = False
    synced: bool = False
    """Whether everything that existed at the start has been seen."""
    watches_down: float = 0.0
    """Seconds for which the watches have not run, while leading."""
    deaf: Mapping[Kind, float] = field(default_factory=dict)
    """Seconds for which a change that the API server tells of when asked was not delivered."""
    depth: Depth = field(
        default_factory=lambda: Depth(due=0, later=0, running=0, oldest_due=0.0, longest_run=0.0)
    )
    since_last_finish: float = 0.0
    """Seconds since the last pass ended."""
    lease_reachable: bool = True
    """Whether the last look at the Lease succeeded."""


def find_ailments(vitals: Vitals) -> list[str]:
    """Why the process should be restarted; empty when it is well."""
    if vitals.stopping:
        return []
    ailments = [f"The thread `{name}` has ended." for name in vitals.dead]
    if not vitals.leading:
        return ailments
    if vitals.watches_down > WATCHES_DOWN_SECONDS:
        ailments.append(f"The watches have not run for {vitals.watches_down:.0f} s.")
    ailments += [
        f"The watch of {kind.value} is deaf: a change was not delivered for {seconds:.0f} s."
        for kind, seconds in vitals.deaf.items()
        if seconds > DEAF_SECONDS
    ]
    depth = vitals.depth
    if min(depth.oldest_due, vitals.since_last_finish) > STUCK_SECONDS:
        ailments.append(
            f"The queue is stuck: a run has waited for {depth.oldest_due:.0f} s and no pass has ended for "
            f"{vitals.since_last_finish:.0f} s."
        )
    if depth.longest_run > HUNG_SECONDS:
        ailments.append(f"A worker hangs: its pass has taken {depth.longest_run:.0f} s.")
    return ailments


def find_hindrances(vitals: Vitals) -> list[str]:
    """Why the process cannot do its work, or take it over, at this moment; empty when it can."""
    if vitals.stopping:
        return ["The operator is stopping."]
    if vitals.leading:
        return [] if vitals.synced else ["What exists in the cluster has not been read completely yet."]
    return (
        [] if vitals.lease_reachable else ["The Lease could not be read: this standby could not take over."]
    )
