"""Performs what was decided. Every action may be repeated: doing it twice is doing it once."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager

from ireko_api.handoff import RunRequest
from ireko_operator import registry, tracking
from ireko_operator.reconcile.observe import Subject
from ireko_operator.reconcile.state import Action, RegisterMembers, StartAttempt, StopAttempt


def act(
    action: Action,
    *,
    subject: Subject,
    request: Callable[[int], RunRequest],
    registering: AbstractContextManager[object],
) -> None:
    """Perform one action.

    `request` makes what an attempt is started with; `registering` is held while members are registered.
    """
    match action:
        case StartAttempt(number=number):
            subject.launcher.start(request(number))
        case StopAttempt(number=number, force=force):
            subject.launcher.stop(number, force=force)
        case RegisterMembers(family=family):
            with registering, tracking.answered(subject.tracking_uri):
                registry.register(subject.connect(), family=family, model=subject.model)
