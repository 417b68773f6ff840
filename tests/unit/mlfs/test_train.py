"""Training: the stages learn, resume bit for bit, stop when asked and say why they diverge."""

from __future__ import annotations

import copy
import io
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from tests.unit.mlfs.conftest import SMALL, ask, make_batch, make_model
from torch import Tensor
from transformers import PreTrainedModel

from ireko_trainer.errors import DivergedError, InterruptedRunError, UserError
from ireko_trainer.mlfs import (
    Batch,
    Distillation,
    Hooks,
    Optimization,
    Palette,
    Shape,
    Supernet,
    SupernetStage,
    TrainingState,
    recover,
    train_supernet,
    train_teacher,
)
from ireko_trainer.mlfs.losses import answer_loss

FULL = Shape(hidden=48, heads=4, intermediate=96, layers=(0, 1, 2, 3))
NARROW = Shape(hidden=48, heads=4, intermediate=32, layers=(0, 1, 2, 3))
MIDDLE = Shape(hidden=36, heads=3, intermediate=64, layers=(0, 1, 2, 3))
PALETTE = Palette(shapes=(SMALL, NARROW, MIDDLE))


def batch_at(step: int) -> Batch:
    return make_batch(rows=8, seed=step)


def unlabelled(step: int) -> Batch:
    return make_batch(rows=8, seed=step, labels=None)


def always_the_same(_step: int) -> Batch:
    """One batch to learn by heart: what can be expected of random weights in a few steps."""
    return make_batch(rows=8, seed=0)


def stage(**changed: Any) -> SupernetStage:
    values: dict[str, Any] = {
        "name": "widths",
        "palette": PALETTE,
        "optimization": Optimization(steps=4, learning_rate=1e-2),
        "distillation": Distillation(projection=8),
    }
    return SupernetStage(**(values | changed))


def weights(model: PreTrainedModel) -> dict[str, Tensor]:
    return {name: tensor.detach().clone() for name, tensor in model.state_dict().items()}


def assert_equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    for name, tensor in one.items():
        assert torch.equal(tensor, other[name]), name


def losses(history: list[dict[str, float]], steps: int = 5) -> tuple[float, float]:
    first, last = history[:steps], history[-steps:]
    return sum(step["loss"] for step in first) / steps, sum(step["loss"] for step in last) / steps


@pytest.mark.parametrize(("method", "rate"), [("Full", 1e-3), ("LowRank", 1e-2)])
def test_the_teacher_learns_its_task(encoder: str, method: Any, rate: float) -> None:
    model = make_model(encoder, layers=1)
    history = train_teacher(
        model=model,
        batches=always_the_same,
        method=method,
        optimization=Optimization(steps=30, learning_rate=rate),
        dropout=False,
    )
    before, after = losses(history)
    assert after < 0.8 * before
    assert not model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())


@pytest.mark.parametrize("task", [True, False])
def test_distillation_brings_subnets_closer_to_the_teacher(encoder: str, task: bool) -> None:
    teacher = make_model(encoder, task=task)
    history = train_supernet(
        supernet=Supernet(model=copy.deepcopy(teacher)),
        frozen_teacher=teacher,
        batches=lambda _step: make_batch(rows=8, labels=None),
        stage=stage(optimization=Optimization(steps=20, learning_rate=1e-2)),
    )
    before, after = losses(history)
    assert after < 0.9 * before


@pytest.mark.parametrize("family", ["llama", "gemma2", "phi3", "gpt2"])
@pytest.mark.parametrize("method", ["Full", "LowRank"])
def test_a_language_model_learns_from_text_alone(family: str, method: Any) -> None:
    model = make_model(family, layers=2)
    history = train_teacher(
        model=model,
        batches=lambda _step: make_batch(rows=8, labels=None),
        method=method,
        optimization=Optimization(steps=25, learning_rate=1e-2),
        dropout=False,
    )
    before, after = losses(history)
    assert after < 0.8 * before


@pytest.mark.parametrize("family", ["llama", "gemma3_text", "phi3", "gpt2"])
def test_subnets_of_a_language_model_come_closer_to_it(family: str) -> None:
    teacher = make_model(family)
    supernet = Supernet(model=copy.deepcopy(teacher))
    palette = Palette(shapes=(SMALL, Shape(hidden=48, heads=4, intermediate=64, layers=(0, 1, 3))))
    history = train_supernet(
        supernet=supernet,
        frozen_teacher=teacher,
        batches=lambda _step: make_batch(rows=8, labels=None),
        stage=stage(
            palette=palette,
            optimization=Optimization(steps=20, learning_rate=1e-2),
            distillation=Distillation(projection=8, alpha=1.0),
        ),
    )
    before, after = losses(history)
    assert after < 0.9 * before


