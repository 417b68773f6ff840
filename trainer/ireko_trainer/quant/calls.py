"""How a model calls its transformer blocks: their inputs, masks and positions, found by running the model once.

Families differ in what a block is given (rotary positions, a mask for each kind of attention, nothing at all), and
agree in that a block takes hidden states first and returns them. So the model itself runs with its blocks replaced by
recorders: what it would have given each block is all that is needed to run the blocks one by one, or from the middle.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

Batch = Mapping[str, Tensor]


@dataclass(frozen=True, kw_only=True)
class Arguments:
    """What a block is called with, besides the hidden states."""

    args: tuple[Any, ...]
    kwargs: Mapping[str, Any]

    def call(self, block: nn.Module, hidden: Tensor) -> Tensor:
        """Run `block` on `hidden` [B, S, D]."""
        return _hidden(block(hidden, *self.args, **self.kwargs))


@dataclass(frozen=True, kw_only=True)
class Recorded:
    """One batch on its way into the blocks."""

    hidden: Tensor
    """[B, S, D], the input of the first block."""
    arguments: tuple[Arguments, ...]
    """One for each block."""
    mask: Tensor | None
    """[B, S] bool: which tokens are real. None: all of them."""

    def to(self, dtype: torch.dtype) -> Recorded:
        """The same with floating tensors of another type."""
        arguments = tuple(
            Arguments(args=_cast(one.args, dtype), kwargs=_cast(dict(one.kwargs), dtype))
            for one in self.arguments
        )
        return Recorded(hidden=self.hidden.to(dtype), arguments=arguments, mask=self.mask)


def _cast(value: Any, dtype: torch.dtype) -> Any:
    if isinstance(value, Tensor):
        return value.to(dtype) if value.is_floating_point() else value
    if isinstance(value, tuple):
        return tuple(_cast(one, dtype) for one in value)
    if isinstance(value, dict):
        return {name: _cast(one, dtype) for name, one in value.items()}
    return value


class _AfterBlocksError(Exception):
    """Ends a forward pass that has served its purpose."""


def record(*, model: PreTrainedModel, blocks: Sequence[nn.Module], batch: Batch) -> Recorded:
    """Run `batch` up to the blocks of `model`. The blocks' own weights are not touched and may be absent."""
    hidden: list[Tensor] = []
    arguments: list[Arguments] = []

    def recorder(states: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        if not hidden:
            hidden.append(states)
        arguments.append(Arguments(args=args, kwargs=kwargs))
        if len(arguments) == len(blocks):
            raise _AfterBlocksError
        return states

    with (
        suppress(_AfterBlocksError),
        _replaced(blocks, [recorder] * len(blocks)),
        _without_cache(model),
        torch.no_grad(),
    ):
        model(**inputs(batch))
    mask = batch.get("attention_mask")
    padded = mask is not None and not bool(mask.bool().all())
    return Recorded(
        hidden=hidden[0],
        arguments=tuple(arguments),
        mask=mask.bool() if mask is not None and padded else None,
    )


def resume(
    *, model: PreTrainedModel, blocks: Sequence[nn.Module], start: int, hidden: Tensor, batch: Batch
) -> Any:
    """Return the output of `model` on `batch` when block `start` gets `hidden` as its input.

    The blocks before it are not run. `start` may be the number of blocks: then only the head runs.
    """

    def skip(states: Tensor, *_: Any, **__: Any) -> Tensor:
        return states

    def enter(*_: Any, **__: Any) -> Tensor:
        return hidden

    # The last skipped block hands the given states over; when none is skipped the first block's input is replaced.
    stand_ins: list[Callable[..., Tensor]] = [skip] * max(0, start - 1) + [enter] * min(1, start)
    handle = None
    if start == 0:
        handle = blocks[0].register_forward_pre_hook(
            lambda _, args, kwargs: ((hidden, *args[1:]), kwargs), with_kwargs=True
        )
    try:
        with _replaced(blocks[:start], stand_ins), _without_cache(model), torch.no_grad():
            return model(**inputs(batch))
    finally:
        if handle is not None:
            handle.remove()


def input_groups(
    *, block: nn.Module, modules: Mapping[str, nn.Module], hidden: Tensor, arguments: Arguments
) -> list[tuple[str, ...]]:
    """Group the named modules by the tensor that they read, in the order in which the block calls them.

    `hidden` may be a single token's states when the arguments do not depend on the length.
    """
    found: list[tuple[Tensor, list[str]]] = []

    def hook(name: str) -> Callable[..., None]:
        def note(_: nn.Module, args: tuple[Any, ...]) -> None:
            if any(name in names for _, names in found):
                return
            for values, names in found:
                if values is args[0]:
                    names.append(name)
                    return
            found.append((args[0], [name]))

        return note

    handles = [module.register_forward_pre_hook(hook(name)) for name, module in modules.items()]
    try:
        with torch.no_grad():
            arguments.call(block, hidden)
    finally:
        for handle in handles:
            handle.remove()
    return [tuple(names) for _, names in found]


def inputs(batch: Batch) -> dict[str, Tensor]:
    """Return the batch as a model takes it: without labels."""
    return {name: tensor for name, tensor in batch.items() if name != "labels"}


def _hidden(output: Any) -> Tensor:
    result = output[0] if isinstance(output, tuple) else output
    assert isinstance(result, Tensor)
    return result


@contextmanager
def _replaced(blocks: Sequence[nn.Module], stand_ins: Sequence[Callable[..., Tensor]]) -> Iterator[None]:
    """Let each block's forward be another function."""
    try:
        for block, stand_in in zip(blocks, stand_ins, strict=True):
            block.forward = stand_in
        yield
    finally:
        for block in blocks:
            block.__dict__.pop("forward", None)


@contextmanager
def _without_cache(model: PreTrainedModel) -> Iterator[None]:
    """Keep the blocks from storing keys and values: they are called one by one, and more than once."""
    before = getattr(model.config, "use_cache", None)
    if before is not None:
        model.config.use_cache = False
    try:
        yield
    finally:
        if before is not None:
            model.config.use_cache = before
