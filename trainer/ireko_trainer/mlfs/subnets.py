"""The uses of a slice at rest: a standard config, a parameter count, a standard model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.mlfs.architectures import architecture_of, layout_of, teacher_heads, teacher_shape
from ireko_trainer.mlfs.axes import Layout, Parts, Role, head_size
from ireko_trainer.mlfs.shapes import Shape, check


@dataclass(frozen=True, kw_only=True)
class ParameterCount:
    """Parameters by part. Embeddings are often half of a small model: a ratio must say of what."""

    body: int
    embeddings: int
    head: int

    @property
    def total(self) -> int:
        """All parameters."""
        return self.body + self.embeddings + self.head


def subnet_config(config: PretrainedConfig, shape: Shape) -> PretrainedConfig:
    """The ordinary config of a subnet: the teacher's with other sizes, and what it says of each kept layer."""
    architecture = architecture_of(config)
    heads = teacher_heads(config)
    check(shape, full=teacher_shape(config), heads=heads)
    names = architecture.config
    smaller = copy.deepcopy(config)
    if names.head_size is not None:
        setattr(smaller, names.head_size, head_size(architecture=architecture, config=config))
    if names.kv_heads is not None:
        setattr(smaller, names.kv_heads, shape.heads // heads.per_group)
    if getattr(config, "layer_types", None) is not None:
        smaller.layer_types = [config.layer_types[layer] for layer in shape.layers]
    setattr(smaller, names.hidden, shape.hidden)
    setattr(smaller, names.heads, shape.heads)
    setattr(smaller, names.intermediate, shape.intermediate)
    setattr(smaller, names.layers, len(shape.layers))
    return smaller


def count_parameters(model: PreTrainedModel, shape: Shape) -> ParameterCount:
    """Parameters of the subnet of this shape; `model` may lie on the meta device."""
    layout = layout_of(model)
    check(shape, full=layout.full, heads=layout.heads)
    counts = dict.fromkeys(Role, 0)
    for place in layout.places.values():
        if place.layer is None or place.layer in shape.layers:
            counts[place.role] += math.prod(layout.size(place, shape))
    return ParameterCount(body=counts[Role.BODY], embeddings=counts[Role.EMBEDDING], head=counts[Role.HEAD])


def skeleton(model: PreTrainedModel, shape: Shape) -> PreTrainedModel:
    """The ordinary Hugging Face model of the subnet's config, its weights without storage: on the meta device.

    Its buffers are real, where the model's are: constants that are no weights, such as rotary frequencies.
    """
    with torch.device("meta"):
        hollow = type(model)(subnet_config(model.config, shape), **_constructor_arguments(model))
    hollow.eval()
    _fill_buffers(hollow, model=model, layout=layout_of(model), shape=shape)
    return hollow


def _fill_buffers(hollow: PreTrainedModel, *, model: PreTrainedModel, layout: Layout, shape: Shape) -> None:
    known = dict(model.named_buffers())
    for owner, module in hollow.named_modules():
        names = [name for name, _ in module.named_buffers(recurse=False)]
        for name in names:
            source = layout.source_name(f"{owner}.{name}" if owner else name, shape)
            setattr(module, name, known[source].detach().clone())
        if names:
            # Gemma's scale of the embeddings depends on the hidden size: the class knows what it has to be.
            with torch.no_grad():
                hollow._init_weights(module)


def materialize(
    *, model: PreTrainedModel, layout: Layout, shape: Shape, read: Callable[[str, Parts], Tensor]
) -> PreTrainedModel:
    """A standard model of this shape in its own storage.

    Args:
        model: the full model, for its class, config and buffers.
        layout: the full model's layout.
        shape: what to cut.
        read: returns the kept parts of the full model's parameter of that name; copied here, so it may be a view.
    """
    small = skeleton(model, shape)
    weights = {}
    for name, _ in small.named_parameters():
        source = layout.source_name(name, shape)
        weights[name] = read(source, layout.parts(layout.places[source], shape)).detach().clone().contiguous()
    small.load_state_dict(weights, strict=False, assign=True)
    small.tie_weights()
    if small.can_generate():
        # The config does not hold all of it: a chat model stops at more than one token.
        small.generation_config = copy.deepcopy(model.generation_config)
    small.requires_grad_(True)
    return small


def _constructor_arguments(model: PreTrainedModel) -> dict[str, bool]:
    """A base model loaded without its pooler must be built without it."""
    if hasattr(model, "pooler"):
        return {"add_pooling_layer": model.pooler is not None}
    return {}
