"""Kubeconfig files: one cluster, one user, one context."""

from __future__ import annotations

import base64
from collections.abc import Mapping
from pathlib import Path

import yaml

_NAME = "ireko-test"


def write_kubeconfig(
    path: Path, *, url: str, authority: Path, user: Mapping[str, str], namespace: str = "default"
) -> Path:
    """Write a kubeconfig for `url` that proves to be `user` (its fields, e.g. `{"token": …}`)."""
    certificate = base64.b64encode(authority.read_bytes()).decode()
    content = {
        "apiVersion": "v1",
        "kind": "Config",
        "clusters": [{"name": _NAME, "cluster": {"server": url, "certificate-authority-data": certificate}}],
        "users": [{"name": _NAME, "user": dict(user)}],
        "contexts": [{"name": _NAME, "context": {"cluster": _NAME, "user": _NAME, "namespace": namespace}}],
        "current-context": _NAME,
    }
    path.touch(mode=0o600)
    path.write_text(yaml.safe_dump(content), encoding="utf-8")
    return path
