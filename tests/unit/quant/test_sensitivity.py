"""Measured costs of units: the shortcut through kept hidden states equals the whole model's answer."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from ireko_trainer.quant import QuantizedWeights, describe, fake_quantized
from ireko_trainer.quant.calls import Batch
from ireko_trainer.quant.divergence import Kind, as_reference, divergence
from ireko_trainer.quant.grid import dequantize
from ireko_trainer.quant.knapsack import Limit, knapsack
from ireko_trainer.quant.layout import put_weight
from ireko_trainer.quant.probe import Probe
from ireko_trainer.quant.sensitivity import relinearize, sensitivities
from ireko_trainer.quant.storage import stored_size, stored_tensors
from ireko_trainer.quant.units import Unit, find_units, module_bits, unit_bytes

Decoder = Callable[..., PreTrainedModel]


def ids(count: int = 3) -> list[Batch]:
    generator = torch.Generator().manual_seed(8)
    return [{"input_ids": torch.randint(5, 101, (2, 10), generator=generator)} for _ in range(count)]


def probe_of(
    model: PreTrainedModel, *, kind: Kind = "distribution", batches: list[Batch] | None = None
) -> Probe:
    return Probe(
        model=model,
        weights=QuantizedWeights(model=model, group_size=32),
        batches=batches or ids(),
        kind=kind,
        tokens_at_once=60,
    )


def units_of(
    model: PreTrainedModel, tie: Any = "matrix", widths: tuple[int, ...] = (2, 3, 4)
) -> tuple[Unit, ...]:
    return find_units(model=model, layout=describe(model), batch=ids()[0], widths=widths, tie=tie)


def kl_by_hand(model: PreTrainedModel, bits: dict[str, int]) -> float:
    weights = QuantizedWeights(model=model, group_size=32)
    total, tokens = 0.0, 0
    for batch in ids():
        with torch.no_grad():
            dense = model(**batch).logits.log_softmax(-1).flatten(0, 1)
            originals = {name: model.get_submodule(name).weight.data for name in bits}
            for name, width in bits.items():
                put_weight(model.get_submodule(name), dequantize(weights.at(name, width)))
            other = model(**batch).logits.log_softmax(-1).flatten(0, 1)
            for name, data in originals.items():
                model.get_submodule(name).weight.data = data
        total += float((dense.exp() * (dense - other)).sum())
        tokens += len(dense)
    return total / tokens


@pytest.mark.parametrize("style", ["llama", "gemma3", "gpt2"])
def test_changes_of_one_matrix_are_measured_as_by_the_whole_model(style: str, decoder: Decoder) -> None:
    model = decoder(style)
    state = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    variants = [dict.fromkeys(unit.modules, 3) for unit in units_of(model) if len(unit.widths) > 1]
    found = probe_of(model).changes(variants)
    assert found == pytest.approx([kl_by_hand(model, variant) for variant in variants], rel=1e-3, abs=1e-7)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())


def test_changes_across_blocks_and_of_the_head_are_measured_too(decoder: Decoder) -> None:
    model = decoder("llama", tied=False)
    variants = [
        {"model.layers.0.mlp.up_proj": 2, "model.layers.1.self_attn.v_proj": 2},
        {"lm_head": 3},
        {"model.layers.1.mlp.down_proj": 2, "lm_head": 3},
    ]
    found = probe_of(model).changes(variants)
    assert found == pytest.approx([kl_by_hand(model, variant) for variant in variants], rel=1e-3)


def test_after_rebasing_changes_are_measured_on_top_of_the_base(decoder: Decoder) -> None:
    model = decoder("llama")
    probe = probe_of(model)
    base = {name: 3 for unit in units_of(model) for name in unit.modules if len(unit.widths) > 1}
    probe.rebase(base)
    name = "model.layers.1.self_attn.o_proj"
    assert probe.changes([{name: 4}]) == pytest.approx([kl_by_hand(model, base | {name: 4})], rel=1e-3)
    assert probe.value(base) == pytest.approx(kl_by_hand(model, base), rel=1e-3)
    assert probe.value({}) == pytest.approx(0.0, abs=1e-6)


@pytest.mark.parametrize(
    ("classifier", "kind"), [(True, "distribution"), (True, "number"), (False, "embedding")]
)
def test_encoders_are_measured_by_what_they_answer(
    classifier: bool, kind: Kind, build: Any, batch: Batch
) -> None:
    model = build("bert", classifier=classifier)
    probe = probe_of(model, kind=kind, batches=[batch])
    layout = describe(model)
    narrow, wide = (
        probe.value({m.module: bits for block in layout.blocks.values() for m in block}) for bits in (2, 4)
    )
    assert narrow > wide > 0
    with fake_quantized(model, bits={}, group_size=32):
        assert probe.value({}) < 0.01 * wide


def test_padding_does_not_count_in_a_language_models_divergence(decoder: Decoder) -> None:
    model = decoder("llama")
    ids_ = ids()[0]["input_ids"]
    mask = torch.ones_like(ids_)
    mask[:, 6:] = 0
    name = {"model.layers.0.mlp.up_proj": 2}
    padded = probe_of(model, batches=[{"input_ids": ids_, "attention_mask": mask}]).changes([name])
    bare = probe_of(model, batches=[{"input_ids": ids_[:, :6]}]).changes([name])
    assert padded == pytest.approx(bare, rel=1e-3)


@pytest.mark.parametrize("kind", ["distribution", "number", "embedding"])
def test_a_model_does_not_diverge_from_itself(kind: Kind) -> None:
    answers = torch.randn(5, 7, generator=torch.Generator().manual_seed(0))
    reference = as_reference(kind=kind, answers=answers)
    itself = divergence(kind=kind, reference=reference, candidate=answers)
    other = divergence(kind=kind, reference=reference, candidate=answers.flip(1))
    assert itself.shape == (5,)
    assert float(itself.abs().max()) < 1e-6
    assert bool((other > 0).all())


# --- sensitivities and what is made of them -------------------------------------------------------


def test_sensitivities_fall_with_the_width_and_embeddings_have_no_choice(decoder: Decoder) -> None:
    model = decoder("llama", tied=False)
    units = units_of(model, widths=(2, 3, 4, 5, 8))
    weights = QuantizedWeights(model=model, group_size=32)
    tables = sensitivities(probe=probe_of(model), weights=weights, units=units)
    for unit, table in zip(units, tables, strict=True):
        assert tuple(sorted(table)) == unit.widths
        ordered = [table[width] for width in unit.widths]
        assert ordered == sorted(ordered, reverse=True)
    embedding = next(i for i, unit in enumerate(units) if unit.name == "model.embed_tokens")
    head = next(unit for unit in units if unit.name == "lm_head")
    assert tables[embedding] == {8: 0.0}
    assert head.block is None
    assert head.widths == (2, 3, 4, 5, 8)


def test_the_knapsack_of_sensitivities_beats_uniform_bits(decoder: Decoder) -> None:
    model = decoder("llama", layers=3)
    with torch.no_grad():  # one block that matters much, one that hardly does
        for matrix in ("mlp.down_proj", "self_attn.o_proj"):
            model.get_submodule(f"model.layers.0.{matrix}").weight.mul_(3)
            model.get_submodule(f"model.layers.2.{matrix}").weight.mul_(0.1)
    probe, units = probe_of(model), [u for u in units_of(model) if u.block is not None]
    weights = QuantizedWeights(model=model, group_size=32)
    costs = sensitivities(probe=probe, weights=weights, units=units)
    limit = code_bits(units, average=3)
    bits = knapsack(costs=costs, limits=[limit])
    chosen, uniform = (probe.value(module_bits(units, choice)) for choice in (bits, [3] * len(units)))
    assert limit.total(bits) <= limit.most
    assert chosen < 0.8 * uniform


def test_relinearizing_never_ends_further_away_and_keeps_the_budget(decoder: Decoder) -> None:
    model = decoder("llama", layers=3)
    probe, units = probe_of(model), [u for u in units_of(model) if u.block is not None]
    limit = code_bits(units, average=3)
    start = [3] * len(units)
    before = probe.value(module_bits(units, start))
    rounds: list[float] = []
    bits, value = relinearize(
        probe=probe,
        units=units,
        bits=start,
        limits=[limit],
        rounds=3,
        on_round=lambda _, reached: rounds.append(reached),
    )
    assert value < before
    assert value == pytest.approx(probe.value(module_bits(units, bits)))
    assert limit.total(bits) <= limit.most
    assert rounds == sorted(rounds, reverse=True)


def code_bits(units: list[Unit], *, average: float) -> Limit:
    return Limit(
        amounts=[{width: width * unit.weights for width in unit.widths} for unit in units],
        most=int(average * sum(unit.weights for unit in units)),
    )


# --- units ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("style", "tie", "sizes"),
    [
        ("llama", "matrix", [1] * 7),
        ("llama", "fused", [3, 1, 2, 1]),
        ("llama", "block", [7]),
        ("gpt2", "fused", [1, 1, 1, 1]),
    ],
)
def test_units_are_matrices_fused_matrices_or_blocks(
    style: str, tie: str, sizes: list[int], decoder: Decoder
) -> None:
    model = decoder(style)
    first = [unit for unit in units_of(model, tie=tie) if unit.block == 0]
    assert [len(unit.modules) for unit in first] == sizes
    layout = describe(model)
    inside = {m.module for block in layout.blocks.values() for m in block}
    assert inside <= {name for unit in units_of(model, tie=tie) for name in unit.modules}


@pytest.mark.parametrize("tied", [False, True])
def test_bytes_of_units_add_up_to_the_files_data(tied: bool, decoder: Decoder) -> None:
    model = decoder("llama", tied=tied)
    layout, units = describe(model), units_of(model, widths=(2, 3, 8))
    amounts = unit_bytes(layout=layout, units=units, group_size=32)
    chosen = [unit.widths[index % len(unit.widths)] for index, unit in enumerate(units)]
    bits = module_bits(units, chosen)
    entries = stored_tensors(layout, bits=bits, group_size=32)
    rest = sum(e.size for e in entries if not e.name.startswith(tuple(f"{name}.weight" for name in bits)))
    size = stored_size(layout, bits=bits, group_size=32)
    assert sum(table[w] for table, w in zip(amounts, chosen, strict=True)) == size.total - size.header - rest
