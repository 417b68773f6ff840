"""The directory that ships: a checkpoint, how to use it, and a manifest that gives every byte away."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import PreTrainedTokenizerBase

from ireko_trainer.errors import UserError
from ireko_trainer.serving.pyfunc_model import (
    CHECKPOINT_DIR,
    INFERENCE_FILE,
    MANIFEST_FILE,
    STRUCTURE_FILE,
    DamagedBundleError,
    file_sha256,
    verify_files,
)

_FORMAT = 1
_LOADING_TRACES = frozenset({"is_local", "local_files_only", "name_or_path"})
"""What a tokenizer's configuration says about where it was loaded from, which is no part of the model."""


@dataclass(frozen=True, kw_only=True)
class BundledFile:
    """What the manifest says of a file."""

    sha256: str
    bytes: int


@dataclass(frozen=True, kw_only=True)
class Bundle:
    """A complete bundle on disk."""

    directory: Path
    sha256: str
    """Of the canonical manifest, so of every byte that ships."""
    files: Mapping[str, BundledFile]
    """By path relative to the directory; the manifest itself is not among them."""

    @property
    def settings(self) -> dict[str, Any]:
        """The content of `inference.json`."""
        settings: dict[str, Any] = json.loads((self.directory / INFERENCE_FILE).read_text())
        return settings

    @property
    def is_factored(self) -> bool:
        """Whether the checkpoint has layers that share weights."""
        return (self.directory / CHECKPOINT_DIR / STRUCTURE_FILE).is_file()

    @property
    def is_quantized(self) -> bool:
        """Whether the checkpoint is stored in packed integers."""
        return "quantization_config" in json.loads(
            (self.directory / CHECKPOINT_DIR / "config.json").read_text()
        )


def write_bundle(
    *,
    checkpoint: Path,
    tokenizer: PreTrainedTokenizerBase,
    task: str,
    max_length: int,
    labels: Sequence[str] = (),
    regression: bool = False,
    directory: Path,
) -> Bundle:
    """Write a bundle into `directory`, replacing what is there.

    Args:
        checkpoint: directory with `config.json` and `model.safetensors`; copied as it is.
        tokenizer: saved beside the weights.
        task: `feature-extraction`, `text-classification` or `text-generation`.
        max_length: tokens after which a text is cut; for text-generation of prompt and answer together.
        labels: names of the classes in the order of the logits; empty for embeddings, regression and generation.
        regression: the head predicts one number.
        directory: where the bundle goes.

    The same checkpoint, tokenizer and settings give the same `sha256`.
    """
    if directory.exists():
        shutil.rmtree(directory)
    shutil.copytree(checkpoint, directory / CHECKPOINT_DIR)
    _save_tokenizer(tokenizer, directory / CHECKPOINT_DIR)
    config = json.loads((checkpoint / "config.json").read_text())
    settings = {
        "task": task,
        "max_length": max_length,
        "labels": list(labels),
        "regression": regression,
        "pooling": "mean" if task == "feature-extraction" else None,
        "normalize": task == "feature-extraction",
        "outputs": config["hidden_size"] if task == "feature-extraction" else max(1, len(labels)),
    }
    (directory / INFERENCE_FILE).write_text(json.dumps(settings, indent=1, sort_keys=True) + "\n")
    files = {
        path.relative_to(directory).as_posix(): {"sha256": file_sha256(path), "bytes": path.stat().st_size}
        for path in sorted(directory.rglob("*"))
        if path.is_file()
    }
    manifest = {"format": _FORMAT, "files": files}
    (directory / MANIFEST_FILE).write_text(json.dumps(manifest, indent=1, sort_keys=True) + "\n")
    return _bundle(directory)


def _save_tokenizer(tokenizer: PreTrainedTokenizerBase, directory: Path) -> None:
    tokenizer.save_pretrained(directory)
    path = directory / "tokenizer_config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in _LOADING_TRACES}
    path.write_text(json.dumps(config, indent=2, sort_keys=True, ensure_ascii=False) + "\n")


def verify_bundle(directory: Path) -> Bundle:
    """The bundle in a directory, after comparing every file with the manifest.

    Raises UserError naming the first file that differs.
    """
    try:
        verify_files(directory)
    except DamagedBundleError as error:
        raise UserError(str(error)) from error
    return _bundle(directory)


def _bundle(directory: Path) -> Bundle:
    manifest = json.loads((directory / MANIFEST_FILE).read_text())
    canonical = json.dumps(manifest, sort_keys=True, separators=(",", ":"))
    return Bundle(
        directory=directory,
        sha256=hashlib.sha256(canonical.encode()).hexdigest(),
        files={name: BundledFile(**entry) for name, entry in manifest["files"].items()},
    )
