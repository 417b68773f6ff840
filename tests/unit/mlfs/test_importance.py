"""The importance order: what matters comes first, and no output notices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.mlfs.conftest import answer, ask, make_batch, make_model

from ireko_trainer.mlfs import (
    Axis,
    Shape,
    Supernet,
    layout_of,
    measure_importance,
    permute,
    permute_by_importance,
)

FAMILIES = ["bert", "roberta", "distilbert"]


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from(FAMILIES), seed=st.integers(0, 99))
def test_any_permutation_of_every_axis_leaves_the_logits_unchanged(family: str, seed: int) -> None:
    model, batch = make_model(family, layers=2).double(), make_batch()
    before = ask(model, batch)
    generator = torch.Generator().manual_seed(seed)
    scores = measure_importance(model=model, batches=[batch]).scores
    permute(
        model=model,
        orders={key: torch.randperm(len(score), generator=generator) for key, score in scores.items()},
    )
    torch.testing.assert_close(ask(model, batch), before, rtol=0, atol=1e-12)


def test_a_base_model_keeps_the_cosines_of_its_embeddings(family: str) -> None:
    model, batch = make_model(family, task=False).double(), make_batch()
    before = ask(model, batch)
    permute_by_importance(model=model, batches=[batch])
    after = ask(model, batch)
    torch.testing.assert_close(
        after[:, 0] @ after[:, 0].T, before[:, 0] @ before[:, 0].T, rtol=1e-12, atol=1e-12
    )
    assert not torch.allclose(after, before)


def test_coordinates_of_embeddings_stay_when_the_hidden_axis_is_left_out(family: str) -> None:
    model, batch = make_model(family, task=False).double(), make_batch()
    before = ask(model, batch)
    permute_by_importance(model=model, batches=[batch], axes=[Axis.ATTENTION, Axis.INTERMEDIATE])
    torch.testing.assert_close(ask(model, batch), before, rtol=0, atol=1e-12)


def test_after_the_permutation_every_axis_is_in_order(family: str) -> None:
    model, batch = make_model(family).double(), make_batch()
    permute_by_importance(model=model, batches=[batch])
    for score in measure_importance(model=model, batches=[batch]).scores.values():
        torch.testing.assert_close(score, score.sort(descending=True).values, rtol=1e-9, atol=0)


def test_every_axis_and_layer_is_scored(family: str) -> None:
    model = make_model(family, layers=2)
    scores = measure_importance(model=model, batches=[make_batch()]).scores
    assert {key: len(score) for key, score in scores.items()} == {
        (Axis.HIDDEN, None): 48,
        (Axis.POOLED, None): 48,
        (Axis.ATTENTION, 0): 4,
        (Axis.ATTENTION, 1): 4,
        (Axis.INTERMEDIATE, 0): 96,
        (Axis.INTERMEDIATE, 1): 96,
    }


def test_a_dead_neuron_and_a_dead_head_come_last(family: str) -> None:
    model = make_model(family)
    layout = layout_of(model)
    down = layout.block_name(1, layout.architecture.intermediate_output)
    out = layout.block_name(1, layout.architecture.attention_output)
    with torch.no_grad():
        model.get_submodule(down).weight[:, 5] = 0
        model.get_submodule(out).weight[:, 0:12] = 0
    orders = measure_importance(model=model, batches=[make_batch()]).orders()
    assert orders[(Axis.INTERMEDIATE, 1)][-1] == 5
    assert orders[(Axis.ATTENTION, 1)][-1] == 0


def test_a_neuron_scores_the_squared_slope_of_the_answer_as_it_is_faded_out(family: str) -> None:
    model, batch = make_model(family, labels=1).double(), make_batch(rows=1)
    layout = layout_of(model)
    column = model.get_submodule(layout.block_name(1, layout.architecture.intermediate_output)).weight[:, 7]
    score = measure_importance(model=model, batches=[batch]).scores[(Axis.INTERMEDIATE, 1)][7]
    with torch.no_grad():
        column *= 1 + 1e-4
        above = ask(model, batch)
        column *= (1 - 1e-4) / (1 + 1e-4)
        below = ask(model, batch)
    torch.testing.assert_close(((above - below) / 2e-4).square().squeeze(), score, rtol=1e-5, atol=0)


def test_a_loud_neuron_that_no_answer_depends_on_comes_last(family: str) -> None:
    model = make_model(family)
    layout = layout_of(model)
    with torch.no_grad():
        # The same number on every channel: the norm that follows takes it away again.
        model.get_submodule(layout.block_name(1, layout.architecture.intermediate_output)).weight[:, 5] = 10
    orders = measure_importance(model=model, batches=[make_batch()]).orders()
    assert orders[(Axis.INTERMEDIATE, 1)][-1] == 5


def test_measuring_leaves_the_model_as_it_was(family: str) -> None:
    model, batch = make_model(family).train(), make_batch()
    model.requires_grad_(requires_grad=False)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    measure_importance(model=model, batches=[batch])
    assert model.training
    assert not any(parameter.requires_grad for parameter in model.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in model.modules())
    torch.testing.assert_close(dict(model.state_dict()), before, rtol=0, atol=0)


def test_padding_does_not_count(family: str) -> None:
    model, batch = make_model(family), make_batch(rows=1, length=6)
    padded = {
        name: torch.cat([tensor, torch.zeros(1, 5, dtype=torch.int64)], dim=1)
        for name, tensor in batch.items()
        if name != "labels"
    }
    plain = measure_importance(model=model, batches=[batch]).scores
    for key, score in measure_importance(model=model, batches=[padded]).scores.items():
        torch.testing.assert_close(score, plain[key], rtol=1e-4, atol=1e-6)


def test_a_slice_of_an_ordered_model_stays_closer_to_it(family: str) -> None:
    half = Shape(hidden=48, heads=4, intermediate=48, layers=(0, 1, 2, 3))
    model, batch = make_model(family), make_batch(rows=32)
    layout = layout_of(model)
    with torch.no_grad():
        # Neurons that hardly speak, in front: the first-k slice of the unordered model keeps just these.
        for layer in half.layers:
            model.get_submodule(layout.block_name(layer, layout.architecture.intermediate_output)).weight[
                :, :48
            ] *= 0.01
    full = ask(model, batch)
    unordered = answer(Supernet(model=model).forward(half, batch))
    permute_by_importance(model=model, batches=[batch])
    ordered = answer(Supernet(model=model).forward(half, batch))
    assert (ordered - full).norm() < 0.2 * (unordered - full).norm()


def test_importance_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="there was none"):
        measure_importance(model=make_model("bert"), batches=[])
