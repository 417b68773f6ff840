"""Quantizing after the deltas: each factor is fitted to what has been rounded before it.

A base that is rounded passes its error on to everything that follows it, and a rounded V changes what U multiplies. So
the base goes first; then U V is fitted anew to W_t - c·Q(W_base), in the manner of LoftQ's residuals; then V is
rounded and U is the least-squares answer to Q(V) under the moments of the inputs; U is rounded last. What is rounded
anew is rounded by GPTQ, for which the moments are there: plain rounding would undo much of what the fit gains.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.delta.compress import balanced
from ireko_trainer.delta.factors import Factors, Metric, Root, fit_to_rows, pivot_form, truncate
from ireko_trainer.delta.shared_layers import DeltaLinear, delta_layers
from ireko_trainer.quant import Hessian, QuantizedWeights, dequantize
from ireko_trainer.quant.gptq import gptq


def refit_deltas(
    *,
    model: PreTrainedModel,
    weights: QuantizedWeights,
    bits: Mapping[str, int],
    moments: Mapping[str, Tensor],
) -> None:
    """Replace the quantized factors in `weights` by refitted ones; factors without bits are left alone.

    Args:
        model: with its float factors, which say what each layer should be. The V of a layer that follows a base
            changes, and with it the layer's pivots.
        weights: the bases as they will ship are taken from here, and the factors put here.
        bits: of every module that is quantized.
        moments: H [n, n] of the inputs of every factored layer, by name.
    """
    names = {id(module): name for name, module in model.named_modules()}
    layers = delta_layers(model)
    targets = {name: layer.matrix().detach().double() for name, layer in layers.items()}
    for name, owner in layers.items():
        if owner.owner is not owner:
            continue
        users = {key: layer for key, layer in layers.items() if layer.owner is owner}
        root = Root.of(moments[name])
        metric = Metric(inputs=root)
        residuals = {key: targets[key] for key in users}
        if owner.base is not None:
            base = _shipped(names[id(owner.base)], weights, bits)
            residuals[name] = targets[name] - float(owner.coefficient) * base
            _refit(owner, residuals[name], metric)
            _round(owner.inner, f"{name}.inner", owner.among_rest(root.matrix), weights, bits)
        right = _right(owner, f"{name}.inner", weights, bits)
        for key, layer in users.items():
            with torch.no_grad():
                layer.outer.weight.copy_(fit_to_rows(residuals[key], right, metric=metric))
            _round(layer.outer, f"{key}.outer", right @ root.matrix, weights, bits)


def _shipped(name: str, weights: QuantizedWeights, bits: Mapping[str, int]) -> Tensor:
    """The weight [m, n] of a layer as a reader of the file will have it, float64."""
    if name in bits:
        return dequantize(weights.at(name, bits[name])).double()
    return weights.original(name).to(torch.float16).double()


def _refit(layer: DeltaLinear, residual: Tensor, metric: Metric) -> None:
    """Give a layer the best U V for another residual, in the form that it is stored in."""
    factors = truncate(residual, metric=metric, rank=layer.rank)
    left, right = factors.left[0], factors.right
    if layer.pivots is not None:
        (left,), right, pivots = pivot_form(Factors(left=(left,), right=right))
        layer.repivot(pivots)
    else:
        left, right = balanced([left], right).left[0], balanced([left], right).right
    with torch.no_grad():
        layer.inner.weight.copy_(right)
        layer.outer.weight.copy_(left)


def _round(
    layer: nn.Linear, name: str, root: Tensor, weights: QuantizedWeights, bits: Mapping[str, int]
) -> None:
    """Quantize a factor for inputs with the moments S S', S being the `root` [columns, k]."""
    if name not in bits or layer.in_features == 0:
        return
    hessian = Hessian(layer.in_features, device=root.device, dtype=torch.float64)
    hessian.add(root.T)
    tensor = gptq(layer.weight.detach(), hessian=hessian, bits=bits[name], group_size=weights.group_size)
    weights.add(name, tensor)


def _right(layer: DeltaLinear, name: str, weights: QuantizedWeights, bits: Mapping[str, int]) -> Tensor:
    """V [r, n] as a reader of the file will have it, float64."""
    before = layer.inner.weight.data
    layer.inner.weight.data = _shipped(name, weights, bits).to(before)
    result = layer.right().detach().double()
    layer.inner.weight.data = before
    return result
