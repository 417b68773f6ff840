"""Token rows: padding, digest, subsets and the held-out part."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.data import EncodedDataset, split_holdout
from ireko_trainer.errors import UserError


def dataset(count: int = 4, **changes: object) -> EncodedDataset:
    rows = [[index] * (index % 5 + 1) for index in range(count)]
    return EncodedDataset(**{"input_ids": rows, "labels": torch.arange(count), "pad_token_id": 9, **changes})


def test_a_batch_is_padded_to_its_longest_row_only() -> None:
    data = dataset(token_type_ids=[[0], [0, 1], [0, 0, 1], [0, 1, 1, 1]])
    batch = data.batch([2, 0])
    assert {name: tensor.tolist() for name, tensor in batch.items()} == {
        "input_ids": [[2, 2, 2], [0, 9, 9]],
        "attention_mask": [[1, 1, 1], [1, 0, 0]],
        "token_type_ids": [[0, 0, 1], [0, 0, 0]],
        "labels": [2, 0],
    }
    assert {tensor.dtype for tensor in batch.values()} == {torch.int64}


def test_a_batch_has_no_labels_or_segments_that_the_data_lacks() -> None:
    assert set(dataset(labels=None).batch([0, 1])) == {"input_ids", "attention_mask"}


@pytest.mark.parametrize(
    "changes",
    [
        {"input_ids": [[0], [1, 1], [2, 2, 2], [3, 3, 3, 4]]},
        {"input_ids": [[0, 1], [1], [2, 2, 2], [3, 3, 3, 3]]},
        {"labels": torch.tensor([0, 1, 2, 2])},
        {"labels": torch.tensor([0.0, 1.0, 2.0, 3.0])},
        {"labels": None},
        {"token_type_ids": [[0], [0, 1], [0, 0, 1], [0, 1, 1, 1]]},
    ],
)
def test_the_digest_changes_with_ids_segments_and_labels(changes: dict[str, object]) -> None:
    assert dataset().digest == dataset().digest
    assert dataset(**changes).digest != dataset().digest


def test_a_subset_keeps_the_order_that_was_asked_for() -> None:
    part = dataset().subset([3, 1])
    assert [list(row) for row in part.input_ids] == [[3, 3, 3, 3], [1, 1]]
    assert part.labels.tolist() == [3, 1]


@pytest.mark.parametrize(
    ("pairs", "count", "rows"), [(False, 3, 3), (True, 3, 6), (True, 99, 10), (False, None, 10)]
)
def test_taking_counts_examples_not_rows(pairs: bool, count: int | None, rows: int) -> None:
    assert len(dataset(10, pairs=pairs).take(count)) == rows


@given(
    examples=st.integers(2, 200),
    percent=st.integers(1, 50),
    seed=st.integers(0, 2**31),
    pairs=st.booleans(),
)
def test_a_holdout_divides_the_examples_and_keeps_pairs_together(
    examples: int, percent: int, seed: int, pairs: bool
) -> None:
    width = 2 if pairs else 1
    rows = [[index] for index in range(examples * width)]
    data = EncodedDataset(input_ids=rows, pairs=pairs)
    parts = split_holdout(data=data, percent=percent, seed=seed)
    ids = [[row[0] for row in part.input_ids] for part in parts]
    assert sorted(ids[0] + ids[1]) == list(range(examples * width))
    assert ids[0] == sorted(ids[0])
    assert ids[1] == sorted(ids[1])
    assert len(ids[1]) == width * min(max(round(examples * percent / 100), 1), examples - 1)
    if pairs:
        assert all(index ^ 1 in part for part in ids for index in part)


def test_the_same_seed_holds_the_same_examples_out() -> None:
    data = dataset(100)
    digests = [
        [part.digest for part in split_holdout(data=data, percent=10, seed=seed)] for seed in (0, 0, 1)
    ]
    assert digests[0] == digests[1]
    assert digests[0] != digests[2]


def test_one_example_cannot_be_divided() -> None:
    with pytest.raises(
        UserError, match=r"^spec.data.holdoutPercent: 10 % cannot be set aside from 1 example"
    ):
        split_holdout(data=dataset(1), percent=10, seed=0)


@pytest.mark.parametrize(
    "changes",
    [
        {"labels": torch.arange(3)},
        {"token_type_ids": [[0]]},
        {"input_ids": [[1]] * 3, "labels": None, "pairs": True},
    ],
)
def test_columns_of_different_lengths_are_a_mistake(changes: dict[str, object]) -> None:
    with pytest.raises(ValueError, match="rows"):
        dataset(**changes)
