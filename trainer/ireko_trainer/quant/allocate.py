"""Bits under a budget, on plain numbers.

All allocations for one order of blocks lie on one path: every block at the lowest level; then, tier by tier,
one level up until all have it; then the next level. Neighbours on the path differ by one step of one tier and
no block is ever more than one level above another. An allocation is the furthest point of the path within the
budget, so a larger budget never takes a bit away, the sets of blocks with more bits are nested, and the ends
are uniform.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ireko_trainer.errors import UserError

SizeOf = Callable[[Mapping[str, int]], int]
"""Bits per block -> bytes of the file that ships."""


class BudgetTooSmallError(UserError):
    """Even the lowest level everywhere exceeds the budget."""

    reason = "NothingFits"

    def __init__(self, *, smallest_bytes: int, smallest_bits: float, text: str) -> None:
        super().__init__(text)
        self.smallest_bytes = smallest_bytes
        """Bytes of the smallest file that the levels allow."""
        self.smallest_bits = smallest_bits
        """Mean code bits of the blocks in that file."""


@dataclass(frozen=True, kw_only=True)
class Allocation:
    """Bits per block, the bytes of the file, and the mean code bits of the blocks (scales not counted)."""

    block_bits: Mapping[str, int]
    size_bytes: int
    average_bits: float


def allocate(
    *,
    tiers: Sequence[Sequence[str]],
    levels: Sequence[int],
    weights: Mapping[str, int],
    size_of: SizeOf,
    max_bytes: int | None = None,
    max_average_bits: float | None = None,
) -> Allocation:
    """Return the best allocation of the path within both budgets; `None` is no limit.

    tiers: blocks, most important first; levels: the bits to choose from; weights: number of weights per
    block. Raises `BudgetTooSmallError`, which holds the smallest reachable size.
    """
    best: Allocation | None = None
    for block_bits in allocation_path(tiers=tiers, levels=levels):
        candidate = Allocation(
            block_bits=block_bits,
            size_bytes=size_of(block_bits),
            average_bits=average_bits(block_bits, weights),
        )
        if not _fits(candidate, max_bytes=max_bytes, max_average_bits=max_average_bits):
            if best is None:
                raise _too_small(candidate, max_bytes=max_bytes, max_average_bits=max_average_bits)
            break
        best = candidate
    assert best is not None, "a path has at least one point"
    return best


def allocation_path(*, tiers: Sequence[Sequence[str]], levels: Sequence[int]) -> Iterator[dict[str, int]]:
    """Yield every allocation from uniform lowest to uniform highest, one tier one level up at a time."""
    ascending = sorted(set(levels))
    if not ascending or not tiers:
        raise ValueError("an allocation needs at least one level and one block")
    bits = {name: ascending[0] for tier in tiers for name in tier}
    yield dict(bits)
    for level in ascending[1:]:
        for tier in tiers:
            bits |= dict.fromkeys(tier, level)
            yield dict(bits)


def average_bits(block_bits: Mapping[str, int], weights: Mapping[str, int]) -> float:
    """Return the mean code bits per weight of the blocks."""
    return sum(weights[name] * bits for name, bits in block_bits.items()) / sum(
        weights[name] for name in block_bits
    )


def _fits(candidate: Allocation, *, max_bytes: int | None, max_average_bits: float | None) -> bool:
    return (max_bytes is None or candidate.size_bytes <= max_bytes) and (
        max_average_bits is None or candidate.average_bits <= max_average_bits
    )


def _too_small(
    smallest: Allocation, *, max_bytes: int | None, max_average_bits: float | None
) -> BudgetTooSmallError:
    wanted = []
    if max_bytes is not None and smallest.size_bytes > max_bytes:
        wanted.append(f"{smallest.size_bytes:,} bytes, the limit is {max_bytes:,}")
    if max_average_bits is not None and smallest.average_bits > max_average_bits:
        wanted.append(
            f"{smallest.average_bits:g} bits per weight on average, the limit is {max_average_bits:g}"
        )
    return BudgetTooSmallError(
        smallest_bytes=smallest.size_bytes,
        smallest_bits=smallest.average_bits,
        text=f"with every block at its lowest level, {min(smallest.block_bits.values())} bits, the model "
        f"takes {' and '.join(wanted)}; allow more, add a lower level to "
        "spec.pipeline.quantization.bits, or choose a smaller member",
    )
