"""One set of frozen weights, every subnet a view of it, one thin trainable low-rank pair on top.

A subnet in training is not our code: it is the ordinary Hugging Face model of the smaller config, built
without storage (a *skeleton*), with PEFT's low-rank layers injected, and called by
`torch.func.functional_call` with views. So there is no elastic layer to keep in step with transformers, a
subnet costs no memory for weights, and what is extracted is what was trained.

The weights are  W = W_pre + (α/r)·Σ_s B_s A_s  over the stages s (MLFS, arXiv 2404.01353), and only the
current stage's pair trains. Slicing commutes with that sum: a subnet sees  W[:o, :i] + (α/r)·B[:o] A[:, :i].
The pairs of finished stages are therefore folded into the frozen weights: the same function for every shape,
and a step of stage 2 costs what a step of stage 0 does.
"""

from __future__ import annotations

import math
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

import torch
from peft import LoraConfig, inject_adapter_in_model
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.func import functional_call
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D
from transformers.utils.generic import ModelOutput

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs.architectures import layout_of
from ireko_trainer.mlfs.axes import Parts, take, take_along
from ireko_trainer.mlfs.recompute import blocks_of, recomputed
from ireko_trainer.mlfs.shapes import Shape, check
from ireko_trainer.mlfs.subnets import materialize, skeleton

Batch = dict[str, Tensor]
Forward = Callable[[Batch], ModelOutput]

_ADAPTER = "stage"
SKELETONS_KEPT = 32
"""Skeletons hold no weights, but each is a few hundred Python objects: the least recently used go first."""


@dataclass(frozen=True, kw_only=True)
class _Slices:
    """What a shape looks at: its skeleton, and the views that never change while the shape is in use."""

    skeleton: nn.Module
    frozen: dict[str, Tensor]
    """Frozen weights by the skeleton's own names: views, never copies."""
    pieced: dict[str, tuple[Tensor, Parts]]
    """Fused matrices, of which several pieces are kept: the whole weight and the pieces, which are put together
    for the length of a step."""
    pairs: dict[str, _KeptLinear]
    """By the skeleton's own names."""


@dataclass(frozen=True, kw_only=True)
class _KeptLinear:
    """What a subnet keeps of a linear."""

    source: str
    """Its name in the full model."""
    outputs: tuple[slice, ...]
    inputs: tuple[slice, ...]