def test_the_largest_language_model_can_train_in_place_without_labels() -> None:
    supernet = Supernet(model=make_model("llama"))
    history = train_supernet(
        supernet=supernet,
        frozen_teacher=None,
        batches=lambda _step: make_batch(rows=4, labels=None),
        stage=stage(palette=Palette(shapes=(SMALL,))),
    )
    assert {f"loss/{shape}" for shape in (supernet.full, SMALL)} < set(history[0])


def test_a_number_is_distilled_as_a_number() -> None:
    teacher = make_model("bert", labels=1)

    def batches(_step: int) -> Batch:
        batch = make_batch(rows=8, labels=None)
        return batch | {"labels": batch["input_ids"][:, 0] / 60}

    history = train_supernet(
        supernet=Supernet(model=copy.deepcopy(teacher)),
        frozen_teacher=teacher,
        batches=batches,
        stage=stage(optimization=Optimization(steps=25, learning_rate=1e-2)),
    )
    before, after = losses(history)
    assert after < 0.8 * before


def test_a_full_subnet_has_nothing_to_learn_from_its_own_teacher(encoder: str) -> None:
    teacher = make_model(encoder)
    supernet = Supernet(model=copy.deepcopy(teacher))
    history = train_supernet(
        supernet=supernet,
        frozen_teacher=teacher,
        batches=unlabelled,
        stage=stage(palette=Palette(shapes=(FULL,)), optimization=Optimization(steps=1, learning_rate=1e-9)),
    )
    assert history[0]["loss"] == pytest.approx(0, abs=1e-6)


def test_in_place_the_maxnet_learns_from_labels_and_teaches() -> None:
    supernet = Supernet(model=make_model("bert"))
    history = train_supernet(
        supernet=supernet,
        frozen_teacher=None,
        batches=always_the_same,
        stage=stage(optimization=Optimization(steps=20, learning_rate=1e-2), subnets_per_step=1),
    )
    maxnet = [step[f"loss/{FULL}"] for step in history]
    assert sum(maxnet[-5:]) < 0.9 * sum(maxnet[:5])
    assert all(sum(name.startswith("loss/") for name in step) == 2 for step in history)


def test_in_place_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="Set it to Frozen"):
        train_supernet(
            supernet=Supernet(model=make_model("bert")),
            frozen_teacher=None,
            batches=unlabelled,
            stage=stage(),
        )


def test_a_teacher_without_labels_is_refused() -> None:
    with pytest.raises(UserError, match="labelColumn"):
        train_teacher(
            model=make_model("bert"),
            batches=unlabelled,
            optimization=Optimization(steps=1, learning_rate=1e-3),
        )


def test_a_teacher_that_would_change_with_the_supernet_is_refused() -> None:
    model = make_model("bert")
    with pytest.raises(ValueError, match="pass a copy"):
        train_supernet(supernet=Supernet(model=model), frozen_teacher=model, batches=batch_at, stage=stage())


def one_step_gradient(
    teacher: PreTrainedModel, palette: Sequence[Shape], *, gamma: float
) -> dict[str, Tensor]:
    """The averaged gradient of a first step over exactly these shapes, before clipping."""
    seen: dict[str, Tensor] = {}
    supernet = Supernet(model=copy.deepcopy(teacher))

    def observe(gradients: Sequence[Tensor]) -> None:
        named = [(name, pair) for name, pair in supernet.named_trainable().items() if pair.grad is not None]
        seen.update({name: gradient.clone() for (name, _), gradient in zip(named, gradients, strict=True)})

    train_supernet(
        supernet=supernet,
        frozen_teacher=teacher,
        batches=batch_at,
        stage=stage(
            palette=Palette(shapes=tuple(palette)),
            subnets_per_step=len(palette),
            gamma=gamma,
            optimization=Optimization(steps=1, learning_rate=1e-3),
        ),
        hooks=Hooks(all_reduce=observe),
    )
    return seen


@pytest.mark.parametrize("gamma", [0.0, 0.5])
def test_a_step_follows_the_weighted_mean_of_its_subnets_gradients(gamma: float) -> None:
    teacher = make_model("bert")
    together = one_step_gradient(teacher, [SMALL, NARROW], gamma=gamma)
    alone = [one_step_gradient(teacher, [shape], gamma=gamma) for shape in (SMALL, NARROW)]
    for name, gradient in together.items():
        expected = sum(one.get(name, torch.zeros_like(gradient)) for one in alone) / 2
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-7)


