"""GPTQ through whole models of every style: encoders, decoders, fused and transposed layers."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from ireko_trainer.quant import describe, fake_quantized
from ireko_trainer.quant.blockwise import ModelInMemory, gptq_blocks, gptq_database
from ireko_trainer.quant.calls import input_groups, record, resume
from ireko_trainer.quant.gptq import GptqOptions, gptq_together
from ireko_trainer.quant.grid import dequantize, quantize
from ireko_trainer.quant.hessian import Hessian
from ireko_trainer.quant.layout import block_modules, put_weight, weight_matrix
from ireko_trainer.quant.lockstep import Lockstep

STYLES = ["bert", "distilbert", "llama", "gemma2", "gemma3", "qwen2", "qwen3", "phi3", "gpt2"]
Decoder = Callable[..., PreTrainedModel]


@pytest.fixture
def model_of(build: Any, decoder: Decoder) -> Callable[[str], PreTrainedModel]:
    return lambda style: build(style, classifier=True) if "bert" in style else decoder(style)


def batches_of(style: str, count: int = 3) -> list[dict[str, Tensor]]:
    generator = torch.Generator().manual_seed(5)
    found = []
    for _ in range(count):
        ids = torch.randint(5, 101, (4, 12), generator=generator)
        found.append({"input_ids": ids})
        if "bert" in style:
            mask = torch.ones_like(ids)
            mask[1, 7:] = 0
            found[-1]["attention_mask"] = mask
    return found


def block_bits(model: PreTrainedModel, bits: int) -> dict[str, int]:
    return {m.module: bits for block in describe(model).blocks.values() for m in block}


def logits(model: PreTrainedModel, batch: Mapping[str, Tensor]) -> Tensor:
    with torch.no_grad():
        return model(**batch).logits


@pytest.mark.parametrize("style", STYLES)
def test_every_block_of_every_style_is_quantized_and_the_model_left_alone(
    style: str, model_of: Callable[[str], PreTrainedModel]
) -> None:
    model, batches = model_of(style), batches_of(style)
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    expected = logits(model, batches[0])
    bits = block_bits(model, 8)
    found = dict(gptq_blocks(source=ModelInMemory(model), batches=batches, bits=bits, group_size=32))
    assert found.keys() == bits.keys()
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.state_dict().items())
    assert torch.equal(logits(model, batches[0]), expected)
    for name, tensor in found.items():
        put_weight(model.get_submodule(name), dequantize(tensor))
    assert not torch.equal(logits(model, batches[0]), expected)
    assert float((logits(model, batches[0]) - expected).norm()) < 0.1 * float(expected.norm())


@pytest.mark.parametrize("style", ["bert", "llama", "gemma3", "gpt2"])
def test_the_result_is_that_of_the_definition(style: str, model_of: Callable[[str], PreTrainedModel]) -> None:
    """Matrix by matrix, each from the inputs that the model gives it once all before it are quantized."""
    model, batches = model_of(style), batches_of(style)
    bits, options = block_bits(model, 3), GptqOptions(sweeps=0)
    found = dict(
        gptq_blocks(source=ModelInMemory(model), batches=batches, bits=bits, group_size=32, options=options)
    )
    recorded = [record(model=model, blocks=list(block_modules(model).values()), batch=b) for b in batches]
    for index, (block_name, block) in enumerate(block_modules(model).items()):
        modules = {key: m for key, m in block.named_modules() if f"{block_name}.{key}" in bits}
        first = recorded[0]
        groups = input_groups(
            block=block, modules=modules, hidden=first.hidden, arguments=first.arguments[index]
        )
        for group in groups:
            hessian = inputs_of(model, modules[group[0]], batches)
            solved = gptq_together(
                {key: weight_matrix(modules[key]).detach() for key in group},
                hessian=hessian,
                bits=dict.fromkeys(group, 3),
                group_size=32,
                options=options,
            )
            for key, tensor in solved.items():
                same = (tensor.codes == found[f"{block_name}.{key}"].codes).float().mean()
                assert float(same) > 0.97  # another order of summation may turn a code on the edge
                put_weight(modules[key], dequantize(found[f"{block_name}.{key}"]))


def inputs_of(model: PreTrainedModel, module: nn.Module, batches: list[dict[str, Tensor]]) -> Hessian:
    columns = weight_matrix(module).shape[1]
    hessian = Hessian(columns)
    masks = [batch.get("attention_mask", torch.ones_like(batch["input_ids"])).bool() for batch in batches]
    seen: list[Tensor] = []
    handle = module.register_forward_pre_hook(lambda _, args: seen.append(args[0]))
    for batch in batches:
        logits(model, batch)
    handle.remove()
    for values, mask in zip(seen, masks, strict=True):
        hessian.add(values[mask])
    return hessian


@pytest.mark.parametrize(
    ("style", "groups"),
    [
        ("llama", [3, 1, 2, 1]),
        ("gemma2", [3, 1, 2, 1]),
        ("phi3", [1, 1, 1, 1]),
        ("gpt2", [1, 1, 1, 1]),
        ("bert", [3, 1, 1, 1]),
    ],
)
def test_matrices_with_one_input_are_found(
    style: str, groups: list[int], model_of: Callable[[str], PreTrainedModel]
) -> None:
    model = model_of(style)
    block = next(iter(block_modules(model).values()))
    recorded = record(model=model, blocks=list(block_modules(model).values()), batch=batches_of(style, 1)[0])
    modules = {key: m for key, m in block.named_modules() if isinstance(m, nn.Linear | Conv1D)}
    found = input_groups(
        block=block, modules=modules, hidden=recorded.hidden, arguments=recorded.arguments[0]
    )
    assert [len(group) for group in found] == groups


@pytest.mark.parametrize("style", STYLES)
def test_blocks_called_one_by_one_give_the_models_output(
    style: str, model_of: Callable[[str], PreTrainedModel]
) -> None:
    model, batch = model_of(style), batches_of(style, 1)[0]
    blocks = list(block_modules(model).values())
    recorded = record(model=model, blocks=blocks, batch=batch)
    hidden = recorded.hidden
    for index, block in enumerate(blocks):
        resumed = resume(model=model, blocks=blocks, start=index, hidden=hidden, batch=batch)
        assert torch.equal(resumed.logits, logits(model, batch))
        with torch.no_grad():
            hidden = recorded.arguments[index].call(block, hidden)
    last = resume(model=model, blocks=blocks, start=len(blocks), hidden=hidden, batch=batch)
    assert torch.equal(last.logits, logits(model, batch))


def test_padding_does_not_count(build: Any) -> None:
    model = build("bert")
    ids = torch.randint(5, 101, (3, 10), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[:, 6:] = 0
    padded, bare = {"input_ids": ids, "attention_mask": mask}, {"input_ids": ids[:, :6]}
    bits = {name: 3 for name in block_bits(model, 3) if name.startswith("encoder.layer.0.")}
    first, second = (
        dict(gptq_blocks(source=ModelInMemory(model), batches=[batch], bits=bits, group_size=32))
        for batch in (padded, bare)
    )
    for name, tensor in first.items():
        assert float((tensor.codes == second[name].codes).float().mean()) > 0.97


def test_gptq_keeps_a_model_closer_than_rounding(decoder: Decoder) -> None:
    model = decoder("llama")
    batches = batches_of("llama", 8)
    bits = block_bits(model, 3)
    found = dict(gptq_blocks(source=ModelInMemory(model), batches=batches, bits=bits, group_size=32))
    expected = logits(model, batches[0])

    def gap(weights: Mapping[str, Any]) -> float:
        with fake_quantized(model, bits={}, group_size=32):
            for name, tensor in weights.items():
                put_weight(model.get_submodule(name), dequantize(tensor))
            return float((logits(model, batches[0]) - expected).norm())

    rounded = {
        name: quantize(weight_matrix(model.get_submodule(name)).detach(), bits=3, group_size=32)
        for name in bits
    }
    assert gap(found) < 0.7 * gap(rounded)


@pytest.mark.parametrize("style", ["bert", "llama", "gemma3", "gpt2"])
def test_passes_in_bfloat16_give_nearly_the_same_weights(
    style: str, model_of: Callable[[str], PreTrainedModel]
) -> None:
    model, batches = model_of(style), batches_of(style)
    bits = block_bits(model, 3)
    exact, fast = (
        dict(
            gptq_blocks(
                source=ModelInMemory(model),
                batches=batches,
                bits=bits,
                group_size=32,
                options=GptqOptions(precision=precision),
            )
        )
        for precision in (torch.float32, torch.bfloat16)
    )
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())
    for name, tensor in exact.items():
        weight = weight_matrix(model.get_submodule(name)).detach()
        errors = [float((dequantize(one) - weight).norm()) for one in (fast[name], tensor)]
        assert errors[0] < 1.1 * errors[1]
        assert float((fast[name].codes == tensor.codes).float().mean()) > 0.8


def test_asymmetric_calibration_changes_later_blocks_only(decoder: Decoder) -> None:
    model, batches = decoder("llama"), batches_of("llama")
    bits = block_bits(model, 2)
    plain, asymmetric = (
        dict(
            gptq_blocks(
                source=ModelInMemory(model),
                batches=batches,
                bits=bits,
                group_size=32,
                options=GptqOptions(asymmetry=share),
            )
        )
        for share in (0.0, 1.0)
    )
    same = {name: torch.equal(plain[name].codes, asymmetric[name].codes) for name in bits}
    assert same["model.layers.0.self_attn.q_proj"]
    assert not same["model.layers.1.mlp.down_proj"]


def test_the_database_holds_every_width_and_its_first_matrices_are_those_of_a_run(decoder: Decoder) -> None:
    model, batches = decoder("llama"), batches_of("llama")
    widths = dict.fromkeys(block_bits(model, 3), (2, 3)) | {"model.layers.0.self_attn.q_proj": (2, 3, 8)}
    found = {
        (name, tensor.bits): tensor
        for name, tensor in gptq_database(
            source=ModelInMemory(model), batches=batches, widths=widths, group_size=32
        )
    }
    assert found.keys() == {(name, bits) for name, choices in widths.items() for bits in choices}
    run = dict(
        gptq_blocks(source=ModelInMemory(model), batches=batches, bits=block_bits(model, 3), group_size=32)
    )
    first = "model.layers.0.self_attn.v_proj"
    assert torch.equal(found[first, 3].codes, run[first].codes)


def test_matrices_may_have_bits_of_their_own_or_none(decoder: Decoder) -> None:
    model, batches = decoder("llama"), batches_of("llama")
    bits = {"model.layers.0.self_attn.k_proj": 2, "model.layers.1.mlp.up_proj": 5}
    found = dict(gptq_blocks(source=ModelInMemory(model), batches=batches, bits=bits, group_size=32))
    assert {name: tensor.bits for name, tensor in found.items()} == bits


def test_progress_is_told_after_each_block_and_may_stop_the_work(decoder: Decoder) -> None:
    model, batches = decoder("llama"), batches_of("llama")
    told = []

    def tell(done: int, total: int) -> None:
        told.append((done, total))
        if done == 1:
            raise InterruptedError

    with pytest.raises(InterruptedError):
        list(
            gptq_blocks(
                source=ModelInMemory(model),
                batches=batches,
                bits=block_bits(model, 4),
                group_size=32,
                on_block=tell,
            )
        )
    assert told == [(1, 2)]


# --- lockstep -------------------------------------------------------------------------------------


def two_layers() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 3), nn.Tanh(), nn.Linear(3, 3))


def test_passes_meet_what_changed_while_they_waited() -> None:
    net = two_layers()
    inputs = [torch.ones(1, 3), torch.zeros(1, 3)]
    with Lockstep([lambda x=x: net(x) for x in inputs], stops={"0": net[0], "2": net[2]}) as passes:
        assert [torch.equal(passes.advance(i, "0"), x) for i, x in enumerate(inputs)] == [True, True]
        net[0].weight.data = torch.zeros(3, 3)
        second = [passes.advance(i, "2").clone() for i in range(2)]
        results = passes.finish()
    expected = torch.tanh(net[0].bias)[None]
    assert all(torch.allclose(values, expected) for values in second)
    assert all(torch.equal(result, net(x)) for result, x in zip(results, inputs, strict=True))


def test_an_error_in_a_pass_reaches_the_caller_and_ends_the_others() -> None:
    net = two_layers()
    good, bad = torch.ones(1, 3), torch.ones(1, 4)

    def run() -> None:
        calls = [lambda x=x: net(x) for x in (good, bad)]
        with Lockstep(calls, stops={"2": net[2]}) as passes:
            threads.extend(one.thread for one in passes._passes)
            passes.advance(0, "2")
            passes.advance(1, "2")

    threads: list[Any] = []
    with pytest.raises(RuntimeError, match="shapes cannot be multiplied"):
        run()
    assert not any(thread.is_alive() for thread in threads)
    assert not net[2]._forward_pre_hooks


def test_batches_that_go_different_ways_are_refused() -> None:
    net = two_layers()

    def run() -> None:
        with Lockstep([lambda: net(torch.ones(1, 3)), lambda: torch.ones(1)], stops={"0": net[0]}) as passes:
            passes.advance(0, "0")
            passes.advance(1, "0")

    with pytest.raises(RuntimeError, match="batch 1 went to the end where batch 0 went to 0"):
        run()
