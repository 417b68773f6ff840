from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from ireko_api.handoff import FAILURE_LINE, Failure, failure_in


@given(message=st.text(max_size=200), stage=st.text(max_size=20), resumable=st.booleans())
def test_a_failure_survives_as_one_line_of_ascii(message: str, stage: str, resumable: bool) -> None:
    failure = Failure(reason="Diverged", message=message, stage=stage, resumable=resumable)

    line = failure.to_line()

    assert line.isascii()
    assert len(line.splitlines()) == 1
    assert failure_in(f"training\n{line}") == failure


def test_the_last_failure_of_an_output_counts_whatever_stands_around_it() -> None:
    first, second = (Failure(reason="Internal", message=text) for text in ("first", "second"))
    output = f"{first.to_line()}\n{second.to_line()}\nwarning: leaked semaphore\n"

    assert failure_in(output) == second
    assert failure_in("Job failed with exit code 1") is None


def test_a_line_that_was_cut_tells_nothing() -> None:
    line = Failure(reason="Internal", message="a defect").to_line()

    assert failure_in(line[:-5]) is None
    assert failure_in(FAILURE_LINE) is None


def test_an_endless_message_is_cut_so_that_the_line_is_not() -> None:
    failure = Failure(reason="Internal", message="🪓" * 50_000)

    found = failure_in(failure.to_line())

    assert len(failure.to_line()) < 20_000
    assert found is not None
    assert found.message.startswith("🪓🪓")
    assert found.message.endswith("…")
