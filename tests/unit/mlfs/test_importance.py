"""The importance order: what matters comes first, and no output notices."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.mlfs.conftest import DECODERS, ENCODERS, LLAMA_LIKE, answer, ask, make_batch, make_model

from ireko_trainer.mlfs import (
    Axis,
    Batch,
    Shape,
    Supernet,
    layout_of,
    measure_importance,
    permute,
    permute_by_importance,
)
from ireko_trainer.quant.layout import weight_matrix


@settings(max_examples=20, deadline=None)
@given(family=st.sampled_from([*ENCODERS, *DECODERS]), seed=st.integers(0, 99))
def test_any_permutation_of_every_axis_leaves_the_logits_unchanged(family: str, seed: int) -> None:
    model, batch = make_model(family, layers=2).double(), batch_in_float64(family)
    before = ask(model, batch)
    generator = torch.Generator().manual_seed(seed)
    scores = measure_importance(model=model, batches=[batch]).scores
    permute(
        model=model,
        orders={key: torch.randperm(len(score), generator=generator) for key, score in scores.items()},
    )
    torch.testing.assert_close(ask(model, batch), before, rtol=0, atol=exact_to(family))


def batch_in_float64(family: str) -> Batch:
    """Without padding where attention casts its mask to float32: a row that is all padding would become NaN."""
    return make_batch(padded=family not in LLAMA_LIKE)


def exact_to(family: str) -> float:
    """How exact a model in float64 is: the norms of these decoders compute in float32 whatever they are given."""
    return 5e-6 if family in LLAMA_LIKE else 1e-12


def test_a_base_model_keeps_the_cosines_of_its_embeddings(family: str) -> None:
    model, batch = make_model(family, task=False).double(), batch_in_float64(family)
    before = ask(model, batch)
    permute_by_importance(model=model, batches=[batch])
    after = ask(model, batch)
    torch.testing.assert_close(
        after[:, 0] @ after[:, 0].T,
        before[:, 0] @ before[:, 0].T,
        rtol=exact_to(family),
        atol=10 * exact_to(family),
    )
    assert not torch.allclose(after, before)


def test_coordinates_of_embeddings_stay_when_the_hidden_axis_is_left_out(family: str) -> None:
    model, batch = make_model(family, task=False).double(), batch_in_float64(family)
    before = ask(model, batch)
    permute_by_importance(model=model, batches=[batch], axes=[Axis.ATTENTION, Axis.INTERMEDIATE])
    torch.testing.assert_close(ask(model, batch), before, rtol=0, atol=exact_to(family))


def test_after_the_permutation_every_axis_is_in_order(family: str) -> None:
    model, batch = make_model(family).double(), batch_in_float64(family)
    permute_by_importance(model=model, batches=[batch])
    for score in measure_importance(model=model, batches=[batch]).scores.values():
        torch.testing.assert_close(
            score, score.sort(descending=True).values, rtol=1e3 * exact_to(family), atol=0
        )


def test_every_axis_and_layer_is_scored(family: str) -> None:
    model = make_model(family, layers=2)
    scores = measure_importance(model=model, batches=[make_batch()]).scores
    groups = 4 // layout_of(model).heads.per_group
    assert {key: len(score) for key, score in scores.items()} == {
        (Axis.HIDDEN, None): 48,
        **({(Axis.POOLED, None): 48} if family in ENCODERS else {}),
        (Axis.ATTENTION, 0): groups,
        (Axis.ATTENTION, 1): groups,
        (Axis.INTERMEDIATE, 0): 96,
        (Axis.INTERMEDIATE, 1): 96,
    }


def test_a_dead_neuron_and_a_dead_head_come_last(family: str) -> None:
    model = make_model(family)
    layout = layout_of(model)
    down = layout.block_name(1, layout.architecture.intermediate_output)
    out = layout.block_name(1, layout.architecture.attention_output)
    with torch.no_grad():
        weight_matrix(model.get_submodule(down))[:, 5] = 0
        weight_matrix(model.get_submodule(out))[:, : layout.unit(Axis.ATTENTION)] = 0
    orders = measure_importance(model=model, batches=[make_batch()]).orders()
    assert orders[(Axis.INTERMEDIATE, 1)][-1] == 5
    assert orders[(Axis.ATTENTION, 1)][-1] == 0


def test_a_neuron_scores_the_squared_slope_of_the_answer_as_it_is_faded_out(encoder: str) -> None:
    model, batch = make_model(encoder, labels=1).double(), make_batch(rows=1)
    layout = layout_of(model)
    column = model.get_submodule(layout.block_name(1, layout.architecture.intermediate_output)).weight[:, 7]
    score = measure_importance(model=model, batches=[batch]).scores[(Axis.INTERMEDIATE, 1)][7]
    with torch.no_grad():
        column *= 1 + 1e-4
        above = ask(model, batch)
        column *= (1 - 1e-4) / (1 + 1e-4)
        below = ask(model, batch)
    torch.testing.assert_close(((above - below) / 2e-4).square().squeeze(), score, rtol=1e-5, atol=0)


def test_a_loud_neuron_that_no_answer_depends_on_comes_last(encoder: str) -> None:
    model = make_model(encoder)
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
            down = layout.block_name(layer, layout.architecture.intermediate_output)
            weight_matrix(model.get_submodule(down))[:, :48] *= 0.01
    full = ask(model, batch)
    unordered = answer(Supernet(model=model).forward(half, batch))
    permute_by_importance(model=model, batches=[batch])
    ordered = answer(Supernet(model=model).forward(half, batch))
    assert (ordered - full).norm() < 0.2 * (unordered - full).norm()


def test_a_group_of_heads_moves_with_its_key_value_head() -> None:
    model = make_model("llama")
    attention = model.model.layers[1].self_attn
    before = {name: tensor.clone() for name, tensor in attention.state_dict().items()}
    permute(model=model, orders={(Axis.ATTENTION, 1): torch.tensor([1, 0])})
    after = attention.state_dict()
    # Two query heads of 12 channels to each key-value head.
    assert torch.equal(after["q_proj.weight"][:24], before["q_proj.weight"][24:])
    assert torch.equal(after["k_proj.weight"][:12], before["k_proj.weight"][12:])
    assert torch.equal(after["v_proj.bias"][:12], before["v_proj.bias"][12:])
    assert torch.equal(after["o_proj.weight"][:, :24], before["o_proj.weight"][:, 24:])


def test_the_scores_of_a_language_model_are_the_divergence_that_fading_a_neuron_out_causes() -> None:
    model, batch = make_model("llama").double(), make_batch(rows=8, padded=False)
    layout = layout_of(model)
    down = model.get_submodule(layout.block_name(1, layout.architecture.intermediate_output))
    scores = [
        measure_importance(model=model, batches=[batch], seed=seed).scores[(Axis.INTERMEDIATE, 1)][7]
        for seed in range(60)
    ]
    before = ask(model, batch).log_softmax(-1)
    with torch.no_grad():
        down.weight[:, 7] *= 1 - 1e-2
    after = ask(model, batch).log_softmax(-1)
    divergence = (before.exp() * (before - after)).sum() / len(before)
    torch.testing.assert_close(torch.stack(scores).mean(), 2 * divergence / 1e-4, rtol=0.25, atol=0)


def test_importance_without_text_is_refused() -> None:
    with pytest.raises(ValueError, match="there was none"):
        measure_importance(model=make_model("bert"), batches=[])