def test_gradient_scaling_multiplies_a_subnet_by_the_published_weight() -> None:
    teacher = make_model("bert")
    plain, scaled = (one_step_gradient(teacher, [SMALL], gamma=gamma) for gamma in (0.0, 0.5))
    supernet = Supernet(model=teacher)
    weight = (supernet.trainable_size(FULL) / supernet.trainable_size(SMALL)) ** 0.5
    assert weight > 1
    for name, gradient in plain.items():
        torch.testing.assert_close(scaled[name], weight * gradient, rtol=1e-4, atol=1e-8)


class Checkpoint:
    """Keeps the last saved state the way a file would: serialized, and read back weights-only."""

    def __init__(self) -> None:
        self._bytes: bytes | None = None

    def save(self, state: TrainingState) -> None:
        buffer = io.BytesIO()
        torch.save(state, buffer)
        self._bytes = buffer.getvalue()

    def load(self) -> TrainingState:
        assert self._bytes is not None
        state: TrainingState = torch.load(io.BytesIO(self._bytes), weights_only=True)
        return state


def stop_before(step: int) -> Callable[[], bool]:
    asked = itertools.count()
    return lambda: next(asked) == step


@pytest.mark.parametrize("stopped_at", [0, 1, 3])
@pytest.mark.parametrize("method", ["Full", "LowRank"])
def test_a_teacher_resumed_at_any_step_ends_the_same_bit_for_bit(stopped_at: int, method: Any) -> None:
    def run(
        hooks: Hooks, state: TrainingState | None = None
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        model = make_model("bert")
        model.config.hidden_dropout_prob = 0.1
        history = train_teacher(
            model=model,
            batches=batch_at,
            method=method,
            optimization=Optimization(steps=4, learning_rate=1e-3),
            hooks=hooks,
            state=state,
            seed=4,
        )
        return weights(model), history

    checkpoint = Checkpoint()
    expected, history = run(Hooks())
    with pytest.raises(InterruptedRunError, match=f"after {stopped_at} of 4"):
        run(Hooks(stop=stop_before(stopped_at), save=checkpoint.save))
    resumed, resumed_history = run(Hooks(), checkpoint.load())
    assert_equal(resumed, expected)
    assert resumed_history == history


@pytest.mark.parametrize("stopped_at", [0, 1, 3])
@pytest.mark.parametrize("in_place", [False, True])
def test_a_supernet_resumed_at_any_step_ends_the_same_bit_for_bit(stopped_at: int, in_place: bool) -> None:
    teacher = make_model("bert")

    def run(
        hooks: Hooks, state: TrainingState | None = None
    ) -> tuple[dict[str, Tensor], list[dict[str, float]]]:
        supernet = Supernet(model=copy.deepcopy(teacher))
        history = train_supernet(
            supernet=supernet,
            frozen_teacher=None if in_place else teacher,
            batches=batch_at,
            stage=stage(),
            hooks=hooks,
            state=state,
        )
        return weights(supernet.model), history

    checkpoint = Checkpoint()
    expected, history = run(Hooks())
    with pytest.raises(InterruptedRunError):
        run(Hooks(stop=stop_before(stopped_at), save=checkpoint.save))
    resumed, resumed_history = run(Hooks(), checkpoint.load())
    assert_equal(resumed, expected)
    assert resumed_history == history


def test_a_state_of_another_stage_is_refused() -> None:
    checkpoint, teacher = Checkpoint(), make_model("bert")

    def run(name: str, hooks: Hooks, state: TrainingState | None = None) -> None:
        train_supernet(
            supernet=Supernet(model=copy.deepcopy(teacher)),
            frozen_teacher=teacher,
            batches=batch_at,
            stage=stage(name=name),
            hooks=hooks,
            state=state,
        )

    with pytest.raises(InterruptedRunError):
        run("widths", Hooks(stop=stop_before(2), save=checkpoint.save))
    with pytest.raises(ValueError, match="stage 'widths'"):
        run("depths", Hooks(), checkpoint.load())


def test_checkpoints_are_written_by_the_clock() -> None:
    steps: list[int] = []
    seconds = itertools.count(step=10)
    teacher = make_model("bert")
    train_supernet(
        supernet=Supernet(model=copy.deepcopy(teacher)),
        frozen_teacher=teacher,
        batches=batch_at,
        stage=stage(),
        hooks=Hooks(
            save=lambda state: steps.append(state["step"]),
            clock=lambda: float(next(seconds)),
            checkpoint_seconds=20,
        ),
    )
    assert steps == [2, 4]


def test_every_step_reports_its_loss_per_shape() -> None:
    told: list[tuple[int, dict[str, float]]] = []
    teacher = make_model("bert")
    train_supernet(
        supernet=Supernet(model=copy.deepcopy(teacher)),
        frozen_teacher=teacher,
        batches=batch_at,
        stage=stage(subnets_per_step=2),
        hooks=Hooks(on_step=lambda step, metrics: told.append((step, dict(metrics)))),
    )
    assert [step for step, _ in told] == [1, 2, 3, 4]
    for _, metrics in told:
        assert {"loss", "gradient_norm", "learning_rate"} < metrics.keys()
        assert sum(name.startswith("loss/") for name in metrics) == 2


def test_workers_that_average_their_gradients_do_as_one_with_all_the_data() -> None:
    teacher = make_model("bert")

    def half(step: int, rank: int) -> Batch:
        return {name: tensor[rank::2] for name, tensor in same_length(step).items()}

    def same_length(step: int) -> Batch:
        batch = batch_at(step)
        return batch | {"attention_mask": torch.ones_like(batch["attention_mask"])}

    def first_gradients(batches: Callable[[int], Batch]) -> list[Tensor]:
        seen: list[Tensor] = []
        train_supernet(
            supernet=Supernet(model=copy.deepcopy(teacher)),
            frozen_teacher=teacher,
            batches=batches,
            stage=stage(optimization=Optimization(steps=1, learning_rate=1e-3)),
            hooks=Hooks(all_reduce=lambda tensors: seen.extend(tensor.clone() for tensor in tensors)),
        )
        return seen

    workers = [first_gradients(lambda step, rank=rank: half(step, rank)) for rank in (0, 1)]
    for whole, *parts in zip(first_gradients(same_length), *workers, strict=True):
        torch.testing.assert_close(torch.stack(parts).mean(0), whole, rtol=1e-3, atol=1e-7)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_divergence_names_stage_step_rate_and_remedy_and_saves_nothing(poison: float) -> None:
    saved: list[int] = []
    teacher = make_model("bert")
    before = weights(teacher)

    def spoil_third_step(gradients: Sequence[Tensor]) -> None:
        calls.append(len(gradients))
        if len(calls) == 3:
            gradients[0].fill_(poison)

    calls: list[int] = []
    supernet = Supernet(model=copy.deepcopy(teacher))
    with pytest.raises(
        DivergedError, match=r"widths diverged at step 3 of 4.*0\.01.*lower learningRate .* 0\.0033"
    ):
        train_supernet(
            supernet=supernet,
            frozen_teacher=teacher,
            batches=batch_at,
            stage=stage(),
            hooks=Hooks(
                all_reduce=spoil_third_step,
                save=lambda state: saved.append(state["step"]),
                checkpoint_seconds=0,
            ),
        )
    assert saved == [1, 2]
    assert_equal(weights(supernet.model), before)


def test_a_loss_that_is_no_number_is_noticed() -> None:
    teacher = make_model("bert")
    with torch.no_grad():
        teacher.get_parameter("classifier.bias").fill_(float("nan"))
    with pytest.raises(DivergedError, match="the loss is nan"):
        train_supernet(
            supernet=Supernet(model=copy.deepcopy(teacher)),
            frozen_teacher=teacher,
            batches=batch_at,
            stage=stage(),
        )


def test_recovering_one_member_changes_no_other_and_improves_it(encoder: str) -> None:
    teacher = make_model(encoder)
    supernet = Supernet(model=copy.deepcopy(teacher))
    before, other = weights(supernet.model), weights(supernet.extract(NARROW))
    batch = always_the_same(0)
    said = ask(teacher, batch)
    untrained = answer_loss(ask(supernet.extract(SMALL), batch), said, temperature=1.0)
    member = recover(
        supernet=supernet,
        shape=SMALL,
        frozen_teacher=teacher,
        batches=lambda _step: {name: tensor for name, tensor in batch.items() if name != "labels"},
        optimization=Optimization(steps=25, learning_rate=1e-2),
        distillation=Distillation(projection=8),
    )
    assert_equal(weights(supernet.model), before)
    assert_equal(weights(supernet.extract(NARROW)), other)
    assert answer_loss(ask(member, batch), said, temperature=1.0) < 0.8 * untrained


def test_the_learning_rate_rises_and_falls_to_zero() -> None:
    optimization = Optimization(steps=100, learning_rate=1.0, warmup_ratio=0.1)
    rates = [optimization.rate(step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.1 * (step + 1) for step in range(10)])
    assert rates[10:] == sorted(rates[10:], reverse=True)
    assert rates[-1] == pytest.approx(1 / 90)
