"""The programs of the rig: looked for, else built from Go modules of our own with pinned checksums.

Kubernetes publishes no small download of all that a node needs, and what the tests run must be one exact version
everywhere. So the versions stand in `go/*/go.mod`, their checksums in `go.sum`, and the result of a build is kept in
the user's cache directory under a digest of these files. A directory named by `KUBEBUILDER_ASSETS` goes first.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rig.cache import key_of, made_once
from rig.errors import RigError, UnavailableError
from rig.toolchain import go_command

MODULES = Path(__file__).parent.parent / "go"
ASSETS = "KUBEBUILDER_ASSETS"

_SECONDS_BETWEEN_REPORTS = 20


@dataclass(frozen=True, kw_only=True)
class Module:
    """One Go module of ours and the programs that it is built into."""

    name: str
    packages: tuple[str, ...]
    """The main packages; `.` and what is below it are our own."""
    versioned_by: str
    """The dependency whose version is the version of the programs."""
    programs: tuple[str, ...]
    config: str | None = None
    """A folder of manifests inside that dependency which the tests apply."""
    config_as: str = "config"
    """What it is called beside the programs, which may share one directory with those of another module."""
    cost: str
    """How long a cold build takes, for the person who waits."""

    @property
    def directory(self) -> Path:
        """Where go.mod, go.sum and the sources of our own lie."""
        return MODULES / self.name

    @property
    def version(self) -> str:
        """The version of the programs, e.g. `v1.35.4`."""
        text = (self.directory / "go.mod").read_text(encoding="utf-8")
        found = re.search(rf"^\s*(?:require )?{re.escape(self.versioned_by)} (\S+)", text, re.MULTILINE)
        if found is None:
            raise RigError(f"{self.directory / 'go.mod'} requires no {self.versioned_by}")
        return found[1]

    @property
    def key(self) -> str:
        """What a build depends on, digested."""
        sources = sorted(self.directory.rglob("*.go"))
        return key_of([self.directory / "go.mod", self.directory / "go.sum", *sources])


KUBERNETES = Module(
    name="kube",
    packages=(".", "./pause"),
    versioned_by="k8s.io/kubernetes",
    programs=(
        "etcd",
        "kube-apiserver",
        "kube-controller-manager",
        "kube-scheduler",
        "kubelet",
        "kube-proxy",
        "kubectl",
        "pause",
    ),
    cost="4 to 7 minutes on 2 cores",
)
KUBERAY = Module(
    name="kuberay",
    packages=("github.com/ray-project/kuberay/ray-operator",),
    versioned_by="github.com/ray-project/kuberay/ray-operator",
    programs=("ray-operator",),
    config="config",
    cost="1 to 2 minutes on 2 cores",
)
KUEUE = Module(
    name="kueue",
    packages=("sigs.k8s.io/kueue/cmd/kueue",),
    versioned_by="sigs.k8s.io/kueue",
    programs=("kueue",),
    config="config/components",
    config_as="kueue-config",
    cost="2 to 4 minutes on 2 cores",
)
HELM = Module(
    name="helm",
    packages=("helm.sh/helm/v4/cmd/helm",),
    versioned_by="helm.sh/helm/v4",
    programs=("helm",),
    cost="1 to 2 minutes on 2 cores",
)


@dataclass(frozen=True, kw_only=True)
class Programs:
    """The folder that holds the programs of one module, ready to run."""

    module: Module
    directory: Path

    def path(self, program: str) -> Path:
        """The executable `program`; raises RigError where the module has none of that name."""
        if program not in self.module.programs:
            raise RigError(f"{self.module.name} builds {', '.join(self.module.programs)}, not {program}")
        return self.directory / program

    @property
    def config(self) -> Path:
        """The manifests that come with the programs."""
        return self.directory / self.module.config_as


def find_or_build(module: Module) -> Programs:
    """The programs of `module`: from `KUBEBUILDER_ASSETS`, an earlier build, or a build that starts now.

    Raises RigError where there is no Go to build with or the build fails.
    """
    given = given_programs(module)
    if given is not None:
        return Programs(module=module, directory=given)
    directory = made_once(f"{module.name}-{module.key}", lambda empty: _build(module, into=empty))
    return Programs(module=module, directory=directory)


def given_programs(module: Module) -> Path | None:
    """The user's own folder of programs, if it has all that `module` stands for."""
    named = os.environ.get(ASSETS)
    if not named:
        return None
    directory = Path(named)
    needed = [*module.programs, *([module.config_as] if module.config else [])]
    missing = [name for name in needed if not (directory / name).exists()]
    if missing:
        say(f"{ASSETS}={named} has no {', '.join(missing)}: using a build of our own for {module.name}")
        return None
    return directory


