"""GPTQ on the project's one grid: rounding whose errors the following columns make up for.

Frantar et al., ICLR 2023, with act-order (the columns with the largest inputs first), static groups (the scales are
fixed before the columns are reordered, so that the file needs no order of columns) and, as an option, the asymmetric
calibration of GPTAQ (ICML 2025). Three things are ours:

* scales are searched for the least squared error weighed by the inputs' second moments, not for the least plain one;
* afterwards sweeps of coordinate descent move every code and every scale to the minimum of the same objective, all
  else fixed (each move can only lower it);
* a row that plain rounding serves better keeps plain rounding. GPTQ alone does not promise that.

Matrices that read the same input (query, key, value; gate, up) are solved in one go, stacked along their rows: rows
are independent, so only the time changes. Weights are kept transposed, so that a column is contiguous.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from ireko_trainer.quant.grid import QuantizedTensor, as_stored, code_range, quantize
from ireko_trainer.quant.hessian import Hessian, damped, inverse_root

_BLOCK = 64  # columns between two updates of all that follow


@dataclass(frozen=True, kw_only=True)
class GptqOptions:
    """How to round."""

    damping: float = 0.1
    """Added to the diagonal of H, relative to its mean; grows where the factorisation fails."""
    act_order: bool = True
    """Round the columns with the largest inputs first."""
    sweeps: int = 1
    """Rounds of coordinate descent after GPTQ."""
    weighted_scales: bool = True
    """Weigh the errors by the inputs when the scales are searched."""
    asymmetry: float = 0.0
    """GPTAQ's share of the error inherited from earlier layers that this layer makes up for; 0 is plain GPTQ."""
    precision: torch.dtype = torch.float32
    """Of the passes of the calibration data. Second moments and rounding are float32 always."""


DEFAULT_OPTIONS = GptqOptions()


@dataclass
class _Stack:
    """Matrices with one input, stacked: rows r of all of them, columns c. Everything but `bits` is transposed."""

    weight: Tensor  # [C, R] float32
    codes: Tensor  # [C, R] float32, integers
    scales: Tensor  # [G, R] float32, exact in float16
    lowest: Tensor  # [R]
    highest: Tensor  # [R]
    group: int

    def column_scales(self) -> Tensor:
        return self.scales.repeat_interleave(self.group, dim=0)  # [C, R]

    def error(self) -> Tensor:
        """Rounding error [C, R]."""
        return self.codes * self.column_scales() - self.weight


def gptq(
    weight: Tensor,
    *,
    hessian: Hessian,
    bits: int,
    group_size: int,
    options: GptqOptions = DEFAULT_OPTIONS,
) -> QuantizedTensor:
    """Quantize one weight [O, I] for inputs with these second moments [I, I]."""
    return gptq_together(
        {"weight": weight}, hessian=hessian, bits={"weight": bits}, group_size=group_size, options=options
    )["weight"]


def gptq_together(
    weights: Mapping[str, Tensor],
    *,
    hessian: Hessian,
    bits: Mapping[str, int],
    group_size: int,
    options: GptqOptions = DEFAULT_OPTIONS,
) -> dict[str, QuantizedTensor]:
    """Quantize weights [O_k, I] that read the same input, each at its own width."""
    moments = hessian.matrix().float()
    importance = damped(moments, damping=options.damping).diagonal() if options.weighted_scales else None
    plain = {
        name: quantize(weight, bits=bits[name], group_size=group_size) for name, weight in weights.items()
    }
    start = plain
    if importance is not None:
        start = {
            name: quantize(weight, bits=bits[name], group_size=group_size, importance=importance)
            for name, weight in weights.items()
        }
    stack = _stacked(weights, start)
    if options.asymmetry and hessian.drift is not None:
        stack.weight += options.asymmetry * _inherited(stack.weight, moments, hessian.drift, options)
    diagonal = moments.diagonal()
    order = torch.argsort(diagonal, descending=True, stable=True) if options.act_order else None
    ordered = moments if order is None else moments[order][:, order]
    root, damping = inverse_root(ordered, damping=options.damping)
    objective = damped(moments, damping=damping)
    stack.codes = _rounded(stack, root, order)
    for _ in range(options.sweeps):
        _sweep(stack, objective)
    _keep_better(stack, _stacked(weights, plain), objective)
    return _unstacked(stack, plain)


def _stacked(weights: Mapping[str, Tensor], quantized: Mapping[str, QuantizedTensor]) -> _Stack:
    ranges = [(code_range(quantized[name].bits), len(weight)) for name, weight in weights.items()]
    device = next(iter(weights.values())).device
    return _Stack(
        weight=torch.cat([weight.detach().float() for weight in weights.values()]).T.contiguous(),
        codes=torch.cat([quantized[name].codes.float() for name in weights]).T.contiguous(),
        scales=torch.cat([quantized[name].scales.float() for name in weights]).T.contiguous(),
        lowest=torch.cat([torch.full((rows,), float(low), device=device) for (low, _), rows in ranges]),
        highest=torch.cat([torch.full((rows,), float(high), device=device) for (_, high), rows in ranges]),
        group=next(iter(quantized.values())).group,
    )


