"""Factored models: what they compute, what trains, what is stored."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, PreTrainedModel

from ireko_trainer.delta import (
    WEIGHTS_FILE,
    DeltaOptions,
    Metric,
    Metrics,
    ReplacementSchedule,
    Root,
    apply_plan,
    collect_moments,
    delta_layers,
    delta_parameters,
    forget_originals,
    load_delta,
    make_compact,
    materialize,
    measured_modules,
    plan_deltas,
    refit_deltas,
    save_delta,
    save_quantized_delta,
    train_deltas,
    unique_tensors,
)
from ireko_trainer.delta.train import _gated, _set
from ireko_trainer.mlfs import Hooks, Optimization
from ireko_trainer.quant import (
    GptqOptions,
    ModelInMemory,
    QuantizedWeights,
    describe,
    fake_quantized,
    gptq_blocks,
)

Factor = Callable[..., PreTrainedModel]


@pytest.fixture
def factored(build, texts) -> Factor:
    """Return a builder of factored models: `factored("llama", likeness=0.9, reduction=0.4)`."""

    def make(style: str = "llama", *, likeness: float = 0.9, **options) -> PreTrainedModel:
        model = build(style, likeness=likeness)
        wanted = DeltaOptions(**(options if "rank" in options else {"reduction": 0.4} | options))
        moments = collect_moments(
            model=model, batches=texts, modules=measured_modules(model, wanted), kind="distribution"
        )
        plan = plan_deltas(model=model, moments=moments, options=wanted)
        apply_plan(
            model=model,
            plan=plan,
            metrics=Metrics(model=model, moments=moments, initialization=wanted.initialization),
        )
        return model

    return make


def logits(model: torch.nn.Module, texts) -> torch.Tensor:
    with torch.no_grad():
        result: torch.Tensor = model(**texts[0]).logits
    return result


def optimization(steps: int = 4) -> Optimization:
    return Optimization(steps=steps, learning_rate=1e-3, weight_decay=0.0)


@pytest.mark.parametrize("coefficients", ["Auto", "One"])
def test_full_rank_gives_the_logits_back(build, texts, factored, coefficients: str) -> None:
    model = factored("bert", rank=32, modules="Attention", coefficients=coefficients, compact=False)
    assert len(delta_layers(model)) == 8
    for layer in delta_layers(model).values():
        assert layer.original is not None
        difference = (layer.matrix() - layer.original[0].weight).detach()
        assert float(difference.norm() / layer.original[0].weight.detach().norm()) <= 1e-5
    before = logits(build("bert", likeness=0.9), texts)
    torch.testing.assert_close(logits(model, texts), before, rtol=0, atol=1e-3)


def test_closed_gates_are_the_original_to_the_bit(build, texts, factored) -> None:
    before = logits(build("llama", likeness=0.9), texts)
    model = factored()
    with _gated(model, delta_layers(model)) as gates:
        _set(gates, [0.0] * len(gates))
        closed = logits(model, texts)
        _set(gates, [1.0] * len(gates))
        opened = logits(model, texts)
    assert torch.equal(closed, before)
    assert torch.equal(opened, logits(model, texts))
    assert not torch.equal(opened, before)


def test_gates_rise_in_a_straight_line_and_are_never_all_closed() -> None:
    schedule = ReplacementSchedule(method="Progressive", first=0.2, complete=0.5)
    assert [round(schedule.share(step, steps=10), 3) for step in (0, 1, 4, 5, 9)] == [
        0.2,
        0.36,
        0.84,
        1.0,
        1.0,
    ]
    drawn = [schedule.gates(3, step=step, steps=10, seed=1) for step in range(10)]
    assert all(any(gates) for gates in drawn)
    assert {value for gates in drawn for value in gates} == {0.0, 1.0}
    assert drawn == [schedule.gates(3, step=step, steps=10, seed=1) for step in range(10)]
    assert drawn[5:] == [schedule.gates(3, step=step, steps=10, seed=2) for step in range(5, 10)]
    never = ReplacementSchedule(method="Progressive", first=0.0)
    assert all(any(never.gates(2, step=0, steps=10, seed=seed)) for seed in range(20))
    blend = ReplacementSchedule(method="Blend", first=0.2)
    assert blend.gates(2, step=1, steps=10, seed=1) == [0.36, 0.36]


@pytest.mark.parametrize("method", ["Off", "Progressive", "Blend"])
def test_only_the_deltas_train(texts, factored, method) -> None:
    model = factored()
    trained = set(delta_parameters(model))
    before = {name: tensor.clone() for name, tensor in unique_tensors(model).items()}
    bases = [layer.base for layer in delta_layers(model).values() if layer.base is not None]
    assert bases
    history = train_deltas(
        model=model,
        batches=lambda step: texts[step % 2],
        kind="distribution",
        optimization=optimization(6),
        replacement=ReplacementSchedule(method=method),
    )
    assert all(base.weight.grad is None for base in bases)
    changed = {
        name for name, tensor in unique_tensors(model).items() if not torch.equal(tensor, before[name])
    }
    assert changed == trained
    assert len(history) == 6


@pytest.mark.parametrize("style", ["llama", "bert"])
def test_training_brings_the_answers_closer(texts, factored, style) -> None:
    model = factored(style, likeness=0.0)
    history = train_deltas(
        model=model,
        batches=lambda _: texts[0],
        kind="distribution",
        optimization=optimization(30),
    )
    assert history[-1]["loss"] < 0.7 * history[0]["loss"]


def test_a_stopped_training_goes_on_as_if_it_had_not_been(texts, factored) -> None:
    from ireko_trainer.errors import InterruptedRunError

    def train(model: PreTrainedModel, **more) -> None:
        train_deltas(
            model=model,
            batches=lambda step: texts[step % 2],
            kind="distribution",
            optimization=optimization(6),
            replacement=ReplacementSchedule(method="Progressive"),
            **more,
        )

    whole, parts, again = factored(), factored(), factored()
    train(whole)
    saved: list = []
    asked = iter([False, False, False, True])
    with pytest.raises(InterruptedRunError):
        train(parts, hooks=Hooks(stop=lambda: next(asked), save=saved.append))
    train(again, state=saved[-1])
    for name, tensor in unique_tensors(whole).items():
        assert torch.equal(tensor, unique_tensors(again)[name]), name


@pytest.mark.parametrize("style", ["llama", "bert", "gpt2"])
@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("sharing", ["Delta", "Basis"])
def test_a_checkpoint_stores_shared_tensors_once_and_shares_them_again(
    texts, factored, tmp_path: Path, style: str, compact: bool, sharing: str
) -> None:
    model = factored(style, compact=compact, sharing=sharing)
    before = logits(model, texts)
    forget_originals(model)
    if compact:
        make_compact(model)
    torch.testing.assert_close(logits(model, texts), before, rtol=1e-4, atol=1e-4)
    save_delta(model=model, directory=tmp_path)
    stored = load_file(tmp_path / WEIGHTS_FILE)
    unique = {tensor.data_ptr(): tensor.numel() for tensor in model.parameters()}
    floats = sum(tensor.numel() for tensor in stored.values() if tensor.is_floating_point())
    assert floats == sum(unique.values())
    loaded = load_delta(tmp_path)
    assert torch.equal(logits(loaded, texts), logits(model, texts))
    for name, layer in delta_layers(loaded).items():
        mine = delta_layers(model)[name]
        assert (layer.base is None) == (mine.base is None)
        assert (layer.owner is layer) == (mine.owner is mine)
    assert {parameter.data_ptr() for parameter in loaded.parameters()} == {
        tensor.data_ptr() for tensor in unique_tensors(loaded).values() if tensor.is_floating_point()
    }


@pytest.mark.parametrize("style", ["llama", "gpt2"])
def test_the_materialised_model_is_an_ordinary_checkpoint(
    texts, factored, tmp_path: Path, style: str
) -> None:
    model = factored(style)
    materialize(model).save_pretrained(tmp_path)
    ordinary = AutoModelForCausalLM.from_pretrained(tmp_path).eval()
    torch.testing.assert_close(logits(ordinary, texts), logits(model, texts), rtol=1e-4, atol=1e-4)


def test_a_delta_checkpoint_is_not_mistaken_for_an_ordinary_one(factored, tmp_path: Path) -> None:
    model = factored()
    forget_originals(model)
    save_delta(model=model, directory=tmp_path)
    with pytest.raises(OSError, match="no file named"):
        AutoModelForCausalLM.from_pretrained(tmp_path)


def quantized(
    model: PreTrainedModel, texts, *, bits: int, refit: bool
) -> tuple[dict[str, int], QuantizedWeights]:
    layout = describe(model)
    widths = {m.module: bits for block in layout.blocks.values() for m in block}
    found = gptq_blocks(source=ModelInMemory(model), batches=texts, bits=widths, group_size=32)
    weights = QuantizedWeights(model=model, group_size=32, given=dict(found))
    if refit:
        moments = collect_moments(model=model, batches=texts, modules=list(delta_layers(model)), kind=None)
        refit_deltas(model=model, weights=weights, bits=widths, moments=moments.inputs)
    return widths, weights


@pytest.mark.parametrize("compact", [True, False])
@pytest.mark.parametrize("likeness", [0.0, 0.9])
def test_refitting_to_what_is_rounded_beats_not_refitting(
    texts, factored, compact: bool, likeness: float
) -> None:
    lost = {}
    for refit in (False, True):
        model = factored(likeness=likeness, compact=compact, reduction=0.3)
        if compact:
            make_compact(model)
        layers = delta_layers(model)
        moments = collect_moments(model=model, batches=texts, modules=list(layers), kind=None).inputs
        wanted = {name: layer.matrix().double() for name, layer in layers.items()}
        bits, weights = quantized(model, texts, bits=3, refit=refit)
        with fake_quantized(model, bits=bits, group_size=32, weights=weights):
            lost[refit] = sum(
                Metric(inputs=Root.of(moments[name])).error(layer.matrix() - wanted[name])
                for name, layer in layers.items()
            )
    assert lost[True] < 0.9 * lost[False]


@pytest.mark.parametrize(("sharing", "likeness"), [("Delta", 0.95), ("Basis", 0.0)])
def test_blocks_that_borrow_from_others_pass_in_bfloat16(
    texts, factored, sharing: str, likeness: float
) -> None:
    model = factored(likeness=likeness, reduction=0.3, sharing=sharing)
    borrowing = [layer for layer in delta_layers(model).values() if layer.base or layer.owner is not layer]
    assert borrowing
    bits = {matrix.module: 4 for matrices in describe(model).blocks.values() for matrix in matrices}

    found = dict(
        gptq_blocks(
            source=ModelInMemory(model),
            batches=texts,
            bits=bits,
            group_size=32,
            options=GptqOptions(precision=torch.bfloat16),
        )
    )

    assert found.keys() == bits.keys()
    assert all(parameter.dtype == torch.float32 for parameter in model.parameters())


def test_a_quantized_delta_checkpoint_loads_as_it_was_judged(texts, factored, tmp_path: Path) -> None:
    model = factored(likeness=0.9, reduction=0.3, multiple=8)
    forget_originals(model)
    make_compact(model)
    bits, weights = quantized(model, texts, bits=4, refit=True)
    with fake_quantized(model, bits=bits, group_size=32, weights=weights):
        judged = logits(model, texts)
    save_quantized_delta(model=model, bits=bits, group_size=32, directory=tmp_path, weights=weights)
    torch.testing.assert_close(logits(load_delta(tmp_path), texts), judged, rtol=1e-5, atol=1e-5)


def test_a_loaded_decoder_continues_a_text_as_the_original(texts, factored, tmp_path: Path) -> None:
    model = factored(likeness=0.9)
    model.generation_config.max_new_tokens = 5
    forget_originals(model)
    make_compact(model)
    save_delta(model=model, directory=tmp_path)
    loaded = load_delta(tmp_path)
    assert loaded.generation_config.max_new_tokens == 5
    prompt = texts[0]["input_ids"][:2]
    assert torch.equal(
        loaded.generate(prompt, do_sample=False, pad_token_id=0),
        model.generate(prompt, do_sample=False, pad_token_id=0),
    )
