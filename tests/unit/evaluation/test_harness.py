"""Questions answered through lm-evaluation-harness, without a network."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import (
    AutoModelForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from ireko_trainer.data.questions import Question
from ireko_trainer.errors import UserError
from ireko_trainer.evaluation.harness import answer_questions, require_harness
from ireko_trainer.quant import describe, save_quantized

WORDS = ["</s>", *"abcdefghij"]


@pytest.fixture
def tokenizer() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: i for i, word in enumerate(WORDS)}, unk_token="</s>"))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token="</s>", model_max_length=32)


@pytest.fixture
def model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    config = LlamaConfig(vocab_size=len(WORDS), max_position_embeddings=32, initializer_range=0.5, **sizes)
    return LlamaForCausalLM(config).eval()


@pytest.fixture
def packed(model: LlamaForCausalLM, tmp_path: Path) -> PreTrainedModel:
    """A quantized model as a run loads it, with weights that were unpacked in the first forward pass."""
    model.config.tie_word_embeddings = True
    model.tie_weights()
    bits = describe(model).module_bits({"model.layers.0": 4})
    save_quantized(model=model, bits=bits, group_size=32, directory=tmp_path)
    loaded: PreTrainedModel = AutoModelForCausalLM.from_pretrained(tmp_path, dtype=torch.float32).eval()
    with torch.inference_mode():
        loaded(torch.tensor([[1, 2]]))
    return loaded


def log_probability(model: Any, tokenizer: Any, context: str, continuation: str) -> float:
    before, after = (
        tokenizer(text, add_special_tokens=False)["input_ids"] for text in (context, continuation)
    )
    with torch.no_grad():
        logs = model(torch.tensor([before + after])).logits[0].log_softmax(-1)
    return sum(float(logs[len(before) + place - 1, token]) for place, token in enumerate(after))


def share(model: Any, tokenizer: Any, questions: list[Question], *, by_length: bool) -> float:
    """Share of right answers, computed without the harness."""
    right = []
    for question in questions:
        options = max(len(question.contexts), len(question.continuations))
        scores = []
        for option in range(options):
            context = question.contexts[option % len(question.contexts)]
            continuation = question.continuations[option % len(question.continuations)]
            score = log_probability(model, tokenizer, context, continuation)
            scores.append(score / len(continuation) if by_length else score)
        right.append(scores.index(max(scores)) == question.gold)
    return sum(right) / len(right)


def test_a_packed_model_is_asked_as_it_is(packed: PreTrainedModel, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    questions = [Question(contexts=(f"a {x} b",), continuations=("c d", "e f", x), gold=1) for x in WORDS[1:]]

    found = answer_questions(model=packed, tokenizer=tokenizer, questions={"mmlu": questions}, batch_size=4)

    assert found["mmlu"] == pytest.approx(share(packed, tokenizer, questions, by_length=False))


def test_questions_are_answered_by_the_likelihood_of_their_options(model: Any, tokenizer: Any) -> None:
    pytest.importorskip("lm_eval", reason="the extra eval is not installed")
    letters = WORDS[1:]
    ends = [Question(contexts=(f"a {x} b",), continuations=("c d", "e f g h", x), gold=1) for x in letters]
    starts = [Question(contexts=(f"a {x}", "j j"), continuations=("d e",), gold=0) for x in letters]

    found = answer_questions(
        model=model,
        tokenizer=tokenizer,
        questions={"hellaswag": ends, "mmlu": ends, "winogrande": starts},
        batch_size=4,
    )

    assert found == {
        "hellaswag": pytest.approx(share(model, tokenizer, ends, by_length=True)),
        "mmlu": pytest.approx(share(model, tokenizer, ends, by_length=False)),
        "winogrande": pytest.approx(share(model, tokenizer, starts, by_length=False)),
    }
    assert len(set(found.values())) > 1
    assert tokenizer.pad_token_id is None


def test_without_the_harness_the_extra_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval", None)
    with pytest.raises(UserError, match=r"multipleChoice: .*lm-eval.*pip install 'ireko\[eval\]'"):
        require_harness()
