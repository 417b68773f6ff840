"""What the reconcile tells about itself to whoever counts: a protocol, so that deciding needs no metrics library.

Every label that a method takes is one of the few words listed here; names of runs never become labels.
"""

from __future__ import annotations

from typing import Literal, Protocol

AttemptOutcome = Literal["Started", "Succeeded", "Failed", "Interrupted"]
RunOutcome = Literal["Succeeded", "Failed", "Deleted"]
RegistrationResult = Literal["done", "failed", "refused"]
"""failed: MLflow did not answer and it will be tried again; refused: it said no."""
TrackingResult = Literal["ok", "unreachable", "refused"]
WriteVerb = Literal["create", "apply", "patch", "delete"]
WrittenResource = Literal["compressionruns", "compressionruns/status", "rayjobs", "configmaps", "events"]

ATTEMPT_OUTCOMES: tuple[AttemptOutcome, ...] = ("Started", "Succeeded", "Failed", "Interrupted")
RUN_OUTCOMES: tuple[RunOutcome, ...] = ("Succeeded", "Failed", "Deleted")
REGISTRATION_RESULTS: tuple[RegistrationResult, ...] = ("done", "failed", "refused")
TRACKING_RESULTS: tuple[TrackingResult, ...] = ("ok", "unreachable", "refused")
API_WRITES: tuple[tuple[WrittenResource, WriteVerb], ...] = (
    ("compressionruns", "apply"),
    ("compressionruns", "patch"),
    ("compressionruns", "delete"),
    ("compressionruns/status", "apply"),
    ("rayjobs", "create"),
    ("rayjobs", "patch"),
    ("rayjobs", "delete"),
    ("configmaps", "create"),
    ("configmaps", "delete"),
    ("events", "create"),
)
"""Every kind of write that the operator makes."""


class Telemetry(Protocol):
    """Told of what happened, from any thread; must not block."""

    def api_write(self, resource: str, verb: str) -> None:
        """A write was sent to the API server, whatever came back."""

    def attempt(self, outcome: AttemptOutcome) -> None:
        """An attempt was started or was seen to have ended."""

    def registration(self, result: RegistrationResult, seconds: float) -> None:
        """A registration of a family ended."""

    def run_finished(self, outcome: RunOutcome, seconds: float) -> None:
        """A run came to its end, that long after it was created."""

    def tracking(self, result: TrackingResult) -> None:
        """MLflow was asked something."""


class NoTelemetry:
    """Nobody counts."""

    def api_write(self, resource: str, verb: str) -> None:
        """Not counted."""

    def attempt(self, outcome: AttemptOutcome) -> None:
        """Not counted."""

    def registration(self, result: RegistrationResult, seconds: float) -> None:
        """Not counted."""

    def run_finished(self, outcome: RunOutcome, seconds: float) -> None:
        """Not counted."""

    def tracking(self, result: TrackingResult) -> None:
        """Not counted."""
