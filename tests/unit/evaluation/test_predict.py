"""Predictions come back complete, in order, and without the labels having been seen."""

from __future__ import annotations

import pytest
import torch
from transformers import BertConfig, BertForSequenceClassification, BertModel
from transformers.utils.generic import ModelOutput

from ireko_trainer.data import Batch, EncodedDataset
from ireko_trainer.evaluation import mean_pool, predict

CONFIG = BertConfig(
    vocab_size=60,
    hidden_size=32,
    num_hidden_layers=2,
    num_attention_heads=2,
    intermediate_size=64,
    num_labels=3,
    attn_implementation="eager",
)


@pytest.fixture
def data() -> EncodedDataset:
    generator = torch.Generator().manual_seed(0)
    rows = [
        torch.randint(5, 60, (length,), generator=generator).tolist() for length in (3, 9, 4, 4, 12, 2, 7)
    ]
    return EncodedDataset(
        input_ids=rows,
        token_type_ids=[[0] * len(row) for row in rows],
        labels=torch.tensor([0, 1, 2, 0, 1, 2, 0]),
    )


def forward_of(model: torch.nn.Module) -> object:
    return lambda batch: model.eval()(**batch)


def test_mean_pooling_leaves_padding_out() -> None:
    hidden = torch.tensor([[[1.0, 2.0], [3.0, 6.0], [100.0, 100.0]], [[5.0, 5.0], [7.0, 7.0], [9.0, 9.0]]])
    mask = torch.tensor([[1, 1, 0], [1, 1, 1]])
    assert mean_pool(hidden, mask).tolist() == [[2.0, 4.0], [7.0, 7.0]]


@pytest.mark.parametrize("batch_size", [1, 2, 7, 100])
def test_logits_come_back_in_the_order_of_the_data(data: EncodedDataset, batch_size: int) -> None:
    torch.manual_seed(0)
    model = BertForSequenceClassification(CONFIG).eval()
    outputs = predict(forward=forward_of(model), data=data, task="text-classification", batch_size=batch_size)
    with torch.no_grad():
        one_by_one = [model(input_ids=torch.tensor([list(row)])).logits[0] for row in data.input_ids]
    torch.testing.assert_close(outputs, torch.stack(one_by_one), atol=1e-5, rtol=1e-5)


def test_embeddings_have_length_one(data: EncodedDataset) -> None:
    model = BertModel(CONFIG, add_pooling_layer=False)
    outputs = predict(forward=forward_of(model), data=data, task="feature-extraction", batch_size=3)
    assert outputs.shape == (7, 32)
    torch.testing.assert_close(outputs.norm(dim=1), torch.ones(7))


def test_the_model_never_sees_the_labels(data: EncodedDataset) -> None:
    seen: set[str] = set()

    def forward(batch: Batch) -> ModelOutput:
        seen.update(batch)
        return ModelOutput(logits=torch.zeros(len(batch["input_ids"]), 3))

    predict(forward=forward, data=data, task="text-classification", batch_size=4)
    assert seen == {"input_ids", "attention_mask", "token_type_ids"}


def test_bfloat16_changes_the_arithmetic_but_not_the_result_type(data: EncodedDataset) -> None:
    model = BertForSequenceClassification(CONFIG)
    arguments = {"forward": forward_of(model), "data": data, "task": "text-classification", "batch_size": 7}
    exact, rounded = predict(**arguments), predict(**arguments, precision=torch.bfloat16)
    assert rounded.dtype == torch.float32
    assert not torch.equal(exact, rounded)
    torch.testing.assert_close(rounded, exact, atol=0.05, rtol=0.05)


def test_predictions_may_take_part_in_a_loss(data: EncodedDataset) -> None:
    model = BertForSequenceClassification(CONFIG)
    outputs = predict(forward=forward_of(model), data=data, task="text-classification", batch_size=7)
    student = torch.zeros_like(outputs, requires_grad=True)
    torch.nn.functional.mse_loss(student, outputs).backward()
    assert student.grad is not None


def test_a_task_without_predictions_is_refused(data: EncodedDataset) -> None:
    model = BertForSequenceClassification(CONFIG)
    with pytest.raises(ValueError, match="fill-mask"):
        predict(forward=forward_of(model), data=data, task="fill-mask", batch_size=7)
