"""Slicing: subnets are views of one storage, and what is extracted is what ran in place."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from tests.unit.mlfs.conftest import (
    DECODERS,
    ENCODERS,
    LLAMA_LIKE,
    SMALL,
    answer,
    ask,
    make_batch,
    make_model,
)
from transformers import AutoModel, AutoModelForCausalLM, AutoModelForSequenceClassification, PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.errors import UserError
from ireko_trainer.mlfs import Shape, Supernet
from ireko_trainer.mlfs.supernet import SKELETONS_KEPT


def train_pair_to_noise(supernet: Supernet) -> None:
    """As if a stage had trained: every entry of A and B different from where it started."""
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in supernet.trainable():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def supernet_at_work(family: str, *, task: bool = True) -> Supernet:
    supernet = Supernet(model=make_model(family, task=task), rank=4, alpha=8.0)
    supernet.begin_stage("widths", seed=0)
    train_pair_to_noise(supernet)
    return supernet


@st.composite
def models_and_shapes(draw: st.DrawFn) -> tuple[PreTrainedModel, Shape]:
    """A random model of a random family and a random shape cut from it."""
    heads, head_size, layers = draw(st.integers(1, 4)), draw(st.sampled_from([4, 8])), draw(st.integers(1, 4))
    intermediate = draw(st.integers(8, 40))
    family = draw(st.sampled_from([*ENCODERS, *DECODERS]))
    # Heads of rotary positions and pairs of heads that share a key-value head are even.
    unit = 2 if family in LLAMA_LIKE else 1
    heads *= unit
    model = make_model(
        family,
        task=draw(st.booleans()),
        hidden=heads * head_size,
        heads=heads,
        intermediate=intermediate,
        layers=layers,
        seed=draw(st.integers(0, 9)),
    )
    kept = unit * draw(st.integers(1, heads // unit))
    return model, Shape(
        hidden=kept * head_size,
        heads=kept,
        intermediate=draw(st.integers(1, intermediate)),
        layers=tuple(sorted(draw(st.sets(st.integers(0, layers - 1), min_size=1)))),
    )


@pytest.mark.parametrize("task", [True, False])
def test_a_slice_at_full_size_equals_the_teacher_bit_for_bit(family: str, task: bool) -> None:
    model, batch = make_model(family, task=task), make_batch()
    before = ask(model, batch)
    supernet = Supernet(model=model)
    assert torch.equal(answer(supernet.forward(supernet.full, batch)), before)


def test_beginning_a_stage_changes_no_subnet_by_a_bit(family: str) -> None:
    supernet, batch = Supernet(model=make_model(family)), make_batch()
    before = [supernet.forward(shape, batch).logits for shape in (supernet.full, SMALL)]
    supernet.begin_stage("widths", seed=3)
    after = [supernet.forward(shape, batch).logits for shape in (supernet.full, SMALL)]
    assert all(torch.equal(one, other) for one, other in zip(before, after, strict=True))


@settings(max_examples=25, deadline=None)
@given(models_and_shapes())
def test_any_extracted_subnet_answers_as_it_did_in_place(drawn: tuple[PreTrainedModel, Shape]) -> None:
    model, shape = drawn
    batch = make_batch()
    supernet = Supernet(model=model, rank=3, alpha=6.0)
    supernet.begin_stage("widths", seed=0)
    train_pair_to_noise(supernet)
    in_place = answer(supernet.forward_fn(shape)(batch))
    torch.testing.assert_close(ask(supernet.extract(shape), batch), in_place, rtol=1e-5, atol=1e-5)
    supernet.end_stage()
    folded = answer(supernet.forward_fn(shape)(batch))
    torch.testing.assert_close(folded, in_place, rtol=1e-5, atol=1e-5)
    assert torch.equal(ask(supernet.extract(shape), batch), folded)


@settings(max_examples=25, deadline=None)
@given(models_and_shapes())
def test_slicing_commutes_with_adding_the_pair(drawn: tuple[PreTrainedModel, Shape]) -> None:
    model, shape = drawn
    supernet = Supernet(model=model, rank=3, alpha=6.0)
    supernet.begin_stage("widths", seed=0)
    train_pair_to_noise(supernet)
    sliced_then_added = supernet.extract(shape)
    added_then_sliced = Supernet(model=supernet.extract(supernet.full)).extract(shape)
    for one, other in zip(sliced_then_added.parameters(), added_then_sliced.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=0, atol=1e-6)


def test_slices_are_nested(family: str) -> None:
    supernet = Supernet(model=make_model(family))
    hidden, heads = {1: (36, 3), 2: (48, 4)}[supernet.layout.heads.per_group]
    middle = Shape(hidden=hidden, heads=heads, intermediate=64, layers=(0, 2, 3))
    via_middle = Supernet(model=supernet.extract(middle)).extract(
        Shape(hidden=24, heads=2, intermediate=32, layers=(0, 2))
    )
    direct = supernet.extract(SMALL)
    assert all(
        torch.equal(one, other)
        for one, other in zip(via_middle.parameters(), direct.parameters(), strict=True)
    )


@pytest.mark.parametrize("task", [True, False])
def test_an_extracted_subnet_is_a_standard_checkpoint(family: str, task: bool, tmp_path: Path) -> None:
    supernet, batch = supernet_at_work(family, task=task), make_batch()
    member = supernet.extract(SMALL)
    member.save_pretrained(tmp_path)
    if task:
        auto = AutoModelForCausalLM if family in DECODERS else AutoModelForSequenceClassification
        loaded = auto.from_pretrained(tmp_path)
    else:
        pooler = {"add_pooling_layer": False} if family in ("bert", "roberta") else {}
        loaded = AutoModel.from_pretrained(tmp_path, **pooler)
    loaded.set_attn_implementation("eager")
    assert torch.equal(ask(loaded.eval(), batch), ask(member, batch))


def test_an_extracted_subnet_has_storage_of_its_own(family: str) -> None:
    supernet = supernet_at_work(family)
    member, before = supernet.extract(SMALL), supernet.forward(SMALL, make_batch()).logits
    with torch.no_grad():
        for parameter in member.parameters():
            parameter.zero_()
    assert torch.equal(supernet.forward(SMALL, make_batch()).logits, before)


def test_subnets_copy_no_frozen_weight(family: str) -> None:
    supernet = supernet_at_work(family)
    supernet.forward(SMALL, make_batch())
    storages = {parameter.untyped_storage().data_ptr() for parameter in supernet.model.parameters()}
    buffers = {buffer.untyped_storage().data_ptr() for buffer in supernet.model.buffers()}
    views = next(iter(supernet._slices.values())).frozen.values()
    assert {view.untyped_storage().data_ptr() for view in views} <= storages | buffers


def test_a_tied_head_stays_tied(tmp_path: Path) -> None:
    supernet = supernet_at_work("qwen2")
    assert not any("lm_head" in name for name in supernet.named_trainable())
    supernet.end_stage()
    member = supernet.extract(SMALL)
    assert member.lm_head.weight is member.model.embed_tokens.weight
    member.save_pretrained(tmp_path)
    assert AutoModelForCausalLM.from_pretrained(tmp_path).lm_head.weight.shape == (60, 24)


def test_training_a_subnet_touches_only_its_slice_of_the_pair(family: str) -> None:
    supernet = supernet_at_work(family)
    supernet.forward(SMALL, make_batch()).logits.square().sum().backward()
    places, modules = supernet.layout.places, dict(supernet.model.named_modules())
    for name, parameter in supernet.named_trainable().items():
        linear, _, factor = name.rpartition(".")
        place = places[f"{linear}.weight"]
        if place.layer in (1, 2):
            assert parameter.grad is None, name
            continue
        parts = supernet.layout.parts(place, SMALL)
        outputs, inputs = reversed(parts) if isinstance(modules[linear], Conv1D) else parts
        kept = torch.zeros(parameter.shape, dtype=torch.bool)
        for piece in inputs if factor == "A" else outputs:
            kept[(slice(None), piece) if factor == "A" else piece] = True
        assert parameter.grad is not None
        assert parameter.grad[kept].abs().sum() > 0, name
        assert parameter.grad[~kept].abs().sum() == 0, name
    assert all(parameter.grad is None for parameter in supernet.model.parameters())


def test_a_stage_leaves_the_frozen_weights_alone_until_it_ends(family: str) -> None:
    supernet = supernet_at_work(family)
    before = copy.deepcopy(supernet.model.state_dict())
    supernet.forward(SMALL, make_batch()).logits.sum().backward()
    supernet.discard_stage()
    assert all(torch.equal(before[name], tensor) for name, tensor in supernet.model.state_dict().items())


def test_the_pair_of_a_stage_can_be_saved_and_put_back(family: str) -> None:
    supernet, batch = supernet_at_work(family), make_batch()
    expected = supernet.forward(SMALL, batch).logits
    saved = supernet.state_dict()
    supernet.discard_stage()
    supernet.begin_stage("widths", seed=99)
    supernet.load_state_dict(saved)
    assert torch.equal(supernet.forward(SMALL, batch).logits, expected)


def test_a_pair_of_another_model_is_refused() -> None:
    supernet = supernet_at_work("bert")
    with pytest.raises(ValueError, match="another model"):
        supernet.load_state_dict(supernet_at_work("roberta").state_dict())


def test_stages_do_not_overlap() -> None:
    supernet = supernet_at_work("bert")
    with pytest.raises(ValueError, match="still open"):
        supernet.begin_stage("depths", seed=0)
    supernet.end_stage()
    with pytest.raises(ValueError, match="no stage"):
        supernet.end_stage()


def test_an_impossible_shape_is_refused_before_it_runs() -> None:
    supernet = supernet_at_work("bert")
    with pytest.raises(UserError, match="nearest"):
        supernet.forward(Shape(hidden=24, heads=4, intermediate=32, layers=(0,)), make_batch())


def test_evaluation_under_inference_mode_does_not_spoil_training(family: str) -> None:
    supernet = supernet_at_work(family)
    with torch.inference_mode():
        supernet.forward(SMALL, make_batch())
    supernet.forward(SMALL, make_batch()).logits.sum().backward()
    assert any(parameter.grad is not None for parameter in supernet.trainable())


def test_skeletons_are_bounded_and_rebuilt_alike() -> None:
    supernet, batch = supernet_at_work("bert"), make_batch()
    first = supernet.forward(SMALL, batch).logits
    for size in range(1, SKELETONS_KEPT + 2):
        supernet.forward(Shape(hidden=12, heads=1, intermediate=size, layers=(0,)), batch)
    assert len(supernet._slices) == SKELETONS_KEPT
    assert torch.equal(supernet.forward(SMALL, batch).logits, first)


def test_bfloat16_computes_around_float32_weights(family: str) -> None:
    model = make_model(family)
    exact = Supernet(model=copy.deepcopy(model)).forward(SMALL, make_batch()).logits
    supernet = Supernet(model=model, precision=torch.bfloat16)
    supernet.begin_stage("widths", seed=0)
    rounded = supernet.forward(SMALL, make_batch()).logits
    rounded.float().sum().backward()
    assert rounded.dtype == torch.bfloat16
    torch.testing.assert_close(rounded.float(), exact, rtol=0.1, atol=0.1)
    assert {parameter.dtype for parameter in (*supernet.trainable(), *supernet.model.parameters())} == {
        torch.float32
    }


def test_weights_in_half_precision_are_refused() -> None:
    with pytest.raises(UserError, match=r"spec\.teacher\.dtype: bfloat16 .* set it to float32"):
        Supernet(model=make_model("bert").bfloat16())
