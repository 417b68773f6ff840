"""What a matrix costs in numbers stored and in error at every rank: what ranks are traded by.

A rank-r product of factors m × r and r × n has only r·(m + n - r) degrees of freedom, and that is what the compact
form stores (`factors.pivot_form`); stored as two full factors it takes r·(m + n), which saves nothing until r is below
m·n / (m + n). The last point of every curve is the dense matrix: no error, m·n numbers.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

DENSE = -1
"""The rank that stands for a matrix that is left as it is."""


@dataclass(frozen=True, kw_only=True)
class Curve:
    """Ways to store one or several matrices.

    ranks [K] int64, `DENSE` among them; errors [K] float64, squared; sizes [K] float64, numbers stored.
    """

    ranks: Tensor
    errors: Tensor
    sizes: Tensor

    def best(self, price: float) -> tuple[float, int]:
        """The least error + price × size, and its place on the curve."""
        values = self.errors + price * self.sizes
        place = int(values.argmin())
        return float(values[place]), place


@dataclass(frozen=True, kw_only=True)
class Storage:
    """How factors are stored, and which ranks are allowed."""

    compact: bool = True
    multiple: int = 1
    """Ranks are multiples of this: packed integers want whole groups."""
    rank: int | None = None
    """The only rank allowed; then no matrix stays dense."""

    def numbers(self, *, rows: int, columns: int, rank: int, coefficients: int = 0) -> int:
        """Numbers stored for a rank, rows being those of all matrices that share the columns' factor."""
        factors = rank * (rows + columns - rank) if self.compact else rank * (rows + columns)
        return factors + coefficients


def curve(
    *, errors: Tensor, rows: int, columns: int, storage: Storage, coefficients: int = 0, dense: bool = True
) -> Curve:
    """The curve of matrices with `errors` [R + 1] at ranks 0 … R, their rows counted together."""
    dense_size = float(rows * columns)
    if storage.rank is not None:
        ranks = torch.tensor([min(storage.rank, len(errors) - 1)])
    else:
        ranks = torch.arange(storage.multiple, len(errors), storage.multiple)
    sizes = torch.tensor(
        [
            storage.numbers(rows=rows, columns=columns, rank=int(rank), coefficients=coefficients)
            for rank in ranks
        ],
        dtype=torch.float64,
    )
    found = errors[ranks]
    if storage.rank is None:
        saves = sizes < dense_size
        ranks, sizes, found = ranks[saves], sizes[saves], found[saves]
        if dense:
            ranks = torch.cat([ranks, torch.tensor([DENSE])])
            sizes = torch.cat([sizes, sizes.new_tensor([dense_size])])
            found = torch.cat([found, found.new_zeros(1)])
    return Curve(ranks=ranks, errors=found, sizes=sizes)


def left_dense(*, rows: int, columns: int) -> Curve:
    """The curve of a matrix that has to stay as it is."""
    return Curve(
        ranks=torch.tensor([DENSE]),
        errors=torch.zeros(1, dtype=torch.float64),
        sizes=torch.tensor([float(rows * columns)], dtype=torch.float64),
    )
