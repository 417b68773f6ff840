"""What a training step would keep for its backward pass, found by a pass over tensors that have no content.

The model's own code runs on fake tensors, which know their sizes and their types and nothing else: no weights, no
arithmetic, a fraction of a second for any size. So what is counted is what transformers, PEFT and autocast really
keep, family by family, and not what a formula remembers of them.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.autograd.graph import saved_tensors_hooks
from torch.func import functional_call
from transformers import PretrainedConfig, PreTrainedModel

from ireko_trainer.memory.skeletons import hollow_model
from ireko_trainer.mlfs import Supernet, architecture_of


@dataclass(frozen=True, kw_only=True)
class Pass:
    """One forward pass of a training step on one worker."""

    rows: int
    length: int
    """Tokens of the longest text, to which the others are padded."""
    precision: torch.dtype
    rank: int | None
    """Of the low-rank pairs that train; None: all weights train."""
    dropout: bool = False


@dataclass(frozen=True, kw_only=True)
class Kept:
    """Bytes that a forward pass keeps for the backward pass, weights left out."""

    per_layer: int
    elsewhere: int
    """Embeddings, final norm, head."""


def kept_bytes(*, config: PretrainedConfig, task: str, step: Pass, trust_remote_code: bool = False) -> Kept:
    """What a pass keeps per layer and elsewhere: a model of one layer and one of two tell them apart."""
    hollow = partial(hollow_model, task=task, trust_remote_code=trust_remote_code)
    one, two = (_kept(hollow(_shallow(config, layers)), step=step) for layers in (1, 2))
    return Kept(per_layer=two - one, elsewhere=max(0, 2 * one - two))


def _shallow(config: PretrainedConfig, layers: int) -> PretrainedConfig:
    """The same model with its first layer, once or twice."""
    names = architecture_of(config).config
    shallow = copy.deepcopy(config)
    setattr(shallow, names.layers, layers)
    if getattr(config, "layer_types", None) is not None:
        shallow.layer_types = [config.layer_types[0]] * layers
    return shallow


def _kept(model: PreTrainedModel, *, step: Pass) -> int:
    architecture = architecture_of(model.config)
    hollow, given = _called(model, step=step)
    hollow.train(step.dropout)
    with FakeTensorMode():
        weights = {
            name: torch.empty(one.shape, dtype=one.dtype).requires_grad_(one.requires_grad)
            for name, one in given.items()
        }
        ids = torch.zeros(step.rows, step.length, dtype=torch.long)
        batch = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
        counter = _Counter(weights)
        autocast = torch.autocast("cpu", dtype=torch.bfloat16, enabled=step.precision == torch.bfloat16)
        with saved_tensors_hooks(counter.count, lambda tensor: tensor), autocast:
            functional_call(
                hollow,
                weights,
                kwargs={**batch, **architecture.options, "output_hidden_states": True, "return_dict": True},
                tie_weights=False,
            )
    return counter.bytes


def _called(model: PreTrainedModel, *, step: Pass) -> tuple[nn.Module, dict[str, Tensor]]:
    """What a step calls, and everything that it is called with: weights, pairs and constants, all without storage."""
    if step.rank is None:
        hollow: nn.Module = model
        given = dict(model.named_parameters(remove_duplicate=False))
    else:
        supernet = Supernet(model=model, rank=step.rank, precision=step.precision)
        supernet.begin_stage("dry", seed=0)
        hollow, given = supernet.called_with(supernet.full)
    return hollow, {**given, **dict(hollow.named_buffers(remove_duplicate=False))}


class _Counter:
    """Adds up the storages of what autograd keeps, each once, those of the weights left out."""

    def __init__(self, weights: Mapping[str, Tensor]) -> None:
        self.bytes = 0
        # Kept, so that no storage takes the address of one that is gone.
        self._seen = {one.untyped_storage()._cdata: one.untyped_storage() for one in weights.values()}

    def count(self, tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in self._seen:
            self._seen[storage._cdata] = storage
            self.bytes += storage.nbytes()
        return tensor
