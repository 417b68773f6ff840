"""The journal of metrics survives crashes and repeated steps."""

from __future__ import annotations

import math
from pathlib import Path
from tempfile import TemporaryDirectory

from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.tracking.journal import JOURNAL_FILE, MetricsJournal, curves, read_from, readings


def steps_of(directory: Path, name: str) -> list[int]:
    return [reading.step for reading in readings(directory) if reading.name == name]


def test_a_resumed_stage_writes_no_step_twice(tmp_path: Path) -> None:
    with MetricsJournal(tmp_path) as journal:
        for step in range(1, 8):
            journal.append(step=step, metrics={"loss": 1 / step})
    with MetricsJournal(tmp_path) as journal:
        for step in range(5, 11):
            journal.append(step=step, metrics={"loss": 1 / step})
    assert steps_of(tmp_path, "loss") == list(range(1, 11))


def test_a_metric_that_is_measured_seldom_has_its_own_last_step(tmp_path: Path) -> None:
    with MetricsJournal(tmp_path) as journal:
        journal.append(step=10, metrics={"loss": 1.0})
        journal.append(step=10, metrics={"accuracy": 0.5, "loss": 2.0})
    assert curves(tmp_path) == [(10, {"loss": 1.0, "accuracy": 0.5})]


def test_the_part_of_a_line_that_a_crash_left_is_cut_off(tmp_path: Path) -> None:
    with MetricsJournal(tmp_path) as journal:
        journal.append(step=1, metrics={"loss": 1.0})
    with (tmp_path / JOURNAL_FILE).open("a") as file:
        file.write('{"step": 2, "timest')
    with MetricsJournal(tmp_path) as journal:
        journal.append(step=2, metrics={"loss": 0.5})
    assert steps_of(tmp_path, "loss") == [1, 2]


def test_a_reader_waits_for_the_end_of_a_line(tmp_path: Path) -> None:
    with MetricsJournal(tmp_path) as journal:
        journal.append(step=1, metrics={"loss": 1.0})
    with (tmp_path / JOURNAL_FILE).open("a") as file:
        file.write('{"step":2,"timestamp":5,')
        file.flush()
        first, offset = read_from(tmp_path, offset=0)
        assert [reading.step for reading in first] == [1]
        file.write('"metrics":{"loss":0.5}}\n')
        file.flush()
        second, _ = read_from(tmp_path, offset=offset)
        assert [reading.step for reading in second] == [2]


def test_a_diverged_loss_is_kept_as_it_is(tmp_path: Path) -> None:
    with MetricsJournal(tmp_path) as journal:
        journal.append(step=1, metrics={"loss": math.inf})
        journal.append(step=2, metrics={"loss": math.nan})
    assert readings(tmp_path)[0].value == math.inf
    assert math.isnan(readings(tmp_path)[1].value)


@given(
    starts=st.lists(st.integers(1, 30), min_size=1, max_size=4),
    every=st.integers(1, 7),
    last=st.integers(30, 40),
)
def test_however_often_a_stage_resumes_each_curve_is_complete_and_ascending(
    starts: list[int], every: int, last: int
) -> None:
    """Each attempt repeats from some step that was reached before, and the last one comes to the end."""
    with TemporaryDirectory() as directory:
        reached = 0
        for number, start in enumerate(starts):
            begin, end = min(start, reached + 1), last if number == len(starts) - 1 else start + 5
            with MetricsJournal(Path(directory)) as journal:
                for step in range(begin, end + 1):
                    journal.append(step=step, metrics={"loss": float(step)})
                    if step % every == 0:
                        journal.append(step=step, metrics={"quality": float(step)})
            reached = max(reached, end)
        assert steps_of(Path(directory), "loss") == list(range(1, reached + 1))
        assert steps_of(Path(directory), "quality") == [s for s in range(1, reached + 1) if s % every == 0]
