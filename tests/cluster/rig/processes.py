"""Child processes that never outlive their purpose: each writes a log of its own and ends when told or orphaned."""

from __future__ import annotations

import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from rig.errors import RigError

_SECONDS_BETWEEN_LOOKS = 0.05


class Process:
    """One program of the rig, in a process group of its own, with its output in one log file."""

    def __init__(
        self,
        *,
        name: str,
        command: Sequence[str | Path],
        log: Path,
        environment: Mapping[str, str] | None = None,
        prefix: Sequence[str] = (),
    ) -> None:
        """Start `command`, behind `prefix` (e.g. nsenter and its arguments).

        On Linux the kernel kills it when this process dies, whatever of.
        """
        self.name = name
        self.log = log
        log.parent.mkdir(parents=True, exist_ok=True)
        bound = ["setpriv", "--pdeathsig", "KILL", "--"] if shutil.which("setpriv") else []
        with log.open("ab") as output:
            self._popen = subprocess.Popen(
                [*bound, *prefix, *map(str, command)],
                stdin=subprocess.DEVNULL,
                stdout=output,
                stderr=subprocess.STDOUT,
                env={**os.environ, **(environment or {})},
                start_new_session=True,
            )

    @property
    def pid(self) -> int:
        """The process id (the program's own: prefixes replace themselves by it)."""
        return self._popen.pid

    @property
    def running(self) -> bool:
        """Whether it has not ended."""
        return self._popen.poll() is None

    def send(self, number: signal.Signals) -> None:
        """Send a signal to the program alone; nothing happens when it has ended."""
        self._popen.send_signal(number)

    def stop(self, *, grace: float = 10) -> None:
        """End it: SIGTERM, and after `grace` seconds SIGKILL to its whole group. Returns when it is gone."""
        if self.running:
            self._popen.terminate()
            try:
                self._popen.wait(grace)
            except subprocess.TimeoutExpired:
                self.kill()
        self._popen.wait()

    def kill(self) -> None:
        """End it and its group at once by SIGKILL."""
        if self.running:
            os.killpg(self._popen.pid, signal.SIGKILL)
        self._popen.wait()

    def tail(self, lines: int = 15) -> str:
        """The last lines of its log."""
        return "\n".join(self.log.read_text(encoding="utf-8", errors="replace").splitlines()[-lines:])


def wait_until(
    holds: Callable[[], bool],
    *,
    what: str,
    timeout: float,
    watched: Sequence[Process] = (),
    every: float = _SECONDS_BETWEEN_LOOKS,
) -> None:
    """Look until `holds()`; raises RigError when it does not in time, or when one of `watched` ends before."""
    deadline = time.monotonic() + timeout
    while not holds():
        for process in watched:
            if not process.running:
                raise RigError(
                    f"{process.name} ended while waiting for {what}; {process.log} ends:\n{process.tail()}"
                )
        if time.monotonic() > deadline:
            tails = "".join(f"\n--- {process.log}:\n{process.tail()}" for process in watched)
            raise RigError(f"waited {timeout:.0f} s for {what}{tails}")
        time.sleep(every)


def free_port(address: str = "127.0.0.1") -> int:
    """A TCP port that nothing listens on at this moment."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        port: int = probe.getsockname()[1]
        return port
