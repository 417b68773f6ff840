"""The estimate of memory against the resident memory that stages really take, each in a process of its own."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

PROBE = Path(__file__).parent / "memory_probe.py"
TOLERANCE = 1.35
"""Between the estimate and the peak, either way: small buffers and what libraries do for themselves are in no term."""
AS_WITH_LARGE_TENSORS = {"factor": {"MALLOC_MMAP_THRESHOLD_": "131072"}}
"""glibc gives memory back to the system at once only where it was asked for in one large piece, from 32 MiB at the
latest. The moments of this small case, which come and go, are treated as those of a large model are."""


@pytest.mark.parametrize("stage", ["quantize", "factor", "delta"])
def test_a_stage_takes_what_the_estimate_says(stage: str) -> None:
    if not Path("/proc/self/clear_refs").exists():
        pytest.skip("peaks of resident memory are read from Linux's /proc")
    done = subprocess.run(
        [sys.executable, str(PROBE), stage],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
        env={**os.environ, **AS_WITH_LARGE_TENSORS.get(stage, {})},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    found = json.loads(done.stdout.splitlines()[-1])
    estimated = sum(found["estimated"].values())
    assert found["measured"] / TOLERANCE < estimated < found["measured"] * TOLERANCE, found
