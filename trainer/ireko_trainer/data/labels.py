"""What a label column means: names of classes, indices of classes, or numbers to predict."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ireko_api.spec import Data
from ireko_trainer.data.table import TextTable, read_table
from ireko_trainer.errors import UserError


@dataclass(frozen=True)
class LabelSpace:
    """The values that a classification head tells apart, or the fact that it predicts one number."""

    names: tuple[str, ...] = ()
    """Class names in the order of their indices; empty for regression."""
    regression: bool = False

    @property
    def outputs(self) -> int:
        """Width of the head that this space needs."""
        return 1 if self.regression else len(self.names)


def label_space(*, data: Data, base_dir: Path, head: LabelSpace | None) -> LabelSpace | None:
    """The labels that a run on `data` predicts; None when nothing says.

    The manifest decides first (`labels`, `problemType`), then the teacher's own classification head, and only
    then the training data: fractions mean regression, whole numbers from 0 without gaps are class indices.

    Args:
        data: `spec.data`.
        base_dir: where relative paths start.
        head: labels of the head that the teacher brings, if it has one (`ireko_trainer.teacher.head_labels`).

    Raises:
        UserError: the labels have to be inferred and are names, negative, or leave indices out.
    """
    if data.labels is not None:
        return LabelSpace(names=tuple(data.labels))
    if data.problem_type == "Regression":
        return LabelSpace(regression=True)
    if head is not None and not (head.regression and data.problem_type == "SingleLabel"):
        return head
    if data.train.label_column is None:
        return None
    return _infer(read_table(source=data.train, base_dir=base_dir, field="spec.data.train"), data=data)


def encode_labels(table: TextTable, *, space: LabelSpace, field: str) -> Tensor | None:
    """The labels of a table: int64 class indices or float32 values, `[N]`; None when it has none.

    A string is looked up among the names first, and read as a number when no name matches (CSV has no other
    way to write one).

    Raises:
        UserError: a label is no index of a class, an unknown name, or not a finite number.
    """
    if table.labels is None:
        return None
    field = f"{field}.labelColumn"
    if space.regression:
        values = [_value(table, index, field=field) for index in range(len(table.labels))]
        return torch.tensor(values, dtype=torch.float32)
    indices_by_name = {name: index for index, name in enumerate(space.names)}
    indices = [
        _class_index(table, index, indices_by_name=indices_by_name, field=field)
        for index in range(len(table.labels))
    ]
    return torch.tensor(indices, dtype=torch.int64)


def _infer(table: TextTable, *, data: Data) -> LabelSpace:
    assert table.labels is not None  # the caller asked for the column
    numbers = [_number(label) for label in table.labels]
    for index, number in enumerate(numbers):
        if number is None:
            found = ", ".join(sorted({repr(label) for label in table.labels})[:20])
            raise UserError(
                f"spec.data.labels: {table.where(index)} has the label {table.labels[index]!r}, a name, and "
                "nothing says which classes there are; list them in the order of their indices (found: "
                f"{found})."
            )
    found_numbers = {number for number in numbers if number is not None}
    if data.problem_type is None and any(
        number != round(number) for number in found_numbers if math.isfinite(number)
    ):
        return LabelSpace(regression=True)
    return _from_indices(found_numbers, uri=table.uri)


def _from_indices(found: Iterable[float], *, uri: str) -> LabelSpace:
    indices = sorted(found)
    if len(indices) < 2 or indices != list(range(len(indices))):
        shown = ", ".join(f"{index:g}" for index in indices[:20])
        raise UserError(
            f"spec.data.train.labelColumn: the labels in {uri} are {shown}; without spec.data.labels they "
            "must be the indices 0, 1, … of at least two classes, without gaps. List spec.data.labels, or "
            "set spec.data.problemType to Regression."
        )
    return LabelSpace(names=tuple(str(index) for index in range(len(indices))))


def _number(label: object) -> float | None:
    if isinstance(label, int | float):
        return label
    if not isinstance(label, str):
        return None
    try:
        return float(label)
    except ValueError:
        return None


def _value(table: TextTable, index: int, *, field: str) -> float:
    label = table.labels[index] if table.labels is not None else None
    number = _number(label)
    if number is None or not math.isfinite(number):
        raise UserError(
            f"{field}: {table.where(index)} has the label {label!r}; regression needs finite numbers. "
            "Correct the row, or set spec.data.problemType to SingleLabel and list spec.data.labels."
        )
    return number


def _class_index(table: TextTable, index: int, *, indices_by_name: dict[str, int], field: str) -> int:
    label = table.labels[index] if table.labels is not None else None
    if isinstance(label, str) and label in indices_by_name:
        return indices_by_name[label]
    number = _number(label)
    if number is None:
        names = ", ".join(repr(name) for name in indices_by_name)
        raise UserError(
            f"{field}: {table.where(index)} has the label {label!r}, which is none of the names {names}; "
            "correct the row, or add the name to spec.data.labels."
        )
    if not math.isfinite(number) or number != int(number) or not 0 <= number < len(indices_by_name):
        hint = " (-1 often marks the unlabelled test split of a benchmark)" if number == -1 else ""
        raise UserError(
            f"{field}: {table.where(index)} has the label {label!r}{hint}, but there are "
            f"{len(indices_by_name)} classes with the indices 0 to {len(indices_by_name) - 1}; correct the "
            "row, or list every class in spec.data.labels."
        )
    return int(number)
