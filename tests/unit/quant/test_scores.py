from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from ireko_trainer.quant.layout import block_modules
from ireko_trainer.quant.scores import importance_tiers, lim, outlier_share, rank_blocks, zd


class Scaling(nn.Module):
    """A block that multiplies its input."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.factor = factor
        self.linear = nn.Linear(4, 4)

    def forward(self, hidden_states: Tensor) -> tuple[Tensor]:
        return (hidden_states * self.factor,)


class Stack(nn.Module):
    """Blocks with known LIM behind the calling convention of the encoders."""

    def __init__(self, factors: list[float], *, scale: float = 1.0) -> None:
        super().__init__()
        self.layers = nn.ModuleList(Scaling(factor) for factor in factors)
        self.scale = scale

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Any:  # noqa: ARG002
        hidden = (
            torch.stack([input_ids + 1.0, input_ids * 0.5, input_ids - 7.0, input_ids**2.0], dim=-1)
            * self.scale
        )
        for layer in self.layers:
            (hidden,) = layer(hidden)
        return hidden


def test_an_identity_scores_minus_one_and_a_negation_plus_one(batch: dict[str, Tensor]) -> None:
    scores = lim(model=Stack([1.0, -1.0, 3.0]), batches=[batch])  # type: ignore[arg-type]
    assert list(scores.values()) == pytest.approx([-1.0, 1.0, -1.0])


def test_lim_does_not_change_when_the_stream_is_rescaled(build: Any, batch: dict[str, Tensor]) -> None:
    one = lim(model=Stack([0.5, -2.0], scale=1.0), batches=[batch])  # type: ignore[arg-type]
    other = lim(model=Stack([0.5, -2.0], scale=40.0), batches=[batch])  # type: ignore[arg-type]
    assert list(one.values()) == pytest.approx(list(other.values()), abs=1e-6)


@pytest.mark.parametrize("family", ["bert", "roberta", "distilbert"])
def test_lim_equals_the_cosine_of_the_hidden_states(
    family: str, build: Any, batch: dict[str, Tensor]
) -> None:
    model = build(family)
    scores = lim(model=model, batches=[batch])
    with torch.no_grad():
        states = model(**batch, output_hidden_states=True).hidden_states
    mask = batch["attention_mask"].bool()
    expected = [
        -float(torch.cosine_similarity(x, y, dim=-1)[mask].mean()) for x, y in itertools.pairwise(states)
    ]
    assert list(scores.values()) == pytest.approx(expected, abs=1e-5)
    assert all(-1 <= value <= 1 for value in expected)


def test_padding_does_not_count(build: Any, batch: dict[str, Tensor]) -> None:
    model = build("bert")
    padded = {key: torch.nn.functional.pad(value, (0, 9)) for key, value in batch.items()}
    assert list(lim(model=model, batches=[padded]).values()) == pytest.approx(
        list(lim(model=model, batches=[batch]).values()), abs=1e-5
    )


def test_lim_weighs_every_token_alike_across_batches(build: Any, batch: dict[str, Tensor]) -> None:
    model = build("bert")
    parts = [{key: value[start : start + 1] for key, value in batch.items()} for start in range(4)]
    assert list(lim(model=model, batches=parts).values()) == pytest.approx(
        list(lim(model=model, batches=[batch]).values()), abs=1e-5
    )


def test_lim_leaves_no_hooks_and_no_change_of_mode(build: Any, batch: dict[str, Tensor]) -> None:
    model = build("bert").train()
    lim(model=model, batches=[batch | {"labels": torch.zeros(4)}])
    assert model.training
    assert not any(block._forward_hooks for block in block_modules(model).values())


def test_lim_without_tokens_is_refused(build: Any) -> None:
    with pytest.raises(ValueError, match="at least one"):
        lim(model=build("bert"), batches=[])


@settings(deadline=None, max_examples=40)
@given(seed=st.integers(0, 999), gain=st.floats(0.01, 100), shift=st.floats(-10, 10))
def test_zd_does_not_change_under_affine_maps(seed: int, gain: float, shift: float) -> None:
    weight = torch.randn(16, 16, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    assert outlier_share(weight * gain + shift) == pytest.approx(outlier_share(weight), abs=2 / 256)
    assert 0 <= outlier_share(weight) < 0.5
    assert 0 <= outlier_share(weight, two_sided=True) < 1


def test_zd_of_gaussian_weights_is_the_tail_beyond_one_sigma() -> None:
    weight = torch.randn(1000, 1000, generator=torch.Generator().manual_seed(0))
    assert outlier_share(weight) == pytest.approx(0.1587, abs=2e-3)
    assert outlier_share(weight, two_sided=True) == pytest.approx(0.3173, abs=2e-3)


def test_heavier_tails_lower_zd() -> None:
    torch.manual_seed(0)
    heavy = torch.distributions.StudentT(3.0).sample((1000, 400))
    assert outlier_share(heavy) < 0.12


def test_zd_of_a_constant_matrix_is_zero() -> None:
    assert outlier_share(torch.full((8, 8), 0.3)) == 0.0
    assert outlier_share(torch.zeros(8, 8)) == 0.0


def test_zd_averages_the_linear_matrices_of_a_block(build: Any) -> None:
    model = build("bert")
    name, block = next(iter(block_modules(model).items()))
    shares = [outlier_share(m.weight) for m in block.modules() if isinstance(m, nn.Linear)]
    assert len(shares) == 6
    assert zd(model=model)[name] == pytest.approx(sum(shares) / 6)


NAMES = ("x", "y", "z")
SCORES = {"x": 0.1, "y": 0.3, "z": 0.1}


@pytest.mark.parametrize(
    ("importance", "order"),
    [("LIM", ("y", "x", "z")), ("Reverse", ("x", "z", "y")), ("ZD", ("x", "z", "y"))],
)
def test_scores_sort_blocks_and_ties_go_by_position(importance: Any, order: tuple[str, ...]) -> None:
    tiers = importance_tiers(importance=importance, blocks=NAMES, scores=SCORES)
    assert tiers == tuple((name,) for name in order)


def test_uniform_is_one_tier() -> None:
    assert importance_tiers(importance="Uniform", blocks=NAMES) == (NAMES,)


def test_random_orders_follow_the_seed() -> None:
    blocks = tuple(str(number) for number in range(8))
    orders = {importance_tiers(importance="Random", blocks=blocks, seed=seed) for seed in range(5)}
    assert len(orders) == 5
    assert all(sorted(name for (name,) in order) == list(blocks) for order in orders)
    assert importance_tiers(importance="Random", blocks=blocks, seed=3) in orders


def test_first_block_leads_whatever_the_seed() -> None:
    for seed in range(4):
        assert importance_tiers(importance="FirstBlock", blocks=NAMES, seed=seed)[0] == ("x",)


def test_an_order_by_score_without_scores_is_refused() -> None:
    with pytest.raises(ValueError, match="needs scores"):
        importance_tiers(importance="LIM", blocks=NAMES)


@pytest.mark.parametrize("importance", ["LIM", "ZD", "Random", "Reverse", "FirstBlock", "Uniform"])
def test_every_order_ranks_every_block_once(importance: Any, build: Any, batch: dict[str, Tensor]) -> None:
    tiers, scores = rank_blocks(model=build("bert"), importance=importance, batches=[batch], seed=1)
    assert sorted(name for tier in tiers for name in tier) == [f"encoder.layer.{i}" for i in range(3)]
    assert bool(scores) == (importance in ("LIM", "ZD", "Reverse"))
