"""What a checkpoint directory holds, judged by its files before any of them is loaded.

A checkpoint is somebody else's input: a pickle can run code, a configuration can ask for code, an adapter
silently pulls its base model from the network. All of this is visible in the names and the JSON, so it is
refused here, with the reason, instead of surfacing as an exception from deep inside a loader.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ireko_trainer.data import LabelSpace
from ireko_trainer.errors import UserError

_FIELD = "spec.teacher.model"
_HEAD_SUFFIX = "ForSequenceClassification"
_HASHED_SUFFIXES = (".json", ".txt", ".model", ".jinja", ".py")
_WEIGHTS = (
    "model.safetensors",
    "model.safetensors.index.json",
    "pytorch_model.bin",
    "pytorch_model.bin.index.json",
)
"""The files that transformers loads, in its order of preference."""


def find_checkpoint(directory: Path, *, uri: str) -> Path:
    """The folder with the checkpoint: `directory` itself, or the only folder below it that holds one.

    Raises:
        UserError: there is no `config.json` with weights beside it, or more than one.
    """
    if (directory / "config.json").is_file() or (directory / "adapter_config.json").is_file():
        return directory
    found = sorted(config.parent for config in directory.rglob("config.json") if weight_files(config.parent))
    if len(found) == 1:
        return found[0]
    if not found:
        raise UserError(
            f"{_FIELD}: {uri} holds no Hugging Face checkpoint (no config.json with weights beside it in "
            f"{directory}); save the teacher with save_pretrained."
        )
    folders = ", ".join(str(folder.relative_to(directory)) for folder in found)
    raise UserError(f"{_FIELD}: {uri} holds {len(found)} checkpoints ({folders}); name one of the folders.")


def weight_files(directory: Path) -> list[Path]:
    """The files whose weights would be loaded: safetensors before pickles, shards from the index; empty if
    none.

    Raises:
        UserError: an index names a shard that is missing or lies outside the directory.
    """
    name = next((name for name in _WEIGHTS if (directory / name).is_file()), None)
    if name is None:
        return []
    file = directory / name
    if not name.endswith(".index.json"):
        return [file]
    shards = sorted({str(shard) for shard in _read_json(file).get("weight_map", {}).values()})
    for shard in shards:
        if Path(shard).name != shard or not (directory / shard).is_file():
            raise UserError(
                f"{_FIELD}: {file} names the shard {shard!r}, which is not in {directory}; copy it there."
            )
    return [file, *(directory / shard for shard in shards)]


def read_config(directory: Path) -> dict[str, Any]:
    """`config.json` of a checkpoint.

    Raises:
        UserError: it is missing or no JSON object.
    """
    return _read_json(directory / "config.json")


def require_loadable(directory: Path, *, trust_remote_code: bool) -> None:
    """Refuse what must not or cannot be loaded.

    Raises:
        UserError: an adapter, a quantized checkpoint, code that the manifest does not trust, or no weights.
    """
    if (directory / "adapter_config.json").is_file():
        raise UserError(
            f"{_FIELD}: {directory} holds an adapter, not a whole model; merge it into its base model "
            "(merge_and_unload) and save the result with save_pretrained."
        )
    config = read_config(directory)
    if "quantization_config" in config:
        raise UserError(
            f"{_FIELD}: {directory} is quantized already; give the checkpoint that it was quantized from."
        )
    if not trust_remote_code:
        _refuse_code(directory, config)
    if not weight_files(directory):
        raise UserError(
            f"{_FIELD}: {directory} has neither model.safetensors nor pytorch_model.bin; save the teacher "
            "with save_pretrained."
        )
    _require_readable(directory)


def _require_readable(directory: Path) -> None:
    """Of weights that it may not read, safetensors says that they do not exist."""
    for file in weight_files(directory):
        if not os.access(file, os.R_OK):
            raise UserError(
                f"{_FIELD}: {file} may not be read by the trainer, which is user {os.getuid()}, and "
                "save_pretrained writes weights for their owner alone; let everybody read it (chmod a+r)."
            )


def _refuse_code(directory: Path, config: dict[str, Any]) -> None:
    tokenizer = directory / "tokenizer_config.json"
    contents = {directory / "config.json": config}
    if tokenizer.is_file():
        contents[tokenizer] = _read_json(tokenizer)
    for file, content in contents.items():
        if "auto_map" in content:
            raise UserError(
                f"spec.teacher.trustRemoteCode: {file} asks to run Python code of the checkpoint "
                f"({content['auto_map']}); read that code and set trustRemoteCode to true if you trust it, "
                "or take a model that transformers knows itself."
            )


def head_labels(directory: Path) -> LabelSpace | None:
    """The labels of the classification head that a checkpoint brings; None when it brings none.

    Raises:
        UserError: the head is for several labels at once, which nothing here trains or scores.
    """
    config = read_config(directory)
    if not any(str(name).endswith(_HEAD_SUFFIX) for name in config.get("architectures") or ()):
        return None
    if config.get("problem_type") == "multi_label_classification":
        raise UserError(
            f"{_FIELD}: the head in {directory} predicts several labels per text; choose a teacher with one "
            "label per text, or a regression."
        )
    names = _names(config)
    if len(names) == 1:
        return LabelSpace(regression=True)
    return LabelSpace(names=names)


def _names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """Class names by index; transformers writes none when there are the two default ones."""
    by_index = {int(index): str(name) for index, name in (config.get("id2label") or {}).items()}
    count = len(by_index) or int(config.get("num_labels", 2))
    return tuple(by_index.get(index, f"LABEL_{index}") for index in range(count))


def digest(directory: Path) -> str:
    """SHA-256 over the names and contents of configuration, weights, tokenizer and code of a checkpoint."""
    small = [file for file in directory.iterdir() if file.suffix in _HASHED_SUFFIXES and file.is_file()]
    sha = hashlib.sha256()
    for file in sorted({*small, *weight_files(directory)}):
        with file.open("rb") as opened:
            content = hashlib.file_digest(opened, "sha256").hexdigest()
        sha.update(f"{file.name}\0{content}\n".encode())
    return sha.hexdigest()


def _read_json(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"{_FIELD}: {file} is missing; save the teacher with save_pretrained.") from error
    except ValueError as error:
        raise UserError(f"{_FIELD}: {file} is not valid JSON ({error}); save the teacher again.") from error
    if not isinstance(content, dict):
        raise UserError(f"{_FIELD}: {file} holds no JSON object; save the teacher again.")
    return content
