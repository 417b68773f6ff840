"""What a factoring aims for, which matrices take part in it, and what is refused before anything is measured."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from ireko_trainer.delta.curves import Storage
from ireko_trainer.delta.factors import Initialization
from ireko_trainer.errors import UserError
from ireko_trainer.quant import block_modules, describe
from ireko_trainer.quant.layout import Matrix

Modules = Literal["All", "Mlp", "Attention"]


@dataclass(frozen=True, kw_only=True)
class DeltaOptions:
    """What to aim for and how.

    Raises:
        ValueError: neither or both of `reduction` and `rank`.
    """

    reduction: float | None = None
    """Share of the numbers in the blocks' matrices that is to be saved, ranks being allocated over all of them."""
    rank: int | None = None
    """One rank for every follower; every `span`-th block is a base."""
    modules: Modules = "All"
    sharing: Literal["Delta", "Basis"] = "Delta"
    """`Delta`: c·W_base + U V. `Basis`: no base; V is shared by the same matrix of `span` blocks where that wins."""
    coefficients: Literal["Auto", "One"] = "Auto"
    """`One` is the paper's c = 1, with every `span`-th block as a base."""
    initialization: Initialization = "Curvature"
    share_inputs: bool = True
    """Matrices that read the same input may share V."""
    span: int = 2
    keep_first: int = 0
    """Blocks at the beginning that are left alone; they may serve as bases."""
    keep_last: int = 0
    compact: bool = True
    multiple: int = 1
    """Ranks are multiples of this."""

    def __post_init__(self) -> None:
        if (self.reduction is None) == (self.rank is None):
            raise ValueError(f"exactly one of reduction and rank is needed: {self}")

    @property
    def storage(self) -> Storage:
        """How factors are stored."""
        return Storage(compact=self.compact, multiple=self.multiple, rank=self.rank)


def check_options(
    *, model: PreTrainedModel, options: DeltaOptions, field: str = "spec.pipeline.delta"
) -> None:
    """Refuse what needs no measurement to be refused; `model` may live on the meta device.

    Raises:
        UserError: no such matrices, a rank above a matrix's own, or a target below the smallest factors.
    """
    matrices = [matrix for found in eligible(model, options).values() for matrix in found]
    if not matrices:
        raise UserError(
            f"{field}: there is nothing to factor among {_wording(options)}: the model has {len(block_modules(model))} "
            "blocks; leave fewer of them alone"
        )
    for matrix in matrices:
        full = min(matrix.rows, matrix.columns)
        if options.rank is not None and options.rank > full:
            raise UserError(
                f"{field}.rank: {options.rank} is above the rank of {matrix.module}, whose {matrix.rows} × "
                f"{matrix.columns} weights have at most rank {full}; lower it"
            )
    if options.reduction is not None:
        nearest = 1 - _smallest_share(model, options)
        if options.reduction > nearest:
            raise unreachable(field, options, wanted=options.reduction, nearest=nearest)


def _smallest_share(model: PreTrainedModel, options: DeltaOptions) -> float:
    """The share of the numbers in the blocks' matrices that is left at the lowest rank of every matrix."""
    total = sum(m.weights for found in describe(model).blocks.values() for m in found)
    saved = 0
    for index, matrices in enumerate(eligible(model, options).values()):
        if options.coefficients == "One" and index % options.span == 0:
            continue
        for m in matrices:
            lowest = options.storage.numbers(rows=m.rows, columns=m.columns, rank=options.multiple)
            saved += max(0, m.weights - lowest) if options.multiple < min(m.rows, m.columns) else 0
    return 1 - saved / total


def unreachable(field: str, options: DeltaOptions, *, wanted: float, nearest: float) -> UserError:
    """The refusal of a target, which names the nearest one."""
    return UserError(
        f"{field}.targetReduction: {wanted:g} cannot be reached by factoring {_wording(options)}; the nearest is "
        f"{int(nearest * 1000) / 1000:g}. Lower it, or let more modules and blocks take part"
    )


def expected_share(*, model: PreTrainedModel, options: DeltaOptions) -> float:
    """About which share of the numbers in the blocks' matrices will be left; `model` may live on the meta device."""
    if options.reduction is not None:
        return 1 - options.reduction
    blocks = eligible(model, options)
    total = sum(m.weights for found in describe(model).blocks.values() for m in found)
    saved = 0
    for index, matrices in enumerate(blocks.values()):
        if options.sharing == "Delta" and index % options.span == 0:
            continue
        for m in matrices:
            rank = min(options.rank or 1, m.rows, m.columns)
            saved += m.weights - options.storage.numbers(rows=m.rows, columns=m.columns, rank=rank)
    return 1 - saved / total


def eligible(model: PreTrainedModel, options: DeltaOptions) -> dict[str, tuple[Matrix, ...]]:
    """The matrices that may be factored, by block."""
    layout = describe(model)
    names = list(layout.blocks)
    last = len(names) - options.keep_last
    return {
        name: tuple(m for m in layout.blocks[name] if _selected(m.module, name, options.modules))
        for name in names[options.keep_first : last]
    }


def measured_modules(model: PreTrainedModel, options: DeltaOptions) -> list[str]:
    """The layers whose moments a plan needs."""
    return [matrix.module for matrices in eligible(model, options).values() for matrix in matrices]


def _selected(module: str, block: str, wanted: Modules) -> bool:
    inside = module.removeprefix(f"{block}.").lower()
    attention = "attn" in inside or "attention" in inside
    return wanted == "All" or attention == (wanted == "Attention")


def _wording(options: DeltaOptions) -> str:
    what = {"All": "all matrices", "Mlp": "feed-forward matrices", "Attention": "attention matrices"}
    kept = options.keep_first + options.keep_last
    return what[options.modules] + (f" with {kept} blocks left alone" if kept else "")
