"""Ray that does not come up in time: an overloaded machine is stood in for, everything else is not."""

from __future__ import annotations

import pytest
import ray

from ireko_trainer.distributed.cluster import RayStartError, ray_cluster

TIMED_OUT = (
    "The current node timed out during startup. This could happen because the GCS has become overloaded."
)


@pytest.fixture
def starts(monkeypatch: pytest.MonkeyPatch) -> list[Exception | None]:
    """How Ray's next starts end, in order; each start takes one."""
    outcomes: list[Exception | None] = []

    def init(**_: object) -> None:
        outcome = outcomes.pop(0)
        if outcome is not None:
            raise outcome

    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    monkeypatch.setattr(ray, "init", init)
    return outcomes


def test_ray_that_is_late_once_is_started_again(starts: list[Exception | None]) -> None:
    starts += [Exception(TIMED_OUT), None]
    with ray_cluster(cpus=1, gpus=0):
        assert starts == []


def test_ray_that_is_always_late_is_said_to_be_so_with_what_to_do(starts: list[Exception | None]) -> None:
    starts += [Exception(TIMED_OUT)] * 3
    with (
        pytest.raises(RayStartError, match=r"too busy.*spec\.compute\.workers to 0"),
        ray_cluster(cpus=1, gpus=0),
    ):
        pass
    assert starts == []


def test_any_other_failure_of_ray_is_not_taken_for_a_late_start(starts: list[Exception | None]) -> None:
    starts += [Exception("no such address")]
    with pytest.raises(Exception, match="no such address"), ray_cluster(cpus=1, gpus=0):
        pass
