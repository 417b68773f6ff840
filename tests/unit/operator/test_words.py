from __future__ import annotations

import pytest

from ireko_api.handoff import Failure
from ireko_operator.launch.words import LOG_LINES, job_failure, job_message, plain, sentence

LOGS = "Job entrypoint command failed with exit code 1, last available logs (truncated to 20,000 chars):\n"


@pytest.mark.parametrize(
    ("written", "shown"),
    [
        ("\x1b[31mred\x1b[0m", "red"),
        ("\x1b]8;;https://x\x1b\\link\x1b]8;;\x1b\\", "link"),
        ("\x1b[2K\x1b[1Gdone", "done"),
        (" 1%|   |\r 50%|#  |\r100%|###|\nnext", "100%|###|\nnext"),
        ("one\r\ntwo", "one\ntwo"),
        ("a\x00b\x07c", "abc"),
        ("tab\tstays", "tab\tstays"),
    ],
)
def test_colours_and_control_characters_are_taken_out(written: str, shown: str) -> None:
    assert plain(written) == shown


def test_a_sentence_is_one_line_of_bounded_length() -> None:
    assert sentence("two\nlines  and spaces") == "two lines and spaces"
    assert sentence("x" * 50, limit=10) == "x" * 9 + "…"


def test_of_a_log_only_the_end_is_kept() -> None:
    log = "\n".join(f"\x1b[36m(worker)\x1b[0m step {number}" for number in range(2000))
    message = job_message(LOGS + log)
    lines = message.splitlines()
    assert lines[0] == "Job entrypoint command failed with exit code 1; the end of its log:"
    assert lines[-1] == "(worker) step 1999"
    assert len(lines) == LOG_LINES + 1


def test_a_message_without_a_log_stays_as_it_is() -> None:
    message = "Submitter completed but Ray job not found in RayCluster."
    assert job_message(message) == message


def test_a_line_without_an_end_is_cut() -> None:
    assert len(job_message(LOGS + "x" * 20_000)) < 2200


def test_the_trainers_last_word_is_found_behind_colours_and_not_shown_as_log() -> None:
    failure = Failure(reason="NothingFits", message="No member fits gateway.", resumable=False)
    text = f"{LOGS}Traceback\nboom\n\x1b[0m{failure.to_line()}\n"
    assert job_failure(text) == failure
    assert job_message(text).splitlines()[-1] == "boom"


def test_no_last_word_is_made_up() -> None:
    assert job_failure(LOGS + "IREKO_FAILURE {cut off") is None
    assert job_failure("") is None
