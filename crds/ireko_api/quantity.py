"""Kubernetes quantities such as `500m` and `2Gi`, because a laptop has no API server to read them.

The grammar is that of `k8s.io/apimachinery/pkg/api/resource`: a decimal number and at most one suffix.
"""

from __future__ import annotations

import math
import re
from decimal import Decimal
from typing import Annotated

from pydantic import AfterValidator, BeforeValidator, WithJsonSchema
from pydantic_core import PydanticCustomError

PATTERN = r"^([0-9]+(\.[0-9]{0,9})?|\.[0-9]{1,9})([KMGTPE]i|[mkMGTPE]|[eE][-+]?[0-9]{1,2})?$"
"""What the API server accepts here: no sign, since nothing negative can be asked for."""

ERROR = "ireko_quantity"
"""The pydantic error type of a text that is no quantity."""

LOOKS_LIKE = 'a Kubernetes quantity: a number with an optional suffix, e.g. "500m", "2", "1.5Gi" or "800M"'

_MULTIPLIERS = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    "k": Decimal(10**3),
    "M": Decimal(10**6),
    "G": Decimal(10**9),
    "T": Decimal(10**12),
    "P": Decimal(10**15),
    "E": Decimal(10**18),
    "Ki": Decimal(2**10),
    "Mi": Decimal(2**20),
    "Gi": Decimal(2**30),
    "Ti": Decimal(2**40),
    "Pi": Decimal(2**50),
    "Ei": Decimal(2**60),
}


def parse_quantity(text: str) -> Decimal:
    """The value of a quantity in base units (cores, bytes).

    Raises ValueError, saying what a quantity looks like, when `text` is none.
    """
    match = re.fullmatch(PATTERN, text)
    if match is None:
        raise ValueError(f'"{text}" is not {LOOKS_LIKE}')
    number, _, suffix = match.groups()
    if suffix is not None and suffix not in _MULTIPLIERS:
        return Decimal(number + suffix)
    return Decimal(number) * _MULTIPLIERS[suffix or ""]


def to_bytes(text: str) -> int:
    """A quantity of memory in whole bytes, rounded up."""
    return math.ceil(parse_quantity(text))


def from_bytes(size: int) -> str:
    """Whole bytes as the shortest quantity that is exactly as much, e.g. `1536Mi`."""
    for suffix in ("Gi", "Mi", "Ki"):
        if size % int(_MULTIPLIERS[suffix]) == 0:
            return f"{size // int(_MULTIPLIERS[suffix])}{suffix}"
    return str(size)


def _number_as_text(value: object) -> object:
    """`cpu: 1` is a number for YAML and a quantity for Kubernetes."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return value
    return str(value)


def _checked(text: str) -> str:
    try:
        parse_quantity(text)
    except ValueError as error:
        raise PydanticCustomError(ERROR, "{sentence}", {"sentence": str(error)}) from error
    return text


Quantity = Annotated[
    str,
    BeforeValidator(_number_as_text),
    AfterValidator(_checked),
    WithJsonSchema(
        {
            "x-kubernetes-int-or-string": True,
            "anyOf": [{"type": "integer"}, {"type": "string"}],
            "pattern": PATTERN,
            "maxLength": 32,
        }
    ),
]
