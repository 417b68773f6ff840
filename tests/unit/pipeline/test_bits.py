from __future__ import annotations

import torch
from transformers import BertConfig, BertModel

from ireko_api.spec import Quantization
from ireko_trainer.pipeline.bits import BitPlanner


def planner(quantization: Quantization | None) -> BitPlanner:
    torch.manual_seed(0)
    config = BertConfig(
        vocab_size=50, hidden_size=32, num_attention_heads=2, num_hidden_layers=3, intermediate_size=64
    )
    batch = {"input_ids": torch.arange(20).view(2, 10), "attention_mask": torch.ones(2, 10, dtype=torch.long)}
    model = BertModel(config, add_pooling_layer=False).eval()
    return BitPlanner(model=model, quantization=quantization, batches=lambda: [batch], seed=0)


def test_blocks_and_matrices_are_listed_in_the_models_order() -> None:
    bench = planner(Quantization())
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
