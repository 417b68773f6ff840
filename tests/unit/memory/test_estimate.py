"""The arithmetic of memory, checked by hand for a model of seven billion parameters that nobody has to load."""

from __future__ import annotations

import math

import pytest
import torch
from tests.unit.memory.conftest import AT_ONCE, MakeSpec, qwen2
from transformers import AutoConfig

from ireko_api.spec import CompressionRunSpec
from ireko_trainer.errors import UserError
from ireko_trainer.memory import Run, Stage, Term, Texts, arithmetic, estimate, remedies, table
from ireko_trainer.memory.skeletons import sizes_of

H, F, L, V, KV = 3584, 18944, 28, 152064, 512
"""Qwen2.5-7B: hidden, intermediate, layers, vocabulary, and 4 key-value heads of 128."""
LAYER = 2 * H * H + H + 2 * (KV * H + KV) + 3 * H * F + 2 * H
PARAMETERS = L * LAYER + 2 * V * H + H
TOKENS = 2 * 1024
"""Of a worker: 4 of them share 8 texts."""

MLFS = {"batchSize": 8, "gradientCheckpointing": True, "stages": {"teacher": {"method": "LowRank"}}}
ON_GPUS = {"workers": 4, "resourcesPerWorker": {"gpu": 1}}


def qwen_run(make_spec: MakeSpec, *, length: int = 1024, **mlfs: object) -> Run:
    return Run(
        spec=make_spec(mlfs={**MLFS, **mlfs}, compute=ON_GPUS),
        config=qwen2(),
        texts=Texts(train=length, validation=length, calibration=length),
        precision=torch.bfloat16,
        at_once=AT_ONCE,
        on_gpu=True,
    )


def named(run: Run, name: str) -> Stage:
    return next(stage for stage in run.stages() if stage.name == name)


def term(stage: Stage, what: str) -> Term:
    return next(one for one in stage.terms if one.what == what)


def test_the_parameters_are_counted_without_a_single_weight() -> None:
    sizes = sizes_of(qwen2(), task="text-generation")
    assert sizes.parameters == PARAMETERS == 7_615_616_512
    assert (sizes.block, sizes.blocks) == (LAYER, L * LAYER)
    assert sizes.pair_per_rank == L * (2 * (H + H) + 2 * (H + KV) + 3 * (H + F)) + (H + V)


def test_matrices_that_read_the_same_tensor_are_counted_together() -> None:
    readings = sizes_of(qwen2(), task="text-generation").readings
    assert {(one.columns, one.rows, one.feed_forward) for one in readings} == {
        (H, (H, KV, KV), False),
        (H, (H,), False),
        (H, (F, F), True),
        (F, (H,), True),
    }


@pytest.mark.parametrize(
    "family", ["bert", "roberta", "distilbert", "gpt2", "gemma2", "phi3", "qwen3", "llama"]
)
def test_every_family_is_estimated_from_its_config_alone(make_spec: MakeSpec, family: str) -> None:
    config = AutoConfig.for_model(family)
    task = "text-classification" if "bert" in family else "text-generation"
    stages = estimate(
        spec=make_spec(task=task, mlfs={}),
        config=config,
        texts=Texts(train=16, validation=16, calibration=16),
        precision=torch.float32,
        at_once=AT_ONCE,
    )
    names = [stage.name for stage in stages]
    assert names == ["teacher", "order", "palette", "widths", "depths", "select", "quantize", "ship"]
    assert all(one.bytes > 0 for stage in stages for one in stage.terms)


def test_a_supernet_of_seven_billion_adds_up(make_spec: MakeSpec) -> None:
    stage = named(qwen_run(make_spec), "widths")
    numbers = 8 * sizes_of(qwen2(), task="text-generation").pair_per_rank
    assert term(stage, "weights of the frozen teacher").bytes == 4 * PARAMETERS
    assert term(stage, "weights of the supernet").bytes == 4 * PARAMETERS
    # Numbers, gradients, AdamW's two means, and one copy to average gradients in.
    assert term(stage, "low-rank pairs in training").bytes == numbers * (4 + 4 + 8 + 4)
    assert term(stage, "logits").bytes == 10 * TOKENS * V * 4
    assert 70 * 2**30 < stage.total < 76 * 2**30
    assert stage.needed == stage.total, "a GPU maps no files"


