"""Who shares with whom and at which rank: one price per stored number, paid by every matrix of the model alike.

At a given price each matrix takes the point of its curves with the least error + price × size, so that the last
number stored buys as much everywhere (water-filling); the price is searched until the whole fits the budget.
A matrix has a curve for itself, one for every base and coefficient that it may follow, and one with every set of
matrices that it may share a basis with. A base has to stay dense where it is followed, so bases are opened one by one,
always the one that gains most, as long as one does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from ireko_trainer.delta.curves import Curve

_BISECTIONS = 60
_SLACK = 1e-4
"""Share of the budget that may be left over."""


class UnreachableTargetError(ValueError):
    """Even the smallest forms exceed the budget. `smallest`: the numbers that they store."""

    def __init__(self, smallest: int) -> None:
        super().__init__(f"at least {smallest} numbers have to be stored")
        self.smallest = smallest


@dataclass(frozen=True, kw_only=True)
class Form:
    """One way to store the named matrices together, as differences from `coefficient` times `base` if there is one."""

    modules: tuple[str, ...]
    curve: Curve
    base: str | None = None
    coefficient: float = 0.0


@dataclass(frozen=True, kw_only=True)
class Row:
    """Matrices that choose one base together, mostly those of a block.

    items: for each set of matrices that could share a basis, the ways to split it up
    """

    name: str
    items: tuple[tuple[tuple[tuple[str, ...], ...], ...], ...]

    @property
    def modules(self) -> tuple[str, ...]:
        """All matrices."""
        return tuple(module for item in self.items for part in item[0] for module in part)


@dataclass(frozen=True, kw_only=True)
class Problem:
    """Every form of every matrix.

    alone: by the matrices of a part; following: row -> base row -> matrix -> forms; fixed_bases: None lets the
    allocation choose; dense_bases: a base keeps all of its matrices, followed or not
    """

    rows: tuple[Row, ...]
    alone: Mapping[tuple[str, ...], Form]
    dense: Mapping[str, Form]
    following: Mapping[str, Mapping[str, Mapping[str, Sequence[Form]]]] = field(default_factory=dict)
    fixed_bases: tuple[str, ...] | None = None
    dense_bases: bool = False


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """A form and the rank that it takes; `DENSE` leaves the matrices as they are."""

    form: Form
    place: int

    @property
    def rank(self) -> int:
        """Of the factors."""
        return int(self.form.curve.ranks[self.place])

    @property
    def error(self) -> float:
        """Squared."""
        return float(self.form.curve.errors[self.place])

    @property
    def size(self) -> float:
        """Numbers stored."""
        return float(self.form.curve.sizes[self.place])


def allocate(problem: Problem, *, budget: float) -> list[Chosen]:
    """The choice with the least error among those that store at most `budget` numbers, to within the search's slack.

    Raises:
        UnreachableTargetError: no choice does.
    """
    smallest = _AtPrice(problem, price=float("inf")).solve()
    if _size(smallest) > budget:
        raise UnreachableTargetError(int(_size(smallest)))
    best = smallest
    low, high = 1e-40, 1e40
    for _ in range(_BISECTIONS):
        price = (low * high) ** 0.5
        found = _AtPrice(problem, price=price).solve()
        if _size(found) > budget:
            low = price
            continue
        high = price
        if _error(found) <= _error(best):
            best = found
        if _size(found) >= budget * (1 - _SLACK):
            break
    return best


def at_fixed_rank(problem: Problem) -> list[Chosen]:
    """The choice with the least error where every curve has one rank."""
    return _AtPrice(problem, price=0.0).solve()


class _AtPrice:
    """The best choice at one price."""

    def __init__(self, problem: Problem, *, price: float) -> None:
        self._problem = problem
        self._price = price
        self._rows = {row.name: row for row in problem.rows}
        self._best: dict[int, tuple[float, Chosen]] = {}
        self._unpinned: dict[tuple[str, str | None], tuple[float, list[Chosen]]] = {}

    def solve(self) -> list[Chosen]:
        if self._problem.fixed_bases is not None:
            return self._with(self._problem.fixed_bases)[1]
        bases: tuple[str, ...] = ()
        value, best = self._with(bases)
        while True:
            offers = [self._with((*bases, name)) for name in self._rows if name not in bases]
            if not self._problem.following or not offers:
                return best
            least = min(range(len(offers)), key=lambda index: offers[index][0])
            if offers[least][0] >= value:
                return best
            bases = (*bases, [name for name in self._rows if name not in bases][least])
            value, best = offers[least]

    def _with(self, bases: Sequence[str]) -> tuple[float, list[Chosen]]:
        """The value and the choice when these rows may be followed."""
        chosen: list[Chosen] = []
        total = 0.0
        for name, row in self._rows.items():
            if name in bases:
                continue
            options = [base for base in bases if base in self._problem.following.get(name, {})]
            offers = [self._free_row(row, base=base) for base in (None, *options)]
            if self._problem.fixed_bases is not None and options:
                offers = offers[1:]
            value, found = min(offers, key=lambda offer: offer[0])
            total += value
            chosen += found
        followed = frozenset(one.form.base for one in chosen if one.form.base is not None)
        for name in bases:
            row = self._rows[name]
            pinned = frozenset(row.modules) if self._problem.dense_bases else followed
            value, found = self._row(row, base=None, pinned=pinned)
            total += value
            chosen += found
        return total, chosen

    def _free_row(self, row: Row, *, base: str | None) -> tuple[float, list[Chosen]]:
        if (row.name, base) not in self._unpinned:
            self._unpinned[row.name, base] = self._row(row, base=base, pinned=frozenset())
        return self._unpinned[row.name, base]

    def _row(self, row: Row, *, base: str | None, pinned: frozenset[str]) -> tuple[float, list[Chosen]]:
        total = 0.0
        chosen: list[Chosen] = []
        for item in row.items:
            offers = [self._split(row.name, parts, base=base, pinned=pinned) for parts in item]
            value, found = min(offers, key=lambda offer: offer[0])
            total += value
            chosen += found
        return total, chosen

    def _split(
        self,
        row: str,
        parts: Sequence[tuple[str, ...]],
        *,
        base: str | None,
        pinned: frozenset[str],
    ) -> tuple[float, list[Chosen]]:
        total = 0.0
        chosen = []
        for part in parts:
            forms = self._forms(row, part, base=base, pinned=pinned)
            if not forms:
                return float("inf"), []
            value, one = min((self._take(form) for form in forms), key=lambda offer: offer[0])
            total += value
            chosen.append(one)
        return total, chosen

    def _forms(
        self, row: str, part: tuple[str, ...], *, base: str | None, pinned: frozenset[str]
    ) -> list[Form]:
        if not pinned.isdisjoint(part):
            return [self._problem.dense[part[0]]] if len(part) == 1 else []
        forms = [self._problem.alone[part]] if part in self._problem.alone else []
        if len(part) > 1:
            return forms
        if base is not None:
            forms += self._problem.following[row][base].get(part[0], ())
        return forms or [self._problem.dense[part[0]]]

    def _take(self, form: Form) -> tuple[float, Chosen]:
        if id(form) not in self._best:
            if self._price == float("inf"):
                place = int(form.curve.sizes.argmin())
                value = float(form.curve.sizes[place])
            else:
                value, place = form.curve.best(self._price)
            self._best[id(form)] = value, Chosen(form=form, place=place)
        return self._best[id(form)]


def _size(chosen: Sequence[Chosen]) -> float:
    return sum(one.size for one in chosen)


def _error(chosen: Sequence[Chosen]) -> float:
    return sum(one.error for one in chosen)
