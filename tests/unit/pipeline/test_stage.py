from __future__ import annotations

from pathlib import Path

import pytest

from ireko_trainer.distributed import World
from ireko_trainer.errors import InterruptedRunError
from ireko_trainer.pipeline.files import Json
from ireko_trainer.pipeline.progress import ProgressMeter, StageCost
from ireko_trainer.pipeline.stage import StageAtWork, StageRunner
from ireko_trainer.pipeline.stop import StopFlag
from ireko_trainer.pipeline.storage import SharedDirectory
from ireko_trainer.pipeline.store import StageStore


def runner(storage: Path) -> StageRunner:
    """A worker that is not the first: it computes, and leaves writing and MLflow to another."""
    return StageRunner(
        store=StageStore(storage=SharedDirectory(storage)),
        world=World(),
        stop=StopFlag(storage=SharedDirectory(storage)),
        meter=ProgressMeter(stages=(StageCost(name="widths", cost=1),)),
        family=None,
    )


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    store = StageStore(storage=SharedDirectory(tmp_path))
    store.finish(store.begin(name="widths", key="k"), record={"sha256": "abc"})

    def body(_stage: StageAtWork) -> Json:
        raise AssertionError("done again")

    assert runner(tmp_path).run(name="widths", key="k", body=body).record == {"sha256": "abc"}


def test_a_worker_that_is_not_the_first_writes_nothing(tmp_path: Path) -> None:
    seen: list[bool] = []

    def body(stage: StageAtWork) -> Json:
        seen.append(stage.writes)
        return {}

    with pytest.raises(AssertionError, match="not in the store"):
        runner(tmp_path).run(name="widths", key="k", body=body)
    assert seen == [False]


def test_a_stop_is_seen_by_whoever_shares_the_storage(tmp_path: Path) -> None:
    StopFlag(storage=SharedDirectory(tmp_path)).raise_()

    def body(stage: StageAtWork) -> Json:
        stage.check_stop(3, 10)
        return {}

    with pytest.raises(InterruptedRunError, match="stopped in stage widths after 3 of 10"):
        runner(tmp_path).run(name="widths", key="k", body=body)


def test_the_stop_of_an_earlier_attempt_is_forgotten(tmp_path: Path) -> None:
    flag = StopFlag(storage=SharedDirectory(tmp_path))
    flag.raise_()
    flag.clear()
    assert not StopFlag(storage=SharedDirectory(tmp_path)).is_raised()
    assert not flag.is_raised()
