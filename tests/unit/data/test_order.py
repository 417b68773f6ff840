"""The batch order: complete epochs, disjoint ranks, random access, close lengths."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from ireko_trainer.data import BatchOrder, EncodedDataset, evaluation_batches
from ireko_trainer.errors import UserError


@st.composite
def orders(draw: st.DrawFn) -> dict[str, object]:
    world_size = draw(st.integers(1, 4))
    return {
        "lengths": draw(st.lists(st.integers(2, 128), min_size=world_size, max_size=400)),
        "batch_size": draw(st.integers(2 * world_size, 40)),
        "seed": draw(st.integers(0, 2**32)),
        "world_size": world_size,
    }


@given(orders(), st.integers(0, 3))
def test_every_epoch_holds_every_sample_once_and_ranks_share_nothing(
    arguments: dict[str, object], epoch: int
) -> None:
    ranks = [BatchOrder(**arguments, rank=rank) for rank in range(arguments["world_size"])]
    steps = ranks[0].steps_per_epoch
    seen = [
        index
        for step in range(epoch * steps, (epoch + 1) * steps)
        for rank in ranks
        for index in rank.indices(step)
    ]
    assert sorted(seen) == list(range(len(arguments["lengths"])))


@given(orders())
def test_no_share_is_empty_and_no_batch_too_large(arguments: dict[str, object]) -> None:
    ranks = [BatchOrder(**arguments, rank=rank) for rank in range(arguments["world_size"])]
    for step in range(ranks[0].steps_per_epoch):
        sizes = [len(rank.indices(step)) for rank in ranks]
        assert min(sizes) >= 1
        assert max(sizes) - min(sizes) <= 1
        assert sum(sizes) <= arguments["batch_size"]


@given(orders())
def test_the_batches_of_an_epoch_are_nearly_equal_in_size(arguments: dict[str, object]) -> None:
    order = BatchOrder(**{**arguments, "world_size": 1})
    sizes = [len(order.indices(step)) for step in range(order.steps_per_epoch)]
    assert max(sizes) - min(sizes) <= 1


@given(orders(), st.lists(st.integers(0, 500), min_size=1, max_size=8))
def test_a_step_is_the_same_however_one_gets_there(arguments: dict[str, object], steps: list[int]) -> None:
    visited = BatchOrder(**arguments)
    assert [visited.indices(step) for step in steps] == [
        BatchOrder(**arguments).indices(step) for step in steps
    ]


@given(orders(), st.integers(0, 200))
def test_the_samples_of_a_step_do_not_depend_on_the_number_of_workers(
    arguments: dict[str, object], step: int
) -> None:
    alone = BatchOrder(**{**arguments, "world_size": 1}).indices(step)
    shares = [BatchOrder(**arguments, rank=rank).indices(step) for rank in range(arguments["world_size"])]
    assert sorted(index for share in shares for index in share) == sorted(alone)


def test_another_seed_and_another_epoch_shuffle_differently() -> None:
    lengths = torch.randint(2, 60, (300,), generator=torch.Generator().manual_seed(0))
    order, other = (BatchOrder(lengths=lengths, batch_size=10, seed=seed) for seed in (0, 1))
    first, again = (
        [order.indices(step) for step in range(30)],
        [order.indices(step) for step in range(30, 60)],
    )
    assert first != again
    assert first != [other.indices(step) for step in range(30)]


def test_the_lengths_in_a_batch_are_close() -> None:
    lengths = np.minimum(np.random.default_rng(0).geometric(0.1, size=20_000) + 2, 64)  # much like SST-2
    order = BatchOrder(lengths=lengths.tolist(), batch_size=32, seed=0)
    batches = [lengths[order.indices(step)] for step in range(order.steps_per_epoch)]
    padded = sum(len(batch) * batch.max() for batch in batches)
    assert padded < 1.05 * lengths.sum()


def test_the_order_of_batches_is_not_the_order_of_lengths() -> None:
    lengths = np.arange(2, 642)
    order = BatchOrder(lengths=lengths.tolist(), batch_size=10, seed=0)
    means = [lengths[order.indices(step)].mean() for step in range(order.steps_per_epoch)]
    assert abs(np.corrcoef(means, np.arange(len(means)))[0, 1]) < 0.5


@pytest.mark.parametrize(
    ("samples", "batch_size", "world_size", "message"),
    [
        (3, 16, 4, r"^spec.compute.workers: 4 workers cannot share 3 training text\(s\); take fewer workers"),
        (100, 7, 4, r"^spec.pipeline.mlfs.batchSize: 7 is too small for 4 workers, .* choose at least 8\.$"),
    ],
)
def test_too_little_for_the_workers_is_refused(
    samples: int, batch_size: int, world_size: int, message: str
) -> None:
    with pytest.raises(UserError, match=message):
        BatchOrder(lengths=[5] * samples, batch_size=batch_size, seed=0, world_size=world_size)


def test_evaluation_goes_from_long_to_short_and_says_which_rows_it_takes() -> None:
    rows = [[1] * length for length in (3, 9, 4, 4, 12)]
    batches = list(evaluation_batches(data=EncodedDataset(input_ids=rows), batch_size=2))
    assert [indices for indices, _ in batches] == [[4, 1], [2, 3], [0]]
    assert [list(batch["input_ids"].shape) for _, batch in batches] == [[2, 12], [2, 4], [1, 3]]
