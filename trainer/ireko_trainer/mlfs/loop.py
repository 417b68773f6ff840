"""The loop under every stage: optimize, average, clip, checkpoint, stop, and go on bit-identically.

What a stage computes is a function of the step number (its batch, its subnets and its dropout masks are drawn
from seed and step), so the whole state of training is parameters, optimizer and a number. That is what is
saved, and a run resumed from it makes the same steps as one that was never stopped.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypedDict

import torch
from torch import Tensor, nn

from ireko_trainer.errors import DivergedError, InterruptedRunError


@dataclass(frozen=True, kw_only=True)
class Optimization:
    """How one stage is optimized: AdamW, linear warm-up, then linear decay to zero."""

    steps: int
    learning_rate: float
    warmup_ratio: float = 0.06
    """Share of the steps in which the learning rate rises."""
    weight_decay: float = 0.01
    """Applies to matrices only: biases and norms have no scale to lose."""
    clip: float = 1.0
    """Largest norm of the whole gradient."""

    def rate(self, step: int) -> float:
        """The learning rate of a step."""
        warmup = max(1, round(self.steps * self.warmup_ratio))
        if step < warmup:
            return self.learning_rate * (step + 1) / warmup
        return self.learning_rate * (self.steps - step) / max(1, self.steps - warmup)


class TrainingState(TypedDict):
    """All of a stage in progress, in plain tensors and numbers: it can be loaded weights-only."""

    stage: str
    step: int
    """Steps done."""
    parameters: dict[str, Tensor]
    optimizer: dict[str, Any]
    history: list[dict[str, float]]
    """Metrics of each step done."""


def _nothing(*_: object) -> None:
    """The default of every callback: one worker, no log, no checkpoint."""


def _never() -> bool:
    return False


@dataclass(frozen=True, kw_only=True)
class Hooks:
    """What the world does to and learns from a stage; the defaults: one worker that tells nobody."""

    all_reduce: Callable[[Sequence[Tensor]], None] = _nothing
    """Replaces each tensor by its mean over the workers, in place."""
    stop: Callable[[], bool] = _never
    """Asked once before every step, on all workers alike."""
    on_step: Callable[[int, Mapping[str, float]], None] = _nothing
    """Told the number of steps done and the metrics of the last one."""
    save: Callable[[TrainingState], None] = _nothing
    """Given the state every `checkpoint_seconds` and at a stop; its tensors go on training, so write them."""
    checkpoint_seconds: float = 60.0
    clock: Callable[[], float] = time.monotonic


StepFunction = Callable[[int], dict[str, Tensor]]
"""Computes one step's gradients (backward included) and returns scalar metrics."""


def optimize(
    *,
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    step_function: StepFunction,
    optimization: Optimization,
    hooks: Hooks,
    state: TrainingState | None = None,
) -> list[dict[str, float]]:
    """Run a stage from its beginning or from `state` to its end; returns the metrics of every step.

    Raises:
        DivergedError: the gradient is not finite. No state of it is saved: the last checkpoint is the last
            good one. InterruptedRunError: `hooks.stop()` said so; the state has been saved.
    """
    optimizer = _optimizer(parameters, optimization)
    history: list[dict[str, float]] = []
    first = 0
    if state is not None:
        first, history = _restore(state, stage=stage, parameters=parameters, optimizer=optimizer)

    def current(steps_done: int) -> TrainingState:
        return TrainingState(
            stage=stage,
            step=steps_done,
            parameters={name: parameter.detach() for name, parameter in parameters.items()},
            optimizer=optimizer.state_dict(),
            history=history,
        )

    saved_at = hooks.clock()
    for step in range(first, optimization.steps):
        if hooks.stop():
            hooks.save(current(step))
            raise InterruptedRunError(f"stage {stage} stopped after {step} of {optimization.steps} steps")
        metrics = step_function(step)
        norm = _average_and_clip(parameters.values(), hooks=hooks, clip=optimization.clip)
        values = _to_numbers(metrics | {"gradient_norm": norm}) | {"learning_rate": optimization.rate(step)}
        _refuse_divergence(values, stage=stage, step=step, optimization=optimization)
        for group in optimizer.param_groups:
            group["lr"] = optimization.rate(step)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        history.append(values)
        hooks.on_step(step + 1, values)
        if hooks.clock() - saved_at >= hooks.checkpoint_seconds:
            hooks.save(current(step + 1))
            saved_at = hooks.clock()
    return history


def _optimizer(parameters: Mapping[str, nn.Parameter], optimization: Optimization) -> torch.optim.Optimizer:
    matrices = [parameter for parameter in parameters.values() if parameter.dim() > 1]
    vectors = [parameter for parameter in parameters.values() if parameter.dim() <= 1]
    groups = [
        {"params": matrices, "weight_decay": optimization.weight_decay},
        {"params": vectors, "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(
        [group for group in groups if group["params"]], lr=optimization.learning_rate, fused=True
    )


def _restore(
    state: TrainingState,
    *,
    stage: str,
    parameters: Mapping[str, nn.Parameter],
    optimizer: torch.optim.Optimizer,
) -> tuple[int, list[dict[str, float]]]:
    if state["stage"] != stage or state["parameters"].keys() != parameters.keys():
        raise ValueError(
            f"the saved state is of stage {state['stage']!r} of another model or rank, not of {stage!r}"
        )
    with torch.no_grad():
        for name, tensor in state["parameters"].items():
            parameters[name].copy_(tensor)
    optimizer.load_state_dict(state["optimizer"])
    return state["step"], list(state["history"])


def _average_and_clip(parameters: Sequence[nn.Parameter] | Any, *, hooks: Hooks, clip: float) -> Tensor:
    # Every worker draws the same subnets, so the same parameters have gradients on all of them.
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    if not gradients:
        raise ValueError("no parameter received a gradient: the step trained nothing")
    hooks.all_reduce(gradients)
    norm = torch.nn.utils.get_total_norm(gradients)
    # A tensor's minimum instead of a Python branch: no wait for the GPU.
    torch._foreach_mul_(gradients, (clip / (norm + 1e-6)).clamp(max=1.0))
    return norm


def _to_numbers(metrics: Mapping[str, Tensor]) -> dict[str, float]:
    values = torch.stack([metric.detach().float() for metric in metrics.values()]).tolist()
    return dict(zip(metrics, values, strict=True))


def _refuse_divergence(
    metrics: Mapping[str, float], *, stage: str, step: int, optimization: Optimization
) -> None:
    # The gradient is averaged over the workers, so all of them see the same and stop together.
    if math.isfinite(metrics["gradient_norm"]):
        return
    raise DivergedError(
        f"stage {stage} diverged at step {step + 1} of {optimization.steps}: the loss is {metrics['loss']:g} and the "
        f"gradient is not finite. {_remedy(metrics, step=step, optimization=optimization)}"
    )


def _remedy(metrics: Mapping[str, float], *, step: int, optimization: Optimization) -> str:
    if step == 0:
        # Nothing has been learned yet, so nothing was learned too fast.
        return (
            "No step came before it, so the learning rate is not at fault: look for labels of enormous size in "
            "spec.data.train.labelColumn, scale them, and check that the weights of spec.teacher.model are finite."
        )
    return (
        f"The learning rate was {metrics['learning_rate']:.3g}, at its peak {optimization.learning_rate:.3g}; lower "
        f"learningRate of this stage to about {optimization.learning_rate / 3:.2g} and run again, or scale the "
        "labels if they are large numbers. The last checkpoint was written before this step."
    )
