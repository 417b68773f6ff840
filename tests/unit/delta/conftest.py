"""Tiny models of several families, whose blocks are alike where a test wants them to be."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    BertConfig,
    BertForSequenceClassification,
    PreTrainedModel,
)

Build = Callable[..., PreTrainedModel]
VOCABULARY = 67


@pytest.fixture
def build() -> Build:
    """Return a builder: `build("llama", layers=4, likeness=0.9)`.

    `likeness` is about the cosine between the same matrix of two blocks.
    """

    def make(
        style: str, *, hidden: int = 32, intermediate: int = 48, layers: int = 4, likeness: float = 0.0
    ) -> PreTrainedModel:
        torch.manual_seed(5)
        model = _model(style, hidden, intermediate, layers)
        blocks: dict[str, torch.Tensor] = {}
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                noise = (
                    torch.randn_like(parameter) * parameter.shape[-1] ** -0.5 if parameter.dim() > 1 else 0.1
                )
                if parameter.dim() == 1:
                    parameter.add_(torch.randn_like(parameter) * 0.1)
                    continue
                suffix = ".".join(part for part in name.split(".") if not part.isdigit())
                common = blocks.setdefault(suffix, torch.randn_like(parameter) * parameter.shape[-1] ** -0.5)
                parameter.copy_(likeness**0.5 * common + (1 - likeness) ** 0.5 * noise)
        return model.eval()

    return make


def _model(style: str, hidden: int, intermediate: int, layers: int) -> PreTrainedModel:
    if style == "bert":
        return BertForSequenceClassification(
            BertConfig(
                vocab_size=VOCABULARY,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=4,
                max_position_embeddings=40,
                num_labels=3,
            )
        )
    if style == "gpt2":
        config = AutoConfig.for_model(
            "gpt2", vocab_size=VOCABULARY, n_positions=64, n_embd=hidden, n_layer=layers, n_head=4
        )
        return AutoModelForCausalLM.from_config(config)
    return AutoModelForCausalLM.from_config(
        AutoConfig.for_model(
            style,
            vocab_size=VOCABULARY,
            hidden_size=hidden,
            intermediate_size=intermediate,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            max_position_embeddings=64,
            tie_word_embeddings=True,
        )
    )


@pytest.fixture
def texts() -> list[dict[str, torch.Tensor]]:
    """Two batches, one of them padded."""
    generator = torch.Generator().manual_seed(3)
    full = {"input_ids": torch.randint(3, VOCABULARY, (8, 16), generator=generator)}
    full["attention_mask"] = torch.ones_like(full["input_ids"])
    ragged = {name: tensor.clone() for name, tensor in full.items()}
    ragged["attention_mask"][0, 9:] = 0
    return [full, ragged]
