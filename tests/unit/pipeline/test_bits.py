from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import BertConfig, BertModel

from ireko_api.spec import Quantization
from ireko_trainer.errors import UserError
from ireko_trainer.pipeline import allocation
from ireko_trainer.pipeline.bits import BitPlanner
from ireko_trainer.quant import SearchSettings, dequantize


@pytest.fixture(autouse=True)
def short_searches(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocation, "_ROUNDS", 2)
    monkeypatch.setattr(allocation, "_ORDERS", 4)
    monkeypatch.setattr(allocation, "_SEARCH", SearchSettings(generations=4, offspring=4, survivors=(2,)))


def planner(quantization: Quantization | None, **options: Any) -> BitPlanner:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=3, intermediate_size=64
    )
    batch = {"input_ids": torch.arange(20).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    model = BertModel(config, add_pooling_layer=False).eval()
    return BitPlanner(
        model=model, quantization=quantization, batches=lambda: [batch], seed=0, kind="embedding", **options
    )


def test_blocks_and_matrices_are_listed_in_the_models_order() -> None:
    bench = planner(Quantization(importance="LIM"))
    most_important = max(bench.lim, key=lambda block: bench.lim[block])
    assert most_important != "encoder.layer.0", "here the model's order and that of importance are the same"
    lowest = bench.plan(max_bytes=1).size_bytes
    plans = [bench.plan(max_bytes=lowest + extra) for extra in range(0, 8000, 250)]
    plan = next(
        plan for plan in plans if plan.block_bits[most_important] > plan.block_bits["encoder.layer.0"]
    )
    assert list(plan.block_bits) == list(bench.layout.blocks)
    assert list(plan.module_bits) == [matrix.module for matrix in bench.layout.matrices]


def test_a_plan_fits_where_one_can_and_has_the_lowest_bits_where_none_can() -> None:
    bench = planner(Quantization())
    lowest = bench.plan(max_bytes=1)
    assert set(lowest.block_bits.values()) == {2}
    assert bench.plan(max_bytes=lowest.size_bytes + 1000).size_bytes <= lowest.size_bytes + 1000


def test_without_quantization_everything_is_float16() -> None:
    bench = planner(None)
    plan = bench.plan(max_bytes=1)
    assert plan.module_bits == {}
    assert plan.average_bits == 16


def test_the_model_is_itself_again_after_a_plan_was_applied() -> None:
    bench = planner(Quantization())
    before = {name: tensor.clone() for name, tensor in bench.model.state_dict().items()}
    with bench.applied(bench.plan(max_bytes=1)) as model:
        assert any(not torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert all(torch.equal(tensor, before[name]) for name, tensor in bench.model.state_dict().items())


IMPORTANCES = [
    "Sensitivity",
    "Search",
    "Interaction",
    "LIM",
    "ZD",
    "Random",
    "Reverse",
    "FirstBlock",
    "Uniform",
]


@pytest.mark.parametrize("importance", IMPORTANCES)
def test_every_importance_stays_within_the_bytes_and_the_average(importance: Any) -> None:
    bench = planner(Quantization(importance=importance, bits=(2, 3, 4), average_bits=3.1, method="RTN"))
    lowest, most = bench.plan(max_bytes=1).size_bytes, 10**9
    for max_bytes in (lowest, lowest + 700, lowest + 3000, most):
        plan = bench.plan(max_bytes=max_bytes)
        assert plan.size_bytes <= max_bytes
        blocks = bench.layout.blocks.values()
        weights = sum(m.weights for block in blocks for m in block)
        bits = sum(plan.module_bits[m.module] * m.weights for block in blocks for m in block)
        assert bits <= 3.1 * weights
        assert all(2 <= mean <= 4 for mean in plan.block_bits.values())
    assert bits > 2.5 * weights, "the average was the only budget"


@pytest.mark.parametrize(("granularity", "widths"), [("Matrix", 6), ("Fused", 4), ("Block", 1)])
def test_matrices_are_tied_as_asked(granularity: Any, widths: int) -> None:
    bench = planner(Quantization(granularity=granularity, bits=(2, 3, 4, 5, 8)))
    size = bench.plan(max_bytes=10**9).size_bytes
    plan = bench.plan(max_bytes=int(size * 0.8))
    for block, matrices in bench.layout.blocks.items():
        bits = [plan.module_bits[m.module] for m in matrices]
        if granularity == "Block":
            assert set(bits) == {plan.block_bits[block]}
        if granularity == "Fused":
            assert bits[0] == bits[1] == bits[2], "query, key and value"
    assert len(set(plan.module_bits.values())) > 1


@pytest.mark.parametrize("method", ["GPTQ", "GPTAQ"])
def test_plans_are_rounded_by_the_method_asked_for_and_drafts_to_nearest(method: Any) -> None:
    heard: list[str] = []
    bench = planner(Quantization(method=method, bits=(3,)), watch=heard.append)
    plan = bench.plan(max_bytes=10**9)
    name = "encoder.layer.1.output.dense"
    solved, rounded = bench.weights_for(plan).at(name, 3), bench.weights.at(name, 3)
    assert not torch.equal(solved.codes, rounded.codes)
    assert bench.weights_for(plan) is bench.weights_for(plan)
    with bench.applied(plan) as model:
        assert torch.equal(model.get_submodule(name).weight, dequantize(solved))
    assert "GPTQ, block 3 of 3" in heard
    draft = planner(Quantization(method=method, bits=(3,)), draft=True)
    assert torch.equal(draft.weights_for(plan).at(name, 3).codes, rounded.codes)


def test_a_draft_gives_whole_blocks_their_bits() -> None:
    quantization = Quantization(bits=(2, 3, 4, 8))
    size = planner(Quantization(bits=(3,))).plan(max_bytes=10**9).size_bytes
    plan = planner(quantization, draft=True).plan(max_bytes=size)
    assert plan.size_bytes <= size
    assert all(mean in (2, 3, 4, 8) for mean in plan.block_bits.values())


def test_sensitivity_of_blocks_is_told_where_it_decides() -> None:
    assert list(planner(Quantization(bits=(2, 4))).sensitivity) == [f"encoder.layer.{i}" for i in range(3)]
    assert planner(Quantization(importance="LIM")).sensitivity == {}


def test_a_group_size_that_does_not_divide_names_the_matrix_and_what_would() -> None:
    planner(Quantization(group_size=32))
    with pytest.raises(
        UserError, match=r"groupSize: 128 .* encoder\.layer\.0.*query, which hold 32 .*\[4, 8, 16, 32\]"
    ):
        planner(Quantization(group_size=128))


def test_a_search_that_was_stopped_goes_on_to_the_same_plan(tmp_path: Path) -> None:
    quantization = Quantization(importance="Search", bits=(2, 3, 4), method="RTN")
    size = planner(Quantization(bits=(3,), method="RTN")).plan(max_bytes=10**9).size_bytes
    expected = planner(quantization).plan(max_bytes=size)
    kept: list[str] = []

    def stop(message: str) -> None:
        kept.append(message)
        if message.startswith("search, generation 2 "):
            raise InterruptedError

    with pytest.raises(InterruptedError):
        planner(quantization, state_file=tmp_path / "state", watch=stop).plan(max_bytes=size)
    resumed = planner(quantization, state_file=tmp_path / "state", watch=kept.append)
    kept.clear()
    assert resumed.plan(max_bytes=size).module_bits == expected.module_bits
    searched = [message for message in kept if message.startswith("search")]
    assert searched[0].startswith("search, generation 3 of 4"), "the generations before are not done again"


def test_watching_may_stop_the_work() -> None:
    def stop(_: str) -> None:
        raise InterruptedError

    bench = planner(Quantization(), watch=stop)
    with pytest.raises(InterruptedError):
        bench.plan(max_bytes=10**9)
