"""From a model and its moments to a plan: which matrices are factored, at which rank, and what they share.

    W_t ≈ c·W_b + U V         b a block whose matrices stay dense and are stored once (DeltaLLM, arXiv 2501.18596)

The paper has c = 1, the neighbouring block as the base, a plain SVD and one rank. Measured on real models the blocks
are about orthogonal, and then c = 0, which is a low-rank matrix without any sharing, is better. So c is chosen among 0,
1 and the projection c*, the base by its residual, and all of it together by one price per stored number
(`allocation.py`). Where most matrices come out with c = 0, sharing is only nominal, and the plan says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from transformers import PreTrainedModel

from ireko_trainer.delta.allocation import (
    Chosen,
    Form,
    Problem,
    Row,
    UnreachableTargetError,
    allocate,
    at_fixed_rank,
)
from ireko_trainer.delta.curves import DENSE, curve, left_dense
from ireko_trainer.delta.decompositions import (
    Curves,
    Pair,
    Single,
    Spread,
    Stack,
    curves_of,
    one_by_one,
    spread_counted,
    stack_of,
)
from ireko_trainer.delta.factors import Metrics
from ireko_trainer.delta.moments import Moments
from ireko_trainer.delta.options import DeltaOptions, check_options, eligible, unreachable
from ireko_trainer.quant import describe
from ireko_trainer.quant.layout import Matrix, weight_matrix

_BASES_TRIED = 4
"""Blocks whose residuals are decomposed for each block: those with the largest cosines, and the one before it."""
_LARGEST_SET = 4
"""Of matrices that read the same input, whose splits are all tried."""

_Asked = tuple[tuple[str, ...], str | None]
"""Matrices, and the one that the first of them follows."""


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Matrices that share one V, or one matrix that follows a base."""

    modules: tuple[str, ...]
    rank: int
    base: str | None
    coefficient: float
    error: float
    """Squared, under the metric of the initialisation."""


@dataclass(frozen=True, kw_only=True)
class DeltaPlan:
    """What is factored; matrices in no piece stay as they are."""

    pieces: tuple[Piece, ...]
    dense_numbers: int
    """In the blocks' matrices before."""
    stored_numbers: int
    """In the blocks' matrices afterwards, in the form that is stored."""

    @property
    def reduction(self) -> float:
        """Share of the numbers saved."""
        return 1 - self.stored_numbers / self.dense_numbers

    @property
    def following(self) -> int:
        """Matrices that share a base's weights."""
        return sum(piece.base is not None for piece in self.pieces)

    @property
    def factored(self) -> int:
        """Matrices that are factored."""
        return sum(len(piece.modules) for piece in self.pieces)

    @property
    def nominal(self) -> bool:
        """Whether most of what is called a delta shares nothing: c = 0."""
        return 2 * self.following < self.factored

    def warning(self) -> str | None:
        """What a reader of log and report has to know about the sharing."""
        if not self.nominal:
            return None
        return (
            f"sharing is only nominal: {self.factored - self.following} of {self.factored} factored matrices have "
            "c = 0, because no other block is a better base than none; they are plain low-rank matrices"
        )


def plan_deltas(
    *,
    model: PreTrainedModel,
    moments: Moments,
    options: DeltaOptions,
    field: str = "spec.pipeline.delta",
    spread: Spread = one_by_one,
    on_decomposed: Callable[[int, int], None] = lambda _done, _total: None,
) -> DeltaPlan:
    """Choose bases, coefficients and ranks; `model` is not changed.

    Args:
        model: with float weights.
        moments: of the layers that `measured_modules` names.
        options: what to aim for.
        field: what the caller calls the options, for error texts.
        spread: what runs the decompositions; its results do not depend on it.
        on_decomposed: told how many decompositions of how many are done; may raise to stop.

    Raises:
        UserError: no such matrices, a rank above a matrix's own, or a target that cannot be reached.
    """
    planner = DeltaPlanner(
        model=model,
        moments=moments,
        options=options,
        field=field,
        spread=spread,
        on_decomposed=on_decomposed,
    )
    return planner.plan()