def test_checkpointing_leaves_the_inputs_of_the_layers_and_the_layer_at_work(make_spec: MakeSpec) -> None:
    kept, again = (
        term(named(qwen_run(make_spec, gradientCheckpointing=wanted), "widths"), "activations").bytes
        for wanted in (False, True)
    )
    inputs = L * TOKENS * H * 4
    assert again < 0.2 * kept
    assert again > inputs
    # Everything is kept for every layer and the one at work, or for the one at work alone: twice.
    layer = (kept - again + inputs) // (L - 1)
    weights_in_half = 2 * (LAYER - 2 * H)
    assert weights_in_half < layer < weights_in_half + TOKENS * (10 * H + 6 * F) * 4 + 2 * 28 * 1024**2 * 16


def test_training_all_weights_takes_sixteen_bytes_each(make_spec: MakeSpec) -> None:
    run = qwen_run(make_spec, stages={"teacher": {"method": "Full"}})
    stage = named(run, "teacher")
    assert term(stage, "weights of the teacher").bytes == 4 * PARAMETERS
    assert term(stage, "weights in training").bytes == (4 + 8 + 4) * PARAMETERS


def test_quantization_streams_blocks_and_holds_second_moments_of_one(make_spec: MakeSpec) -> None:
    stage = named(qwen_run(make_spec), "quantize")
    assert stage.process == "trainer"
    assert term(stage, "a block").bytes == 4 * LAYER
    assert term(stage, "calibration texts between two layers").bytes == 32768 * (2 * H + F) * 4
    assert term(stage, "second moments and their inverse").bytes == F * F * 56 + F * H * 32
    # At four widths, as chosen, and in the four orders that the choice is compared with.
    assert term(stage, "rounded weights").bytes == 9 * PARAMETERS
    # Teacher and member are read from their files, and only read.
    assert stage.total - stage.needed == 2 * 4 * PARAMETERS


def test_a_member_takes_what_the_largest_target_has_room_for(make_spec: MakeSpec) -> None:
    small = [{"name": "a", "constraints": {"maxSizeMiB": 512}}]
    spec = make_spec(mlfs=MLFS, deviceTargets=small, quantization={"bits": [4, 8]})
    run = Run(
        spec=spec,
        config=qwen2(),
        texts=Texts(train=64, validation=64, calibration=64),
        precision=torch.float32,
        at_once=AT_ONCE,
    )
    assert term(named(run, "ship"), "weights of a member").bytes == 4 * 512 * 2**20 * 8 // 4


def test_deltas_hold_the_second_moments_of_all_blocks_at_once(make_spec: MakeSpec) -> None:
    spec = make_spec(mlfs=MLFS)
    delta = {"targetReduction": 0.1, "modules": "Mlp", "keepFirst": 2, "initialization": "Whitened"}
    pipeline = {**spec.model_dump(by_alias=True, exclude_none=True)["pipeline"], "delta": delta}
    document = {**spec.model_dump(by_alias=True, exclude_none=True), "pipeline": pipeline}
    run = Run(
        spec=CompressionRunSpec.model_validate(document),
        config=qwen2(),
        texts=Texts(train=64, validation=64, calibration=64),
        precision=torch.float32,
        at_once=AT_ONCE,
    )
    stage = named(run, "factor")
    assert term(stage, "second moments of all inputs").bytes == (L - 2) * (H * H + F * F) * 8
    assert term(stage, "their roots, both ways").bytes == (L - 2) * (H * H + F * F) * 16
    assert term(stage, "matrices in float64").bytes == (L - 2) * 3 * H * F * 8
    assert term(stage, "a root while it is found").bytes == F * F * 64
    # Every candidate is factored before one is chosen.
    assert term(named(run, "select"), "their roots, both ways").bytes == (L - 2) * (H * H + F * F) * 16


