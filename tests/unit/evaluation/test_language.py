"""How language models are scored: against what comes next, and against a teacher."""

from __future__ import annotations

import math
from collections.abc import Callable

import pytest
import torch
from transformers.modeling_outputs import CausalLMOutput

from ireko_trainer.data import Batch, EncodedDataset
from ireko_trainer.errors import DivergedError
from ireko_trainer.evaluation import divergence, foresee, language, most_likely, score_foresight

VOCABULARY = 11
Model = Callable[[Batch], CausalLMOutput]


@pytest.fixture
def data() -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    return EncodedDataset(input_ids=torch.randint(0, VOCABULARY, (7, 6), generator=generator).tolist())


def table_model(seed: int = 0, *, scale: float = 1.0) -> Model:
    """The logits of the next token are a row of a random table."""
    table = torch.randn(VOCABULARY, VOCABULARY, generator=torch.Generator().manual_seed(seed)) * scale
    return lambda batch: CausalLMOutput(logits=table[batch["input_ids"]])


def test_likelihood_is_the_reciprocal_of_the_perplexity_of_the_tokens_that_come(data: EncodedDataset) -> None:
    model = table_model()
    scores = score_foresight(
        outputs=foresee(forward=model, data=data, batch_size=3), data=data, reference=None
    )
    ids = torch.tensor(data.input_ids)
    logs = model({"input_ids": ids}).logits[:, :-1].log_softmax(-1)
    expected = logs.gather(-1, ids[:, 1:, None]).double().mean()
    assert scores["likelihood"] == pytest.approx(float(expected.exp()))
    assert scores["perplexity"] * scores["likelihood"] == pytest.approx(1)
    assert scores["accuracy"] == pytest.approx(float((logs.argmax(-1) == ids[:, 1:]).double().mean()))
    assert "agreement" not in scores


def test_a_model_that_knows_nothing_has_the_vocabulary_as_its_perplexity(data: EncodedDataset) -> None:
    outputs = foresee(forward=table_model(scale=0), data=data, batch_size=2)
    scores = score_foresight(outputs=outputs, data=data, reference=None)
    assert scores["perplexity"] == pytest.approx(VOCABULARY)


def test_the_order_and_the_size_of_batches_change_nothing(
    data: EncodedDataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = foresee(forward=table_model(), data=data, batch_size=64)
    monkeypatch.setattr(language, "TOKENS_AT_ONCE", 6)
    pieces = foresee(forward=table_model(), data=data, batch_size=64)
    assert torch.equal(whole.losses, pieces.losses)
    assert torch.equal(whole.foreseen, pieces.foreseen)


def test_agreement_is_the_share_of_tokens_that_the_teacher_foresees_too(data: EncodedDataset) -> None:
    teacher = foresee(forward=table_model(), data=data, batch_size=3)
    other = foresee(forward=table_model(1), data=data, batch_size=3)
    assert score_foresight(outputs=teacher, data=data, reference=teacher)["agreement"] == 1
    found = score_foresight(outputs=other, data=data, reference=teacher)["agreement"]
    assert found == pytest.approx(float((other.foreseen == teacher.foreseen).double().mean()))
    assert found < 0.5


@pytest.mark.parametrize("kept", [VOCABULARY, 3])
def test_divergence_is_that_of_the_likely_tokens_and_the_rest(
    data: EncodedDataset, kept: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(language, "KEPT_TOKENS", kept)
    teacher, student = table_model(), table_model(1)
    reference = most_likely(forward=teacher, data=data, batch_size=2)
    found = divergence(forward=student, data=data, reference=reference, batch_size=2)
    ids = torch.tensor(data.input_ids)
    p, q = (model({"input_ids": ids}).logits.softmax(-1).double() for model in (teacher, student))
    exact = float((p * (p / q).log()).sum(-1).mean())
    if kept == VOCABULARY:
        assert found == pytest.approx(exact, rel=1e-4)
    else:
        # Lumping outcomes together can only hide differences.
        assert 0.3 * exact < found < exact
    same = divergence(forward=teacher, data=data, reference=reference, batch_size=2)
    assert math.isclose(same, 0, abs_tol=1e-6)


def test_a_broken_model_is_no_number(data: EncodedDataset) -> None:
    with pytest.raises(DivergedError, match="7 of 7 windows"):
        foresee(forward=table_model(scale=math.nan), data=data, batch_size=3)
