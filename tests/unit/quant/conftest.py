"""Tiny models of every family, with weights that look like trained ones: no zeros, a few outliers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
    PretrainedConfig,
    PreTrainedModel,
    RobertaConfig,
    RobertaForSequenceClassification,
    RobertaModel,
)

Build = Callable[..., PreTrainedModel]

FAMILIES = ("bert", "roberta", "distilbert")
VOCABULARY = 101


@pytest.fixture
def build() -> Build:
    """Return a builder: `build("bert", hidden=64, intermediate=96, layers=3, classifier=True)`."""

    def make(
        family: str, *, hidden: int = 64, intermediate: int = 96, layers: int = 3, classifier: bool = False
    ) -> PreTrainedModel:
        torch.manual_seed(7)
        model = _model(family, hidden, intermediate, layers, classifier)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
                parameter.add_((torch.rand_like(parameter) < 0.01) * torch.randn_like(parameter) * 0.5)
        return model.eval()

    return make


def _model(family: str, hidden: int, intermediate: int, layers: int, classifier: bool) -> PreTrainedModel:
    common = {"vocab_size": VOCABULARY, "max_position_embeddings": 40, "num_labels": 2}
    if family == "distilbert":
        config = DistilBertConfig(dim=hidden, hidden_dim=intermediate, n_layers=layers, n_heads=4, **common)
        return (DistilBertForSequenceClassification if classifier else DistilBertModel)(config)
    names = {"hidden_size": hidden, "intermediate_size": intermediate, "num_hidden_layers": layers}
    if family == "roberta":
        config = RobertaConfig(**names, num_attention_heads=4, **common)
        return (RobertaForSequenceClassification if classifier else RobertaModel)(config)
    config = BertConfig(**names, num_attention_heads=4, **common)
    return (BertForSequenceClassification if classifier else BertModel)(config)


@pytest.fixture
def batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(3)
    ids = torch.randint(5, VOCABULARY, (4, 12), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, 7:] = 0
    mask[3, 3:] = 0
    return {"input_ids": ids, "attention_mask": mask}


@pytest.fixture
def decoder() -> Callable[..., PreTrainedModel]:
    """Return a builder of tiny decoders: `decoder("gemma3", hidden=64, intermediate=96, layers=2)`."""

    def make(
        style: str, *, hidden: int = 64, intermediate: int = 96, layers: int = 2, tied: bool = True
    ) -> PreTrainedModel:
        torch.manual_seed(11)
        config = _decoder_config(style, hidden, intermediate, layers, tied)
        model = AutoModelForCausalLM.from_config(config)
        with torch.no_grad():
            for parameter in model.parameters():
                parameter.add_(torch.randn_like(parameter) * 0.05)
        return model.eval()

    return make


def _decoder_config(style: str, hidden: int, intermediate: int, layers: int, tied: bool) -> PretrainedConfig:
    if style == "gpt2":
        return AutoConfig.for_model(
            "gpt2", vocab_size=VOCABULARY, n_positions=64, n_embd=hidden, n_layer=layers, n_head=4
        )
    own: dict[str, object] = {}
    if style.startswith("gemma"):
        # One block of either kind of attention, and a window that the test texts overrun.
        own = {
            "layer_types": ["sliding_attention", "full_attention"] * (layers // 2),
            "sliding_window": 8,
        }
    if style == "phi3":
        own = {"pad_token_id": 0}
    return AutoConfig.for_model(
        style if style != "gemma3" else "gemma3_text",
        vocab_size=VOCABULARY,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=hidden // 4,
        max_position_embeddings=64,
        tie_word_embeddings=tied,
        **own,
    )
