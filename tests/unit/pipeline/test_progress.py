from __future__ import annotations

from ireko_trainer.pipeline.progress import ProgressMeter, StageCost

STAGES = (StageCost(name="teacher", cost=100), StageCost(name="widths", cost=300))


def meter(times: list[float]) -> ProgressMeter:
    return ProgressMeter(stages=STAGES, clock=lambda: times.pop(0))


def test_percent_counts_stages_by_their_cost() -> None:
    assert meter([0.0]).advance(stage="widths", step=50, total_steps=100).percent == 62


def test_the_first_report_knows_no_pace() -> None:
    assert meter([0.0]).advance(stage="teacher", step=1, total_steps=10).eta_seconds is None


def test_the_rest_takes_as_long_as_the_pace_of_this_attempt_says() -> None:
    progress = meter([0.0, 10.0])
    progress.advance(stage="teacher", step=0, total_steps=10)
    assert progress.advance(stage="teacher", step=10, total_steps=10).eta_seconds == 30


def test_a_stage_that_an_earlier_attempt_began_does_not_count_as_pace_up_to_there() -> None:
    progress = meter([0.0, 1.0, 11.0])
    progress.advance(stage="teacher", step=10, total_steps=10)
    assert progress.advance(stage="widths", step=50, total_steps=100).eta_seconds is None
    assert progress.advance(stage="widths", step=60, total_steps=100).eta_seconds == 44


def test_what_an_earlier_attempt_finished_does_not_count_as_pace() -> None:
    progress = meter([0.0, 10.0])
    progress.advance(stage="widths", step=0, total_steps=10)
    assert progress.advance(stage="widths", step=5, total_steps=10).eta_seconds == 10
