"""One flag that asks everybody who works on a run to save and stop.

It is a file in the storage of the run, since the workers of a cluster share nothing else with the driver. Three
things raise it: SIGTERM or SIGINT at the driver, and the end of the process that started the driver.

The file is there from the beginning and changes its content: a network file system may remember for a minute
that a file does not exist, but asks the server again when one is opened. A thread reads it, so that a storage that
is slow or away slows nobody down.
"""

from __future__ import annotations

import logging
import os
import signal
import threading
import time
from types import FrameType

from ireko_trainer.errors import UserError
from ireko_trainer.pipeline.storage import Storage

_PARENT_POLL_SECONDS = 1.0
_FILE, _RAISED, _CLEAR = "stop", b"stop\n", b""

log = logging.getLogger(__name__)


class StopFlag:
    """Raised once, seen by every process that shares the storage."""

    def __init__(self, *, storage: Storage) -> None:
        self._storage = storage
        self._raised = False
        self._watching = False

    def clear(self) -> None:
        """Forget the stop of an earlier attempt."""
        self._storage.write(_FILE, _CLEAR)
        self._raised = False

    def raise_(self) -> None:
        """Ask for a stop."""
        self._raised = True
        self._storage.write(_FILE, _RAISED)

    def is_raised(self) -> bool:
        """Whether a stop was asked for, up to now at the first call, and a moment ago at later ones."""
        if not self._raised and not self._watching:
            self._look()
            self._watching = True
            threading.Thread(target=self._watch, name="stop-watch", daemon=True).start()
        return self._raised

    def _watch(self) -> None:
        while not self._raised:
            time.sleep(self._storage.look_seconds)
            self._look()

    def _look(self) -> None:
        try:
            self._raised = self._raised or self._storage.read(_FILE) == _RAISED
        except (UserError, OSError) as error:
            # Whoever has to write will find out whether it passes.
            log.warning("whether to stop cannot be seen: %s", error)


def raise_on_signals(flag: StopFlag) -> None:
    """Let the first SIGTERM or SIGINT raise the flag and the second one end the process at once."""

    def handle(number: int, _frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        # The signal may have interrupted a request to the storage, which a second one from here would wait for.
        threading.Thread(target=flag.raise_, name="stop-raise", daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, handle)


def raise_when_orphaned(flag: StopFlag, *, parent: int) -> None:
    """Raise the flag once this process is no longer a child of `parent`."""

    def watch() -> None:
        while os.getppid() == parent:
            time.sleep(_PARENT_POLL_SECONDS)
        flag.raise_()

    threading.Thread(target=watch, name="parent-watch", daemon=True).start()
