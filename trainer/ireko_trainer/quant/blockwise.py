"""GPTQ through a whole model, one block at a time, each fed by the quantized blocks before it.

The driver holds one block and the hidden states of the calibration batches; where blocks come from is the business of
a `BlockSource`: a model in memory, or files of any size (`streaming.py`). Each batch runs once through each block and
meets only quantized matrices (`lockstep.py`).
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Container, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass
from functools import partial
from typing import Protocol

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.quant.calls import Batch, Recorded, input_groups, inputs, record
from ireko_trainer.quant.gptq import DEFAULT_OPTIONS, GptqOptions, gptq_together
from ireko_trainer.quant.grid import QuantizedTensor, dequantize, quantize
from ireko_trainer.quant.hessian import Hessian
from ireko_trainer.quant.layout import block_modules, put_weight, weight_matrix
from ireko_trainer.quant.lockstep import Lockstep

OnBlock = Callable[[int, int], None]
"""Called with the number of finished blocks and of all blocks; may raise to stop."""

_PROBE_TOKENS = 8  # enough to see which matrices share an input


class BlockSource(Protocol):
    """A model whose blocks can be had one at a time."""

    @property
    def names(self) -> Sequence[str]:
        """The blocks in the order of the forward pass."""

    def record(self, batch: Batch) -> Recorded:
        """What the blocks are called with for this batch."""

    def block(self, name: str) -> AbstractContextManager[nn.Module]:
        """The block with its float32 weights, which may be overwritten until the context ends."""


class ModelInMemory:
    """The blocks of a loaded model. Its weights are back when a block's context ends."""

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._blocks = block_modules(model)

    @property
    def names(self) -> Sequence[str]:
        """The blocks in the order of the forward pass."""
        return tuple(self._blocks)

    def record(self, batch: Batch) -> Recorded:
        """What the blocks are called with for this batch."""
        return record(model=self._model, blocks=list(self._blocks.values()), batch=batch)

    @contextmanager
    def block(self, name: str) -> Iterator[nn.Module]:
        """The model's own block."""
        block = self._blocks[name]
        originals = [(parameter, parameter.data) for parameter in block.parameters()]
        try:
            yield block
        finally:
            for parameter, data in originals:
                parameter.data = data


def gptq_blocks(
    *,
    source: BlockSource,
    batches: Sequence[Batch],
    bits: Mapping[str, int],
    group_size: int,
    options: GptqOptions = DEFAULT_OPTIONS,
    on_block: OnBlock | None = None,
) -> Iterator[tuple[str, QuantizedTensor]]:
    """Yield the quantized matrices of each block as soon as it is done, by the names of their modules.

    `bits` maps modules to widths; linear layers left out keep their weights, modules outside the blocks are not looked
    at. Batches hold `input_ids` and, where texts are padded, `attention_mask`, both [B, S].
    """
    if not batches:
        raise ValueError("GPTQ needs at least one calibration batch")
    first = {name: tensor[:1, :_PROBE_TOKENS] for name, tensor in inputs(batches[0]).items()}
    probe = source.record(first)
    recorded = [source.record(batch) for batch in batches]
    stream = _Stream(recorded, group_size=group_size, options=options)
    for index, name in enumerate(source.names):
        with source.block(name) as block:
            modules = _targets(block, name, bits)
            groups = input_groups(
                block=block, modules=modules, hidden=probe.hidden, arguments=probe.arguments[index]
            )
            widths = {key: bits[f"{name}.{key}"] for key in modules}
            done = stream.through(block, index, modules, groups, widths)
        yield from ((f"{name}.{key}", tensor) for key, tensor in done.items())
        if on_block is not None:
            on_block(index + 1, len(source.names))


def gptq_database(
    *,
    source: BlockSource,
    batches: Sequence[Batch],
    widths: Mapping[str, Sequence[int]],
    group_size: int,
    options: GptqOptions = DEFAULT_OPTIONS,
    on_block: OnBlock | None = None,
) -> Iterator[tuple[str, QuantizedTensor]]:
    """Yield every matrix at each of its `widths`, as GPTQ rounds it when nothing before it is quantized.

    What a search over widths compares its candidates with: one pass over the data, and the inputs' second moments serve
    all widths.
    """
    for dense in _dense_blocks(source, batches, frozenset(widths), dtype=torch.float32):
        for group in dense.groups:
            wanted = {key: widths[f"{dense.name}.{key}"] for key in group}
            for bits in sorted({width for choices in wanted.values() for width in choices}):
                solved = gptq_together(
                    {key: weight_matrix(dense.modules[key]) for key in group if bits in wanted[key]},
                    hessian=dense.moments[group[0]],
                    bits=dict.fromkeys(group, bits),
                    group_size=group_size,
                    options=options,
                )
                yield from ((f"{dense.name}.{key}", tensor) for key, tensor in solved.items())
        if on_block is not None:
            on_block(dense.index + 1, len(source.names))


def input_moments(
    *,
    source: BlockSource,
    batches: Sequence[Batch],
    modules: Container[str],
    dtype: torch.dtype = torch.float32,
    on_block: OnBlock | None = None,
) -> Iterator[tuple[str, Hessian]]:
    """Yield the second moments of the inputs of the named modules in the unchanged model, block by block.

    Modules that read the same tensor get the same object; a module that the data never reaches gets none.
    """
    for dense in _dense_blocks(source, batches, modules, dtype=dtype):
        for group in dense.groups:
            yield from ((f"{dense.name}.{key}", dense.moments[group[0]]) for key in group)
        if on_block is not None:
            on_block(dense.index + 1, len(source.names))


