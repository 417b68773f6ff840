"""Tiny random encoders with a real tokenizer, as checkpoints on disk."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "a", "bad", "film", "good", "is", "not", "the", "very", "what")


@pytest.fixture(scope="session")
def tokenizer() -> Any:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    words.normalizer = normalizers.Lowercase()
    words.pre_tokenizer = pre_tokenizers.Whitespace()
    words.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B:1 [SEP]:1",
        special_tokens=[("[CLS]", 2), ("[SEP]", 3)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=words, pad_token="[PAD]", unk_token="[UNK]", cls_token="[CLS]", sep_token="[SEP]"
    )


def config(**options: Any) -> BertConfig:
    return BertConfig(
        vocab_size=len(WORDS),
        hidden_size=32,
        num_hidden_layers=2,
        num_attention_heads=4,
        intermediate_size=64,
        max_position_embeddings=64,
        **options,
    )


def save(model: Any, directory: Path) -> Path:
    model.eval().save_pretrained(directory)
    return directory


@pytest.fixture
def encoder_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(BertModel(config(), add_pooling_layer=False), tmp_path / "encoder")


@pytest.fixture
def classifier_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    return save(BertForSequenceClassification(config(num_labels=2)), tmp_path / "classifier")


@pytest.fixture
def regressor_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    model = BertForSequenceClassification(config(num_labels=1, problem_type="regression"))
    return save(model, tmp_path / "regressor")


@pytest.fixture(scope="session")
def writer_tokenizer(tokenizer: Any) -> Any:
    """Documents begin with [CLS]; a conversation is its contents."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer.backend_tokenizer,
        bos_token="[CLS]",
        eos_token="[SEP]",
        unk_token="[UNK]",
        chat_template="{% for m in messages %}{{ m.content + ' ' }}{% endfor %}",
    )


@pytest.fixture
def decoder_checkpoint(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 64}
    tokens = {"bos_token_id": 2, "eos_token_id": 3, "initializer_range": 0.4}
    model = LlamaForCausalLM(
        LlamaConfig(
            vocab_size=len(WORDS), num_key_value_heads=2, max_position_embeddings=64, **sizes, **tokens
        )
    )
    return save(model, tmp_path / "decoder")
