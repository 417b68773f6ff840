"""A model's sizes, read off the model itself, built from its config without any storage."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import nn
from transformers import PretrainedConfig, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.mlfs import Axis, layout_of, teacher_shape
from ireko_trainer.mlfs.axes import Place
from ireko_trainer.teacher import model_class


@dataclass(frozen=True, kw_only=True)
class Reading:
    """The matrices of a block that read the same tensor."""

    columns: int
    rows: tuple[int, ...]
    """Of each of them."""
    feed_forward: bool
    """Otherwise they are the attention's."""


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
    readings: tuple[Reading, ...]
    """Of one block."""
    vocabulary: int | None
    """Answers for every token, of a language model."""
    head_has_pair: bool
    """The head is no other name of the embeddings, and so gets a low-rank pair."""


def hollow_model(config: PretrainedConfig, *, task: str, trust_remote_code: bool = False) -> PreTrainedModel:
    """The model that a config describes, float32, in evaluation mode, on the meta device."""
    auto_class, options = model_class(config, task=task)
    with torch.device("meta"):
        model: PreTrainedModel = auto_class.from_config(
            config,
            dtype=torch.float32,
            attn_implementation="eager",
            trust_remote_code=trust_remote_code,
            **options,
        )
    return model.eval()


def sizes_of(config: PretrainedConfig, *, task: str, trust_remote_code: bool = False) -> Sizes:
    """Count what a config describes.

    Raises UserError for a family without an axis table.
    """
    full = teacher_shape(config)
    model = hollow_model(config, task=task, trust_remote_code=trust_remote_code)
    places = layout_of(model).places
    blocks = dict.fromkeys(full.layers, 0)
    for place in places.values():
        if place.layer is not None:
            blocks[place.layer] += math.prod(place.size)
    linears = {
        name: isinstance(module, Conv1D)
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" in places
    }
    first = {
        name: transposed
        for name, transposed in linears.items()
        if places[f"{name}.weight"].layer == full.layers[0]
    }
    return Sizes(
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        blocks=sum(blocks.values()),
        block=max(blocks.values()),
        pair_per_rank=sum(sum(places[f"{name}.weight"].size) for name in linears),
        hidden=full.hidden,
        layers=len(full.layers),
        readings=_readings(first, places),
        vocabulary=config.vocab_size if task == "text-generation" else None,
        head_has_pair="lm_head.weight" in places,
    )


def _readings(linears: Mapping[str, bool], places: Mapping[str, Place]) -> tuple[Reading, ...]:
    """Those that belong to one module and read the same axis read the same tensor."""
    found: dict[tuple[str, Axis], list[tuple[int, int, bool]]] = {}
    for name, transposed in linears.items():
        place = places[f"{name}.weight"]
        axes = [axis if isinstance(axis, tuple) else (axis,) for axis in place.axes]
        (outputs, inputs), (rows, columns) = axes, place.size
        if transposed:
            outputs, inputs, rows, columns = inputs, outputs, columns, rows
        key = (name.rpartition(".")[0], inputs[0])
        found.setdefault(key, []).append((rows, columns, Axis.INTERMEDIATE in (*outputs, *inputs)))
    return tuple(
        Reading(
            columns=matrices[0][1], rows=tuple(rows for rows, _, _ in matrices), feed_forward=matrices[0][2]
        )
        for matrices in found.values()
    )
