"""Put what matters first, so that "the leading channels" is a good subnet before any training.

A slice keeps the first channels of each axis. Reordering them by importance once, before the supernet trains,
changes no output (the permutation of an axis is applied to every parameter that lies on it, which the axis
table knows), and is the cheapest gain of the whole method, before training and after it (docs/benchmarks.md).

What a unit is worth is how far the output moves, to first order, when the unit is faded out: every unit gets
a gate of 1 that its activation is multiplied by, and its score is the mean over texts of
(∂⟨v, answer⟩/∂gate)², v being a random direction per text, which for a language model leads to likely tokens.
This is the diagonal of the squared distance between the teacher's answer and the slice's, as in Kwon et al.
(arXiv 2204.09656), and no labels are needed.
Scores by magnitude (DynaBERT, Minitron: mean |activation| × ‖column‖) do not see what reaches the answer:
they left the half-size subnet of the SST-2 benchmark with twice the divergence. MLFS does not say how its
slices are chosen.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ireko_trainer.mlfs.architectures import layout_of
from ireko_trainer.mlfs.axes import Axis, Layout, Place
from ireko_trainer.mlfs.losses import mean_pool
from ireko_trainer.mlfs.supernet import Batch

ELASTIC = frozenset(Axis) - {Axis.FIXED, Axis.KEY_VALUE}

Key = tuple[Axis, int | None]
"""An order of its own: an axis and, where each layer has its own order, the layer."""


@dataclass(frozen=True, kw_only=True)
class Importance:
    """Score of every unit, the larger the more important: channels, heads (groups of heads where they share a
    key-value head) or neurons, float64 on the CPU."""

    scores: Mapping[Key, Tensor]

    def orders(self) -> dict[Key, Tensor]:
        """Indices of the units of each axis, most important first; ties keep their place."""
        return {key: torch.argsort(score, descending=True, stable=True) for key, score in self.scores.items()}


def permute_by_importance(
    *, model: PreTrainedModel, batches: Iterable[Batch], axes: Collection[Axis] = ELASTIC
) -> Importance:
    """Reorder the model's channels, heads and neurons in place, most important first; outputs stay the same.

    The hidden states of a permuted model are permuted with it: its logits and the cosines between its
    embeddings are unchanged, the coordinates of an embedding change places. Leave `Axis.HIDDEN` out of `axes`
    if no member cuts it and members shall keep the teacher's coordinates.
    """
    importance = measure_importance(model=model, batches=batches)
    wanted = {key: order for key, order in importance.orders().items() if key[0] in axes}
    permute(model=model, orders=wanted)
    return importance


def measure_importance(*, model: PreTrainedModel, batches: Iterable[Batch], seed: int = 0) -> Importance:
    """Score every unit on calibration batches (a few hundred texts are plenty).

    Args:
        model: a classifier or regressor, whose logits are looked at, a language model, whose logits for every
            token are, or an encoder, whose unit-length mean embeddings are; it is left as it was.
        batches: what a tokenizer gives; labels are ignored.
        seed: of the random directions.

    Raises:
        ValueError: there was no batch.
    """
    layout = layout_of(model)
    gates = _Gates(model=model, layout=layout)
    generator = torch.Generator().manual_seed(seed)
    texts = 0
    was_training = model.training
    model.eval()
    # Gates alone get gradients: what only the weights' would take is not kept.
    trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
    model.requires_grad_(requires_grad=False)
    try:
        for batch in batches:
            names = [name for name in layout.architecture.model_inputs if name in batch]
            inputs = {name: batch[name].to(model.device) for name in names}
            with torch.enable_grad():
                output = model(**inputs, **layout.architecture.options)
                answer = _answer(output, mask=inputs["attention_mask"])
            if answer.dim() == 3:
                towards = _likely_directions(answer, generator, mask=inputs["attention_mask"])
            else:
                towards = _directions(answer, generator, classes="logits" in output)
            gates.add_up(answer, towards=towards)
            texts += len(answer)
    finally:
        gates.remove()
        model.train(was_training)
        for parameter in trained:
            parameter.requires_grad_(requires_grad=True)
    if texts == 0:
        raise ValueError("importance is measured on text, and there was none")
    return Importance(scores={key: total / texts for key, total in gates.totals.items()})


def permute(*, model: PreTrainedModel, orders: Mapping[Key, Tensor]) -> None:
    """Reorder axes in place: every parameter on an axis follows, so the function stays the same."""
    layout = layout_of(model)
    parameters = dict(model.named_parameters())
    with torch.no_grad():
        for (axis, layer), order in orders.items():
            moving = (axis, Axis.KEY_VALUE) if axis is Axis.ATTENTION else (axis,)
            names = {found: None for one in moving for found in layout.names_on(one, layer=layer)}
            for name, dimension in names:
                tensor = parameters[name]
                channels = _channels(layout, layout.places[name], dimension, moving=moving, order=order)
                tensor.copy_(tensor.index_select(dimension, channels.to(tensor.device)))


def _channels(
    layout: Layout, place: Place, dimension: int, *, moving: tuple[Axis, ...], order: Tensor
) -> Tensor:
    """Where each channel of a dimension comes from when the units of the axes in `moving` are reordered."""
    pieces, start = [], 0
    for axis, length in layout.segments(place, dimension):
        unit = layout.unit(axis)
        # The channels of a unit stay together and in their order.
        moved = (order[:, None] * unit + torch.arange(unit)).flatten()
        pieces.append(start + (moved if axis in moving else torch.arange(length)))
        start += length
    return torch.cat(pieces)


class _Gates:
    """A gate of 1 on every unit of a model, one per text: gradients of the gates are what scores are made of."""

    def __init__(self, *, model: PreTrainedModel, layout: Layout) -> None:
        self.totals: dict[Key, Tensor] = {}
        self._gates: list[tuple[Key, Tensor]] = []
        self._model = model
        self._handles: list[RemovableHandle] = []
        architecture, block_name = layout.architecture, layout.block_name
        for layer in layout.full.layers:
            heads = block_name(layer, architecture.attention_output)
            self._on_input(heads, (Axis.ATTENTION, layer), size=layout.unit(Axis.ATTENTION))
            self._on_input(block_name(layer, architecture.intermediate_output), (Axis.INTERMEDIATE, layer))
            for norm in architecture.norms:
                self._on_norm(block_name(layer, norm))
        if architecture.final_norm is not None:
            self._on_norm(f"{layout.base_prefix}{architecture.final_norm}")
        for name, dimension in layout.names_on(Axis.POOLED):
            # A pooler that nothing reads is an output of the model, and outputs keep their order.
            if dimension == 1:
                self._on_input(name.removesuffix(".weight"), (Axis.POOLED, None))

    def add_up(self, answer: Tensor, *, towards: Tensor) -> None:
        """Add (∂⟨towards, answer⟩/∂gate)² of the texts that were just read; answer and towards begin with [B."""
        gates = [gate for _, gate in self._gates]
        gradients = torch.autograd.grad((answer * towards).sum(), gates)
        for (key, _), gradient in zip(self._gates, gradients, strict=True):
            score = gradient.double().square().flatten(0, -2).sum(0).cpu()
            self.totals[key] = self.totals.get(key, torch.zeros((), dtype=torch.float64)) + score
        self._gates.clear()

    def remove(self) -> None:
        """Leave the model as it was."""
        for handle in self._handles:
            handle.remove()

    def _on_input(self, module: str, key: Key, *, size: int = 1) -> None:
        """Gate what a linear reads, in units of `size` channels."""

        def hook(_linear: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
            return (self._gated(inputs[0], key, size=size), *inputs[1:])

        self._handles.append(self._model.get_submodule(module).register_forward_pre_hook(hook))

    def _on_norm(self, module: str) -> None:
        """Gate what a norm gives; each norm has gates of its own, and a channel's scores are added up."""

        def hook(_norm: nn.Module, _inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
            return self._gated(output, (Axis.HIDDEN, None), size=1)

        self._handles.append(self._model.get_submodule(module).register_forward_hook(hook))

    def _gated(self, activation: Tensor, key: Key, *, size: int) -> Tensor:
        """An activation [B, S, C] or [B, C] times gates [B, 1, C / size] or [B, C / size], which are ones."""
        texts, channels = activation.shape[0], activation.shape[-1]
        between = [1] * (activation.dim() - 2)
        gate = activation.new_ones(texts, *between, channels // size).requires_grad_()
        self._gates.append((key, gate))
        return activation * gate.repeat_interleave(size, dim=-1)


def _answer(output: ModelOutput, *, mask: Tensor) -> Tensor:
    """What a model says about a text: its logits [B, C], for every token of it [B, S, V], or its embedding [B, D] of
    unit length."""
    if "logits" in output:
        return cast("Tensor", output["logits"])
    return F.normalize(mean_pool(output["last_hidden_state"], mask), dim=-1)


def _directions(answer: Tensor, generator: torch.Generator, *, classes: bool) -> Tensor:
    """A random unit vector for each text [B, n]; over classes none along (1, …, 1), which changes no answer."""
    drawn = torch.randn(answer.shape, generator=generator, dtype=torch.float64)
    if classes and answer.shape[-1] > 1:
        drawn -= drawn.mean(-1, keepdim=True)
    return F.normalize(drawn, dim=-1).to(answer)


def _likely_directions(logits: Tensor, generator: torch.Generator, *, mask: Tensor) -> Tensor:
    """Slopes of the log-probabilities of tokens that the model itself draws: [B, S, V], zero beside the text.

    Most of a vocabulary is never likely, and a random direction would mostly ask about the part that is not. These
    are distributed so that the mean score is the divergence that fading a unit out causes, to second order (the
    Fisher information).
    """
    real = mask.bool()
    with torch.no_grad():
        chances = logits[real].float().softmax(-1)
        drawn = torch.multinomial(chances.cpu(), 1, generator=generator).to(chances.device)
        towards = torch.zeros_like(logits)
        towards[real] = (-chances).scatter_add(1, drawn, torch.ones_like(chances)).to(logits)
    return towards
