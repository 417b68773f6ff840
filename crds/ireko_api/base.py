"""What every object of the contract is made of: a frozen model, bounded scalars, and rules said twice.

A rule that ties several fields together has to hold in two places: in the API server, which only knows CEL,
and in Python, where a manifest is read on a laptop. `Rule` keeps both beside each other under one sentence,
so that a user reads the same words from `kubectl apply` and from `ireko run`.
"""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Annotated, Any, ClassVar, Self, cast

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    Strict,
    StringConstraints,
    ValidationError,
    ValidationInfo,
    model_validator,
)
from pydantic.alias_generators import to_camel
from pydantic_core import InitErrorDetails, PydanticCustomError

RULE_ERROR = "ireko_rule"
"""The pydantic error type of a broken `Rule`."""

RULES_LATER = "rules later"
"""Validation context in which only the form of a manifest is checked; `broken_rules` then finds the rest."""


Loc = tuple[str | int, ...]
"""A place in a manifest: field names and list positions from the top."""


@dataclass(frozen=True, kw_only=True)
class Rule:
    """One sentence about several fields of an object, in CEL for the API server and in Python for laptops."""

    message: str
    """What must hold and how to make it hold, in the words of the manifest."""
    cel: str
    """The rule over `self`, the object that carries it."""
    holds: Callable[[Any], bool]
    """The same over the parsed object."""
    field: str
    """Dotted path below the object of the field to mend."""

    def reads(self, path: Sequence[str]) -> bool:
        """Whether the rule looks at the field at `path` below its object, or at one above or below it."""
        mentioned = [match.split(".") for match in re.findall(r"\bself\.([\w.]+)", self.cel)]
        return any(all(a == b for a, b in zip(path, words, strict=False)) for words in mentioned)


class SpecModel(BaseModel):
    """An object of the manifest: camelCase outside, snake_case inside, frozen, closed to unknown fields.

    `null` means "not given", as it does for the API server, which drops nulls before it fills in defaults.
    """

    model_config = ConfigDict(
        alias_generator=to_camel,
        populate_by_name=True,
        frozen=True,
        extra="forbid",
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )

    RULES: ClassVar[tuple[Rule, ...]] = ()
    MUTABLE: ClassVar[frozenset[str]] = frozenset()
    """The fields, as the manifest spells them, that may be changed once the run exists."""

    @model_validator(mode="before")
    @classmethod
    def _null_means_not_given(cls, value: Any) -> Any:
        if not isinstance(value, Mapping):
            return value
        return {key: item for key, item in value.items() if item is not None}

    @model_validator(mode="after")
    def _rules_hold(self, info: ValidationInfo) -> Self:
        if info.context == RULES_LATER:
            return self
        broken = [_detail(rule) for rule in type(self).RULES if not rule.holds(self)]
        if broken:
            raise ValidationError.from_exception_data(type(self).__name__, broken)
        return self


def _detail(rule: Rule) -> InitErrorDetails:
    error = PydanticCustomError(RULE_ERROR, "{sentence}", {"sentence": rule.message})
    return InitErrorDetails(type=error, loc=tuple(rule.field.split(".")), input=None)


def broken_rules(
    value: object, *, loc: tuple[str | int, ...] = ()
) -> Iterator[tuple[tuple[str | int, ...], Rule]]:
    """Every rule that does not hold in `value` or below it, with the place of the object that carries it.

    Validation stops at the lowest object with a broken rule; this goes on, for objects made under
    `RULES_LATER`.
    """
    if isinstance(value, tuple):
        for index, item in enumerate(value):
            yield from broken_rules(item, loc=(*loc, index))
    if isinstance(value, SpecModel):
        for name, field in type(value).model_fields.items():
            yield from broken_rules(getattr(value, name), loc=(*loc, field.alias or name))
        yield from ((loc, rule) for rule in type(value).RULES if not rule.holds(value))


def attribute(path: str) -> Callable[[Any], Any]:
    """A getter for a dotted path of attributes that yields None as soon as one of them is None."""
    return lambda start: reduce(
        lambda value, name: None if value is None else cast("Any", operator.attrgetter(name)(value)),
        path.split("."),
        start,
    )


def _no_boolean(value: object) -> object:
    """Python counts True as 1; a manifest that says `true` where a number belongs is mistaken."""
    if isinstance(value, bool):
        raise PydanticCustomError("float_type", "Input should be a valid number")
    return value


NUMBER = BeforeValidator(_no_boolean)
"""Makes a `float` field a JSON number. Strings such as "2e-3" count: YAML 1.1 readers take that spelling for
a string. To be written after the bounds, because pydantic leaves bounds that follow it out of the schema.
"""

Integer = Annotated[int, Strict(), Field(json_schema_extra={"format": "int32"})]
Boolean = Annotated[bool, Strict()]
Text = Annotated[str, StringConstraints(strict=True)]

INT32_MAX = 2**31 - 1

FORM = "x-ireko-form"
"""Schema key, kept out of the CRD, for what a pattern means in words."""


def text(*, pattern: str, form: str, max_length: int) -> Any:
    """The constraints of a non-empty string that must match `pattern`, which `form` says in words."""
    return Field(min_length=1, max_length=max_length, pattern=pattern, json_schema_extra={FORM: form})


def name_of(*, max_length: int) -> Any:
    """The constraints of a DNS-1123 label."""
    return text(
        pattern=r"^[a-z0-9]([-a-z0-9]*[a-z0-9])?$",
        form="a name of lower-case letters, digits and hyphens that begins and ends with a letter or digit",
        max_length=max_length,
    )


def trimmed(*, max_length: int) -> Any:
    """The constraints of one line of text without spaces around it."""
    return text(pattern=r"^\S(.*\S)?$", form="one line without spaces around it", max_length=max_length)
