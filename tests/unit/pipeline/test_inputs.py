"""What a run starts from, and what is refused before anything is trained."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedTokenizerFast

from ireko_api.handoff import RunRequest
from ireko_api.spec import CompressionRunSpec
from ireko_trainer.errors import UserError
from ireko_trainer.pipeline.inputs import Inputs, load_inputs

WORDS = ["<s>", "</s>", *"abcdefgh"]
QUANTIZED = {"quantization": {"bits": [4, 8]}}
NESTED = {"mlfs": {"searchSpace": {"hidden": [1, 0.5], "intermediate": [1], "layers": [1]}}}


def load(directory: Path, *, family: str, pipeline: dict[str, Any]) -> Inputs:
    """The inputs of a run over a tiny random decoder and 200 words."""
    sizes = {"hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": len(WORDS)}
    config = AutoConfig.for_model(family, **sizes, bos_token_id=0, eos_token_id=1)
    AutoModelForCausalLM.from_config(config).save_pretrained(directory / "teacher")
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    PreTrainedTokenizerFast(tokenizer_object=words, bos_token="<s>", eos_token="</s>").save_pretrained(
        directory / "teacher"
    )
    (directory / "train.txt").write_text("a b c d\n" * 50)
    spec = CompressionRunSpec.model_validate(
        {
            "teacher": {"model": "teacher", "task": "text-generation"},
            "data": {"train": {"uri": "train.txt", "maxLength": 10}},
            "pipeline": pipeline,
            "deviceTargets": [{"name": "a", "constraints": {"maxSizeMiB": 1}}],
        }
    )
    request = RunRequest(
        name="a",
        uid="b",
        spec_digest=spec.digest(),
        spec=spec,
        base_dir=str(directory),
        storage="s",
        tracking_uri="t",
    )
    return load_inputs(request, cache=directory / "cache")


def test_running_text_is_split_calibrated_on_and_judged_by_likelihood(tmp_path: Path) -> None:
    inputs = load(tmp_path, family="llama", pipeline=NESTED | QUANTIZED)
    # Five of fifty documents, of five tokens each, are held out whole.
    assert (len(inputs.train), len(inputs.validation)) == (22, 2)
    assert inputs.calibration is inputs.train
    assert inputs.metric == "likelihood"
    assert not inputs.questions


def test_a_family_that_no_file_can_hold_in_few_bits_is_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"GPT2LMHeadModel: .*Conv1D; leave spec\.pipeline\.quantization out"):
        load(tmp_path, family="gpt2", pipeline=NESTED | QUANTIZED)


def test_groups_that_do_not_divide_the_teachers_rows_are_refused_before_training(tmp_path: Path) -> None:
    with pytest.raises(
        UserError, match=r"groupSize: 128 does not divide .*q_proj, which hold 32 .*\[4, 8, 16, 32\]"
    ):
        load(tmp_path, family="llama", pipeline={"quantization": {"groupSize": 128}})


def test_the_same_family_may_be_nested(tmp_path: Path) -> None:
    assert load(tmp_path, family="gpt2", pipeline=NESTED).task == "text-generation"
