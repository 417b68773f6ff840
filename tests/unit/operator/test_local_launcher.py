"""The trainer as a process: started, seen, asked to stop, killed. Real processes, no trainer."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from ireko_api.handoff import Failure, RunRequest
from ireko_api.spec import CompressionRun
from ireko_operator.errors import OperatorError
from ireko_operator.launch import Attempt
from ireko_operator.launch.local import LocalLauncher
from ireko_operator.workdir import Workdir

PATIENCE = 30.0

ENDS_WHEN_ASKED = """
import signal, sys, time
signal.signal(signal.SIGTERM, lambda *_: sys.exit(3))
print("ready", flush=True)
time.sleep(60)
"""
DEAF = """
import signal, subprocess, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "60"])
print("child", child.pid, flush=True)
time.sleep(60)
"""

Launch = Callable[[str], LocalLauncher]


@pytest.fixture
def request_of(run: CompressionRun, tmp_path: Path) -> Callable[[int], RunRequest]:
    return lambda number: RunRequest(
        name="demo",
        uid="u-1",
        spec_digest=run.spec.digest(),
        spec=run.spec,
        base_dir=str(tmp_path),
        storage=str(tmp_path / "storage" / "u-1"),
        tracking_uri="sqlite:///none.db",
        attempt=number,
    )


@pytest.fixture
def launch(tmp_path: Path, request_of: Callable[[int], RunRequest]) -> Iterator[Launch]:
    started: list[LocalLauncher] = []

    def start(script: str) -> LocalLauncher:
        launcher = LocalLauncher(
            directory=Workdir.at(tmp_path).run("demo"),
            command=[sys.executable, "-c", script],
            environment=dict(os.environ),
        )
        started.append(launcher)
        launcher.start(request_of(1))
        return launcher

    yield start
    for launcher in started:
        launcher.stop(1, force=True)


def until_ended(launcher: LocalLauncher) -> Attempt:
    return until(launcher, lambda attempt: not attempt.alive)


def until(launcher: LocalLauncher, holds: Callable[[Attempt], bool]) -> Attempt:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        attempt = launcher.observe(1)
        assert attempt is not None
        if holds(attempt):
            return attempt
        time.sleep(0.02)
    pytest.fail(f"not within {PATIENCE} s: {attempt}")


def wait_for_output(launcher: LocalLauncher, word: str) -> str:
    attempt = until(launcher, lambda attempt: word in Path(attempt.log).read_text())
    return Path(attempt.log).read_text()


def test_the_trainer_gets_the_request_and_the_pid_of_its_parent(
    launch: Launch, request_of: Callable[[int], RunRequest]
) -> None:
    launcher = launch("import os, sys; print(os.environ['IREKO_PARENT_PID'], open(sys.argv[1]).read())")

    attempt = until_ended(launcher)

    pid, _, request = attempt.log_tail[-1].partition(" ")
    assert int(pid) == os.getpid()
    assert RunRequest.model_validate_json(request) == request_of(1)


@pytest.mark.parametrize(
    ("script", "exit_code", "number"),
    [("", 0, None), ("raise SystemExit(3)", 3, None), ("import os; os.kill(os.getpid(), 9)", None, 9)],
)
def test_the_end_is_an_exit_code_or_a_signal(
    launch: Launch, script: str, exit_code: int | None, number: int | None
) -> None:
    attempt = until_ended(launch(script))

    assert (attempt.exit_code, attempt.signal) == (exit_code, number)


def test_a_trainer_is_asked_once_and_may_save_its_state(launch: Launch) -> None:
    launcher = launch(ENDS_WHEN_ASKED)
    wait_for_output(launcher, "ready")

    launcher.stop(1, force=False)
    launcher.stop(1, force=False)

    attempt = until_ended(launcher)
    assert attempt.exit_code == 3
    assert attempt.stopping_since is not None


def test_force_ends_the_trainer_and_what_it_started(launch: Launch) -> None:
    launcher = launch(DEAF)
    child = int(wait_for_output(launcher, "child ").split("child ")[1].split()[0])
    launcher.stop(1, force=False)
    time.sleep(0.2)
    seen = launcher.observe(1)
    assert seen is not None
    assert seen.alive

    launcher.stop(1, force=True)

    assert until_ended(launcher).signal == signal.SIGKILL
    assert ends(child)


def test_what_a_killed_trainer_started_is_ended(launch: Launch) -> None:
    launcher = launch(
        "import subprocess, os; p = subprocess.Popen(['sleep', '60']); print('child', p.pid, flush=True);"
        "os.kill(os.getpid(), 9)"
    )
    child = int(wait_for_output(launcher, "child ").split("child ")[1].split()[0])

    assert until_ended(launcher).signal == signal.SIGKILL
    assert ends(child)


def ends(pid: int) -> bool:
    deadline = time.monotonic() + PATIENCE
    while time.monotonic() < deadline:
        try:
            state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
        except FileNotFoundError:
            return True
        if state == "Z":
            return True
        time.sleep(0.02)
    return False


def test_ctrl_c_in_the_terminal_does_not_reach_the_trainer(launch: Launch) -> None:
    launcher = launch("import os; print('session', os.getsid(0) == os.getpid(), flush=True)")

    assert until_ended(launcher).log_tail == ("session True",)


def test_the_failure_of_an_earlier_attempt_is_forgotten(launch: Launch, tmp_path: Path) -> None:
    storage = tmp_path / "storage" / "u-1"
    storage.mkdir(parents=True)
    (storage / "failure.json").write_text(Failure(reason="Diverged", message="old").to_json())

    assert until_ended(launch("raise SystemExit(1)")).failure is None


def test_the_failure_of_this_attempt_is_read(launch: Launch, tmp_path: Path) -> None:
    failure = Failure(reason="Diverged", message="The loss became NaN.")
    path = tmp_path / "storage" / "u-1" / "failure.json"

    launcher = launch(f"open({str(path)!r}, 'w').write({failure.to_json()!r}); raise SystemExit(1)")

    assert until_ended(launcher).failure == failure


def test_the_tail_is_of_the_latest_attempt(launch: Launch, tmp_path: Path) -> None:
    log = Workdir.at(tmp_path).run("demo").log
    log.parent.mkdir(parents=True)
    log.write_text("--- attempt 0, before ---\nold output\n")

    attempt = until_ended(launch("print('new output')"))

    assert attempt.log_tail == ("new output",)
    assert "old output" in log.read_text()


def test_an_attempt_is_started_once(launch: Launch, request_of: Callable[[int], RunRequest]) -> None:
    launcher = launch("print('started')")
    launcher.start(request_of(1))

    assert until_ended(launcher).log_tail == ("started",)
    assert launcher.observe(2) is None


def test_a_trainer_that_is_not_installed_is_a_sentence(
    tmp_path: Path, request_of: Callable[[int], RunRequest]
) -> None:
    launcher = LocalLauncher(
        directory=Workdir.at(tmp_path).run("demo"), command=["/nowhere/python"], environment=dict(os.environ)
    )

    with pytest.raises(OperatorError, match="/nowhere/python does not exist"):
        launcher.start(request_of(1))
