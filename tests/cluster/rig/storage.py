"""Storage that all nodes share: folders of this machine, as volumes and claims."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

CLASS = "shared"

_MODES = ["ReadWriteMany", "ReadWriteOnce"]


def open_folder(folder: Path) -> Path:
    """`folder`, made so that pods of any user may write to it."""
    folder.mkdir(parents=True, exist_ok=True)
    folder.chmod(0o777)
    return folder


def bound_claim(*, namespace: str, claim: str, folder: Path, size: str) -> list[dict[str, Any]]:
    """A volume over `folder` and the claim that is bound to it."""
    volume = f"{namespace}-{claim}"
    spec = {
        "accessModes": _MODES[:1],
        "storageClassName": "",
        "volumeName": volume,
        "resources": {"requests": {"storage": size}},
    }
    return [
        _volume(
            volume,
            folder=folder,
            size=size,
            storage_class="",
            claimRef={"namespace": namespace, "name": claim},
        ),
        {
            "apiVersion": "v1",
            "kind": "PersistentVolumeClaim",
            "metadata": {"namespace": namespace, "name": claim},
            "spec": spec,
        },
    ]


def volumes_on_offer(*, folder: Path, count: int, size: str) -> list[dict[str, Any]]:
    """A storage class that is the default, and volumes of it that claims of any name find when they ask for storage."""
    annotations = {"storageclass.kubernetes.io/is-default-class": "true"}
    storage_class = {
        "apiVersion": "storage.k8s.io/v1",
        "kind": "StorageClass",
        "metadata": {"name": CLASS, "annotations": annotations},
        "provisioner": "kubernetes.io/no-provisioner",
    }
    names = [f"{CLASS}-{number}" for number in range(count)]
    volumes = [
        _volume(name, folder=open_folder(folder / name), size=size, storage_class=CLASS) for name in names
    ]
    return [storage_class, *volumes]


def _volume(
    name: str, *, folder: Path, size: str, storage_class: str, **fields: Mapping[str, str]
) -> dict[str, Any]:
    return {
        "apiVersion": "v1",
        "kind": "PersistentVolume",
        "metadata": {"name": name},
        "spec": {
            "capacity": {"storage": size},
            "accessModes": _MODES,
            "persistentVolumeReclaimPolicy": "Retain",
            "storageClassName": storage_class,
            "hostPath": {"path": str(folder), "type": "Directory"},
            **fields,
        },
    }
