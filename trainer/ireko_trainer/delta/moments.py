"""What is measured before anything is factored: the second moments of every matrix's inputs and of its gradients.

An error E of a matrix changes its output by E x, so its squared output error is tr(E H E') with H the mean of x x'
(SVD-LLM's whitening). What that output error does to the answers is, to second order, weighed by the mean G of g g',
g being the gradient of the log-likelihood of answers that the model itself would give: tr(G E H E'), the Kronecker
form of the Fisher information (K-FAC). With G the errors of different matrices are in one unit, nats per text or
token, which is what ranks can be traded in.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.quant import Batch, Hessian, Kind, ModelInMemory
from ireko_trainer.quant.blockwise import BlockSource, input_moments, real_tokens
from ireko_trainer.quant.calls import inputs
from ireko_trainer.quant.divergence import answer


@dataclass(frozen=True, kw_only=True)
class Moments:
    """Second moments by the name of the linear layer, float64."""

    inputs: Mapping[str, Tensor]
    """H [n, n]. Layers that read the same tensor have the same object here."""
    gradients: Mapping[str, Tensor]
    """G [m, m]; empty when not asked for."""


def collect_moments(
    *,
    model: PreTrainedModel,
    batches: Sequence[Batch],
    modules: Sequence[str],
    kind: Kind | None,
    seed: int = 0,
    source: BlockSource | None = None,
) -> Moments:
    """Measure the named layers of `model` on calibration batches; the model is left as it was.

    Args:
        model: in evaluation mode, float32.
        batches: `input_ids` and, where texts are padded, `attention_mask`, both [B, S].
        modules: layers inside the blocks.
        kind: what the model answers with, for the gradients; None leaves them out, and the backward passes too.
        seed: of the answers that are drawn.
        source: where blocks come from; the model in memory unless given.
    """
    wanted = frozenset(modules)
    # The Hessian is kept beside its matrix: an object that is gone could lend its id to another.
    shared: dict[int, tuple[Hessian, Tensor]] = {}
    found = {}
    for name, hessian in input_moments(
        source=source or ModelInMemory(model), batches=batches, modules=wanted, dtype=torch.float64
    ):
        if id(hessian) not in shared:
            shared[id(hessian)] = hessian, hessian.matrix()
        found[name] = shared[id(hessian)][1]
    gradients = {} if kind is None else _gradients(model, batches, wanted, kind, seed)
    return Moments(inputs=found, gradients=gradients)


def _gradients(
    model: PreTrainedModel, batches: Sequence[Batch], modules: frozenset[str], kind: Kind, seed: int
) -> dict[str, Tensor]:
    moments: dict[str, Hessian] = {}
    mask: list[Tensor | None] = [None]

    def watch(name: str) -> Callable[..., None]:
        def on_output(_: nn.Module, __: object, output: Tensor) -> None:
            output.requires_grad_()
            output.register_hook(on_gradient)

        def on_gradient(gradient: Tensor) -> None:
            values = real_tokens(gradient, mask[0])
            if name not in moments:
                moments[name] = Hessian(values.shape[-1], device=values.device, dtype=torch.float64)
            moments[name].add(values)

        return on_output

    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(requires_grad=False)
    layers = {name: module for name, module in model.named_modules() if name in modules}
    handles = [module.register_forward_hook(watch(name)) for name, module in layers.items()]
    draw = _drawn_log_likelihood(kind, seed)
    try:
        for batch in batches:
            padding = batch.get("attention_mask")
            mask[0] = None if padding is None else padding.bool()
            extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
            draw(model(**inputs(batch), **extra), batch).backward()
    finally:
        for handle in handles:
            handle.remove()
        for parameter in trained:
            parameter.requires_grad_(requires_grad=True)
    return {name: hessian.matrix() for name, hessian in moments.items()}


def _drawn_log_likelihood(kind: Kind, seed: int) -> Callable[[Any, Batch], Tensor]:
    """The log-likelihood, summed over the batch, of answers drawn from the model's own distribution.

    Numbers and embeddings have a normal distribution around what the model says, embeddings on the unit sphere.
    """
    take = answer(kind)
    generator = torch.Generator().manual_seed(seed)

    def value(output: Any, batch: Batch) -> Tensor:
        answers = take(output, batch)
        if kind == "distribution":
            chances = answers.detach().softmax(dim=-1).cpu()
            drawn = torch.multinomial(chances, 1, generator=generator).to(answers.device)
            return answers.log_softmax(dim=-1).gather(-1, drawn).sum()
        if kind == "embedding":
            answers = F.normalize(answers, dim=-1)
        noise = torch.randn(answers.shape, generator=generator).to(answers)
        return (answers * noise).sum()

    return value
