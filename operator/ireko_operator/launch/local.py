"""The trainer as a process of this machine, in a session of its own.

A session of its own keeps Ctrl-C away from the trainer: `ireko run` receives it and asks the trainer to
save its state. The price is that nobody tells the trainer when `ireko run` is killed, hence
`IREKO_PARENT_PID`, which the trainer watches.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

from ireko_api.handoff import RunRequest
from ireko_operator.errors import OperatorError, writing_to
from ireko_operator.launch import Attempt
from ireko_operator.workdir import RunDirectory, write_atomically

PARENT_PID_VARIABLE = "IREKO_PARENT_PID"
TAIL_LINES = 20
_TAIL_BYTES = 16_384


def _now() -> datetime:
    return datetime.now(UTC)


class LocalLauncher:
    """Runs `command` + the path of the request, one attempt at a time.

    `inherited` are descriptors that the trainer keeps open: the lock of the run.
    """

    def __init__(
        self,
        *,
        directory: RunDirectory,
        command: Sequence[str],
        environment: Mapping[str, str],
        inherited: Sequence[int] = (),
        clock: Callable[[], datetime] = _now,
    ) -> None:
        self._directory = directory
        self._command = tuple(command)
        self._environment = dict(environment)
        self._inherited = tuple(inherited)
        self._clock = clock
        self._process: subprocess.Popen[bytes] | None = None
        self._request: RunRequest | None = None
        self._stopping_since: datetime | None = None
        self._swept = False

    def start(self, request: RunRequest) -> None:
        """Start the attempt; its output is appended to the log below a line that names the attempt."""
        if self._request is not None and self._request.attempt == request.attempt:
            return
        self._directory.forget_failure(request.uid)
        with writing_to(Path(request.storage)):
            Path(request.storage).mkdir(parents=True, exist_ok=True)
        write_atomically(self._directory.request, request.to_json())
        with writing_to(self._directory.log), self._directory.log.open("ab") as log:
            log.write(f"--- attempt {request.attempt}, {self._clock():%Y-%m-%d %H:%M:%S} UTC ---\n".encode())
            log.flush()
            try:
                self._process = subprocess.Popen(
                    [*self._command, str(self._directory.request)],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=subprocess.STDOUT,
                    env={**self._environment, PARENT_PID_VARIABLE: str(os.getpid())},
                    pass_fds=self._inherited,
                    start_new_session=True,
                )
            except FileNotFoundError as error:
                raise OperatorError(
                    f"The trainer cannot be started: {self._command[0]} does not exist."
                ) from error
        self._request = request
        self._stopping_since = None
        self._swept = False

    def observe(self, number: int) -> Attempt | None:
        """The attempt, when this launcher started it."""
        if self._process is None or self._request is None or self._request.attempt != number:
            return None
        code = self._process.poll()
        log = str(self._directory.log)
        if code is None:
            return Attempt(number=number, alive=True, stopping_since=self._stopping_since, log=log)
        if not self._swept:
            self._swept = True
            self._signal_group(signal.SIGKILL)  # workers that a killed trainer left behind
        return Attempt(
            number=number,
            alive=False,
            exit_code=code if code >= 0 else None,
            signal=-code if code < 0 else None,
            stopping_since=self._stopping_since,
            failure=self._directory.read_failure(self._request.uid),
            log=log,
            log_tail=_tail(self._directory.log),
        )

    def stop(self, number: int, *, force: bool) -> None:
        """SIGTERM to the trainer, once; with `force`, SIGKILL to its whole session."""
        if self._process is None or self._request is None or self._request.attempt != number:
            return
        if self._process.poll() is not None:
            return
        if force:
            self._signal_group(signal.SIGKILL)
        elif self._stopping_since is None:
            self._process.terminate()
        self._stopping_since = self._stopping_since or self._clock()

    def _signal_group(self, number: int) -> None:
        if self._process is not None:
            with contextlib.suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, number)


def _tail(path: Path) -> tuple[str, ...]:
    """The last lines of the latest attempt in a log."""
    with path.open("rb") as file:
        file.seek(0, os.SEEK_END)
        file.seek(max(0, file.tell() - _TAIL_BYTES))
        lines = file.read().decode("utf-8", errors="replace").splitlines()
    starts = [index for index, line in enumerate(lines) if line.startswith("--- attempt ")]
    return tuple(lines[starts[-1] + 1 if starts else 0 :][-TAIL_LINES:])
