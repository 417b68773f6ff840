"""Blocks that keep their inputs alone and compute the rest again on the way back: gradient checkpointing.

The recomputation runs in the backward pass, when `functional_call` has long taken its views out of the model again
and the blocks are as hollow as before. So a block remembers which tensors it was called with and is called with them
once more. Transformers' own checkpointing does neither that nor anything at all in evaluation mode, in which subnets
are trained.
"""

from __future__ import annotations

import copy
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.utils.checkpoint import checkpoint

from ireko_trainer.mlfs.axes import Layout

Call = Callable[..., Any]


def blocks_of(model: nn.Module, *, layout: Layout, layers: int) -> list[nn.Module]:
    """The blocks of a model, or of a subnet of it, whose layers are renumbered."""
    return [model.get_submodule(f"{layout.block_prefix}{index}") for index in range(layers)]


@contextmanager
def recomputed(blocks: Sequence[nn.Module], *, enabled: bool = True) -> Iterator[None]:
    """Let blocks keep nothing but their inputs while they are called; outputs and gradients stay the same.

    The backward pass may come after the context has ended.
    """
    if not enabled:
        yield
        return
    for block in blocks:
        # An attribute of the object hides the method of its class; hooks and names stay where they are.
        block.forward = _recomputing(block)
    try:
        yield
    finally:
        for block in blocks:
            del block.forward


def _recomputing(block: nn.Module) -> Call:
    inner = _without_hooks(block)

    def forward(*args: Any, **kwargs: Any) -> Any:
        weights: dict[str, Tensor] = dict(inner.named_parameters(remove_duplicate=False))

        def call(*args: Any, **kwargs: Any) -> Any:
            return functional_call(inner, weights, args, kwargs, tie_weights=False)

        if not torch.is_grad_enabled():
            return inner(*args, **kwargs)
        return checkpoint(call, *args, use_reentrant=False, preserve_rng_state=block.training, **kwargs)

    return forward


def _without_hooks(block: nn.Module) -> nn.Module:
    """The same parameters and submodules under another module, whose forward is the class's own.

    Hooks of the block itself run where it is called, once, and not again in the recomputation.
    """
    inner = copy.copy(block)
    inner._forward_hooks = OrderedDict()
    inner._forward_pre_hooks = OrderedDict()
    return inner