@dataclass(frozen=True, kw_only=True)
class _DenseBlock:
    """A block while its weights are there, with what its matrices read; names are relative to the block."""

    index: int
    name: str
    modules: Mapping[str, nn.Module]
    groups: Sequence[tuple[str, ...]]
    """Matrices that read the same tensor; the first of each group has its moments."""
    moments: Mapping[str, Hessian]


def _dense_blocks(
    source: BlockSource, batches: Sequence[Batch], wanted: Container[str], *, dtype: torch.dtype
) -> Iterator[_DenseBlock]:
    """Take the batches through the blocks as they are."""
    first = {name: tensor[:1, :_PROBE_TOKENS] for name, tensor in inputs(batches[0]).items()}
    probe = source.record(first)
    recorded = [source.record(batch) for batch in batches]
    hidden = [one.hidden for one in recorded]
    for index, name in enumerate(source.names):
        with source.block(name) as block:
            modules = _targets(block, name, wanted)
            groups = input_groups(
                block=block, modules=modules, hidden=probe.hidden, arguments=probe.arguments[index]
            )
            heads = {group[0]: modules[group[0]] for group in groups}
            moments, hidden = _dense_pass(block, index, heads, recorded, hidden, dtype=dtype)
            yield _DenseBlock(index=index, name=name, modules=modules, groups=groups, moments=moments)


def _targets(block: nn.Module, name: str, wanted: Container[str]) -> dict[str, nn.Module]:
    return {key: module for key, module in block.named_modules() if f"{name}.{key}" in wanted}


def _dense_pass(
    block: nn.Module,
    index: int,
    modules: Mapping[str, nn.Module],
    recorded: Sequence[Recorded],
    hidden: Sequence[Tensor],
    *,
    dtype: torch.dtype,
) -> tuple[dict[str, Hessian], list[Tensor]]:
    """The second moments of the modules' inputs, and the block's outputs."""
    moments: dict[str, Hessian] = {}
    mask: Tensor | None = None

    def watch(key: str) -> Callable[..., None]:
        def add(_: nn.Module, args: tuple[Tensor, ...]) -> None:
            values = real_tokens(args[0], mask)
            if key not in moments:
                moments[key] = Hessian(values.shape[-1], device=values.device, dtype=dtype)
            moments[key].add(values)

        return add

    handles = [module.register_forward_pre_hook(watch(key)) for key, module in modules.items()]
    outputs = []
    try:
        for one, states in zip(recorded, hidden, strict=True):
            mask = one.mask
            with torch.no_grad():
                outputs.append(one.arguments[index].call(block, states))
    finally:
        for handle in handles:
            handle.remove()
    return moments, outputs


class _Stream:
    """The calibration batches between two blocks."""

    def __init__(self, recorded: Sequence[Recorded], *, group_size: int, options: GptqOptions) -> None:
        self._recorded = [one.to(options.precision) for one in recorded]
        self._hidden = [one.hidden for one in self._recorded]
        self._dense = list(self._hidden) if options.asymmetry else None
        self._group_size = group_size
        self._options = options

    def through(
        self,
        block: nn.Module,
        index: int,
        modules: Mapping[str, nn.Module],
        groups: Sequence[tuple[str, ...]],
        widths: Mapping[str, int],
    ) -> dict[str, QuantizedTensor]:
        """Quantize the block and take the batches through it."""
        exact = self._options.precision == torch.float32
        runner = block if exact else copy.deepcopy(block).to(self._options.precision)
        reference = copy.deepcopy(runner) if self._dense is not None else None
        done: dict[str, QuantizedTensor] = {}
        with (
            self._lockstep(runner, index, groups, self._hidden) as passes,
            self._dense_lockstep(reference, index, groups) as dense,
        ):
            for group in groups:
                solved = gptq_together(
                    {key: weight_matrix(modules[key]) for key in group},
                    hessian=self._moments(passes, dense, group[0]),
                    bits=widths,
                    group_size=self._group_size,
                    options=self._options,
                )
                for key, tensor in solved.items():
                    put_weight(runner.get_submodule(key), dequantize(tensor).to(self._options.precision))
                done |= solved
            self._hidden = passes.finish()
            if dense is not None:
                self._dense = dense.finish()
        for key, module in modules.items():
            if key not in done:  # the calibration data never calls it
                done[key] = quantize(weight_matrix(module), bits=widths[key], group_size=self._group_size)
        return done

    def _moments(self, passes: Lockstep, dense: Lockstep | None, name: str) -> Hessian:
        hessian: Hessian | None = None
        for number, one in enumerate(self._recorded):
            values = passes.advance(number, name)
            hessian = hessian or Hessian(values.shape[-1], device=values.device)
            target = None if dense is None else real_tokens(dense.advance(number, name), one.mask)
            hessian.add(real_tokens(values, one.mask), dense=target)
        assert hessian is not None
        return hessian

    def _lockstep(
        self, block: nn.Module, index: int, groups: Sequence[tuple[str, ...]], hidden: Sequence[Tensor]
    ) -> Lockstep:
        calls = [
            partial(one.arguments[index].call, block, states)
            for one, states in zip(self._recorded, hidden, strict=True)
        ]
        return Lockstep(calls, stops={group[0]: block.get_submodule(group[0]) for group in groups})

    def _dense_lockstep(
        self, reference: nn.Module | None, index: int, groups: Sequence[tuple[str, ...]]
    ) -> AbstractContextManager[Lockstep | None]:
        if reference is None or self._dense is None:
            return nullcontext()
        return self._lockstep(reference, index, groups, self._dense)


def real_tokens(values: Tensor, mask: Tensor | None) -> Tensor:
    """Real tokens [N, C] of inputs [B, S, C]; inputs of another form are taken whole."""
    if mask is not None and values.shape[:-1] == mask.shape:
        return values[mask.to(values.device)]
    return values.reshape(-1, values.shape[-1])
