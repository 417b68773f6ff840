"""Training the deltas: the compressed model learns the answers of the model that it was made of.

Teacher and student are one model: a factored layer keeps the layer that it replaces until the end, and a gate per
block says which of the two runs. All gates at 0 are the teacher, all at 1 what ships. Progressive replacement
(BERT-of-Theseus, which DeltaLLM uses) draws each gate by chance p, rising in a straight line to 1; the blend mixes both
layers in proportion p instead of drawing. Only U, V and the coefficients train; what is shared does not move.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.delta.shared_layers import DeltaLinear, Gate, delta_layers
from ireko_trainer.mlfs.loop import Hooks, Optimization, TrainingState, optimize
from ireko_trainer.mlfs.train import BatchAt, History
from ireko_trainer.quant import Kind, block_modules
from ireko_trainer.quant.calls import inputs
from ireko_trainer.quant.divergence import answer, as_reference, divergence

Replacement = Literal["Off", "Progressive", "Blend"]


@dataclass(frozen=True, kw_only=True)
class ReplacementSchedule:
    """How blocks are replaced: p = min(1, first + (1 - first)·step / (complete · steps)).

    Raises:
        ValueError: a share outside its range.
    """

    method: Replacement = "Off"
    """`Off`: everything is replaced from the beginning."""
    first: float = 0.3
    """p at the first step."""
    complete: float = 0.5
    """Share of the steps after which p is 1."""

    def __post_init__(self) -> None:
        if not (0 <= self.first <= 1 and 0 < self.complete <= 1):
            raise ValueError(f"first in [0, 1] and complete in (0, 1] are needed: {self}")

    def share(self, step: int, *, steps: int) -> float:
        """p of a step."""
        if self.method == "Off":
            return 1.0
        return min(1.0, self.first + (1 - self.first) * step / (self.complete * steps))

    def gates(self, count: int, *, step: int, steps: int, seed: int) -> list[float]:
        """The gates of a step, never all zero: nothing would be learned from that. Alike on all workers."""
        share = self.share(step, steps=steps)
        if self.method != "Progressive" or share >= 1:
            return [share] * count
        generator = torch.Generator().manual_seed(seed * 1_000_003 + step)
        drawn = torch.rand(count, generator=generator) < share
        while not bool(drawn.any()):
            drawn = torch.rand(count, generator=generator) < max(share, 1 / count)
        return drawn.double().tolist()


def train_deltas(
    *,
    model: PreTrainedModel,
    batches: BatchAt,
    kind: Kind,
    optimization: Optimization,
    replacement: ReplacementSchedule | None = None,
    precision: torch.dtype = torch.float32,
    seed: int = 0,
    hooks: Hooks | None = None,
    state: TrainingState | None = None,
    stage: str = "delta",
) -> History:
    """Distil the layers that `apply_plan` replaced into those that it put in, in place.

    Args:
        model: with the originals still there; it is left in evaluation mode, fully replaced and frozen.
        batches: labels are not looked at.
        kind: what the model answers with, which decides the loss: KL divergence per token or text, squared error,
            or the angle between embeddings.
        optimization: steps and learning rate; the shared weights do not decay, so let weight_decay be 0.
        replacement: everything is replaced from the beginning unless given.
        precision: float32, or bfloat16 for autocast.
        seed: of the gates.
        hooks: see `mlfs.loop.Hooks`.
        state: as saved through the hooks, to go on from there.
        stage: its name in errors, states and metrics.

    Returns:
        The metrics of every step: `loss`, `replaced`, `gradient_norm`, `learning_rate`.

    Raises:
        UserError: the training diverged.
        ValueError: nothing is factored, or the originals have been forgotten.
    """
    schedule = replacement or ReplacementSchedule()
    layers = delta_layers(model)
    if not layers or any(layer.original is None for layer in layers.values()):
        raise ValueError("there are no factored layers with their originals: apply a plan first")
    parameters = delta_parameters(model)
    model.requires_grad_(requires_grad=False).eval()
    take = answer(kind)

    def ask(batch: Mapping[str, Tensor]) -> Tensor:
        extra = {"use_cache": False} if hasattr(model.config, "use_cache") else {}
        with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
            output: Any = model(**inputs(batch), **extra)
        return take(output, batch)

    with _gated(model, layers) as gates:

        def step_function(step: int) -> dict[str, Tensor]:
            batch = {name: tensor.to(model.device) for name, tensor in batches(step).items()}
            _set(gates, [0.0] * len(gates))
            with torch.no_grad():
                reference = as_reference(kind=kind, answers=ask(batch))
            values = schedule.gates(len(gates), step=step, steps=optimization.steps, seed=seed)
            _set(gates, values)
            loss = divergence(kind=kind, reference=reference, candidate=ask(batch)).mean()
            loss.backward()
            # Every worker drew the same gates, but a mean over workers needs a gradient for every parameter.
            for parameter in parameters.values():
                if parameter.grad is None:
                    parameter.grad = torch.zeros_like(parameter)
            return {"loss": loss, "replaced": loss.new_tensor(sum(values) / len(values))}

        for parameter in parameters.values():
            parameter.requires_grad_()
        try:
            return optimize(
                stage=stage,
                parameters=parameters,
                step_function=step_function,
                optimization=optimization,
                hooks=hooks or Hooks(),
                state=state,
            )
        finally:
            model.requires_grad_(requires_grad=False)


def delta_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """What trains: every U, every V once, and the coefficients of those that follow a base."""
    found: dict[str, nn.Parameter] = {}
    for name, layer in delta_layers(model).items():
        own = dict(layer.named_parameters(prefix=name))
        found |= {key: value for key, value in own.items() if not key.endswith("bias")}
    return found


@contextmanager
def _gated(model: PreTrainedModel, layers: Mapping[str, DeltaLinear]) -> Iterator[list[Gate]]:
    """Give the layers of each block a gate of their own, and take the gates away at the end."""
    gates: list[Gate] = []
    try:
        for block in block_modules(model):
            inside = [layer for name, layer in layers.items() if name.startswith(f"{block}.")]
            if inside:
                gates.append(Gate())
            for layer in inside:
                layer.gate = gates[-1]
        yield gates
    finally:
        for layer in layers.values():
            layer.gate = None


def _set(gates: list[Gate], values: list[float]) -> None:
    for gate, value in zip(gates, values, strict=True):
        gate.value = value
