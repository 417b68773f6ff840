"""One flag that asks everybody who works on a run to save and stop.

It is a file in the storage of the run, since the workers of a cluster share nothing else with the driver. Three
things raise it: SIGTERM or SIGINT at the driver, and the end of the process that started the driver.
"""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path
from types import FrameType

_PARENT_POLL_SECONDS = 1.0


class StopFlag:
    """Raised once, seen by every process that shares the storage."""

    def __init__(self, *, storage: Path) -> None:
        self._path = storage / "stop"
        self._seen_at = 0.0
        self._raised = False

    def clear(self) -> None:
        """Forget the stop of an earlier attempt."""
        self._path.unlink(missing_ok=True)
        self._raised = False

    def raise_(self) -> None:
        """Ask for a stop."""
        self._path.touch()
        self._raised = True

    def is_raised(self) -> bool:
        """Whether a stop was asked for; looks at the file at most five times a second."""
        now = time.monotonic()
        if not self._raised and now - self._seen_at > 0.2:
            self._seen_at = now
            self._raised = self._path.exists()
        return self._raised


def raise_on_signals(flag: StopFlag) -> None:
    """Let the first SIGTERM or SIGINT raise the flag and the second one end the process at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        flag.raise_()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def raise_when_orphaned(flag: StopFlag, *, parent: int) -> None:
    """Raise the flag once this process is no longer a child of `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        flag.raise_()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
