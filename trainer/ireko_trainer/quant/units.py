"""What gets bits as one: a matrix, matrices that a runtime fuses, or a whole block; and what each width costs.

Runtimes that multiply query, key and value (or gate and up) as one matrix want them at one width. Tying is found from
the model itself, the matrices that read the same tensor, so it needs no table of families.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from transformers import PreTrainedModel

from ireko_trainer.quant.calls import Batch, input_groups, inputs, record
from ireko_trainer.quant.layout import OUTSIDE_BITS, Layout, block_modules
from ireko_trainer.quant.storage import stored_tensors

Tie = Literal["matrix", "fused", "block"]

_PROBE_TOKENS = 8


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Matrices that share one width."""

    modules: tuple[str, ...]
    block: int | None
    """Position of its block; None: outside the blocks."""
    weights: int
    widths: tuple[int, ...]
    """Ascending."""

    @property
    def name(self) -> str:
        """The first of its modules."""
        return self.modules[0]


def find_units(
    *, model: PreTrainedModel, layout: Layout, batch: Batch, widths: Sequence[int], tie: Tie = "matrix"
) -> tuple[Unit, ...]:
    """Return the units of `model`, in its order: the blocks' matrices, then head and embeddings.

    The head may take every width. Embeddings come in `OUTSIDE_BITS` only, the one width that the file format holds
    for them; they count towards the budget all the same.
    """
    found: list[Unit] = []
    sizes = {m.module: m.weights for m in layout.matrices}
    ascending = tuple(sorted(set(widths)))

    def add(modules: Iterable[str], block: int | None, allowed: tuple[int, ...]) -> None:
        names = tuple(modules)
        found.append(
            Unit(modules=names, block=block, weights=sum(sizes[name] for name in names), widths=allowed)
        )

    fused = _fused(model, layout, batch) if tie == "fused" else {}
    for index, (block, matrices) in enumerate(layout.blocks.items()):
        names = [m.module for m in matrices]
        for group in _tied(names, tie, fused.get(block, [])):
            add(group, index, ascending)
    for matrix in layout.head:
        add((matrix.module,), None, tuple(sorted({*ascending, OUTSIDE_BITS})))
    for matrix in layout.embeddings:
        add((matrix.module,), None, (OUTSIDE_BITS,))
    return tuple(found)


def _tied(names: list[str], tie: Tie, fused: list[tuple[str, ...]]) -> list[tuple[str, ...]]:
    if tie == "fused":
        return fused
    return [tuple(names)] if tie == "block" else [(name,) for name in names]


def module_bits(units: Sequence[Unit], bits: Sequence[int]) -> dict[str, int]:
    """Spread the bits of the units to their modules."""
    return {name: width for unit, width in zip(units, bits, strict=True) for name in unit.modules}


def unit_bytes(*, layout: Layout, units: Sequence[Unit], group_size: int) -> tuple[Mapping[int, int], ...]:
    """Return, for each unit, width -> bytes of its tensors in the file, header entries not counted."""

    def data(unit: Unit, width: int) -> int:
        bits = dict.fromkeys(unit.modules, width)
        names = tuple(f"{module}.weight" for module in unit.modules)
        entries = stored_tensors(layout, bits=bits, group_size=group_size)
        return sum(entry.size for entry in entries if entry.name.startswith(names))

    return tuple({width: data(unit, width) for width in unit.widths} for unit in units)


def _fused(model: PreTrainedModel, layout: Layout, batch: Batch) -> dict[str, list[tuple[str, ...]]]:
    blocks = block_modules(model)
    first = {name: tensor[:1, :_PROBE_TOKENS] for name, tensor in inputs(batch).items()}
    recorded = record(model=model, blocks=list(blocks.values()), batch=first)
    found = {}
    for index, (block, matrices) in enumerate(layout.blocks.items()):
        keys = [m.module.removeprefix(f"{block}.") for m in matrices]
        groups = input_groups(
            block=blocks[block],
            modules={key: blocks[block].get_submodule(key) for key in keys},
            hidden=recorded.hidden,
            arguments=recorded.arguments[index],
        )
        called = {key for group in groups for key in group}
        groups += [(key,) for key in keys if key not in called]
        found[block] = [tuple(f"{block}.{key}" for key in group) for group in groups]
    return found
