from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    BertTokenizer,
    PreTrainedModel,
)

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "a", "bad", "film", "good", "is"]

SaveTeacher = Callable[..., Path]


@pytest.fixture
def save_teacher(tmp_path: Path) -> SaveTeacher:
    """Write a tiny random BERT with its tokenizer, as `save_pretrained` leaves it."""

    def save(
        name: str = "teacher", *, model_class: type[PreTrainedModel] = BertModel, **config: object
    ) -> Path:
        settings = {
            "vocab_size": 12,
            "hidden_size": 32,
            "num_hidden_layers": 2,
            "num_attention_heads": 2,
            "intermediate_size": 64,
            "max_position_embeddings": 40,
        }
        torch.manual_seed(0)
        directory = tmp_path / name
        model_class(BertConfig(**{**settings, **config})).save_pretrained(directory)
        (tmp_path / "vocab.txt").write_text("\n".join(WORDS))
        BertTokenizer(str(tmp_path / "vocab.txt")).save_pretrained(directory)
        return directory

    return save


@pytest.fixture
def save_classifier(save_teacher: SaveTeacher) -> SaveTeacher:
    """The same with a classification head."""

    def save(name: str = "teacher", **config: object) -> Path:
        return save_teacher(name, model_class=BertForSequenceClassification, **config)

    return save
