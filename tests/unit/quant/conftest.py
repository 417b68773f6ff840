"""Tiny models of every family, with weights that look like trained ones: no zeros, a few outliers."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    BertConfig,
    BertForSequenceClassification,
    BertModel,
    DistilBertConfig,
    DistilBertForSequenceClassification,
    DistilBertModel,
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