class DeltaPlanner:
    """Plans for one model: what does not depend on the target is computed once. Arguments as in `plan_deltas`."""

    def __init__(
        self,
        *,
        model: PreTrainedModel,
        moments: Moments,
        options: DeltaOptions,
        field: str = "spec.pipeline.delta",
        spread: Spread = one_by_one,
        on_decomposed: Callable[[int, int], None] = lambda _done, _total: None,
    ) -> None:
        check_options(model=model, options=options, field=field)
        metrics = Metrics(model=model, moments=moments, initialization=options.initialization)
        self._field = field
        self._options = options
        self._spread = spread
        self._on_decomposed = on_decomposed
        self._metrics = metrics
        self._blocks = eligible(model, options)
        layout = describe(model)
        self._all = {m.module: m for matrices in layout.blocks.values() for m in matrices}
        self._weights = {
            m.module: weight_matrix(model.get_submodule(m.module)).detach().double()
            for found in self._blocks.values()
            for m in found
        }
        self._matrices = {m.module: m for matrices in self._blocks.values() for m in matrices}
        unseen = [name for name in self._matrices if name not in metrics.moments.inputs]
        if unseen:
            raise ValueError(f"no moments of {unseen[0]}: the calibration data never reaches it")
        self._total = sum(m.weights for m in self._all.values())
        self._untouched = self._total - sum(m.weights for m in self._matrices.values())

    def plan(self, *, reduction: float | None = None) -> DeltaPlan:
        """The plan for the options' target, or for another `reduction` of options that aim at one."""
        wanted = self._options.reduction if reduction is None else reduction
        if wanted is None:
            return self._as_plan(at_fixed_rank(self._problem))
        try:
            return self._as_plan(allocate(self._problem, budget=self._total * (1 - wanted) - self._untouched))
        except UnreachableTargetError as error:
            nearest = 1 - (error.smallest + self._untouched) / self._total
            raise unreachable(self._field, self._options, wanted=wanted, nearest=nearest) from error

    def _as_plan(self, chosen: Sequence[Chosen]) -> DeltaPlan:
        pieces = [
            Piece(
                modules=one.form.modules,
                rank=one.rank,
                base=one.form.base,
                coefficient=one.form.coefficient,
                error=one.error,
            )
            for one in chosen
            if one.rank != DENSE
        ]
        order = {name: place for place, name in enumerate(self._all)}
        return DeltaPlan(
            pieces=tuple(sorted(pieces, key=lambda piece: order[piece.modules[0]])),
            dense_numbers=self._total,
            stored_numbers=self._untouched + int(sum(one.size for one in chosen)),
        )

    @cached_property
    def _problem(self) -> Problem:
        """Every form of every matrix under the options."""
        options = self._options
        rows = self._basis_rows() if options.sharing == "Basis" else self._block_rows()
        parts = {part for row in rows for item in row.items for split in item for part in split}
        dense = {
            name: Form(modules=(name,), curve=left_dense(rows=m.rows, columns=m.columns))
            for name, m in self._matrices.items()
        }
        fixed = self._fixed_bases()
        pairs = {} if options.sharing == "Basis" else self._pairs(fixed)
        follow_only = options.coefficients == "One" and options.sharing == "Delta"
        curves = self._decompose([] if follow_only else sorted(parts), pairs)
        if follow_only:
            # With one rank for all every follower follows; else it may also stay as it is.
            alone: Mapping[tuple[str, ...], Form] = (
                {} if options.rank is not None else {(name,): form for name, form in dense.items()}
            )
        else:
            alone = {part: self._alone(part, curves[part, None]) for part in sorted(parts)}
        return Problem(
            rows=rows,
            alone=alone,
            dense=dense,
            following=self._following(pairs, curves),
            fixed_bases=fixed,
            dense_bases=options.rank is not None,
        )

    # --- decompositions -------------------------------------------------------------------------------------

    def _decompose(
        self, parts: Sequence[tuple[str, ...]], pairs: Mapping[str, Mapping[str, Sequence[str]]]
    ) -> dict[_Asked, Curves]:
        """What every rank costs: of the matrices of each part together, and of each matrix behind each base."""
        asked: list[_Asked] = [(part, None) for part in parts]
        asked += [
            ((name,), self._counterpart(name, block, base))
            for block, bases in pairs.items()
            for base, names in bases.items()
            for name in names
        ]
        jobs = (self._job(modules, base) for modules, base in asked)
        found = spread_counted(self._spread, curves_of, jobs, total=len(asked), on_done=self._on_decomposed)
        return dict(zip(asked, found, strict=True))

    def _job(self, modules: tuple[str, ...], base: str | None) -> Single | Stack | Pair:
        metric, weight = self._metrics.of(modules[0]), self._weights[modules[0]]
        if base is not None:
            return Pair(
                target=metric.weigh(weight),
                base=metric.weigh(self._weights[base]),
                projected=self._options.coefficients == "Auto",
            )
        if len(modules) == 1:
            return Single(weighed=metric.weigh(weight))
        return stack_of([self._weights[name] for name in modules], modules=modules, metrics=self._metrics)

    # --- who may share a basis ----------------------------------------------------------------------------

    def _block_rows(self) -> tuple[Row, ...]:
        return tuple(
            Row(name=name, items=tuple(_splits(found) for found in self._input_sets(matrices)))
            for name, matrices in self._blocks.items()
        )

    def _input_sets(self, matrices: Sequence[Matrix]) -> list[tuple[str, ...]]:
        """The matrices of a block by the tensor that they read."""
        if not self._options.share_inputs or self._options.rank is not None:
            return [(m.module,) for m in matrices]
        found: dict[int, list[str]] = {}
        for matrix in matrices:
            found.setdefault(id(self._metrics.moments.inputs[matrix.module]), []).append(matrix.module)
        return [tuple(names) for names in found.values()]

    def _basis_rows(self) -> tuple[Row, ...]:
        """The same matrix of `span` consecutive blocks."""
        names = list(self._blocks)
        rows = []
        for start in range(0, len(names), self._options.span):
            part = names[start : start + self._options.span]
            by_suffix: dict[str, list[str]] = {}
            for block in part:
                for matrix in self._blocks[block]:
                    by_suffix.setdefault(matrix.module.removeprefix(f"{block}."), []).append(matrix.module)
            whole = tuple(
                ((tuple(one),),) if self._options.rank is not None else _whole_or_single(tuple(one))
                for one in by_suffix.values()
            )
            rows.append(Row(name=part[0], items=whole))
        return tuple(rows)

    def _alone(self, modules: tuple[str, ...], curves: Curves) -> Form:
        matrices = [self._matrices[name] for name in modules]
        ((_, errors),) = curves
        return Form(
            modules=modules,
            curve=curve(
                errors=errors,
                rows=sum(m.rows for m in matrices),
                columns=matrices[0].columns,
                storage=self._options.storage,
            ),
        )

    # --- who may follow whom ------------------------------------------------------------------------------

    def _fixed_bases(self) -> tuple[str, ...] | None:
        if self._options.sharing == "Basis":
            return ()
        if self._options.rank is None and self._options.coefficients == "Auto":
            return None
        return tuple(self._blocks)[:: self._options.span]

    def _pairs(self, fixed: tuple[str, ...] | None) -> dict[str, dict[str, list[str]]]:
        """Block -> base block -> the matrices that may follow; those of other shapes than the base's may not."""
        names = list(self._blocks)
        return {
            block: {
                base: list(self._modules_shared(block, base))
                for base in self._bases_tried(block, names if fixed is None else list(fixed))
            }
            for block in names
            if fixed is None or block not in fixed
        }

    def _following(
        self, pairs: Mapping[str, Mapping[str, Sequence[str]]], curves: Mapping[_Asked, Curves]
    ) -> dict[str, dict[str, dict[str, list[Form]]]]:
        """Row -> base row -> matrix -> its forms."""
        return {
            block: {
                base: {
                    name: list(self._deltas(name, followed, curves[(name,), followed]))
                    for name in names
                    for followed in (self._counterpart(name, block, base),)
                }
                for base, names in bases.items()
            }
            for block, bases in pairs.items()
        }

    def _bases_tried(self, block: str, candidates: Sequence[str]) -> list[str]:
        others = [name for name in candidates if name != block]
        likeness = {base: self._likeness(block, base) for base in others}
        nearest = sorted(others, key=lambda base: -likeness[base])[:_BASES_TRIED]
        before = [left for left, right in pairwise(self._blocks) if right == block and left in others]
        return list(dict.fromkeys([*nearest, *before]))

    def _likeness(self, block: str, base: str) -> float:
        """Σ cos²: the share of the weights' squares that c* takes away, summed over matrices."""
        total = 0.0
        for name in self._modules_shared(block, base):
            here, there = self._weights[name], self._weights[self._counterpart(name, block, base)]
            total += float((here * there).sum() ** 2 / (here.square().sum() * there.square().sum()))
        return total

    def _modules_shared(self, block: str, base: str) -> Iterator[str]:
        for matrix in self._blocks[block]:
            other = self._matrices.get(self._counterpart(matrix.module, block, base))
            if other is not None and (other.rows, other.columns) == (matrix.rows, matrix.columns):
                yield matrix.module

    def _counterpart(self, name: str, block: str, base: str) -> str:
        return base + name.removeprefix(block)

    def _deltas(self, name: str, base: str, curves: Curves) -> Iterator[Form]:
        matrix = self._matrices[name]
        for coefficient, errors in curves:
            yield Form(
                modules=(name,),
                base=base,
                coefficient=coefficient,
                curve=curve(
                    errors=errors,
                    rows=matrix.rows,
                    columns=matrix.columns,
                    storage=self._options.storage,
                    coefficients=1,
                    dense=False,
                ),
            )


def _splits(modules: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    """All ways to split a small set into parts; a large one stays whole or falls apart."""
    if len(modules) > _LARGEST_SET:
        return _whole_or_single(modules)
    return tuple(tuple(part) for part in _partitions(modules))


def _partitions(modules: tuple[str, ...]) -> Iterator[list[tuple[str, ...]]]:
    if not modules:
        yield []
        return
    first, rest = modules[0], modules[1:]
    for smaller in _partitions(rest):
        yield [(first,), *smaller]
        for index, part in enumerate(smaller):
            yield [*smaller[:index], (first, *part), *smaller[index + 1 :]]


def _whole_or_single(modules: tuple[str, ...]) -> tuple[tuple[tuple[str, ...], ...], ...]:
    singles = tuple((module,) for module in modules)
    return (singles,) if len(modules) == 1 else (singles, (modules,))
