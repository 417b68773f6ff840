"""Tiny random models of every family, and batches for them."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from transformers import (
    AutoConfig,
    AutoModel,
    AutoModelForCausalLM,
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

from ireko_trainer.mlfs import Batch, Shape, layout_of

VOCABULARY = 60

MakeModel = Callable[..., PreTrainedModel]

ENCODERS = ("bert", "roberta", "distilbert")
KINDS = ("full_attention", "sliding_attention")
"""Of attention, turn by turn."""
LLAMA_LIKE: dict[str, dict[str, object]] = {
    "llama": {"head_dim": 12, "attention_bias": True, "mlp_bias": True, "tie_word_embeddings": True},
    "mistral": {"sliding_window": 4},
    "qwen2": {"tie_word_embeddings": True, "use_sliding_window": True, "sliding_window": 4},
    "qwen3": {"head_dim": 20, "use_sliding_window": True, "sliding_window": 4},
    "gemma2": {"head_dim": 20, "query_pre_attn_scalar": 12, "sliding_window": 4},
    "gemma3_text": {"head_dim": 12, "sliding_window": 4},
    "phi3": {"num_key_value_heads": 2},
}
"""Family -> what its config says beside the sizes: heads larger than hidden / heads, heads tied to the embeddings."""
DECODERS = (*LLAMA_LIKE, "gpt2")


def make_model(
    family: str,
    *,
    task: bool = True,
    hidden: int = 48,
    heads: int = 4,
    intermediate: int = 96,
    layers: int = 4,
    labels: int = 3,
    seed: int = 0,
) -> PreTrainedModel:
    """A model of the family with weights large enough that every one of them shows in the output.

    `task` is classification for encoders, text generation for decoders.
    """
    common = {
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 40,
        "num_labels": labels,
        "pad_token_id": 0,
        "attn_implementation": "eager",
    }
    bert_like = {
        "hidden_size": hidden,
        "num_attention_heads": heads,
        "intermediate_size": intermediate,
        "num_hidden_layers": layers,
    }
    torch.manual_seed(seed)
    model: PreTrainedModel
    if family in DECODERS:
        auto = AutoModelForCausalLM if task else AutoModel
        model = auto.from_config(decoder_config(family, common, bert_like), attn_implementation="eager")
    elif family == "bert":
        config = BertConfig(**common, **bert_like)
        model = BertForSequenceClassification(config) if task else BertModel(config, add_pooling_layer=False)
    elif family == "roberta":
        config = RobertaConfig(**common, **bert_like, type_vocab_size=1)
        model = (
            RobertaForSequenceClassification(config)
            if task
            else RobertaModel(config, add_pooling_layer=False)
        )
    else:
        config = DistilBertConfig(
            **common, dim=hidden, n_heads=heads, hidden_dim=intermediate, n_layers=layers
        )
        model = DistilBertForSequenceClassification(config) if task else DistilBertModel(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * (0.2 if parameter.dim() == 1 else 0.06))
    return model.eval()


def decoder_config(family: str, common: dict[str, object], sizes: dict[str, object]) -> AutoConfig:
    """The config of a tiny decoder with two query heads for each key-value head."""
    if family == "gpt2":
        inner = sizes["intermediate_size"]
        return AutoConfig.for_model(
            "gpt2", **common, **{**sizes, "n_inner": inner, "intermediate_size": inner}
        )
    heads = sizes["num_attention_heads"]
    extra: dict[str, object] = {"num_key_value_heads": heads // 2 or 1, **LLAMA_LIKE[family]}
    extra["num_key_value_heads"] = heads // 2 or 1
    if family in ("qwen2", "qwen3", "gemma2", "gemma3_text"):
        extra["layer_types"] = [KINDS[layer % 2] for layer in range(sizes["num_hidden_layers"])]
    return AutoConfig.for_model(family, **common, **sizes, **extra)


def make_batch(
    *, rows: int = 6, length: int = 9, labels: int | None = 3, seed: int = 0, padded: bool = True
) -> Batch:
    """Random padded sentences of mixed length; the first word says the class, so that it can be learnt."""
    generator = torch.Generator().manual_seed(seed)
    ids = torch.randint(3, VOCABULARY, (rows, length), generator=generator)
    lengths = torch.randint(2, length + 1, (rows,), generator=generator)
    lengths[0 if padded else slice(None)] = length
    mask = (torch.arange(length) < lengths[:, None]).long()
    batch = {"input_ids": ids * mask, "attention_mask": mask, "token_type_ids": torch.zeros_like(ids)}
    if labels is not None:
        batch["labels"] = ids[:, 0] % labels
    return batch


def answer(output: dict[str, torch.Tensor]) -> torch.Tensor:
    """What a model says: logits, or the real hidden states of a base model."""
    return output["logits"] if "logits" in output else output["last_hidden_state"]


def ask(model: PreTrainedModel, batch: Batch) -> torch.Tensor:
    """What a plain model says to a batch."""
    architecture = layout_of(model).architecture
    inputs = {name: batch[name] for name in architecture.model_inputs if name in batch}
    with torch.no_grad():
        return answer(model(**inputs, **architecture.options))


SMALL = Shape(hidden=24, heads=2, intermediate=32, layers=(0, 3))
"""A shape cut on every axis of the default model."""


@pytest.fixture(params=[*ENCODERS, *DECODERS])
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(params=ENCODERS)
def encoder(request: pytest.FixtureRequest) -> str:
    return str(request.param)
