"""The code that ships with a member: loads its bundle, refuses damaged bytes, predicts.

MLflow stores this file inside the model and runs it wherever the model is loaded, so it must stand alone: it
imports what the model's requirements name and never Ireko. The bundle that it reads:

    manifest.json    sha256 and length of every other file
    inference.json   task, max_length, labels, regression
    checkpoint/      an ordinary Hugging Face checkpoint with its tokenizer
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import mlflow.models
import mlflow.pyfunc
import numpy as np
import torch
import transformers

MANIFEST_FILE = "manifest.json"
INFERENCE_FILE = "inference.json"
CHECKPOINT_DIR = "checkpoint"
BUNDLE_ARTIFACT = "bundle"
DEFAULT_BATCH_SIZE = 32

_CHUNK_BYTES = 1 << 20


class DamagedBundleError(RuntimeError):
    """A file of the bundle is not the file that was written."""


def file_sha256(path: Path) -> str:
    """Hex digest of a file, read in pieces: devices have little memory."""
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            digest.update(piece)
    return digest.hexdigest()


def verify_files(directory: Path) -> None:
    """Compare every file of a bundle with its manifest.

    Raises DamagedBundleError naming the first file that is missing, unlisted, of another length or with other
    bytes, and what to do about it.
    """
    path = directory / MANIFEST_FILE
    if not path.is_file():
        raise DamagedBundleError(f"{directory} has no {MANIFEST_FILE}; download the model again")
    listed: dict[str, dict[str, Any]] = json.loads(path.read_text())["files"]
    present = {file.relative_to(directory).as_posix() for file in directory.rglob("*") if file.is_file()} - {
        MANIFEST_FILE
    }
    for name in sorted(present - set(listed)):
        raise DamagedBundleError(f"{directory / name} is not in the manifest of its bundle; remove the file")
    for name in sorted(listed):
        _verify_file(directory / name, listed[name])


def _verify_file(path: Path, entry: Mapping[str, Any]) -> None:
    if not path.is_file():
        raise DamagedBundleError(f"{path} is missing; download the model again")
    if path.stat().st_size != entry["bytes"]:
        raise DamagedBundleError(
            f"{path} has {path.stat().st_size} bytes and its manifest says {entry['bytes']}; "
            "download the model again"
        )
    if file_sha256(path) != entry["sha256"]:
        raise DamagedBundleError(
            f"{path} is damaged: its sha256 is not the one in the manifest; download the model again"
        )


def texts_of(model_input: Any) -> tuple[list[str], list[str] | None]:
    """First and, if there are any, second texts of whatever a caller of `predict` may send.

    A text, a list of texts, of pairs or of `{"text", "text_pair"}` records, an array or series of these, and
    a table or mapping with the columns `text` and optionally `text_pair`. One column alone needs no name.
    """
    if hasattr(model_input, "columns"):
        model_input = _columns_of(model_input)
    if isinstance(model_input, Mapping):
        return _texts_of_columns(model_input)
    if hasattr(model_input, "tolist"):
        model_input = model_input.tolist()
    if isinstance(model_input, str):
        model_input = [model_input]
    if not isinstance(model_input, Sequence):
        raise TypeError(f"expected texts, got {type(model_input).__name__}; send a list of strings")
    rows = [_row(item) for item in model_input]
    if len({len(row) for row in rows}) > 1:
        raise TypeError("some items are single texts and some are pairs; send one kind per call")
    first = [row[0] for row in rows]
    return first, [row[1] for row in rows] if rows and len(rows[0]) == 2 else None


def _columns_of(table: Any) -> dict[str, list[Any]]:
    names = [str(name) for name in table.columns]
    if "text" not in names and len(names) != 1:
        raise TypeError(f"the columns are {names}; name the one with the texts 'text'")
    if "text" not in names:
        return {"text": table.iloc[:, 0].tolist()}
    return {name: table[name].tolist() for name in ("text", "text_pair") if name in names}


def _texts_of_columns(columns: Mapping[str, Any]) -> tuple[list[str], list[str] | None]:
    if "text" not in columns:
        raise TypeError(f"the columns are {sorted(columns)}; name the one with the texts 'text'")
    first, _ = texts_of(columns["text"])
    second = columns.get("text_pair")
    if second is None:
        return first, None
    pair, _ = texts_of(second)
    if len(pair) != len(first):
        raise TypeError(
            f"'text' has {len(first)} texts and 'text_pair' has {len(pair)}; they must be as many"
        )
    return first, pair


def _row(item: Any) -> tuple[str, ...]:
    if isinstance(item, str):
        return (item,)
    if isinstance(item, Mapping) and "text" in item:
        item = [item["text"]] if item.get("text_pair") is None else [item["text"], item["text_pair"]]
    if isinstance(item, Sequence) and len(item) in (1, 2) and all(isinstance(text, str) for text in item):
        return tuple(item)
    raise TypeError(f"expected a text or a pair of texts, got {item!r:.80}")


class Member(mlflow.pyfunc.PythonModel):  # type: ignore[misc]
    """One member of a family: an encoder that embeds, or a classifier.

    `predict` returns float32 `[N, D]` of length-1 embeddings for feature-extraction, a list of
    `{"label", "score"}` for classification (score: the probability), a list of `{"score"}` for regression.
    """

    # MLflow takes hints on `predict` for an input schema, and no schema has texts as well as pairs.
    _skip_type_hint_validation = True

    def load_context(self, context: Any) -> None:
        """Verify the bundle and load its checkpoint; onto a GPU where there is one."""
        directory = Path(context.artifacts[BUNDLE_ARTIFACT])
        verify_files(directory)
        self.settings: dict[str, Any] = json.loads((directory / INFERENCE_FILE).read_text())
        checkpoint = directory / CHECKPOINT_DIR
        self.tokenizer: Any = transformers.AutoTokenizer.from_pretrained(checkpoint)
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        self.model: Any = _load_model(checkpoint).to(self.device).eval()

    def predict(self, context, model_input, params=None):  # type: ignore[no-untyped-def]  # noqa: ARG002
        """Predictions in the order of the input; see `texts_of` for what the input may be."""
        first, second = texts_of(model_input)
        if second is not None and self.settings["task"] == "feature-extraction":
            raise TypeError("this model embeds single texts; send both texts of a pair as items of their own")
        batch_size = int((params or {}).get("batch_size", DEFAULT_BATCH_SIZE))
        outputs = self._outputs(first, second, batch_size=batch_size)
        if self.settings["task"] == "feature-extraction":
            return outputs
        if self.settings["regression"]:
            return [{"score": float(row[0])} for row in outputs]
        labels = self.settings["labels"]
        return [{"label": labels[int(row.argmax())], "score": float(row.max())} for row in outputs]

    def _outputs(self, first: list[str], second: list[str] | None, *, batch_size: int) -> np.ndarray:
        """Embeddings `[N, D]`, probabilities `[N, labels]` or values `[N, 1]`, float32."""
        if not first:
            return np.zeros((0, int(self.settings["outputs"])), dtype=np.float32)
        encoded = self.tokenizer(first, second, truncation=True, max_length=self.settings["max_length"])
        # Texts of like length share a batch, so that little is computed on padding.
        order = np.argsort([len(ids) for ids in encoded["input_ids"]], kind="stable")
        results: list[np.ndarray] = [np.empty(0)] * len(first)
        for begin in range(0, len(order), batch_size):
            chosen = order[begin : begin + batch_size]
            rows = {name: [values[i] for i in chosen] for name, values in encoded.items()}
            for index, output in zip(chosen, self._forward(rows), strict=True):
                results[index] = output
        return np.stack(results)

    def _forward(self, rows: Mapping[str, Any]) -> np.ndarray:
        batch = self.tokenizer.pad(rows, return_tensors="pt").to(self.device)
        with torch.inference_mode():
            output = self.model(**batch)
            if self.settings["task"] == "feature-extraction":
                mask = batch["attention_mask"].unsqueeze(-1).float()  # [B, S, 1]
                mean = (output.last_hidden_state.float() * mask).sum(dim=1) / mask.sum(dim=1)
                result = torch.nn.functional.normalize(mean, dim=1)
            elif self.settings["regression"]:
                result = output.logits.float()
            else:
                result = output.logits.float().softmax(dim=1)
        return np.asarray(result.cpu().numpy())


def _load_model(checkpoint: Path) -> Any:
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    model_class = getattr(transformers, config.architectures[0])
    # The mean over tokens is the embedding; BERT would add a pooler that no checkpoint of a member has.
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if takes_pooler else {}
    return model_class.from_pretrained(checkpoint, config=config, **options)


mlflow.models.set_model(Member())
