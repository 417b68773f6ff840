"""What one step of the plan concludes: where the run stands, in a word for programs and a sentence for people."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from ireko_api.reasons import ConditionType, Reason
from ireko_api.status import Phase
from ireko_operator.reconcile.attempt_ends import Ending
from ireko_operator.reconcile.state import Action

Truth = Literal["True", "False", "Unknown"]


@dataclass(frozen=True, kw_only=True)
class Verdict:
    """Where the run stands and what to do about it."""

    phase: Phase
    reason: Reason
    message: str
    about: ConditionType = ConditionType.TRAINED
    """The condition that `reason` and `message` belong to. That the training is over is seen from the family:
    then `TRAINED` means `REGISTERED`."""
    truth: Truth | None = None
    """The status of that condition; None: as the phase says."""
    summary: Reason | None = None
    """The reason of `Succeeded`; None: as the phase says."""
    ending: Ending | None = None
    """How an attempt ended, where that is known since now."""
    actions: tuple[Action, ...] = ()
    done: bool = False
    requeue_after: float | None = None