class Supernet:
    """Nested subnets over one model's weights.

    The supernet takes the model over: its parameters become the frozen weights and `end_stage` changes them
    in place. Pass a copy if the model is to stay as it is (the distillation teacher must).

    Args:
        model: a model of a known family, float32, on any device.
        rank: r of the low-rank pairs.
        alpha: α; the pair counts α/r.
        precision: float32, or bfloat16 for autocast around float32 weights and pairs. Measured on CPUs with
            native bfloat16: holding the frozen weights in bfloat16 saves nothing per step, so they stay
            exact.
        gradient_checkpointing: keep only the inputs of the blocks for the backward pass and compute the rest
            again: a third more time, for a fraction of the activations.

    Raises:
        UserError: the family is unknown, or the weights are in half precision.
        ValueError: a parameter has no place in the family's axis table.
    """

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        rank: int = 8,
        alpha: float = 16.0,
        precision: torch.dtype = torch.float32,
        gradient_checkpointing: bool = False,
    ) -> None:
        self.layout = layout_of(model)
        require_full_precision(model)
        self.model = model.requires_grad_(requires_grad=False).eval()
        self.rank = rank
        self.scale = alpha / rank
        self.alpha = alpha
        self.precision = precision
        self.gradient_checkpointing = gradient_checkpointing
        self.stage: str | None = None
        self._frozen = dict(model.named_parameters())
        # A pair of its own would part a tied head from the embeddings.
        self._linears = {
            name: isinstance(module, Conv1D)
            for name, module in model.named_modules()
            if isinstance(module, nn.Linear | Conv1D) and f"{name}.weight" in self._frozen
        }
        """Linears that get a pair; whether they keep their weight as [in, out]."""
        self._pair: dict[str, nn.Parameter] = {}
        self._slices: OrderedDict[tuple[Shape, bool], _Slices] = OrderedDict()

    @property
    def full(self) -> Shape:
        """The shape of the uncut model."""
        return self.layout.full

    @property
    def device(self) -> torch.device:
        """Where the weights lie."""
        device: torch.device = self.model.device
        return device

    # --- stages ---------------------------------------------------------------------------------------------

    def begin_stage(self, name: str, *, seed: int) -> None:
        """Lay a fresh pair over every linear: A as PEFT draws it, B zero, so no output changes by a bit."""
        if self.stage is not None:
            raise ValueError(f"stage {self.stage!r} is still open: end it before {name!r} begins")
        generator = torch.Generator().manual_seed(seed)
        for linear, transposed in self._linears.items():
            sizes = self._frozen[f"{linear}.weight"].shape
            outputs, inputs = reversed(sizes) if transposed else sizes
            bound = 1 / math.sqrt(inputs)
            first = torch.empty(self.rank, inputs).uniform_(-bound, bound, generator=generator)
            self._pair[f"{linear}.A"] = nn.Parameter(first.to(self.device))
            self._pair[f"{linear}.B"] = nn.Parameter(torch.zeros(outputs, self.rank, device=self.device))
        self.stage = name

    def end_stage(self) -> None:
        """Fold the pair into the frozen weights: W += (α/r)·B A, in float32, in place."""
        if self.stage is None:
            raise ValueError("no stage is open")
        with torch.no_grad():
            for linear in self._linears:
                self._frozen[f"{linear}.weight"].add_(self._delta(linear))
        self.discard_stage()

    def discard_stage(self) -> None:
        """Take the open stage's pair away as if the stage had never begun."""
        self._pair = {}
        self.stage = None
        self._slices.clear()

    def trainable(self) -> list[nn.Parameter]:
        """The current stage's A [r, in] and B [out, r], float32, in a fixed order; empty between stages."""
        return list(self._pair.values())

    def named_trainable(self) -> dict[str, nn.Parameter]:
        """The same parameters as `<linear>.A` and `<linear>.B`."""
        return dict(self._pair)

    def trainable_size(self, shape: Shape) -> int:
        """n_j of the gradient scaling: how many of the trainable numbers the subnet of this shape uses."""
        return sum(
            self.rank * (_length(kept.outputs) + _length(kept.inputs))
            for kept in self._kept_linears(shape).values()
        )

    def state_dict(self) -> dict[str, Tensor]:
        """The current pair, copied: `<linear>.A` and `<linear>.B`."""
        return {name: tensor.detach().clone() for name, tensor in self._pair.items()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        """Put back a pair of the same stage of the same model."""
        if state.keys() != self._pair.keys():
            raise ValueError(
                f"the state is of another model or rank: {sorted(state.keys() ^ self._pair.keys())[:4]}"
            )
        with torch.no_grad():
            for name, tensor in state.items():
                self._pair[name].copy_(tensor)

    # --- subnets --------------------------------------------------------------------------------------------

    def forward(
        self, shape: Shape, batch: Batch, *, hidden_states: bool = False, dropout: bool = False
    ) -> ModelOutput:
        """Run one subnet in place.

        Args:
            shape: which subnet.
            batch: what a tokenizer gives, [B, S] each; entries the family does not take, and labels, are left
                out. hidden_states: also return the residual stream after the embeddings and after each kept
                layer. dropout: run in training mode (stage 0 only: distillation wants the subnet's own
                function).
        """
        hollow, weights = self.called_with(shape)
        if hollow.training != dropout:
            hollow.train(dropout)
        inputs = {name: batch[name] for name in self.layout.architecture.model_inputs if name in batch}
        blocks = blocks_of(hollow, layout=self.layout, layers=len(shape.layers))
        with self._autocast(), recomputed(blocks, enabled=self.gradient_checkpointing):
            return cast(
                "ModelOutput",
                functional_call(
                    hollow,
                    weights,
                    kwargs={
                        **inputs,
                        **self.layout.architecture.options,
                        "output_hidden_states": hidden_states,
                        "return_dict": True,
                    },
                    # Every weight is given by its own name; looking for tied ones would walk all modules.
                    tie_weights=False,
                ),
            )

    def called_with(self, shape: Shape) -> tuple[nn.Module, dict[str, Tensor]]:
        """The skeleton of a subnet and every weight that it is called with, by the skeleton's own names."""
        slices = self._slices_of(shape)
        return slices.skeleton, slices.frozen | _put_together(slices) | self._pair_views(slices)

    def forward_fn(self, shape: Shape) -> Forward:
        """One subnet as a plain function of a batch, for evaluation: no gradients."""

        def run(batch: Batch) -> ModelOutput:
            with torch.no_grad():
                return self.forward(shape, batch)

        return run

    def extract(self, shape: Shape) -> PreTrainedModel:
        """The subnet as a standard model in its own storage, in eval mode: save it with `save_pretrained`.

        The pair of an open stage is folded into the copy; the supernet is unchanged.
        """
        check(shape, full=self.full, heads=self.layout.heads)

        def read(name: str, parts: Parts) -> Tensor:
            linear = name.removesuffix(".weight")
            weight = take(self._frozen[name], parts)
            if f"{linear}.A" not in self._pair:
                return weight
            return weight + self._delta(linear, parts=parts)

        with torch.no_grad():
            return materialize(model=self.model, layout=self.layout, shape=shape, read=read)

    # --- slices ---------------------------------------------------------------------------------------------

    def _slices_of(self, shape: Shape) -> _Slices:
        key = (shape, self.stage is not None)
        if key not in self._slices:
            self._slices[key] = self._slice(shape)
            if len(self._slices) > SKELETONS_KEPT:
                self._slices.popitem(last=False)
        self._slices.move_to_end(key)
        return self._slices[key]

    def _slice(self, shape: Shape) -> _Slices:
        check(shape, full=self.full, heads=self.layout.heads)
        pairs = self._kept_linears(shape) if self.stage is not None else {}
        frozen: dict[str, Tensor] = {}
        pieced: dict[str, tuple[Tensor, Parts]] = {}
        # What is made under inference mode could never again take part in a training step.
        with torch.inference_mode(mode=False), torch.no_grad():
            hollow = skeleton(self.model, shape)
            # Under all of its names: a tied head is given the embeddings that it is tied to.
            for name, _ in hollow.named_parameters(remove_duplicate=False):
                source = self.layout.source_name(name, shape)
                parts = self.layout.parts(self.layout.places[source], shape)
                if any(len(pieces) > 1 for pieces in parts):
                    pieced[_injected(name, pairs)] = (self._frozen[source], parts)
                else:
                    frozen[_injected(name, pairs)] = take(self._frozen[source], parts)
        if pairs:
            self._inject(hollow, list(pairs))
        return _Slices(skeleton=hollow, frozen=frozen, pieced=pieced, pairs=pairs)

    def _inject(self, hollow: nn.Module, linears: list[str]) -> None:
        config = LoraConfig(
            r=self.rank,
            lora_alpha=self.alpha,
            target_modules=linears,
            lora_dropout=0.0,
            fan_in_fan_out=any(self._linears.values()),
        )
        inject_adapter_in_model(config, hollow, adapter_name=_ADAPTER, low_cpu_mem_usage=True)
        for module in hollow.modules():
            if isinstance(module, LoraLayer):
                # PEFT would widen the input to the pair's float32, and autocast narrow it again.
                module.cast_input_dtype_enabled = self.precision == torch.float32

    def _kept_linears(self, shape: Shape) -> dict[str, _KeptLinear]:
        """The linears of a subnet, by its own names."""
        kept = {}
        renumbered = {layer: index for index, layer in enumerate(shape.layers)}
        for source, transposed in self._linears.items():
            place = self.layout.places[f"{source}.weight"]
            name = source
            if place.layer is not None:
                if place.layer not in renumbered:
                    continue
                inner = source.removeprefix(self.layout.block_name(place.layer, ""))
                name = self.layout.block_name(renumbered[place.layer], inner)
            parts = self.layout.parts(place, shape)
            outputs, inputs = reversed(parts) if transposed else parts
            kept[name] = _KeptLinear(source=source, outputs=outputs, inputs=inputs)
        return kept

    def _pair_views(self, slices: _Slices) -> dict[str, Tensor]:
        views = {}
        for name, kept in slices.pairs.items():
            first, second = self._pair[f"{kept.source}.A"], self._pair[f"{kept.source}.B"]
            views[f"{name}.lora_A.{_ADAPTER}.weight"] = take_along(first, kept.inputs, dimension=1)
            views[f"{name}.lora_B.{_ADAPTER}.weight"] = take_along(second, kept.outputs, dimension=0)
        return views

    def _delta(self, linear: str, *, parts: Parts | None = None) -> Tensor:
        """(α/r)·B A of one linear, laid out as its weight: [out kept, in kept], or the other way round."""
        first: Tensor = self._pair[f"{linear}.A"]
        second: Tensor = self._pair[f"{linear}.B"]
        if parts is not None:
            outputs, inputs = reversed(parts) if self._linears[linear] else parts
            first, second = take_along(first, inputs, dimension=1), take_along(second, outputs, dimension=0)
        delta = self.scale * (second @ first)
        return delta.T if self._linears[linear] else delta

    def _autocast(self) -> torch.autocast:
        return torch.autocast(
            device_type=self.device.type, dtype=torch.bfloat16, enabled=self.precision == torch.bfloat16
        )


def require_full_precision(model: PreTrainedModel) -> None:
    """Refuse weights that a small update would be lost in.

    Raises:
        UserError: with the remedy.
    """
    if model.dtype in (torch.bfloat16, torch.float16):
        name = str(model.dtype).removeprefix("torch.")
        raise UserError(
            f"spec.teacher.dtype: {name} weights are too coarse to train; set it to float32. Training still "
            "computes in bfloat16 where spec.pipeline.mlfs.precision says so."
        )


def _put_together(slices: _Slices) -> dict[str, Tensor]:
    return {name: take(weight, parts) for name, (weight, parts) in slices.pieced.items()}


def _length(pieces: tuple[slice, ...]) -> int:
    return sum(piece.stop - piece.start for piece in pieces)


def _injected(name: str, pairs: dict[str, _KeptLinear]) -> str:
    """PEFT moves the weights of a linear that gets a pair under `base_layer`."""
    owner, _, leaf = name.rpartition(".")
    return f"{owner}.base_layer.{leaf}" if owner in pairs else name