def _build(module: Module, *, into: Path) -> None:
    say(f"Building {', '.join(module.programs)} {module.version}: {module.cost}, once")
    started = time.monotonic()
    go = go_command(needed=_go_version(module))
    _fetch(module, go)
    _compile(
        [*go, "build", "-v", "-trimpath", *_link_flags(module), "-o", f"{into}/", *module.packages], module
    )
    for program in module.programs:
        if not (into / program).exists():
            (into / program).symlink_to(module.name)
    if module.config is not None:
        shutil.copytree(_source_of(module, go) / module.config, into / module.config_as)
        _make_writable(into / module.config_as)
    say(f"Built {module.name} in {time.monotonic() - started:.0f} s")


def _fetch(module: Module, go: Sequence[str]) -> None:
    """Bring the sources of every package that will be compiled; checksums are compared on the way."""
    command = [*go, "list", "-deps", "-f", "", *module.packages]
    fetched = subprocess.run(
        command, cwd=module.directory, env=_environment(), capture_output=True, text=True, check=False
    )
    if fetched.returncode != 0:
        raise UnavailableError(
            f"the sources of {module.name} {module.version} cannot be had ({_last_line(fetched.stderr)}):"
            f" connect to a Go module proxy (GOPROXY), or name in {ASSETS} a directory that holds"
            f" {', '.join(module.programs)}"
        )


def _last_line(text: str) -> str:
    lines = text.strip().splitlines()
    return lines[-1] if lines else "Go said nothing"


def _environment() -> dict[str, str]:
    """The environment of a build that gives the same programs wherever it runs."""
    return {
        **os.environ,
        "CGO_ENABLED": "0",
        "GOFLAGS": "-mod=readonly -buildvcs=false",
        "GOTOOLCHAIN": "local",
    }


def _compile(command: Sequence[str], module: Module) -> None:
    """Run the build, reporting now and then how far it is; its last lines are the error when it fails."""
    with subprocess.Popen(
        command,
        cwd=module.directory,
        env=_environment(),
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    ) as build:
        assert build.stderr is not None
        compiled, last, started = 0, [""] * 20, time.monotonic()
        reported = started
        for line in build.stderr:
            compiled, last = compiled + 1, [*last[1:], line]
            if time.monotonic() - reported > _SECONDS_BETWEEN_REPORTS:
                reported = time.monotonic()
                say(f"  {module.name}: {compiled} packages after {reported - started:.0f} s")
    if build.returncode != 0:
        raise RigError(f"`{' '.join(command)}` failed in {module.directory}:\n{''.join(last)}")


def _link_flags(module: Module) -> list[str]:
    """Flags without debug information; Kubernetes also learns its version, which its clients check, from the linker."""
    flags = "-s -w"
    if module is KUBERNETES:
        major, minor, _ = module.version.removeprefix("v").split(".")
        values = {"gitVersion": module.version, "gitMajor": major, "gitMinor": minor, "gitTreeState": "clean"}
        flags += "".join(f" -X k8s.io/component-base/version.{key}={value}" for key, value in values.items())
    return ["-ldflags", flags]


def _go_version(module: Module) -> tuple[int, ...]:
    text = (module.directory / "go.mod").read_text(encoding="utf-8")
    found = re.search(r"^go ([\d.]+)$", text, re.MULTILINE)
    if found is None:
        raise RigError(f"{module.directory / 'go.mod'} has no line with the version of Go")
    return tuple(int(part) for part in found[1].split("."))


def _source_of(module: Module, go: Sequence[str]) -> Path:
    """The folder in Go's module cache that holds the dependency behind `module`."""
    listed = subprocess.run(
        [*go, "list", "-m", "-f", "{{.Dir}}", module.versioned_by],
        cwd=module.directory,
        env=_environment(),
        capture_output=True,
        text=True,
        check=True,
    )
    return Path(listed.stdout.strip())


def _make_writable(directory: Path) -> None:
    """Give back the write permission that Go's module cache takes, or nobody could ever delete the copy."""
    for path in (directory, *directory.rglob("*")):
        path.chmod(0o755 if path.is_dir() else 0o644)


def say(line: str) -> None:
    """Tell the person who waits; pytest shows it when a fixture fails."""
    print(f"==> {line}", file=sys.stderr, flush=True)
