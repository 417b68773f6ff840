"""What a language model is worth: how it foresees the next token, and how far that is from the teacher's foresight.

Perplexity is what people compare, and the smaller it is the better. What members are chosen and refused by must grow
with quality, lie between 0 and 1, and have ratios that mean something. `likelihood`, the geometric mean of the
probabilities that the model gives to the tokens that come, does, and is the same number: 1 / perplexity. A minimum
ratio of 0.95 to the teacher's likelihood is a perplexity of at most the teacher's / 0.95.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from ireko_trainer.data import Batch, EncodedDataset, evaluation_batches
from ireko_trainer.errors import DivergedError
from ireko_trainer.evaluation.predict import Forward

TOKENS_AT_ONCE = 4096
"""Tokens per forward pass at most: every token has a row of logits as long as the vocabulary."""
_WORST_LOSS = 700.0
"""The exponential of more is no number."""
KEPT_TOKENS = 256
"""Most likely next tokens whose probabilities are kept of a teacher; the others count as one. All of a vocabulary of
150,000 for a few windows would take more memory than most models."""


@dataclass(frozen=True, kw_only=True)
class Foresight:
    """What a model said about every next token of a data set, window by window."""

    losses: Tensor
    """Minus the log-probability of the token that came, float32 `[N, S - 1]`."""
    foreseen: Tensor
    """The token that was most likely, int32 `[N, S - 1]`."""


@dataclass(frozen=True, kw_only=True)
class Likely:
    """The most likely next tokens after every token of a batch: ids `[B, S, K]`, log-probabilities `[B, S, K]` and that
    of all others together `[B, S]`."""

    tokens: Tensor
    logs: Tensor
    rest: Tensor


def foresee(
    *,
    forward: Forward,
    data: EncodedDataset,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> Foresight:
    """Run a language model over windows of one length.

    Args:
        forward: the model, on `device` and in evaluation mode.
        data: `N` windows of `S` tokens, S at least 2.
        batch_size: windows per call, fewer where they hold more than `TOKENS_AT_ONCE` tokens.
        device: where the batches go.
        precision: float32, or bfloat16 to run the forward pass under autocast.

    Raises:
        DivergedError: losses are NaN or infinite.
    """
    following = int(data.lengths[0]) - 1
    losses = torch.empty(len(data), following)
    foreseen = torch.empty(len(data), following, dtype=torch.int32)
    for indices, batch, logits in _answers(
        forward=forward, data=data, batch_size=batch_size, device=device, precision=precision
    ):
        ahead = logits[:, :-1].float()
        came = batch["input_ids"][:, 1:]
        loss = F.cross_entropy(ahead.flatten(0, 1), came.flatten(), reduction="none")
        losses[indices] = loss.view(came.shape).cpu()
        foreseen[indices] = ahead.argmax(-1).int().cpu()
    _require_finite(losses)
    return Foresight(losses=losses, foreseen=foreseen)


def score_foresight(
    *, outputs: Foresight, data: EncodedDataset, reference: Foresight | None
) -> dict[str, float]:
    """`likelihood`, `accuracy` and, with the teacher's as the reference, `agreement`; and `perplexity`."""
    loss = min(float(outputs.losses.double().mean()), _WORST_LOSS)
    came = torch.tensor([list(row[1:]) for row in data.input_ids], dtype=torch.int32)
    scores = {
        "likelihood": math.exp(-loss),
        "perplexity": math.exp(loss),
        "accuracy": _share(outputs.foreseen == came),
    }
    if reference is not None:
        scores["agreement"] = _share(outputs.foreseen == reference.foreseen)
    return scores


def most_likely(
    *,
    forward: Forward,
    data: EncodedDataset,
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> list[Likely]:
    """What to keep of a teacher to compare others with (`divergence`), batch by batch."""
    return [
        _likely(logits)
        for _, _, logits in _answers(
            forward=forward, data=data, batch_size=batch_size, device=device, precision=precision
        )
    ]


def divergence(
    *,
    forward: Forward,
    data: EncodedDataset,
    reference: list[Likely],
    batch_size: int,
    device: torch.device | str = "cpu",
    precision: torch.dtype = torch.float32,
) -> float:
    """Mean KL(teacher ‖ model) per token over the teacher's most likely tokens and the others as one.

    `reference` is `most_likely` of the teacher with the same data and batch size.
    """
    answers = _answers(forward=forward, data=data, batch_size=batch_size, device=device, precision=precision)
    sums = [
        float(_coarse_divergence(logits, likely).double().sum())
        for (_, _, logits), likely in zip(answers, reference, strict=True)
    ]
    return sum(sums) / int(data.lengths.sum())


def _answers(
    *,
    forward: Forward,
    data: EncodedDataset,
    batch_size: int,
    device: torch.device | str,
    precision: torch.dtype,
) -> Iterator[tuple[list[int], Batch, Tensor]]:
    """Indices, batch and logits `[B, S, V]`."""
    device = torch.device(device)
    rows = min(batch_size, max(1, TOKENS_AT_ONCE // int(data.lengths.max())))
    for indices, batch in evaluation_batches(data=data, batch_size=rows):
        inputs = {name: tensor.to(device) for name, tensor in batch.items() if name != "labels"}
        with (
            torch.inference_mode(),
            torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == torch.bfloat16),
        ):
            logits = forward(inputs).logits
        yield indices, inputs, logits


def _likely(logits: Tensor) -> Likely:
    logs = logits.float().log_softmax(-1)
    kept = logs.topk(min(KEPT_TOKENS, logs.shape[-1]), dim=-1)
    return Likely(
        tokens=kept.indices.int().cpu(), logs=kept.values.cpu(), rest=_log_of_others(kept.values).cpu()
    )


def _coarse_divergence(logits: Tensor, likely: Likely) -> Tensor:
    """KL per token, `[B, S]`."""
    tokens, teacher = likely.tokens.to(logits.device).long(), likely.logs.to(logits.device)
    mine = logits.float().log_softmax(-1).gather(-1, tokens)
    kept = (teacher.exp() * (teacher - mine)).sum(-1)
    rest = likely.rest.to(logits.device)
    return kept + rest.exp() * (rest - _log_of_others(mine))


def _log_of_others(logs: Tensor) -> Tensor:
    """Log of the probability that these `[…, K]` leave, at least that of a rounding error."""
    return (1 - logs.exp().sum(-1)).clamp(min=1e-6).log()


def _share(equal: Tensor) -> float:
    return float(equal.double().mean())


def _require_finite(losses: Tensor) -> None:
    broken = int((~torch.isfinite(losses)).any(dim=1).sum())
    if broken:
        raise DivergedError(
            f"the model's outputs are NaN or infinite for {broken} of {len(losses)} windows of text; train with a "
            "lower learningRate, or with precision float32."
        )
