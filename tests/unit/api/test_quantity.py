"""Kubernetes quantities mean on a laptop what they mean in a cluster."""

from __future__ import annotations

import re
from decimal import Decimal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter, ValidationError

from ireko_api.quantity import LOOKS_LIKE, PATTERN, Quantity, parse_quantity, to_bytes

SUFFIXES = {
    "": Decimal(1),
    "m": Decimal("0.001"),
    **{letter: Decimal(1000) ** power for power, letter in enumerate("kMGTPE", start=1)},
    **{f"{letter}i": Decimal(1024) ** power for power, letter in enumerate("KMGTPE", start=1)},
}


@given(
    number=st.decimals(min_value=0, max_value=10**6, places=3, allow_nan=False),
    suffix=st.sampled_from(sorted(SUFFIXES)),
)
def test_a_quantity_is_its_number_times_its_suffix(number: Decimal, suffix: str) -> None:
    assert parse_quantity(f"{number:f}{suffix}") == number * SUFFIXES[suffix]


@given(number=st.integers(0, 10**6), exponent=st.integers(-6, 12), letter=st.sampled_from("eE"))
def test_decimal_exponents_count(number: int, exponent: int, letter: str) -> None:
    assert parse_quantity(f"{number}{letter}{exponent}") == number * Decimal(10) ** exponent


@given(st.text(max_size=12))
def test_any_other_text_is_refused_with_what_a_quantity_looks_like(text: str) -> None:
    if re.fullmatch(PATTERN, text):
        assert parse_quantity(text) >= 0
    else:
        with pytest.raises(ValueError, match=re.escape(LOOKS_LIKE)):
            parse_quantity(text)


@pytest.mark.parametrize(
    "text", ["", "1 Gi", "2GB", "2gi", "-1", "+1", "1e", ".", "1.5.2", "Gi", "1K", "0x10", "1Gi\n", "١"]
)
def test_near_misses_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="a Kubernetes quantity"):
        parse_quantity(text)


@pytest.mark.parametrize(
    ("text", "size"),
    [("2Gi", 2 * 2**30), ("800M", 800_000_000), ("1.5Ki", 1536), ("0.3", 1), ("1001m", 2), ("0", 0)],
)
def test_bytes_are_rounded_up(text: str, size: int) -> None:
    assert to_bytes(text) == size


@given(st.integers(0, 10**9))
def test_a_yaml_number_is_a_quantity(number: int) -> None:
    assert TypeAdapter(Quantity).validate_python(number) == str(number)


@pytest.mark.parametrize("value", [True, None, [1], {"a": 1}])
def test_other_types_are_no_quantities(value: object) -> None:
    with pytest.raises(ValidationError):
        TypeAdapter(Quantity).validate_python(value)
