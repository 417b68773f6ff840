"""The stages of MLFS: the teacher, the supernet's widths, its depths, the members.

    teacher   W_pre + B_0 A_0   the largest model on the task (or all its weights: better at equal steps)
    widths    … + B_1 A_1       subnets of full depth
    depths    … + B_2 A_2       subnets of all depths
    recovery  one chosen subnet, cut out, with a pair of its own

One supernet step trains a few subnets of one batch, one after the other, so that only one subnet's
activations are alive at a time. The teacher of all of them is the frozen model of stage 0, which runs once
per step and is served as the largest member. The paper trains the maxnet in place and lets it teach
(`frozen_teacher=None`): that costs a third more time and gave worse subnets in our measurements.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal, cast

import torch
from torch import Tensor
from transformers import PreTrainedModel
from transformers.utils.generic import ModelOutput

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs.architectures import architecture_of, layout_of
from ireko_trainer.mlfs.loop import Hooks, Optimization, TrainingState, optimize
from ireko_trainer.mlfs.losses import (
    Distillation,
    FeatureProjection,
    answer_loss,
    feature_loss,
    gradient_weight,
    mean_pool,
    next_token_loss,
    similarity_loss,
    task_loss,
)
from ireko_trainer.mlfs.recompute import blocks_of, recomputed
from ireko_trainer.mlfs.sampling import Palette, draw
from ireko_trainer.mlfs.shapes import Shape
from ireko_trainer.mlfs.supernet import Batch, Supernet, require_full_precision

BatchAt = Callable[[int], Batch]
"""The batch of a step, on any device: random access by step is what makes a run resumable."""

History = list[dict[str, float]]


def train_teacher(
    *,
    model: PreTrainedModel,
    batches: BatchAt,
    optimization: Optimization,
    method: Literal["Full", "LowRank"] = "Full",
    rank: int = 8,
    alpha: float = 16.0,
    precision: torch.dtype = torch.float32,
    gradient_checkpointing: bool = False,
    dropout: bool = True,
    seed: int = 0,
    hooks: Hooks | None = None,
    state: TrainingState | None = None,
    stage: str = "teacher",
) -> History:
    """Stage 0: fit the full model to the labels, or a language model to its texts, in place; it is left frozen, in
    eval mode.

    Args:
        model: float32 weights, on the device to train on.
        batches: must carry labels, unless the model is a language model.
        optimization: steps and learning rate; about 1e-4 for `Full`, 2e-3 for `LowRank`.
        method: all weights, or a low-rank pair that is folded into the weights at the end.
        rank: of `LowRank`.
        alpha: of `LowRank`.
        precision: float32, or bfloat16 for autocast.
        gradient_checkpointing: compute the blocks again in the backward pass instead of keeping what is in them.
        dropout: with the probabilities of the model's config.
        seed: of the pair and the dropout masks.
        hooks: see `loop.Hooks`.
        state: as saved through the hooks, to go on from there.
        stage: its name in errors, states and metrics.

    Raises:
        UserError: there are no labels, the weights are in half precision, or the training diverged.
    """
    require_full_precision(model)
    layout = layout_of(model)
    blocks = blocks_of(model, layout=layout, layers=len(layout.full.layers))
    supernet: Supernet | None = None
    if method == "LowRank":
        supernet = Supernet(
            model=model,
            rank=rank,
            alpha=alpha,
            precision=precision,
            gradient_checkpointing=gradient_checkpointing,
        )
        supernet.begin_stage(stage, seed=seed)
        parameters = supernet.named_trainable()
    else:
        model.requires_grad_(requires_grad=True)
        parameters = dict(model.named_parameters())

    def step_function(step: int) -> dict[str, Tensor]:
        batch = _on_device(batches(step), model.device)
        with _random_numbers(seed=seed, step=step, device=model.device):
            if supernet is not None:
                output = supernet.forward(supernet.full, batch, dropout=dropout)
            else:
                with recomputed(blocks, enabled=gradient_checkpointing):
                    output = _run(model.train(dropout), batch, precision=precision)
        loss = _true_loss(output, batch)
        if loss is None:
            raise UserError(
                "spec.pipeline.mlfs.stages.teacher: fine-tuning needs labels, and spec.data.train has none. "
                "Name its labelColumn, or set method to Skip and distil from the teacher as it is."
            )
        loss.backward()
        return {"loss": loss}

    history = optimize(
        stage=stage,
        parameters=parameters,
        step_function=step_function,
        optimization=optimization,
        hooks=hooks or Hooks(),
        state=state,
    )
    if supernet is not None:
        supernet.end_stage()
    model.requires_grad_(requires_grad=False).eval()
    return history


@dataclass(frozen=True, kw_only=True)
class SupernetStage:
    """What one supernet stage trains and how it weighs."""

    name: str
    """In errors, saved states and metrics: `widths`, `depths`."""
    palette: Palette
    optimization: Optimization
    distillation: Distillation
    subnets_per_step: int = 3
    """Without the maxnet that trains in place."""
    gamma: float = 0.5
    """Exponent of the gradient scaling (n_1/n_j)^γ; 0 is the plain mean."""
    seed: int = 0


def train_supernet(
    *,
    supernet: Supernet,
    frozen_teacher: PreTrainedModel | None,
    batches: BatchAt,
    stage: SupernetStage,
    hooks: Hooks | None = None,
    state: TrainingState | None = None,
    teacher_layers: tuple[int, ...] | None = None,
) -> History:
    """One supernet stage: lay a fresh pair over the weights, train it on the palette, fold it in.

    Args:
        supernet: between stages; it is again so afterwards, also when an error ends the stage.
        frozen_teacher: what every subnet imitates, a model of its own, permuted as the supernet's was; `None`
            lets the supernet's largest subnet train on the labels and teach the others (the paper's way).
        batches: labels are used if there are any; a language model also learns from the texts themselves.
        stage: what to train and how.
        hooks: see `loop.Hooks`.
        state: as saved through the hooks, to go on from there.
        teacher_layers: the teacher's layer behind each layer of the supernet, if the supernet is itself a
            subnet.

    Returns:
        The metrics of every step: `loss`, `loss/<shape>` for each subnet trained in it, `gradient_norm`,
        `learning_rate`.

    Raises:
        UserError: the training diverged, or the largest subnet has no labels to learn from.
        ValueError: the teacher shares weights with the supernet and would change with it.
    """
    _require_own_weights(frozen_teacher, supernet)
    supernet.begin_stage(stage.name, seed=stage.seed)
    try:
        step = _SupernetStep(
            supernet=supernet,
            teacher=frozen_teacher,
            batches=batches,
            stage=stage,
            teacher_layers=teacher_layers or supernet.full.layers,
        )
        history = optimize(
            stage=stage.name,
            parameters=supernet.named_trainable(),
            step_function=step,
            optimization=stage.optimization,
            hooks=hooks or Hooks(),
            state=state,
        )
    except BaseException:
        supernet.discard_stage()
        raise
    supernet.end_stage()
    return history


def recover(
    *,
    supernet: Supernet,
    shape: Shape,
    frozen_teacher: PreTrainedModel,
    batches: BatchAt,
    optimization: Optimization,
    distillation: Distillation,
    seed: int = 0,
    hooks: Hooks | None = None,
    state: TrainingState | None = None,
    stage: str = "recovery",
) -> PreTrainedModel:
    """Polish one member: cut it out and train it alone, with a pair of its own.

    The member leaves the supernet first, so no other member changes, and members may be recovered in any
    order and in parallel. Arguments as in `train_supernet`; returns the standard model.
    """
    alone = Supernet(
        model=supernet.extract(shape),
        rank=supernet.rank,
        alpha=supernet.alpha,
        precision=supernet.precision,
        gradient_checkpointing=supernet.gradient_checkpointing,
    )
    train_supernet(
        supernet=alone,
        frozen_teacher=frozen_teacher,
        batches=batches,
        stage=SupernetStage(
            name=stage,
            palette=Palette(shapes=(alone.full,)),
            optimization=optimization,
            distillation=distillation,
            subnets_per_step=1,
            seed=seed,
        ),
        hooks=hooks,
        state=state,
        teacher_layers=shape.layers,
    )
    return alone.model


@dataclass(frozen=True, kw_only=True)
class _Reference:
    """What a teacher said about a batch; shared by all subnets of the step."""

    answers: Tensor | None
    embeddings: Tensor
    features: tuple[Tensor, ...]
    """Empty when the feature loss is off."""


class _SupernetStep:
    """The gradients of one step: Σ_j w_j ∇L_j / K over the subnets drawn for it."""

    def __init__(
        self,
        *,
        supernet: Supernet,
        teacher: PreTrainedModel | None,
        batches: BatchAt,
        stage: SupernetStage,
        teacher_layers: tuple[int, ...],
    ) -> None:
        self._supernet = supernet
        self._teacher = teacher
        self._batches = batches
        self._stage = stage
        self._teacher_layers = teacher_layers
        widest = teacher.config if teacher is not None else supernet.model.config
        self._projection = FeatureProjection(
            hidden=widest.hidden_size,
            states=widest.num_hidden_layers + 1,
            rows=stage.distillation.projection,
            seed=stage.seed,
            device=supernet.device,
        )
        self._with_features = stage.distillation.beta > 0
        self._largest = supernet.trainable_size(supernet.full)

    def __call__(self, step: int) -> dict[str, Tensor]:
        batch = _on_device(self._batches(step), self._supernet.device)
        shapes = draw(
            palette=self._stage.palette,
            full=self._supernet.full,
            count=self._stage.subnets_per_step,
            seed=self._stage.seed,
            step=step,
            in_place=self._teacher is None,
        )
        reference = self._ask_teacher(batch)
        metrics: dict[str, Tensor] = {}
        for shape in shapes:
            loss, reference = self._train(shape, batch, reference, among=len(shapes))
            metrics[f"loss/{shape}"] = loss
        return {"loss": torch.stack(list(metrics.values())).mean(), **metrics}

    def _train(
        self, shape: Shape, batch: Batch, reference: _Reference | None, *, among: int
    ) -> tuple[Tensor, _Reference]:
        """Add up the gradients of one subnet of several; returns its loss and what the others learn from.

        What the subnet answered is forgotten before the next one answers.
        """
        output = self._supernet.forward(shape, batch, hidden_states=self._with_features)
        if reference is None:
            loss = _labelled_loss(output, batch)
            reference = self._refer(output, batch)
        else:
            loss = self._distillation_loss(output, shape=shape, reference=reference, batch=batch)
        (loss * (self._weight(shape) / among)).backward()
        return loss.detach(), reference

    def _weight(self, shape: Shape) -> float:
        return gradient_weight(
            largest=self._largest, subnet=self._supernet.trainable_size(shape), gamma=self._stage.gamma
        )

    def _ask_teacher(self, batch: Batch) -> _Reference | None:
        if self._teacher is None:
            return None
        with torch.no_grad():
            output = _run(
                self._teacher, batch, precision=self._supernet.precision, hidden_states=self._with_features
            )
        return self._refer(output, batch)

    def _refer(self, output: ModelOutput, batch: Batch) -> _Reference:
        with torch.no_grad():
            return _Reference(
                answers=_answers(output, batch).detach() if "logits" in output else None,
                embeddings=_embeddings(output, batch) if "logits" not in output else torch.empty(0),
                features=tuple(
                    self._projection.features(hidden.detach(), state)
                    for state, hidden in enumerate(output["hidden_states"] if self._with_features else ())
                ),
            )

    def _distillation_loss(
        self, output: ModelOutput, *, shape: Shape, reference: _Reference, batch: Batch
    ) -> Tensor:
        weights = self._stage.distillation
        if reference.answers is None:
            imitation = similarity_loss(_embeddings(output, batch), reference.embeddings)
        else:
            imitation = answer_loss(
                _answers(output, batch), reference.answers, temperature=weights.temperature
            )
        if self._with_features:
            imitation = imitation + weights.beta * feature_loss(
                output["hidden_states"],
                reference.features,
                projection=self._projection,
                layers=[self._teacher_layers[layer] for layer in shape.layers],
                mask=batch["attention_mask"],
            )
        truth = _true_loss(output, batch)
        if truth is None:
            return imitation
        return (1 - weights.alpha) * truth + weights.alpha * imitation


def _labelled_loss(output: ModelOutput, batch: Batch) -> Tensor:
    """What the maxnet learns from when it trains in place."""
    loss = _true_loss(output, batch)
    if loss is None:
        raise UserError(
            "spec.pipeline.mlfs.distillation.teacher: InPlace trains the largest subnet on labels, and there "
            "are none to train on. Set it to Frozen."
        )
    return loss


def _run(
    model: PreTrainedModel, batch: Batch, *, precision: torch.dtype, hidden_states: bool = False
) -> ModelOutput:
    """A whole model on a batch, with the entries that its family takes."""
    architecture = architecture_of(model.config)
    inputs = {name: batch[name] for name in architecture.model_inputs if name in batch}
    with torch.autocast(model.device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16):
        return cast(
            "ModelOutput",
            model(**inputs, **architecture.options, output_hidden_states=hidden_states, return_dict=True),
        )


def _true_loss(output: ModelOutput, batch: Batch) -> Tensor | None:
    """What the labels say of a model's answers, or the texts themselves of a language model's; None: nothing does."""
    if "logits" not in output:
        return None
    logits = cast("Tensor", output["logits"])
    if logits.dim() == 3:
        return next_token_loss(logits, batch["input_ids"], batch["attention_mask"])
    return task_loss(logits, batch["labels"]) if "labels" in batch else None


def _answers(output: ModelOutput, batch: Batch) -> Tensor:
    """Logits that are compared with a teacher's: of each text [B, C], or of each real token of all texts [T, V]."""
    logits = cast("Tensor", output["logits"])
    return logits if logits.dim() == 2 else logits[batch["attention_mask"].bool()]


def _embeddings(output: ModelOutput, batch: Batch) -> Tensor:
    return mean_pool(output["last_hidden_state"], batch["attention_mask"])


def _on_device(batch: Batch, device: torch.device) -> Batch:
    return {name: tensor.to(device, non_blocking=True) for name, tensor in batch.items()}


@contextmanager
def _random_numbers(*, seed: int, step: int, device: torch.device) -> Iterator[None]:
    """Dropout masks that depend on the step alone; the global generator is left as it was."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed * 1_000_003 + step)
        yield


def _require_own_weights(teacher: PreTrainedModel | None, supernet: Supernet) -> None:
    if teacher is None:
        return
    frozen = {parameter.data_ptr() for parameter in supernet.model.parameters()}
    if any(parameter.data_ptr() in frozen for parameter in teacher.parameters()):
        raise ValueError(
            "the teacher shares its weights with the supernet, which will change them: pass a copy"
        )
