"""Which blocks matter most: the two published scores and the orders that every result is compared with.

LIM (layer input modification) and ZD (z-score distribution) are those of "Layer-Wise Quantization" (arXiv
2406.17415, section 3). Scores are taken on the original model and not renewed while it is quantized. Blocks
are found by their module list and watched through forward hooks, so encoders and decoders need no code of
their own.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from ireko_trainer.quant.layout import block_modules

Importance = Literal["LIM", "ZD", "Random", "Reverse", "FirstBlock", "Uniform"]
Tiers = tuple[tuple[str, ...], ...]
"""Blocks, most important first; the blocks of one tier rise together."""


def lim(*, model: PreTrainedModel, batches: Iterable[Mapping[str, Tensor]]) -> dict[str, float]:
    """Return LIM of each block: minus the mean cosine of its input and output over real tokens, in [-1, 1].

    Higher means more important. A batch holds `input_ids` and `attention_mask`, both [B, S]; labels are
    ignored. The cosine is per token and averaged over tokens (the paper does not say; so does its authors'
    later code).
    """
    blocks = block_modules(model)
    sums = dict.fromkeys(blocks, 0.0)
    tokens = 0
    mask: Tensor | None = None

    def watch(name: str) -> Callable[..., None]:
        def hook(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
            before = args[0] if args else kwargs["hidden_states"]
            after = output[0] if isinstance(output, tuple) else output
            cosine = torch.nn.functional.cosine_similarity(before.float(), after.float(), dim=-1)  # [B, S]
            sums[name] += float(cosine[mask].double().sum())

        return hook

    handles = [block.register_forward_hook(watch(name), with_kwargs=True) for name, block in blocks.items()]
    training = model.training
    model.eval()
    try:
        with torch.inference_mode():
            for batch in batches:
                mask = batch["attention_mask"].bool()
                tokens += int(mask.sum())
                model(**{key: value for key, value in batch.items() if key != "labels"})
    finally:
        model.train(training)
        for handle in handles:
            handle.remove()
    if tokens == 0:
        raise ValueError("LIM needs at least one calibration token")
    return {name: min(1.0, max(-1.0, -total / tokens)) for name, total in sums.items()}


def zd(*, model: PreTrainedModel, two_sided: bool = False) -> dict[str, float]:
    """Return ZD of each block: the share of weights more than one standard deviation above the mean.

    Computed per linear matrix and averaged over those of the block. Smaller means more important: heavy tails
    lower the share. One-sided values lie in [0, 0.5); `two_sided` counts |z| > 1 and lies in [0, 1).
    """
    scores = {}
    for name, block in block_modules(model).items():
        linears = [module for module in block.modules() if isinstance(module, nn.Linear)]
        shares = [outlier_share(linear.weight, two_sided=two_sided) for linear in linears]
        scores[name] = sum(shares) / len(shares)
    return scores


def outlier_share(weight: Tensor, *, two_sided: bool = False) -> float:
    """Return the share of weights with z > 1 (or |z| > 1), population deviation; 0 for a constant matrix."""
    values = weight.detach().double().flatten()
    centered = values - values.mean()
    deviation = float(centered.square().mean().sqrt())
    if deviation <= torch.finfo(torch.float64).eps * float(values.abs().max()):
        return 0.0
    centered = centered.abs() if two_sided else centered
    return float((centered > deviation).double().mean())


def importance_tiers(
    *,
    importance: Importance,
    blocks: Sequence[str],
    scores: Mapping[str, float] | None = None,
    seed: int = 0,
) -> Tiers:
    """Return the order in which blocks get more bits.

    `scores` are LIM for LIM and Reverse (least important first), ZD for ZD; the others need none. FirstBlock
    is the first block, then the rest at random; Uniform is all at once. Ties go by position.
    """
    if importance == "Uniform":
        return (tuple(blocks),)
    if importance in ("Random", "FirstBlock"):
        fixed = 1 if importance == "FirstBlock" else 0
        rest = list(blocks[fixed:])
        random.Random(seed).shuffle(rest)
        return tuple((name,) for name in (*blocks[:fixed], *rest))
    if scores is None:
        raise ValueError(f"the order {importance} needs scores")
    descending = importance == "LIM"
    ranked = sorted(blocks, key=lambda name: -scores[name] if descending else scores[name])
    return tuple((name,) for name in ranked)


def rank_blocks(
    *,
    model: PreTrainedModel,
    importance: Importance,
    batches: Iterable[Mapping[str, Tensor]],
    seed: int = 0,
) -> tuple[Tiers, dict[str, float]]:
    """Score the blocks of `model` as `importance` asks; return their order and the scores, if any."""
    scores: dict[str, float] = {}
    if importance in ("LIM", "Reverse"):
        scores = lim(model=model, batches=batches)
    elif importance == "ZD":
        scores = zd(model=model)
    names = tuple(block_modules(model))
    return importance_tiers(importance=importance, blocks=names, scores=scores, seed=seed), scores
