"""`python -m ireko_trainer.stop REQUEST.json`: let the trainer of this machine save and stop, and wait until it has.

This is for the hook that runs before a pod is stopped. KubeRay deletes the pods of a suspended job without telling
the job, and a pod that is stopped kills what runs in it, so nothing else would reach the trainer in time.
"""

from __future__ import annotations

import sys
import time

import psutil

_POLL_SECONDS = 0.2


def main() -> int:
    """Ask every trainer of the request to stop; whoever calls this bounds the wait."""
    if len(sys.argv) != 2:
        print("usage: python -m ireko_trainer.stop REQUEST.json", file=sys.stderr)
        return 2
    found = trainers(sys.argv[1])
    for process in found:
        process.terminate()
    while any(is_at_work(process) for process in found):
        time.sleep(_POLL_SECONDS)
    return 0


def trainers(request_file: str) -> list[psutil.Process]:
    """The processes that execute a request."""
    return [
        process
        for process in psutil.process_iter(["cmdline"])
        if (words := process.info["cmdline"] or []) and "ireko_trainer" in words and request_file in words
    ]


def is_at_work(process: psutil.Process) -> bool:
    """Whether a process has not ended; nobody need have asked how it ended."""
    try:
        return bool(process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


if __name__ == "__main__":
    sys.exit(main())
