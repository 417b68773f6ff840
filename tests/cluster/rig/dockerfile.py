"""What the Dockerfile says about how its images run: environment, user, entry point.

The rig's images have these from the Dockerfile itself, so that what pods find here is what they find in production,
and a setting that is missing there is missing in the tests.
"""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rig.errors import RigError


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How a container of one stage starts when its pod says nothing."""

    environment: tuple[tuple[str, str], ...] = ()
    user: str = ""
    directory: str = "/"
    entrypoint: tuple[str, ...] = ()
    command: tuple[str, ...] = ()

    def as_image_config(self) -> dict[str, Any]:
        """The same in the words of an image."""
        return {
            "Env": [f"{key}={value}" for key, value in self.environment],
            "User": self.user,
            "WorkingDir": self.directory,
            "Entrypoint": list(self.entrypoint),
            "Cmd": list(self.command),
        }


def read_stages(dockerfile: Path) -> dict[str, Settings]:
    """The settings of every named stage, with those that it has from the stage it is made from."""
    stages: dict[str, Settings] = {}
    name = ""
    for word, rest in _instructions(dockerfile.read_text(encoding="utf-8")):
        if word == "FROM":
            base, name = _stage(rest)
            stages[name] = stages.get(base, Settings())
        elif name:
            stages[name] = _changed(stages[name], word, rest)
    return stages


def _instructions(text: str) -> Iterator[tuple[str, str]]:
    whole = re.sub(r"\\\n", " ", re.sub(r"^\s*#.*\n", "", text, flags=re.MULTILINE))
    for line in whole.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word:
            yield word.upper(), rest.strip()


def _stage(rest: str) -> tuple[str, str]:
    found = re.fullmatch(r"(\S+)(?:\s+AS\s+(\S+))?", rest, re.IGNORECASE)
    if found is None:
        raise RigError(f"the Dockerfile has a line `FROM {rest}` that the rig does not understand")
    return found[1], found[2] or ""


def _changed(settings: Settings, word: str, rest: str) -> Settings:
    """`settings` after one instruction; those that only make files change nothing."""
    if word == "ENV":
        pairs = dict(settings.environment) | dict(pair.split("=", 1) for pair in shlex.split(rest))
        return replace(settings, environment=tuple(pairs.items()))
    if word == "USER":
        return replace(settings, user=rest)
    if word == "WORKDIR":
        return replace(settings, directory=rest)
    if word == "ENTRYPOINT":
        return replace(settings, entrypoint=tuple(json.loads(rest)), command=())
    if word == "CMD":
        return replace(settings, command=tuple(json.loads(rest)))
    return settings