def test_factors_that_train_are_not_in_the_form_that_is_stored(make_spec: MakeSpec) -> None:
    delta = {"targetReduction": 0.19, "modules": "Attention", "recovery": {"steps": 1, "batchSize": 1}}
    square = AutoConfig.for_model("llama", hidden_size=64, intermediate_size=32, num_hidden_layers=2)
    spec = make_spec(pipeline={"delta": delta})
    run = Run(
        spec=spec,
        config=square,
        texts=Texts(train=16, validation=16, calibration=16),
        precision=torch.float32,
        at_once=AT_ONCE,
    )
    # Four matrices of n × n, and feed-forward parts of 1.5 n² more: 0.19 of all is 0.26 of the four.
    share = 1 - 0.19 * (4 + 1.5) / 4
    rank = math.ceil(64 - math.sqrt(64**2 - share * 64**2))
    numbers = 2 * 4 * rank * 2 * 64
    assert term(named(run, "delta"), "factors in training").bytes == 16 * numbers
    assert numbers > share * 2 * 4 * 64**2


def test_long_texts_of_a_classifier_cost_more_than_short_ones(make_spec: MakeSpec) -> None:
    spec = make_spec(task="text-classification", mlfs={})

    def peak(length: int) -> int:
        texts = Texts(train=length, validation=length, calibration=length)
        stages = estimate(
            spec=spec,
            config=AutoConfig.for_model("bert"),
            texts=texts,
            precision=torch.float32,
            at_once=AT_ONCE,
        )
        return max(stage.needed for stage in stages)

    # The matrices of attention grow with the square.
    assert peak(512) - peak(256) > 2 * (peak(256) - peak(128)) > 0


# --- words ----------------------------------------------------------------------------------------------------------


def test_the_arithmetic_of_a_stage_adds_up_before_the_readers_eyes(make_spec: MakeSpec) -> None:
    stage = named(qwen_run(make_spec), "widths")
    said = arithmetic(stage)
    assert said.startswith(
        "28.4 GiB weights of the frozen teacher (7,615,616,512 × 4 bytes) + 28.4 GiB weights"
    )
    assert "10 copies × 2,048 tokens × 152,064 × 4 bytes" in said


def test_the_table_has_a_line_for_every_stage(make_spec: MakeSpec) -> None:
    stages = qwen_run(make_spec).stages()
    lines = table(stages).splitlines()
    assert len(lines) == 1 + len(stages)
    assert [line.split()[:2] for line in lines[1:]] == [[stage.name, stage.process] for stage in stages]
    assert "28.4 GiB" in lines[4]


def test_only_changes_that_help_are_proposed(make_spec: MakeSpec) -> None:
    run = qwen_run(
        make_spec, gradientCheckpointing=False, stages={"teacher": {"method": "Full"}}, batchSize=16
    )
    proposed = remedies(run, named(run, "teacher"))
    assert [words.partition(" (then")[0] for words in proposed] == [
        "spec.pipeline.mlfs.stages.teacher.method: LowRank",
        "spec.pipeline.mlfs.gradientCheckpointing: true",
        "spec.pipeline.mlfs.batchSize: 8",
        "texts half as long (maxLength in spec.data)",
    ]


def test_nothing_is_proposed_that_workers_could_not_share(make_spec: MakeSpec) -> None:
    """Four workers need two texts each."""
    run = qwen_run(make_spec)
    assert not any("batchSize" in words for words in remedies(run, named(run, "widths")))


def test_a_family_without_a_table_is_refused() -> None:
    with pytest.raises(UserError, match="mamba"):
        sizes_of(AutoConfig.for_model("mamba"), task="text-generation")
