"""What others wrote, made fit to be shown: no colours, no control characters, no wall of log.

A RayJob's message holds up to 20,000 characters of the trainer's output. In a condition it would hide what
went wrong, so only its end is kept; what the trainer itself says of a failure is taken from there first.
"""

from __future__ import annotations

import re

from ireko_api.handoff import FAILURE_LINE, Failure, failure_in

SENTENCE_LIMIT = 1000
"""Of what Kubernetes or KubeRay says in one go."""
LOG_LINES = 12
LOG_LIMIT = 2000

_ESCAPES = re.compile(
    r"\x1b\[[0-?]*[ -/]*[@-~]"  # colours and cursor movements
    r"|\x1b\][^\x07\x1b]*(?:\x07|\x1b\\)"  # titles and links
    r"|\x1b[@-Z\\-_]"
)
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_LOGS = re.compile(r",? *last available logs \(truncated to [\d,]+ chars\):?\n?")


def plain(text: str) -> str:
    """The text without escape sequences and control characters; of a progress bar the last state."""
    text = _ESCAPES.sub("", text).replace("\r\n", "\n")
    lines = (line.rpartition("\r")[2] if "\r" in line.rstrip("\r") else line for line in text.split("\n"))
    return _CONTROL.sub("", "\n".join(lines))


def sentence(text: str, *, limit: int = SENTENCE_LIMIT) -> str:
    """The text in one line, cut in the middle of nothing but itself."""
    line = " ".join(plain(text).split())
    return line if len(line) <= limit else f"{line[: limit - 1]}…"


def job_message(text: str) -> str:
    """What a RayJob says: its sentence in front, then the end of the log."""
    text = plain(text)
    found = _LOGS.search(text)
    if found is None:
        return _end_of(text)
    head = sentence(text[: found.start()]).rstrip(".:, ")
    tail = _end_of(text[found.end() :])
    return f"{head}; the end of its log:\n{tail}" if tail else f"{head}."


def job_failure(text: str) -> Failure | None:
    """The failure that the trainer told in its last line, as it stands in a RayJob's message."""
    return failure_in(plain(text))


def _end_of(log: str) -> str:
    lines = [line.rstrip() for line in log.splitlines() if line.strip() and not line.startswith(FAILURE_LINE)]
    text = "\n".join(lines[-LOG_LINES:])
    return text if len(text) <= LOG_LIMIT else f"…{text[1 - LOG_LIMIT :]}"
