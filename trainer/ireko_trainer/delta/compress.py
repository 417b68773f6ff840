"""Carrying a plan out on a model, and back to an ordinary one."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.delta.decompositions import (
    Spread,
    Stack,
    Truncation,
    factors_of,
    one_by_one,
    spread_counted,
    stack_of,
)
from ireko_trainer.delta.factors import Factors, Metrics, fit_to_rows, pivot_form, unweighed
from ireko_trainer.delta.plan import DeltaPlan, Piece
from ireko_trainer.delta.shared_layers import DeltaLinear, delta_layers, replace_layer
from ireko_trainer.quant.layout import weight_matrix


def apply_plan(
    *,
    model: PreTrainedModel,
    plan: DeltaPlan,
    metrics: Metrics,
    spread: Spread = one_by_one,
    on_decomposed: Callable[[int, int], None] = lambda _done, _total: None,
) -> None:
    """Put factored layers into `model`, in place.

    The layers remember what they replace until `forget_originals`: it is what they are trained to imitate. `spread` and
    `on_decomposed` are as in `plan_deltas`.
    """
    # All factors first: bases are read from the unchanged model.
    jobs = (_job(model, piece, metrics) for piece in plan.pieces)
    results = spread_counted(spread, factors_of, jobs, total=len(plan.pieces), on_done=on_decomposed)
    found = [
        (piece, _factors(model, piece, metrics, left, right))
        for piece, (left, right) in zip(plan.pieces, results, strict=True)
    ]
    originals = {name: model.get_submodule(name) for piece in plan.pieces for name in piece.modules}
    bases = {piece.base: model.get_submodule(piece.base) for piece in plan.pieces if piece.base is not None}
    for piece, factors in found:
        lender: DeltaLinear | None = None
        for name, left in zip(piece.modules, factors.left, strict=True):
            layer = _layer(
                originals[name],
                left,
                factors.right,
                base=None if piece.base is None else bases[piece.base],
                coefficient=piece.coefficient,
                lender=lender,
            )
            lender = lender or layer
            replace_layer(model, name, layer)
    model.requires_grad_(requires_grad=False)


def forget_originals(model: nn.Module) -> None:
    """Drop the dense weights of what is factored."""
    for layer in delta_layers(model).values():
        layer.original = None
        layer.gate = None


def remember_originals(model: nn.Module, original: nn.Module) -> None:
    """Let every factored layer know the layer of another model that it replaces."""
    for name, layer in delta_layers(model).items():
        layer.original = (original.get_submodule(name),)


def make_compact(model: nn.Module) -> None:
    """Bring every V into the form [I, T], in place: the same products in fewer numbers.

    Factors are trained in the balanced form and stored in this one.
    """
    layers = delta_layers(model)
    for owner in [layer for layer in layers.values() if layer.owner is layer and layer.pivots is None]:
        users = {name: layer for name, layer in layers.items() if layer.owner is owner}
        lefts = tuple(layer.outer.weight.detach().double() for layer in users.values())
        factors = Factors(left=lefts, right=owner.inner.weight.detach().double())
        compacted, rest, pivots = pivot_form(factors)
        lender: DeltaLinear | None = None
        for (name, layer), left in zip(users.items(), compacted, strict=True):
            new = DeltaLinear(
                inner=_linear(rest, like=layer.outer.weight),
                outer=_linear(left, like=layer.outer.weight, bias=layer.outer.bias),
                base=layer.base,
                coefficient=float(layer.coefficient) if layer.base is not None else 0.0,
                lender=lender,
                pivots=pivots,
                transposed=layer.transposed,
            )
            new.original = layer.original
            lender = lender or new
            replace_layer(model, name, new)


def materialize(model: PreTrainedModel) -> PreTrainedModel:
    """The same function as an ordinary model of its architecture, in storage of its own."""
    forgetful = copy.deepcopy(model)
    layers = delta_layers(forgetful)
    dense = {name: layer.matrix().detach().clone() for name, layer in layers.items()}
    for name, layer in layers.items():
        replace_layer(forgetful, name, _dense_layer(layer, dense[name]))
    return forgetful


def _residuals(model: PreTrainedModel, piece: Piece) -> list[Tensor]:
    """What the factors of a piece have to stand for, [m, n] float64 each."""
    weights = [weight_matrix(model.get_submodule(name)).detach().double() for name in piece.modules]
    if piece.base is None:
        return weights
    base = weight_matrix(model.get_submodule(piece.base)).detach().double()
    return [weight - piece.coefficient * base for weight in weights]


def _job(model: PreTrainedModel, piece: Piece, metrics: Metrics) -> Truncation | Stack:
    residuals = _residuals(model, piece)
    if len(residuals) > 1:
        return stack_of(residuals, modules=piece.modules, metrics=metrics)
    metric = metrics.of(piece.modules[0])
    return Truncation(weighed=metric.weigh(residuals[0]), rank=piece.rank, scale=metric.scale)


def _factors(
    model: PreTrainedModel, piece: Piece, metrics: Metrics, left: Tensor | None, right: Tensor
) -> Factors:
    """The factors of a piece from the result of its job."""
    own = [metrics.of(name) for name in piece.modules]
    if left is not None:
        return unweighed(left, right, metric=own[0])
    rows = right[: piece.rank]
    residuals = _residuals(model, piece)
    return balanced(
        [fit_to_rows(weight, rows, metric=metric) for weight, metric in zip(residuals, own, strict=True)],
        rows,
    )


def balanced(lefts: Sequence[Tensor], right: Tensor) -> Factors:
    """The same products with factors of like size, which train evenly."""
    stacked = torch.cat(list(lefts))
    outer, inner = torch.linalg.qr(stacked), torch.linalg.qr(right.T)
    left, values, basis = torch.linalg.svd(outer.R @ inner.R.T)
    root = values.sqrt()
    whole = outer.Q @ (left * root)
    return Factors(
        left=tuple(whole.split([len(part) for part in lefts])),
        right=(root.unsqueeze(1) * basis) @ inner.Q.T,
    )


def _layer(
    original: nn.Module,
    left: Tensor,
    right: Tensor,
    *,
    base: nn.Module | None,
    coefficient: float,
    lender: DeltaLinear | None,
) -> DeltaLinear:
    weight, bias = original.weight, getattr(original, "bias", None)
    assert isinstance(weight, Tensor)
    layer = DeltaLinear(
        inner=_linear(right, like=weight),
        outer=_linear(left, like=weight, bias=bias),
        base=base,
        coefficient=coefficient,
        lender=lender,
        transposed=isinstance(original, Conv1D),
    )
    layer.original = (original,)
    return layer


def _linear(weight: Tensor, *, like: Tensor, bias: Tensor | None = None) -> nn.Linear:
    rows, columns = weight.shape
    layer = nn.Linear(columns, rows, bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.to(like).contiguous(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach(), requires_grad=False)
    return layer


def _dense_layer(layer: DeltaLinear, weight: Tensor) -> nn.Module:
    linear = _linear(weight, like=layer.outer.weight, bias=layer.outer.bias)
    if not layer.transposed:
        return linear
    result: nn.Module = Conv1D(*weight.shape)
    result.weight = nn.Parameter(weight.T.contiguous(), requires_grad=False)
    if linear.bias is not None:
        result.bias = linear.bias
    return result
