"""What people see of a run under way and of a finished family."""

from __future__ import annotations

import io
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from rich.console import Console

from ireko_api.handoff import Progress
from ireko_operator.render import BarView, LineView, Row, duration, family_table, view_for


def progress(percent: int, stage: str = "widths", **changes: Any) -> Progress:
    soon = datetime.now(UTC) + timedelta(seconds=1)
    fields = {"stage_index": 1, "stage_count": 4, "step": percent, "total_steps": 100, "updated_at": soon}
    return Progress(stage=stage, percent=percent, **{**fields, **changes})


@pytest.fixture
def console() -> Console:
    return Console(file=io.StringIO(), width=200, markup=False, highlight=False)


def text_of(console: Console) -> str:
    file = console.file
    assert isinstance(file, io.StringIO)
    return file.getvalue()


def test_a_log_gets_a_line_per_stage_and_per_tenth(console: Console) -> None:
    with LineView(console) as view:
        for percent in range(31):
            view.progress(progress(percent, stage="teacher" if percent < 15 else "widths"))

    shown = [(line.split()[0], line.split()[2]) for line in text_of(console).splitlines()]
    assert shown == [
        ("0", "teacher"),
        ("10", "teacher"),
        ("15", "widths"),
        ("20", "widths"),
        ("30", "widths"),
    ]


def test_a_line_says_stage_step_and_time_left(console: Console) -> None:
    with LineView(console) as view:
        view.progress(progress(40, eta_seconds=600, message="loss 0.41"))

    assert text_of(console) == " 40 %  widths (2/4), step 40/100, about 10 min left, loss 0.41\n"


@pytest.mark.parametrize("make", [LineView, BarView])
def test_what_an_earlier_attempt_reported_is_not_shown(
    make: Callable[[Console], LineView | BarView], console: Console
) -> None:
    with make(console) as view:
        view.progress(progress(70, stage="stale", updated_at=datetime(2026, 1, 1, tzinfo=UTC)))

    assert "stale" not in text_of(console)


def test_a_terminal_gets_a_bar_and_brackets_survive() -> None:
    console = Console(file=io.StringIO(), width=200, force_terminal=True, markup=False, highlight=False)
    view = view_for(console)

    with view:
        view.progress(progress(40, stage="[widths]"))
        view.say("spec.data.train[0] is wrong")

    assert isinstance(view, BarView)
    assert "[widths] (2/4), step 40/100" in text_of(console)
    assert "spec.data.train[0] is wrong" in text_of(console)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (59, "59 s"), (60, "1 min"), (3540, "59 min"), (7500, "2 h 5 min")]
)
def test_durations_read_as_people_say_them(seconds: int, text: str) -> None:
    assert duration(seconds) == text


def test_a_member_without_a_number_for_the_metric_is_still_listed(console: Console) -> None:
    row = Row(
        target="gateway",
        version="3",
        model_uri="models:/demo@gateway",
        size_bytes=2 * 1024 * 1024,
        parameters=1234567,
        average_bits=4.256,
        metric="f1",
        quality=None,
        teacher_quality=0.9,
    )

    console.print(family_table([row], name="demo", teacher_size_bytes=8 * 1024 * 1024))

    cells = [cell.strip() for cell in text_of(console).splitlines()[4].split("│")[1:-1]]
    assert cells == [
        "gateway",
        "2.00 MiB",
        "25.0%",
        "1,234,567",
        "4.26",
        "–",
        "–",
        "3",
        "models:/demo@gateway",
    ]
