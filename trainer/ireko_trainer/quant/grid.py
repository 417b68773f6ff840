"""The one grid of the project: symmetric, group-wise integers without zero points, signed searched scales.

Why this grid: it is the only one that every consumer takes without loss (compressed-tensors, GGUF,
MatMulNBits), and at 2 and 3 bits the choice of the scale matters more than which matrix gets the bits. A
b-bit code lies in [-2^(b-1), 2^(b-1) - 1], one value more on the negative side, so a scale may be negative:
then the extra value serves the side on which the group has its extreme.

Scales are float16, the smallest type that loaders cast without loss to the float32 in which they multiply. A
code has at most 8 significant bits and a scale 11, so code times scale is exact in float32 and the weights
computed here are bit for bit those of the loaded checkpoint.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from ireko_trainer.errors import UserError

SMALLEST_GROUP = 32  # below this a float16 scale costs more than half a bit per weight

_CHUNK = 1 << 20  # weights searched at once: about 20 MiB of temporaries
_SMALLEST_SCALE = 2.0**-24  # the smallest positive float16; keeps all-zero groups free of 0 / 0
_LARGEST_SCALE = 65504.0
# The best scale of 64 Gaussian weights clips the extreme the more, the fewer the codes: the lowest factor of
# absmax / 2^(b-1) worth trying, and how many factors from there to 1.
_SEARCH = {2: (0.40, 13), 3: (0.50, 11), 4: (0.60, 9), 5: (0.70, 7), 6: (0.80, 6), 7: (0.85, 5), 8: (0.92, 5)}
_REFINEMENTS = 2

ScaleRule = Callable[[Tensor, int], Tensor]
"""(groups [N, g] float32, bits) -> scales [N] float32 whose values are exact in float16."""


class GroupSizeError(UserError):
    """A group size that does not divide the rows of a matrix."""


@dataclass(frozen=True, kw_only=True, eq=False)
class QuantizedTensor:
    """A matrix as integer codes and one scale per group of columns; the weight is code × scale.

    codes: [O, I] int8, within [-2^(bits-1), 2^(bits-1) - 1]
    scales: [O, I / group] float16, either sign, never zero
    bits: 2 to 8
    group: columns that share one scale; I itself means one scale per row
    """

    codes: Tensor
    scales: Tensor
    bits: int
    group: int


def group_columns(columns: int, *, group_size: int) -> int:
    """Return the number of columns per scale for rows of `columns` weights.

    The wanted size where it divides the row, else the next half of it down to 32, else the whole row: loaders
    of compressed-tensors refuse a ragged last group.
    """
    size = group_size
    while size >= min(SMALLEST_GROUP, group_size):
        if columns % size == 0:
            return size
        if size % 2:
            break
        size //= 2
    return columns


def check_group_size(name: str, columns: int, *, group_size: int) -> None:
    """Raise `GroupSizeError` unless `group_size` divides the rows of the matrix called `name`."""
    if columns % group_size == 0:
        return
    divisors = [size for size in range(4, columns + 1) if columns % size == 0]
    raise GroupSizeError(
        f"spec.pipeline.quantization.groupSize: {group_size} does not divide the rows of {name}, which hold "
        f"{columns} weights; take one of {divisors} or leave groupSize out, which takes 64 where it divides, "
        "32 where 64 does not, and one scale per row elsewhere"
    )


def code_range(bits: int) -> tuple[int, int]:
    """Return the lowest and the highest code of `bits` bits."""
    return -(1 << (bits - 1)), (1 << (bits - 1)) - 1


def quantize(
    weight: Tensor,
    *,
    bits: int,
    group_size: int,
    scale_rule: ScaleRule | None = None,
    importance: Tensor | None = None,
) -> QuantizedTensor:
    """Round `weight` [O, I] to the nearest point of its grid.

    `scale_rule` is the searched, signed one unless a baseline asks for another. `importance` [I] weighs the squared
    errors of the columns in that search. Raises `UserError` when the weights are not finite.
    """
    if bits not in _SEARCH:
        raise ValueError(f"bits must be one of {sorted(_SEARCH)}, got {bits}")
    if not bool(torch.isfinite(weight).all()):
        raise UserError(
            "a weight matrix holds NaN or infinity and cannot be quantized: the training diverged"
        )
    rows, columns = weight.shape
    group = group_columns(columns, group_size=group_size)
    values = weight.detach().to(torch.float32)
    codes = torch.empty((rows, columns), dtype=torch.int8, device=values.device)
    scales = torch.empty((rows, columns // group), dtype=torch.float16, device=values.device)
    step = max(1, _CHUNK // columns)
    for start in range(0, rows, step):
        part = slice(start, start + step)
        groups = values[part].reshape(-1, group)  # [rows * I / group, group]
        found = _scales(groups, bits, scale_rule, importance)
        codes[part] = nearest_codes(groups, found, bits).reshape(-1, columns).to(torch.int8)
        scales[part] = found.reshape(-1, columns // group).to(torch.float16)
    return QuantizedTensor(codes=codes, scales=scales, bits=bits, group=group)


def _scales(groups: Tensor, bits: int, rule: ScaleRule | None, importance: Tensor | None) -> Tensor:
    if rule is not None:
        return rule(groups, bits)
    if importance is None:
        return searched_scales(groups, bits)
    per_group = importance.to(groups).reshape(-1, groups.shape[1])
    return searched_scales(groups, bits, importance=per_group.repeat(len(groups) // len(per_group), 1))


def dequantize(quantized: QuantizedTensor) -> Tensor:
    """Return the weights [O, I] float32 that a loaded checkpoint multiplies with."""
    rows, columns = quantized.codes.shape
    codes = quantized.codes.reshape(rows, -1, quantized.group).to(torch.float32)
    return (codes * quantized.scales.to(torch.float32)[..., None]).reshape(rows, columns)


def searched_scales(groups: Tensor, bits: int, *, importance: Tensor | None = None) -> Tensor:
    """Return the scale of either sign with the least squared error of each group.

    Coarse factors of the scale that puts the extreme on the widest code, then two least-squares steps s = <w,
    q> / <q, q> from the best of them; every candidate is rounded to float16 before it is judged. The plain
    absmax scale is among the candidates, so no group is worse than under absmax. `importance` [N, g] weighs
    the squares.
    """
    absmax = groups.abs().amax(dim=-1)
    widest = absmax / (1 << (bits - 1))
    lowest, count = _SEARCH[bits]
    candidates = [widest * factor for factor in torch.linspace(lowest, 1.0, count).tolist()]
    candidates.append(absmax / ((1 << (bits - 1)) - 1))
    best = as_stored(candidates[-1])
    error = _squared_error(groups, best, bits, importance)
    for candidate in candidates:
        for sign in (-1.0, 1.0):
            best, error = _better(groups, as_stored(candidate * sign), best, error, bits, importance)
    for _ in range(_REFINEMENTS):
        codes = nearest_codes(groups, best, bits)
        weighed = codes if importance is None else codes * importance
        energy = (codes * weighed).sum(dim=-1)
        fitted = torch.where(energy > 0, (groups * weighed).sum(dim=-1) / energy, best)
        best, error = _better(groups, as_stored(fitted), best, error, bits, importance)
    return best


def absmax_scales(groups: Tensor, bits: int) -> Tensor:
    """Return absmax / (2^(b-1) - 1), the customary symmetric grid: the lowest code stays unused
    (baseline)."""
    return as_stored(groups.abs().amax(dim=-1) / ((1 << (bits - 1)) - 1))


def signed_scales(groups: Tensor, bits: int) -> Tensor:
    """Return the signed scale that puts the extreme of each group on code -2^(b-1) (baseline)."""
    extreme = groups.gather(-1, groups.abs().argmax(dim=-1, keepdim=True)).squeeze(-1)
    return as_stored(extreme / -(1 << (bits - 1)))


def as_stored(scales: Tensor) -> Tensor:
    """Round scales to float16, in float32, keeping their signs and away from zero and infinity."""
    magnitude = scales.abs().clamp(_SMALLEST_SCALE, _LARGEST_SCALE).to(torch.float16).to(torch.float32)
    return torch.where(scales < 0, -magnitude, magnitude)


def nearest_codes(groups: Tensor, scales: Tensor, bits: int) -> Tensor:
    """Return the codes of groups [N, g] under scales [N], as float32."""
    lowest, highest = code_range(bits)
    return (groups / scales[:, None]).round_().clamp_(lowest, highest)


def _squared_error(groups: Tensor, scales: Tensor, bits: int, importance: Tensor | None) -> Tensor:
    squares = nearest_codes(groups, scales, bits).mul_(scales[:, None]).sub_(groups).square_()
    return (squares if importance is None else squares.mul_(importance)).sum(dim=-1)


def _better(
    groups: Tensor, candidate: Tensor, best: Tensor, error: Tensor, bits: int, importance: Tensor | None
) -> tuple[Tensor, Tensor]:
    trial = _squared_error(groups, candidate, bits, importance)
    wins = trial < error
    return torch.where(wins, candidate, best), torch.where(wins, trial, error)
