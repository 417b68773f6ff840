"""How a trainer is started, watched and stopped: one protocol, one module per place where trainers run."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol

from ireko_api.handoff import Failure, RunRequest


@dataclass(frozen=True, kw_only=True)
class Attempt:
    """One start of the trainer, as it looks now."""

    number: int
    alive: bool
    exit_code: int | None = None
    """None while it is alive and where a signal ended it."""
    signal: int | None = None
    """The signal that ended it."""
    stopping_since: datetime | None = None
    """When it was first asked to stop."""
    failure: Failure | None = None
    """What it recorded about why it ended, if it could."""
    log: str = ""
    """Where its output is."""
    log_tail: tuple[str, ...] = ()
    """The last lines of its output, once it has ended."""


class Launcher(Protocol):
    """Starts trainers and says how they are. No method blocks for longer than a system call or a request."""

    def start(self, request: RunRequest) -> None:
        """Start the attempt that `request` names; starting it twice starts one."""

    def observe(self, number: int) -> Attempt | None:
        """The attempt of that number, or None when it was never started."""

    def stop(self, number: int, *, force: bool) -> None:
        """Ask the attempt to save its state and end; with `force`, end it at once."""
