"""Gradient checkpointing: the same numbers, with less kept between the two passes."""

from __future__ import annotations

import copy
from typing import Literal

import pytest
import torch
from tests.unit.mlfs.conftest import SMALL, make_batch, make_model
from torch import Tensor

from ireko_trainer.mlfs import (
    Distillation,
    Hooks,
    Optimization,
    Palette,
    Supernet,
    SupernetStage,
    train_teacher,
)
from ireko_trainer.mlfs import train_supernet as train


def loss_and_gradients(family: str, *, again: bool, precision: torch.dtype) -> tuple[Tensor, list[Tensor]]:
    """Of a subnet that is cut on every axis, through its answers and through its hidden states."""
    supernet = Supernet(model=make_model(family), precision=precision, gradient_checkpointing=again)
    supernet.begin_stage("widths", seed=1)
    for pair in supernet.trainable():
        torch.nn.init.normal_(pair, std=0.1, generator=torch.Generator().manual_seed(pair.numel()))
    output = supernet.forward(SMALL, make_batch(), hidden_states=True)
    loss = output["logits"].float().square().mean()
    loss = loss + torch.stack([one.float().square().mean() for one in output["hidden_states"]]).sum()
    loss.backward()
    return loss.detach(), [pair.grad for pair in supernet.trainable() if pair.grad is not None]


@pytest.mark.parametrize("precision", [torch.float32, torch.bfloat16])
def test_a_subnet_has_the_same_loss_and_gradients_to_the_bit(family: str, precision: torch.dtype) -> None:
    loss, gradients = loss_and_gradients(family, again=False, precision=precision)
    same, recomputed = loss_and_gradients(family, again=True, precision=precision)
    assert torch.equal(same, loss)
    assert len(recomputed) == len(gradients) > 0
    assert all(torch.equal(one, other) for one, other in zip(recomputed, gradients, strict=True))


@pytest.mark.parametrize("method", ["Full", "LowRank"])
@pytest.mark.parametrize("family", ["bert", "qwen2"])
def test_a_teacher_learns_the_same_with_the_same_dropout(
    family: str, method: Literal["Full", "LowRank"]
) -> None:
    def learned(again: bool) -> tuple[list[dict[str, float]], dict[str, Tensor]]:
        model = make_model(family, layers=2)
        history = train_teacher(
            model=model,
            batches=lambda step: make_batch(seed=step),
            optimization=Optimization(steps=2, learning_rate=1e-3),
            method=method,
            gradient_checkpointing=again,
        )
        return history, model.state_dict()

    history, weights = learned(again=False)
    same_history, same_weights = learned(again=True)
    assert same_history == history
    assert all(torch.equal(same_weights[name], tensor) for name, tensor in weights.items())


def test_a_supernet_stage_learns_the_same() -> None:
    teacher = make_model("llama")

    def learned(again: bool) -> dict[str, Tensor]:
        supernet = Supernet(model=copy.deepcopy(teacher), gradient_checkpointing=again)
        stage = SupernetStage(
            name="depths",
            palette=Palette(shapes=(SMALL, supernet.full)),
            optimization=Optimization(steps=2, learning_rate=1e-2),
            distillation=Distillation(projection=8),
        )
        train(
            supernet=supernet,
            frozen_teacher=teacher,
            batches=lambda step: make_batch(seed=step, labels=None),
            stage=stage,
            hooks=Hooks(),
        )
        return supernet.model.state_dict()

    plain, recomputed = learned(again=False), learned(again=True)
    assert all(torch.equal(recomputed[name], tensor) for name, tensor in plain.items())


def kept_bytes(*, again: bool) -> int:
    """Of what autograd saved for the backward pass, weights left out, each storage once."""
    supernet = Supernet(model=make_model("llama", layers=6), gradient_checkpointing=again)
    supernet.begin_stage("widths", seed=0)
    weights = {one.untyped_storage().data_ptr() for one in supernet.model.parameters()}
    weights |= {one.untyped_storage().data_ptr() for one in supernet.trainable()}
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        output = supernet.forward(supernet.full, make_batch(rows=8, length=32, padded=False))
    assert output["logits"].requires_grad
    return sum(kept.values())


def test_little_more_than_the_inputs_of_the_blocks_is_kept_between_the_passes() -> None:
    inputs = 6 * 8 * 32 * 48 * 4
    assert inputs + kept_bytes(again=True) < 0.3 * kept_bytes(again=False)


def test_a_model_is_left_as_it_was() -> None:
    model = make_model("qwen2", layers=2)
    supernet = Supernet(model=model, gradient_checkpointing=True)
    supernet.begin_stage("widths", seed=0)
    supernet.forward(supernet.full, make_batch(labels=None))["logits"].sum().backward()
    with torch.no_grad():
        supernet.forward(supernet.full, make_batch(labels=None))
    for slices in supernet._slices.values():
        assert all(parameter.is_meta for parameter in slices.skeleton.parameters())
        assert not any("forward" in vars(module) for module in slices.skeleton.modules())