def _unstacked(stack: _Stack, like: Mapping[str, QuantizedTensor]) -> dict[str, QuantizedTensor]:
    rows = [len(tensor.codes) for tensor in like.values()]
    codes = stack.codes.to(torch.int8).split(rows, dim=1)
    scales = stack.scales.to(torch.float16).split(rows, dim=1)
    return {
        name: QuantizedTensor(
            codes=code.T.contiguous(), scales=scale.T.contiguous(), bits=tensor.bits, group=stack.group
        )
        for (name, tensor), code, scale in zip(like.items(), codes, scales, strict=True)
    }


def _inherited(weight: Tensor, moments: Tensor, drift: Tensor, options: GptqOptions) -> Tensor:
    """The change of the weights [C, R] that makes up for inputs which have drifted from the dense model's.

    GPTAQ minimises |W x_dense - Q x|². Without rounding the minimum is W + W D H^-1, D the mean of (x_dense - x) x'.
    """
    system = damped(moments, damping=options.damping).double()
    change: Tensor = torch.linalg.solve(system, drift.double().T @ weight.double())
    return change.to(weight.dtype)


def _rounded(stack: _Stack, root: Tensor, order: Tensor | None) -> Tensor:
    """GPTQ's codes [C, R]: round column by column, and let the columns to come make up for the error.

    `root` [C, C] is the upper root of H^-1 in the order in which the columns are rounded.
    """
    weight, scales = stack.weight.clone(), stack.column_scales()
    if order is not None:
        weight, scales = weight[order], scales[order]
    columns = len(weight)
    codes, errors = torch.empty_like(weight), torch.empty_like(weight)
    steps = root.diagonal().tolist()
    for start in range(0, columns, _BLOCK):
        stop = min(start + _BLOCK, columns)
        for column in range(start, stop):
            value, scale = weight[column], scales[column]
            code = torch.clamp((value / scale).round_(), stack.lowest, stack.highest)
            codes[column] = code
            errors[column] = error = value.sub(code.mul(scale)).div_(steps[column])
            if column + 1 < stop:
                weight[column + 1 : stop].addr_(root[column, column + 1 : stop], error, alpha=-1)
        if stop < columns:
            weight[stop:].addmm_(root[start:stop, stop:].T, errors[start:stop], alpha=-1)
    if order is None:
        return codes
    result = torch.empty_like(codes)
    result[order] = codes
    return result


def _sweep(stack: _Stack, objective: Tensor) -> None:
    """Coordinate descent on tr(E' H E): the scale of each group, then each of its codes, all else fixed."""
    gradient = objective @ stack.error()  # [C, R], half of the derivative
    curvature = objective.diagonal().tolist()
    for index in range(len(stack.scales)):
        first, end = index * stack.group, (index + 1) * stack.group
        _move_scales(stack, objective, gradient, index)
        for start in range(first, end, _BLOCK):
            block = slice(start, min(start + _BLOCK, end))
            moved = _move_codes(
                stack, objective[block, block], gradient[block].clone(), curvature, block, index
            )
            gradient.addmm_(objective[:, block], moved)


def _move_scales(stack: _Stack, objective: Tensor, gradient: Tensor, index: int) -> None:
    columns = slice(index * stack.group, (index + 1) * stack.group)
    codes, scales = stack.codes[columns], stack.scales[index]
    slope = (codes * gradient[columns]).sum(dim=0)
    bend = (codes * (objective[columns, columns] @ codes)).sum(dim=0)
    wanted = as_stored(torch.where(bend > 0, scales - slope / bend, scales))
    change = wanted - scales
    # The stored scale is rounded: it may miss the minimum by more than it gains.
    change = torch.where(2 * change * slope + change.square() * bend < 0, change, 0.0)
    stack.scales[index] = scales + change
    gradient.addmm_(objective[:, columns], codes * change)


def _move_codes(
    stack: _Stack, objective: Tensor, gradient: Tensor, curvature: list[float], block: slice, index: int
) -> Tensor:
    """Move the codes of one block in place; returns the change of the weights [columns of the block, R]."""
    scale, inverse = stack.scales[index], 1.0 / stack.scales[index]
    moved = torch.empty_like(gradient)
    for place in range(len(gradient)):
        code = stack.codes[block.start + place]
        wanted = code - gradient[place] * inverse / curvature[block.start + place]
        wanted = torch.clamp(wanted.round_(), stack.lowest, stack.highest)
        moved[place] = change = (wanted - code).mul_(scale)
        stack.codes[block.start + place] = wanted
        if place + 1 < len(gradient):
            gradient[place + 1 :].addr_(objective[place, place + 1 :], change)
    return moved


def _keep_better(stack: _Stack, plain: _Stack, objective: Tensor) -> None:
    """Put plain rounding back in the rows [R] where it is the better one."""
    error, plain_error = stack.error(), plain.codes * plain.column_scales() - stack.weight
    worse = ((objective @ error) * error).sum(dim=0) > ((objective @ plain_error) * plain_error).sum(dim=0)
    stack.codes[:, worse] = plain.codes[:, worse]
    stack.scales[:, worse] = plain.scales[:, worse]
