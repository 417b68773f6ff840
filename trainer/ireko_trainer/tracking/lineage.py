"""What a run was made of, as the flat strings that MLflow can show and search."""

from __future__ import annotations

import json
import platform
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from typing import Any

TAG_SEED = "ireko.seed"
TAG_TEACHER_SHA256 = "ireko.teacher.sha256"
TAG_DATA_SHA256 = "ireko.data.{split}.sha256"
TAG_VERSION = "ireko.version.{package}"

_PACKAGES = ("ireko", "torch", "transformers", "compressed-tensors", "mlflow", "ray", "numpy")


def flat_parameters(spec: Mapping[str, Any], *, prefix: str = "") -> dict[str, str]:
    """A nested spec as `{"pipeline.mlfs.rank": "8", …}`; lists are written as JSON, nulls left out.

    A list of named objects, as `deviceTargets`, is flattened by the names.
    """
    return dict(_flattened(spec, prefix))


def _flattened(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, Mapping):
        for key, item in value.items():
            yield from _flattened(item, f"{path}.{key}" if path else str(key))
    elif (
        isinstance(value, list)
        and value
        and all(isinstance(item, Mapping) and "name" in item for item in value)
    ):
        for item in value:
            yield from _flattened({k: v for k, v in item.items() if k != "name"}, f"{path}.{item['name']}")
    elif value is not None:
        yield path, value if isinstance(value, str) else json.dumps(value)


def versions() -> dict[str, str]:
    """The versions that the numbers of a run depend on, by package name; `python` among them."""
    found = {"python": platform.python_version()}
    for package in _PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            # Ireko itself may run from a source tree that was never installed.
            continue
    return found


def lineage_tags(*, seed: int, teacher_sha256: str, data_sha256: Mapping[str, str]) -> dict[str, str]:
    """Tags that say what went in: digests of the teacher and of each data split, seed and versions."""
    return {
        TAG_SEED: str(seed),
        TAG_TEACHER_SHA256: teacher_sha256,
        **{TAG_DATA_SHA256.format(split=split): digest for split, digest in data_sha256.items()},
        **{TAG_VERSION.format(package=package): number for package, number in versions().items()},
    }
