"""The code that ships with a member: loads its bundle, refuses damaged bytes, predicts.

MLflow stores this file inside the model and runs it wherever the model is loaded, so it must stand alone: it
imports what the model's requirements name and never Ireko. The bundle that it reads:

    manifest.json    sha256 and length of every other file
    inference.json   task, max_length, labels, regression
    checkpoint/      an ordinary Hugging Face checkpoint with its tokenizer, or one with factored layers, whose
                     loader `shared_layers.py` then lies beside this file
"""

from __future__ import annotations

import hashlib
import importlib
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
STRUCTURE_FILE = "delta.json"
LAYERS_MODULE = "shared_layers"
DEFAULT_BATCH_SIZE = 32
DEFAULT_NEW_TOKENS = 64
DEFAULT_TEMPERATURE = 0.0
"""Always the most likely token."""

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
    """One member of a family: an encoder that embeds, a classifier, or a decoder that goes on writing.

    `predict` returns float32 `[N, D]` of length-1 embeddings for feature-extraction, a list of
    `{"label", "score"}` for classification (score: the probability), a list of `{"score"}` for regression, and
    a list of `{"text"}` for text-generation: what comes after each prompt. A prompt is a text, or a
    conversation as `{"messages": [{"role", "content"}, …]}`.
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
        if self.settings["task"] == "text-generation":
            return self._continuations(self._prompts(model_input), **(params or {}))
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

    def _prompts(self, model_input: Any) -> list[list[int]]:
        """Token ids of each prompt, begun as the texts that the model learned from."""
        if isinstance(model_input, Mapping) and "messages" in model_input:
            model_input = [model_input]
        if isinstance(model_input, Sequence) and not isinstance(model_input, str):
            model_input = [self._written(item) for item in model_input]
        texts, second = texts_of(model_input)
        if second is not None:
            raise TypeError("this model continues single texts; send no pairs")
        ids = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
        begin = self.tokenizer.bos_token_id
        if begin is None:
            # Documents were parted by their ends: an empty one begins behind another's.
            return [row or [self.tokenizer.eos_token_id] for row in ids]
        return [row if row[:1] == [begin] else [begin, *row] for row in ids]

    def _written(self, item: Any) -> Any:
        if isinstance(item, Mapping) and "messages" in item:
            messages = list(item["messages"])
            return self.tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
        return item

    def _continuations(
        self,
        prompts: list[list[int]],
        *,
        batch_size: int = DEFAULT_BATCH_SIZE,
        max_new_tokens: int = DEFAULT_NEW_TOKENS,
        temperature: float = DEFAULT_TEMPERATURE,
    ) -> list[dict[str, str]]:
        room = int(self.settings["max_length"]) - int(max_new_tokens)
        if room < 1:
            raise ValueError(
                f"max_new_tokens is {max_new_tokens}, and the model holds {self.settings['max_length']} tokens with "
                "the prompt; ask for fewer"
            )
        # What came last says most about what comes next.
        prompts = [ids[-room:] for ids in prompts]
        sampling = (
            {"do_sample": True, "temperature": float(temperature)} if temperature else {"do_sample": False}
        )
        results = [""] * len(prompts)
        order = np.argsort([len(ids) for ids in prompts], kind="stable")
        for begin in range(0, len(order), int(batch_size)):
            chosen = [int(index) for index in order[begin : begin + int(batch_size)]]
            rows = [prompts[index] for index in chosen]
            for index, text in zip(chosen, self._generate(rows, int(max_new_tokens), sampling), strict=True):
                results[index] = text
        return [{"text": text} for text in results]

    def _generate(self, rows: list[list[int]], max_new_tokens: int, sampling: dict[str, Any]) -> list[str]:
        pad = self.tokenizer.pad_token_id
        pad = self.tokenizer.eos_token_id or 0 if pad is None else pad
        longest = max(len(ids) for ids in rows)
        # On the left, so that every row goes on at its last column.
        padded = torch.tensor([[pad] * (longest - len(ids)) + ids for ids in rows], device=self.device)
        lengths = torch.tensor([len(ids) for ids in rows], device=self.device)
        mask = (torch.arange(longest, device=self.device) >= longest - lengths[:, None]).long()
        with torch.inference_mode():
            written = self.model.generate(
                input_ids=padded,
                attention_mask=mask,
                max_new_tokens=max_new_tokens,
                pad_token_id=pad,
                **sampling,
            )
        return [self._decoded(ids, new.tolist()) for ids, new in zip(rows, written[:, longest:], strict=True)]

    def _decoded(self, prompt: list[int], new: list[int]) -> str:
        """The new part of the text. Decoded alone it would lose the space that it begins with."""
        before = self.tokenizer.decode(prompt, skip_special_tokens=True)
        return str(self.tokenizer.decode(prompt + new, skip_special_tokens=True)[len(before) :])

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
    if (checkpoint / STRUCTURE_FILE).is_file():
        return importlib.import_module(LAYERS_MODULE).load_delta(checkpoint)
    config = transformers.AutoConfig.from_pretrained(checkpoint)
    model_class = getattr(transformers, config.architectures[0])
    # The mean over tokens is the embedding; BERT would add a pooler that no checkpoint of a member has.
    takes_pooler = "add_pooling_layer" in inspect.signature(model_class.__init__).parameters
    options: dict[str, Any] = {"add_pooling_layer": False} if takes_pooler else {}
    return model_class.from_pretrained(checkpoint, config=config, **options)


mlflow.models.set_model(Member())
