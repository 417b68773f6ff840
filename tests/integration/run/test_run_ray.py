"""Training in a Ray worker is training in the trainer's own process, also when the worker is killed."""

from __future__ import annotations

import os
import signal
from pathlib import Path

from tiny import MakeCase, Undisturbed, finish, processes, specification, wait_until


def test_a_killed_worker_is_started_again_and_changes_no_byte(
    make_case: MakeCase, undisturbed: Undisturbed
) -> None:
    case = make_case()
    spec = specification()
    spec["compute"] = {"workers": 1, "resourcesPerWorker": {"cpu": "1"}, "maxWorkerFailures": 1}
    case.write_manifest(spec)

    with case.running() as process:
        assert wait_until(lambda: (case.steps_in("widths") or 0) >= 5, process=process), case.log_tail()
        trainer = case.trainer_pid()
        assert trainer is not None
        (worker,) = workers_of(trainer)
        os.kill(worker, signal.SIGKILL)
        ran = finish(process)

    assert ran.exit_status == 0, ran.stderr + case.log_tail()
    assert case.registry() == undisturbed.registry
    assert case.log.read_text().count("--- attempt") == 1, (
        "Ray restarted the worker, not the command the trainer"
    )
    assert not workers_of(trainer)
    assert not [pid for pid, _ in processes() if trainer in ancestors(pid)], "nothing of Ray is left"


def workers_of(trainer: int) -> list[int]:
    """The training workers that descend from a trainer."""
    return [
        pid
        for pid, words in processes()
        if words[0].startswith("ray::") and "TrainWorker" in words[0] and trainer in ancestors(pid)
    ]


def ancestors(pid: int) -> set[int]:
    """The processes that a process descends from."""
    found: set[int] = set()
    while pid > 1:
        try:
            # The name, in brackets, may hold spaces; the parent is the second field after it.
            pid = int((Path("/proc") / str(pid) / "stat").read_text().rpartition(")")[2].split()[1])
        except OSError:
            break
        found.add(pid)
    return found
