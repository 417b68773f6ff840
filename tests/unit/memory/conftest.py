"""Manifests around configs, and a count of the bytes that tensors really take."""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakIdKeyDictionary
from transformers import AutoConfig, PretrainedConfig

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.memory import AtOnce

AT_ONCE = AtOnce(
    order_rows=32, delta_rows=8, batch_tokens=8192, sample_rows=256, sample_tokens=32768, baselines=4
)

MakeSpec = Callable[..., CompressionRunSpec]


class Live(TorchDispatchMode):
    """Bytes of the storages that are alive, of all that were made inside: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._known = WeakIdKeyDictionary()

    def __torch_dispatch__(
        self, function: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = function(*args, **(kwargs or {}))
        for leaf in tree_leaves(result):
            if isinstance(leaf, torch.Tensor):
                self._count(leaf.untyped_storage())
        return result

    def _count(self, storage: torch.UntypedStorage) -> None:
        if storage in self._known:
            return
        size = storage.nbytes()
        self._known[storage] = size
        self.now += size
        self.peak = max(self.peak, self.now)
        weakref.finalize(storage, self._free, size)

    def _free(self, size: int) -> None:
        self.now -= size


@pytest.fixture
def make_spec() -> MakeSpec:
    def make(
        *, task: str = "text-generation", mlfs: dict[str, Any] | None = None, **parts: Any
    ) -> CompressionRunSpec:
        pipeline = {"quantization": parts.pop("quantization", {})}
        train = {"uri": "train.jsonl"}
        if task != "text-generation":
            train["labelColumn"] = "label"
        return CompressionRunSpec.model_validate(
            {
                "teacher": {"model": "teacher", "task": task},
                "data": {"train": train},
                "pipeline": pipeline if mlfs is None else {**pipeline, "mlfs": mlfs},
                "deviceTargets": [{"name": "gateway", "constraints": {"maxSizeMiB": 4000}}],
                **parts,
            }
        )

    return make


def qwen2(**sizes: int) -> PretrainedConfig:
    """Qwen2.5-7B as its config.json says, or with other sizes."""
    whole = {
        "hidden_size": 3584,
        "intermediate_size": 18944,
        "num_hidden_layers": 28,
        "num_attention_heads": 28,
        "num_key_value_heads": 4,
        "vocab_size": 152064,
        "max_position_embeddings": 32768,
    }
    return AutoConfig.for_model("qwen2", **{**whole, **sizes}, tie_word_embeddings=False, dtype="bfloat16")
