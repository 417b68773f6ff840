"""The words that conditions are written in: every type and every reason, with one sentence each.

Programs match on these, so a reason is never renamed and never means two things. The sentence says what the
reason tells a person; the message of a condition adds the particulars.
"""

from __future__ import annotations

from enum import StrEnum
from typing import Self


class _Word(StrEnum):
    """A member is its word; `sentence` says what the word tells a person."""

    sentence: str

    def __new__(cls, word: str, sentence: str = "") -> Self:
        """Make the member for `word`, which alone is its value and finds it again: `Reason("Waiting")`."""
        member = str.__new__(cls, word)
        member._value_ = word
        member.sentence = sentence
        return member


class ConditionType(_Word):
    """The aspects of a run's state, in the order in which they come true."""

    VALID = "Valid", "The manifest can be executed as it stands."
    TRAINED = "Trained", "The trainer finished and handed over a family."
    REGISTERED = (
        "Registered",
        "Every member is a version of the registered model, under its device target's alias.",
    )
    SUCCEEDED = (
        "Succeeded",
        "The run is over: True with everything done, False when it cannot go on by itself.",
    )


class Reason(_Word):
    """Why a condition has the status that it has."""

    ACCEPTED = "Accepted", "Valid: every check on the manifest passed."

    WAITING = "Waiting", "Trained, Registered, Succeeded: an earlier step is not done yet."
    TRAINING = "Training", "Trained: an attempt of the trainer is running."
    FAMILY_COMPLETE = "FamilyComplete", "Trained: the trainer handed over one member for each device target."
    INVALID_INPUT = (
        "InvalidInput",
        "Trained: the teacher or the data is not what the manifest says; mend it and run again.",
    )
    NOTHING_FITS = (
        "NothingFits",
        "Trained: no member meets the constraints of some device target; loosen them or train longer.",
    )
    DIVERGED = "Diverged", "Trained: the loss stopped being a number; lower the learning rate."
    TRACKING_UNREACHABLE = (
        "TrackingUnreachable",
        "Trained, Registered: the MLflow server did not answer; the run goes on where it stood once it does.",
    )
    STORAGE_FULL = "StorageFull", "Trained: there was no room for checkpoints or outputs."
    WORKER_LOST = "WorkerLost", "Trained: training workers died more often than the run allows."
    INTERRUPTED = (
        "Interrupted",
        "Trained: the trainer was asked to stop; the next attempt goes on where it stood.",
    )
    INTERNAL = "Internal", "Trained: the trainer met an error it has no name for; its log has the details."
    TRAINER_DIED = (
        "TrainerDied",
        "Trained: the trainer ended without a word, as when it is killed or runs out of memory.",
    )

    REGISTERING = "Registering", "Registered: versions and aliases are being written."
    ALL_REGISTERED = "AllRegistered", "Registered: every member has its version and its alias."
    REGISTRATION_FAILED = "RegistrationFailed", "Registered: the MLflow server refused a version or an alias."

    IN_PROGRESS = "InProgress", "Succeeded: the run is under way."
    COMPLETE = "Complete", "Succeeded: the family is trained, registered and reported."
    FAILED = "Failed", "Succeeded: a step failed; the condition of that step says why."
