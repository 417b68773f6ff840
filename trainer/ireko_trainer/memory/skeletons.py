"""A model's sizes, read off the model itself, built from its config without any storage."""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.mlfs import layout_of, teacher_shape
from ireko_trainer.teacher import model_class


@dataclass(frozen=True, kw_only=True)
class Sizes:
    """What the arithmetic of memory has to know of a model: numbers, not bytes."""

    parameters: int
    """Each once: a head that is tied to the embeddings has none of its own."""
    blocks: int
    """Parameters of all blocks."""
    block: int
    """Parameters of the largest block."""
    pair_per_rank: int
    """Of low-rank pairs of rank 1 over every linear."""
    hidden: int
    layers: int
    moments: dict[int, int]
    """Columns of the matrices inside a block -> their rows, of all that have so many columns."""
    vocabulary: int | None
    """Answers for every token, of a language model."""
    head_has_pair: bool
    """The head is no other name of the embeddings, and so gets a low-rank pair."""


def hollow_model(config: PretrainedConfig, *, task: str) -> PreTrainedModel:
    """The model that a config describes, float32, in evaluation mode, on the meta device."""
    auto_class, options = model_class(config, task=task)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(
            config, dtype=torch.float32, attn_implementation="eager", **options
        )
    return model.eval()


def sizes_of(config: PretrainedConfig, *, task: str) -> Sizes:
    """Count what a config describes.

    Raises UserError for a family without an axis table.
    """
    full = teacher_shape(config)
    model = hollow_model(config, task=task)
    places = layout_of(model).places
    blocks = dict.fromkeys(full.layers, 0)
    moments: Counter[int] = Counter()
    for place in places.values():
        if place.layer is not None:
            blocks[place.layer] += math.prod(place.size)
    pair_per_rank = 0
    for name, module in model.named_modules():
        if not isinstance(module, nn.Linear | Conv1D) or f"{name}.weight" not in places:
            continue
        rows, columns = (
            module.weight.shape if isinstance(module, nn.Linear) else reversed(module.weight.shape)
        )
        pair_per_rank += rows + columns
        if places[f"{name}.weight"].layer == full.layers[0]:
            moments[columns] += rows
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=sum(blocks.values()),
        block=max(blocks.values()),
        pair_per_rank=pair_per_rank,
        hidden=full.hidden,
        layers=len(full.layers),
        moments=dict(moments),
        vocabulary=config.vocab_size if task == "text-generation" else None,
        head_has_pair="lm_head.weight" in places,
    )
