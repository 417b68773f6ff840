"""What stages really take: resident memory at its peak, above what a process held before, in a process of its own.

    python memory_probe.py STAGE

prints one line of JSON: `measured` bytes, and the terms of the `estimated` ones. The case is small and real: a decoder
is saved, loaded from its file, and taken through what the pipeline calls.
"""

from __future__ import annotations

import ctypes
import gc
import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, PretrainedConfig, PreTrainedModel

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.delta import (
    DeltaOptions,
    Metrics,
    apply_plan,
    collect_moments,
    forget_originals,
    measured_modules,
    plan_deltas,
    remember_originals,
    train_deltas,
)
from ireko_trainer.memory import AtOnce, Stage, Texts, estimate
from ireko_trainer.mlfs import Batch, Optimization
from ireko_trainer.pipeline.bits import BASELINE_ORDERS, BitPlanner

TEXTS = 32
SIZES = {"quantize": (8, 128, 768), "factor": (4, 64, 1024), "delta": (8, 128, 768)}
"""Texts at once, their tokens, and the intermediate size: so that what is particular to the stage is most of it."""
ROWS, LENGTH, INTERMEDIATE = SIZES[sys.argv[1]]
AT_ONCE = AtOnce(
    order_rows=ROWS,
    delta_rows=ROWS,
    batch_tokens=ROWS * LENGTH,
    sample_rows=TEXTS,
    sample_tokens=TEXTS * LENGTH,
    baselines=len(BASELINE_ORDERS),
)
REDUCTION = 0.2
PIPELINES: dict[str, dict[str, Any]] = {
    "quantize": {"quantization": {"method": "GPTQ", "bits": [4, 8], "importance": "Sensitivity"}},
    "factor": {"delta": {"targetReduction": REDUCTION}},
    "delta": {"delta": {"targetReduction": REDUCTION, "recovery": {"steps": 2, "batchSize": ROWS}}},
}


def config(*, hidden: int = 192, intermediate: int = INTERMEDIATE, layers: int = 3) -> PretrainedConfig:
    return AutoConfig.for_model(
        "llama",
        vocab_size=3000,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=8,
        num_key_value_heads=8,
        max_position_embeddings=LENGTH,
        tie_word_embeddings=True,
    )


def spec_of(stage: str) -> CompressionRunSpec:
    return CompressionRunSpec.model_validate(
        {
            "teacher": {"model": "teacher", "task": "text-generation"},
            "data": {"train": {"uri": "train.txt", "maxLength": LENGTH}},
            "pipeline": PIPELINES[stage],
            "deviceTargets": [{"name": "a", "constraints": {"maxSizeMiB": 4000}}],
            "compute": {"workers": 0},
        }
    )


def estimated(stage: str) -> Stage:
    texts = Texts(train=LENGTH, validation=LENGTH, calibration=LENGTH)
    stages = estimate(
        spec=spec_of(stage), config=config(), texts=texts, precision=torch.float32, at_once=AT_ONCE
    )
    return next(one for one in stages if one.name == stage)


def batches(count: int, *, vocabulary: int, rows: int = ROWS) -> list[Batch]:
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(3, vocabulary, (count, rows, LENGTH), generator=generator)
    return [{"input_ids": one, "attention_mask": torch.ones_like(one)} for one in ids]


def loaded(directory: Path) -> PreTrainedModel:
    model: PreTrainedModel = AutoModelForCausalLM.from_pretrained(
        directory, dtype=torch.float32, attn_implementation="eager"
    )
    return model.eval()


def quantize(directory: Path) -> None:
    """As the trainer's own process does it: the chosen bits, and those that they are compared with."""
    model = loaded(directory)
    found = batches(TEXTS // ROWS, vocabulary=model.config.vocab_size)
    planner = BitPlanner(
        model=model,
        quantization=spec_of("quantize").pipeline.quantization,
        batches=lambda: found,
        seed=0,
    )
    size = int(0.75 * sum(parameter.numel() for parameter in model.parameters()))
    planner.weights_for(planner.plan(max_bytes=size))
    for importance in BASELINE_ORDERS:
        planner.weights_for(planner.plan(max_bytes=size, importance=importance))


def factor(directory: Path) -> PreTrainedModel:
    model = loaded(directory)
    options = DeltaOptions(reduction=REDUCTION)
    moments = collect_moments(
        model=model,
        batches=batches(TEXTS // ROWS, vocabulary=model.config.vocab_size),
        modules=measured_modules(model, options),
        kind="distribution",
    )
    plan = plan_deltas(model=model, moments=moments, options=options)
    metrics = Metrics(model=model, moments=moments, initialization=options.initialization)
    apply_plan(model=model, plan=plan, metrics=metrics)
    return model


def train(model: PreTrainedModel, directory: Path) -> None:
    remember_originals(model, loaded(directory))
    (batch,) = batches(1, vocabulary=model.config.vocab_size)
    train_deltas(
        model=model,
        batches=lambda _step: batch,
        kind="distribution",
        optimization=Optimization(steps=2, learning_rate=1e-5, weight_decay=0.0),
    )


def peak_of(work: Callable[[], object]) -> int:
    """Bytes that the process grew by at most."""
    gc.collect()
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")
    before = _status("VmHWM")
    work()
    return _status("VmHWM") - before


def _status(name: str) -> int:
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * next(int(line.split()[1]) for line in lines if line.startswith(f"{name}:"))


def saved(directory: Path, *, config: PretrainedConfig) -> Path:
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory)
    return directory


def main(stage: str) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        # Libraries that are loaded at their first use are no part of a stage.
        small = saved(Path(scratch) / "small", config=config(hidden=32, intermediate=64, layers=2))
        whole = saved(Path(scratch) / "whole", config=config())
        if stage == "quantize":
            quantize(small)
            measured = peak_of(lambda: quantize(whole))
        elif stage == "factor":
            factor(small)
            measured = peak_of(lambda: factor(whole))
        else:
            train(factor(small), small)
            measured = measured_training(whole)
    expected = estimated(stage)
    print(json.dumps({"measured": measured, "estimated": {t.what: t.bytes for t in expected.terms}}))


def measured_training(directory: Path) -> int:
    """The factored model is there before the stage begins, and belongs to what it takes."""
    model = factor(directory)
    forget_originals(model)
    held = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return held + peak_of(lambda: train(model, directory))


if __name__ == "__main__":
    main(sys.argv[1])
