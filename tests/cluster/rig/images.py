"""Images that hold nothing but links: what pods run comes from this machine's own file system.

An image with Python, torch and Ray is gigabytes that would have to be built, packed and unpacked for each test
session. The nodes' container runtime lays this machine's /usr, the virtual environment and the repository read-only
into every container instead (`node.py`), so pods run the very files that the other tests run, and their manifests
look as they do in production: an image, and no volumes for programs.
"""

from __future__ import annotations

import hashlib
import io
import json
import platform
import tarfile
from collections.abc import Mapping, Sequence
from pathlib import Path

from rig.dockerfile import read_stages

PAUSE = "ireko.test/pause:dev"
HOST = "ireko.test/host:dev"
OPERATOR = "ireko.test/operator:dev"
TRAINER = "ireko.test/trainer:dev"

_LINKS = {name: f"usr/{name}" for name in ("bin", "lib", "lib32", "lib64", "libx32", "sbin")}
_USERS = {"root": 0, "ray": 1000, "ireko": 10001, "nonroot": 65532}
_EMPTY = ("dev", "etc", "home", "proc", "root", "run", "sys", "usr", "var")


def write_pause_image(path: Path, *, program: Path) -> Path:
    """An archive of the image that holds a pod's namespaces open: one static program."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        _add_file(tar, "pause", program.read_bytes(), mode=0o755)
    return _write(path, names=[PAUSE], layer=layer.getvalue(), config={"Entrypoint": ["/pause"]})


def write_program_images(directory: Path, *, dockerfile: Path) -> list[Path]:
    """Archives of the images that run programs: all have the same files, those of ours start as `dockerfile` says."""
    stages = read_stages(dockerfile)
    starts = {
        HOST: {"Cmd": ["/bin/sh"], "Env": stages["base"].as_image_config()["Env"], "WorkingDir": "/tmp"},
        OPERATOR: stages["operator"].as_image_config(),
        TRAINER: stages["trainer"].as_image_config(),
    }
    layer = _links()
    return [
        _write(directory / f"image-{number}.tar", names=[name], layer=layer, config=config)
        for number, (name, config) in enumerate(starts.items())
    ]


def _links() -> bytes:
    """The files of an image: links into /usr, a few users, and empty folders to mount into."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in _EMPTY:
            _add_folder(tar, name, mode=0o755)
        _add_folder(tar, "tmp", mode=0o1777)
        for name, target in _LINKS.items():
            _add_link(tar, name, target)
        users = [f"{user}:x:{uid}:{uid}::/tmp:/bin/sh\n" for user, uid in _USERS.items()]
        groups = [f"{user}:x:{uid}:\n" for user, uid in _USERS.items()]
        _add_file(tar, "etc/passwd", "".join(users).encode())
        _add_file(tar, "etc/group", "".join(groups).encode())
        _add_file(tar, "etc/nsswitch.conf", b"hosts: files dns\n")
    return layer.getvalue()


def _add_folder(tar: tarfile.TarFile, name: str, *, mode: int) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode = tarfile.DIRTYPE, mode
    tar.addfile(entry)


def _add_link(tar: tarfile.TarFile, name: str, target: str) -> None:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname = tarfile.SYMTYPE, target
    tar.addfile(entry)


def _add_file(tar: tarfile.TarFile, name: str, content: bytes, *, mode: int = 0o644) -> None:
    entry = tarfile.TarInfo(name)
    entry.size, entry.mode = len(content), mode
    tar.addfile(entry, io.BytesIO(content))


def _write(path: Path, *, names: Sequence[str], layer: bytes, config: Mapping[str, object]) -> Path:
    """One layer as an archive of the form that `docker save` writes and every runtime imports."""
    digest = hashlib.sha256(layer).hexdigest()
    image = {
        "architecture": _architecture(),
        "os": "linux",
        "created": "1970-01-01T00:00:00Z",
        "config": config,
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{digest}"]},
        "history": [{"created_by": "ireko test rig"}],
    }
    content = json.dumps(image).encode()
    name = f"{hashlib.sha256(content).hexdigest()}.json"
    manifest = [{"Config": name, "RepoTags": list(names), "Layers": ["layer.tar"]}]
    with tarfile.open(path, "w") as tar:
        _add_file(tar, name, content)
        _add_file(tar, "layer.tar", layer)
        _add_file(tar, "manifest.json", json.dumps(manifest).encode())
    return path


def _architecture() -> str:
    """This machine's architecture in the words of container images."""
    machine = platform.machine()
    return {"x86_64": "amd64", "aarch64": "arm64"}.get(machine, machine)
