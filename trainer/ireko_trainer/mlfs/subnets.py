"""The uses of a slice at rest: a standard config, a parameter count, a standard model."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor
from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.mlfs.architectures import architecture_of, layout_of, teacher_shape
from ireko_trainer.mlfs.axes import Layout, Role
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
    """The ordinary config of a subnet: the teacher's with four numbers changed."""
    check(shape, full=teacher_shape(config))
    names = architecture_of(config).config
    smaller = copy.deepcopy(config)
    setattr(smaller, names.hidden, shape.hidden)
    setattr(smaller, names.heads, shape.heads)
    setattr(smaller, names.intermediate, shape.intermediate)
    setattr(smaller, names.layers, len(shape.layers))
    return smaller


def count_parameters(model: PreTrainedModel, shape: Shape) -> ParameterCount:
    """Parameters of the subnet of this shape; `model` may lie on the meta device."""
    layout = layout_of(model)
    check(shape, full=layout.full)
    counts = dict.fromkeys(Role, 0)
    for place in layout.places.values():
        if place.layer is None or place.layer in shape.layers:
            counts[place.role] += math.prod(part.stop for part in layout.sliced(place, shape))
    return ParameterCount(body=counts[Role.BODY], embeddings=counts[Role.EMBEDDING], head=counts[Role.HEAD])


def skeleton(model: PreTrainedModel, shape: Shape) -> PreTrainedModel:
    """The ordinary Hugging Face model of the subnet's config, without storage: on the meta device."""
    with torch.device("meta"):
        hollow = type(model)(subnet_config(model.config, shape), **_constructor_arguments(model))
    hollow.eval()
    return hollow


def materialize(
    *, model: PreTrainedModel, layout: Layout, shape: Shape, read: Callable[[str, tuple[slice, ...]], Tensor]
) -> PreTrainedModel:
    """A standard model of this shape in its own storage.

    Args:
        model: the full model, for its class, config and buffers.
        layout: the full model's layout.
        shape: what to cut.
        read: returns the slice of the full model's parameter of that name; copied here, so it may be a view.
    """
    small = skeleton(model, shape)
    weights = {}
    for name, _ in small.named_parameters():
        source = layout.source_name(name, shape)
        weights[name] = (
            read(source, layout.sliced(layout.places[source], shape)).detach().clone().contiguous()
        )
    small.load_state_dict(weights, strict=False, assign=True)
    # Position and token-type ids are constants of the class, not weights: they are on no elastic axis.
    for name, buffer in model.named_buffers():
        owner, _, leaf = name.rpartition(".")
        small.get_submodule(owner).register_buffer(leaf, buffer.detach().clone(), persistent=False)
    small.requires_grad_(True)
    return small


def _constructor_arguments(model: PreTrainedModel) -> dict[str, bool]:
    """A base model loaded without its pooler must be built without it."""
    if hasattr(model, "pooler"):
        return {"add_pooling_layer": model.pooler is not None}
    return {}
