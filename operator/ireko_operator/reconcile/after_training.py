"""The last step of a run, the same everywhere: a family that MLflow holds becomes registered models."""

from __future__ import annotations

from ireko_api.handoff import Family
from ireko_api.reasons import ConditionType, Reason
from ireko_operator.reconcile.state import Observed, Outage, RegisterMembers
from ireko_operator.reconcile.verdict import Verdict


def is_registered(observed: Observed, family: Family) -> bool:
    """Whether every member is a version under its target's alias."""
    return len(observed.registrations) == len(family.members)


def complete(family: Family) -> Verdict:
    """Everything is done."""
    message = (
        f"The family has {len(family.members)} members; every one is registered under its target's name."
    )
    return Verdict(
        phase="Succeeded",
        reason=Reason.ALL_REGISTERED,
        message=message,
        about=ConditionType.REGISTERED,
        summary=Reason.COMPLETE,
        done=True,
    )


def registering(family: Family, *, outage: Outage | None) -> Verdict:
    """The members are being registered, or it is being tried again."""
    message = "The trainer has finished; its models are being registered."
    return Verdict(
        phase="Running",
        reason=Reason.REGISTERING,
        message=f"{message} Trying again: {outage.message}" if outage is not None else message,
        about=ConditionType.REGISTERED,
        actions=(RegisterMembers(family=family),),
    )


def unregistered(outage: Outage) -> Reason:
    """Why the members are not registered yet."""
    if outage.damaged:
        return Reason.BUNDLE_DAMAGED
    return Reason.REGISTRATION_FAILED if outage.refused else Reason.TRACKING_UNREACHABLE


def unreachable(outage: Outage, *, registering: bool = False) -> Verdict:
    """Nobody waits for MLflow any longer."""
    reason = unregistered(outage) if registering else Reason.TRACKING_UNREACHABLE
    return Verdict(phase="Failed", reason=reason, message=outage.message, done=True)
