"""The small pretrained decoder of the test data, its calibration texts and the measure that all its benchmarks share.

Protocol: 32 windows of 256 tokens, evenly spread over the last 231 TinyStories stories, and 32 over the test split of
WikiText-2; quality is the geometric mean of the two perplexities, and *excess* is that mean minus the unquantized
model's. Stories and paragraphs (lines of more than 40 characters) each start with BOS and are concatenated.
Calibration: half TinyStories (without the last 231), half the WikiText-103 prefix, windows of 256 tokens at seeded
random places.
"""

from __future__ import annotations

import json
import math
import os
import platform
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from ireko_trainer.quant import calibration_windows

WINDOW = 256
WINDOWS = 32
HELD_OUT_STORIES = 231
SHORTEST_PARAGRAPH = 40
_CALIBRATION_CHARACTERS = 3_000_000
_BATCH = 8
_DATA = Path(os.environ.get("IREKO_TEST_DATA", Path(__file__).resolve().parents[2] / "shared" / "data"))


@dataclass(frozen=True, kw_only=True)
class Texts:
    """Token windows [N, 256] int64."""

    stories: Tensor
    articles: Tensor
    calibration_stories: Tensor
    calibration_articles: Tensor

    def calibration(self, count: int, *, seed: int = 0) -> Tensor:
        """Return `count` windows [count, 256], alternately of both kinds."""
        halves = [
            calibration_windows(tokens=tokens, window=WINDOW, count=-(-count // 2), seed=seed, field="texts")
            for tokens in (self.calibration_stories, self.calibration_articles)
        ]
        return torch.stack(halves, dim=1).reshape(-1, WINDOW)[:count]


def model_directory(name: str = "decoder12") -> Path:
    """Where the test data keeps a model."""
    directory = _DATA / "models" / name
    if not directory.is_dir():
        sys.exit(f"no {directory}: set IREKO_TEST_DATA to a directory with models/ and text/")
    return directory


def load_decoder() -> PreTrainedModel:
    """The model in float32."""
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(model_directory(), dtype=torch.float32)
    return model.eval()


def load_texts(*, windows: int = WINDOWS) -> Texts:
    """Tokenize the test data; `windows` of each kind are what quality is measured on."""
    tokenizer = AutoTokenizer.from_pretrained(model_directory())
    text = (_DATA / "text" / "tinystories" / "tinystories_sample.txt").read_text()
    stories = [story.strip() for story in text.split("<|endoftext|>") if story.strip()]
    articles = _paragraphs(_DATA / "text" / "wikitext-2" / "test.txt")
    prefix = _paragraphs(_DATA / "text" / "wikitext-103-prefix" / "train_prefix.txt")

    def tokens(documents: list[str]) -> Tensor:
        rows = tokenizer(documents, add_special_tokens=False)["input_ids"]
        return torch.tensor([token for row in rows for token in (tokenizer.bos_token_id, *row)])

    return Texts(
        stories=_even_windows(tokens(stories[-HELD_OUT_STORIES:]), windows),
        articles=_even_windows(tokens(articles), windows),
        calibration_stories=tokens(stories[:-HELD_OUT_STORIES]),
        calibration_articles=tokens(_until(prefix, _CALIBRATION_CHARACTERS)),
    )


class Cache:
    """Results by what they depend on, written after each: a benchmark that was stopped goes on from here."""

    def __init__(self, name: str) -> None:
        self._path = Path(__file__).resolve().parent / ".cache" / f"{name}.json"
        self._found: dict[str, Any] = json.loads(self._path.read_text()) if self._path.is_file() else {}

    def get(self, key: Mapping[str, Any], compute: Callable[[], Any]) -> Any:
        """Return the result for `key` (JSON values), computed at most once."""
        text = json.dumps(key, sort_keys=True)
        if text not in self._found:
            start = time.perf_counter()
            self._found[text] = compute()
            self._path.parent.mkdir(exist_ok=True)
            partial = self._path.with_suffix(".partial")
            partial.write_text(json.dumps(self._found, indent=1))
            partial.replace(self._path)
            report(f"{text[-100:]}: {str(self._found[text])[:100]} ({time.perf_counter() - start:.1f} s)")
        return self._found[text]


def report(text: str) -> None:
    """Say something beside the result."""
    print(text, file=sys.stderr, flush=True)


def print_table(title: str, rows: list[dict[str, Any]]) -> None:
    """Print rows as Markdown."""
    header = list(dict.fromkeys(key for row in rows for key in row))
    print(f"\n{title}\n\n| " + " | ".join(header) + " |\n|" + "---|" * len(header))
    for row in rows:
        print("| " + " | ".join(str(row.get(key, "")) for key in header) + " |")


def versions() -> dict[str, str]:
    """Of what the numbers depend on."""
    found = {module.__name__: str(module.__version__) for module in (torch, transformers)}
    return {**found, "python": platform.python_version(), "machine": platform.machine()}


def print_result(
    benchmark: str,
    *,
    results: Mapping[str, Any],
    seeds: Iterable[int],
    peers: Mapping[str, str] | None = None,
) -> None:
    """Print the one JSON object that ends every benchmark; `peers` are versions of what it compared itself with."""
    found = {**versions(), **(peers or {})}
    print(json.dumps({"benchmark": benchmark, "results": results, "versions": found, "seeds": [*seeds]}))


def batches(windows: Tensor, *, size: int = _BATCH) -> list[dict[str, Tensor]]:
    """Cut windows [N, S] into batches for a model."""
    return [{"input_ids": part} for part in windows.split(size)]


def whole(batch: dict[str, Tensor]) -> dict[str, Tensor]:
    """A batch of whole windows, none of it padding."""
    return {**batch, "attention_mask": torch.ones_like(batch["input_ids"])}


def training_batches(texts: Texts, *, windows: int, seed: int) -> Callable[[int], dict[str, Tensor]]:
    """The batch of a step: a function of seed and step."""
    return lambda step: whole({"input_ids": texts.calibration(windows, seed=1_000_003 * (seed + 1) + step)})


def perplexity(model: PreTrainedModel, windows: Tensor) -> float:
    """Return exp of the mean loss per predicted token."""
    losses = []
    with torch.inference_mode():
        for part in windows.split(_BATCH):
            logits = model(input_ids=part, use_cache=False).logits[:, :-1]
            losses.append(
                torch.nn.functional.cross_entropy(
                    logits.flatten(0, 1), part[:, 1:].flatten(), reduction="none"
                )
            )
    return math.exp(float(torch.cat(losses).double().mean()))


def quality(model: PreTrainedModel, texts: Texts) -> float:
    """The geometric mean of the perplexities on stories and on articles; the smaller the better."""
    return math.sqrt(perplexity(model, texts.stories) * perplexity(model, texts.articles))


def _paragraphs(path: Path) -> list[str]:
    return [line for line in path.read_text().split("\n") if len(line) > SHORTEST_PARAGRAPH]


def _until(documents: list[str], characters: int) -> list[str]:
    kept, total = [], 0
    for document in documents:
        if total >= characters:
            break
        kept.append(document)
        total += len(document)
    return kept


def _even_windows(tokens: Tensor, wanted: int) -> Tensor:
    """`wanted` of the windows that the text divides into, the first and the last among them."""
    count = len(tokens) // WINDOW
    if wanted > count:
        sys.exit(f"{wanted} windows are wanted, and the text has {count}")
    return tokens[: count * WINDOW].view(count, WINDOW)[torch.linspace(0, count - 1, wanted).long()]
