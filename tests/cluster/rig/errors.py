"""The errors of the rig: each says what is missing or broken and what would mend it."""

from __future__ import annotations


class RigError(Exception):
    """Something of the rig did not work; the text says what and where to look."""


class UnavailableError(RigError):
    """This machine cannot run a tier; the text says in one sentence what is missing and what would make it run."""
