"""Judging language models, and samples that stay small whatever the texts are like."""

from __future__ import annotations

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from ireko_trainer.data import EncodedDataset
from ireko_trainer.evaluation import foresee
from ireko_trainer.pipeline.judging import LanguageJudge, as_forward, sample_batches, sample_of


def windows(count: int, length: int) -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    return EncodedDataset(input_ids=torch.randint(0, 20, (count, length), generator=generator).tolist())


def decoder(seed: int) -> LlamaForCausalLM:
    torch.manual_seed(seed)
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 32}
    return LlamaForCausalLM(LlamaConfig(vocab_size=20, initializer_range=0.3, **sizes)).eval()


@pytest.fixture
def judge() -> LanguageJudge:
    teacher, data = as_forward(decoder(0)), windows(5, 8)
    return LanguageJudge(
        metric="likelihood",
        data=data,
        batch_size=2,
        teacher=teacher,
        reference=foresee(forward=teacher, data=data, batch_size=2),
    )


def test_nothing_is_closer_to_a_teacher_than_itself(judge: LanguageJudge) -> None:
    itself, other = as_forward(decoder(0)), as_forward(decoder(1))
    assert judge.closeness(itself) == pytest.approx(0, abs=1e-5)
    assert judge.closeness(other) < -0.05
    assert judge.metrics(itself)["agreement"] == 1
    assert judge.metrics(other)["agreement"] < 1


def test_quality_is_the_chosen_metric(judge: LanguageJudge) -> None:
    forward = as_forward(decoder(1))
    metrics = judge.metrics(forward)
    assert judge.quality(forward) == metrics["likelihood"] == pytest.approx(1 / metrics["perplexity"])


def test_a_sample_holds_so_many_texts_or_tokens_at_most_and_one_text_at_least() -> None:
    data = windows(10, 8)
    assert len(sample_of(data, texts=4, tokens=1000)) == 4
    assert len(sample_of(data, texts=9, tokens=50)) == 6
    assert len(sample_of(data, texts=9, tokens=3)) == 1


def test_batches_of_long_texts_hold_fewer_of_them() -> None:
    batches = list(sample_batches(windows(6, 1024), batch_size=32))
    assert [tuple(batch["input_ids"].shape) for batch in batches] == [(2, 1024)] * 3
