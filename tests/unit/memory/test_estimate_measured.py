"""The estimate against the bytes of the tensors of the real steps, counted storage by storage."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Literal

import pytest
import torch
from tests.unit.memory.conftest import AT_ONCE, Live, MakeSpec, qwen2
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoModelForSequenceClassification,
    PretrainedConfig,
    PreTrainedModel,
)

from ireko_trainer.memory import Stage, Texts, estimate
from ireko_trainer.mlfs import (
    Batch,
    Distillation,
    Optimization,
    Palette,
    Supernet,
    SupernetStage,
    permute_by_importance,
    train_supernet,
    train_teacher,
)

ROWS, LENGTH = 4, 48
ONE_STEP = Optimization(steps=2, learning_rate=1e-3)


def small_decoder(vocabulary: int) -> PretrainedConfig:
    return qwen2(
        hidden_size=64,
        intermediate_size=160,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_key_value_heads=2,
        vocab_size=vocabulary,
    )


def small_encoder() -> PretrainedConfig:
    return AutoConfig.for_model(
        "bert",
        vocab_size=500,
        hidden_size=64,
        intermediate_size=192,
        num_hidden_layers=6,
        num_attention_heads=4,
        num_labels=2,
    )


CONFIGS: dict[str, tuple[str, Callable[[], PretrainedConfig]]] = {
    "mostly activations": ("text-generation", lambda: small_decoder(400)),
    "mostly logits": ("text-generation", lambda: small_decoder(6000)),
    "encoder": ("text-classification", small_encoder),
}


def model_of(config: PretrainedConfig, task: str) -> PreTrainedModel:
    kind = AutoModelForCausalLM if task == "text-generation" else AutoModelForSequenceClassification
    config = copy.deepcopy(config)
    model: PreTrainedModel = kind.from_config(config, dtype=torch.float32, attn_implementation="eager")
    return model.eval()


def batch(_step: int) -> Batch:
    ids = torch.randint(5, 390, (ROWS, LENGTH), generator=torch.Generator().manual_seed(0))
    return {"input_ids": ids, "attention_mask": torch.ones_like(ids), "labels": torch.zeros(ROWS).long()}


def weight_bytes(model: PreTrainedModel) -> int:
    return sum(4 * parameter.numel() for parameter in model.parameters())


def estimated(
    make_spec: MakeSpec,
    config: PretrainedConfig,
    task: str,
    stage: str,
    *,
    precision: torch.dtype,
    **mlfs: object,
) -> Stage:
    spec = make_spec(task=task, mlfs={"batchSize": ROWS, **mlfs})
    texts = Texts(train=LENGTH, validation=LENGTH, calibration=LENGTH)
    stages = estimate(spec=spec, config=config, texts=texts, precision=precision, at_once=AT_ONCE)
    return next(one for one in stages if one.name == stage)


def assert_close(stage: Stage, measured: int) -> None:
    assert 0.75 * measured < stage.total < 1.3 * measured, (stage.total / measured, stage)


@pytest.mark.parametrize(
    ("kind", "again", "precision"),
    [
        *((kind, again, torch.float32) for kind in CONFIGS for again in (False, True)),
        ("mostly activations", False, torch.bfloat16),
    ],
    ids=str,
)
def test_a_supernet_stage(make_spec: MakeSpec, kind: str, again: bool, precision: torch.dtype) -> None:
    task, make = CONFIGS[kind]
    teacher = model_of(make(), task)
    supernet = Supernet(
        model=copy.deepcopy(teacher), rank=8, precision=precision, gradient_checkpointing=again
    )
    stage = SupernetStage(
        name="widths",
        palette=Palette(shapes=(supernet.full,)),
        optimization=ONE_STEP,
        distillation=Distillation(),
        subnets_per_step=2,
    )
    with Live() as live:
        train_supernet(supernet=supernet, frozen_teacher=teacher, batches=batch, stage=stage)
    expected = estimated(make_spec, make(), task, "widths", precision=precision, gradientCheckpointing=again)
    assert_close(expected, live.peak + 2 * weight_bytes(teacher))


@pytest.mark.parametrize("kind", CONFIGS)
@pytest.mark.parametrize(("method", "again"), [("Full", True), ("LowRank", False)])
def test_the_stage_of_the_teacher(
    make_spec: MakeSpec, kind: str, again: bool, method: Literal["Full", "LowRank"]
) -> None:
    task, make = CONFIGS[kind]
    model = model_of(make(), task)
    with Live() as live:
        train_teacher(
            model=model,
            batches=batch,
            method=method,
            optimization=ONE_STEP,
            gradient_checkpointing=again,
        )
    expected = estimated(
        make_spec,
        make(),
        task,
        "teacher",
        precision=torch.float32,
        gradientCheckpointing=again,
        stages={"teacher": {"method": method}},
    )
    assert_close(expected, live.peak + weight_bytes(model))


@pytest.mark.parametrize("kind", CONFIGS)
def test_the_stage_that_puts_in_order(make_spec: MakeSpec, kind: str) -> None:
    task, make = CONFIGS[kind]
    model = model_of(make(), task)
    with Live() as live:
        permute_by_importance(model=model, batches=[batch(0)])
    expected = estimated(make_spec, make(), task, "order", precision=torch.float32)
    assert_close(expected, live.peak + weight_bytes(model))
