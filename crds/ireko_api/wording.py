"""How a manifest's problems are put into words: values as people wrote them, expectations as people can meet
them."""

from __future__ import annotations

import difflib
import json
from collections.abc import Iterable, Mapping, Sequence
from datetime import date

from ireko_api import quantity
from ireko_api.base import FORM
from ireko_api.schema import INT_OR_STRING, Schema

_LONGEST_SHOWN = 60


def show(value: object) -> str:
    """A value as the manifest has it, short enough for a sentence."""
    if isinstance(value, Mapping):
        return "an empty mapping" if not value else f"a mapping with {_joined(_shortened(map(word, value)))}"
    if isinstance(value, list | tuple):
        return "an empty list" if not value else f"a list of {len(value)}"
    if isinstance(value, date):
        return value.isoformat()
    text = json.dumps(value, ensure_ascii=False, default=str)
    if not text.isprintable():
        text = json.dumps(value, default=str)
    if len(text) <= _LONGEST_SHOWN:
        return text
    return text[: _LONGEST_SHOWN - 2] + ('…"' if isinstance(value, str) else "…")


def word(key: object) -> str:
    """A key as it is read, escaped where a terminal would obey it instead of showing it."""
    text = str(key)
    return text if text.isprintable() else json.dumps(text)


def kind_of(value: object) -> str:
    """A value with the type that YAML read it as, e.g. `the string "abc"`."""
    if value is None:
        return "nothing"
    if isinstance(value, Mapping | list | tuple):
        return show(value)
    for types, noun in ((bool, "boolean"), (str, "string"), (int | float, "number"), (date, "date")):
        if isinstance(value, types):
            return f"the {noun} {show(value)}"
    return show(value)


def expectation(schema: Schema) -> str:
    """What a field takes, as the rest of "expected …", e.g. `a number from 0.1 to 1048576`."""
    if INT_OR_STRING in schema:
        return quantity.LOOKS_LIKE
    if "enum" in schema:
        return _choice(schema["enum"])
    return _BY_TYPE[schema["type"]](schema)


def _number(schema: Schema) -> str:
    noun = "an integer" if schema["type"] == "integer" else "a number"
    low, high = schema.get("minimum"), schema.get("maximum")
    if low is None or high is None:
        return noun
    if schema.get("exclusiveMinimum"):
        return f"{noun} above {_plain(low)} and at most {_plain(high)}"
    return f"{noun} from {_plain(low)} to {_plain(high)}"


def _string(schema: Schema) -> str:
    if schema.get("format") == "date-time":
        return 'a time such as "2026-01-31T12:00:00Z"'
    low, high = schema.get("minLength", 0), schema.get("maxLength")
    noun = schema.get(FORM, "a string")
    if high is None:
        return str(noun)
    length = f"of {low} to {high} characters" if low else f"of at most {high} characters"
    return f"{noun}, {length}" if FORM in schema else f"{noun} {length}"


def _array(schema: Schema) -> str:
    low, high = schema.get("minItems", 0), schema.get("maxItems")
    if high is None:
        return "a list"
    return f"a list of {low} to {high}" if low else f"a list of at most {high}"


def _object(schema: Schema) -> str:
    fields = schema.get("properties")
    return f"a mapping with fields such as {_joined(list(fields)[:4])}" if fields else "a mapping"


def _boolean(_: Schema) -> str:
    return "true or false"


_BY_TYPE = {
    "number": _number,
    "integer": _number,
    "string": _string,
    "array": _array,
    "object": _object,
    "boolean": _boolean,
}


def _choice(values: Sequence[object]) -> str:
    shown = [show(value) for value in values]
    return shown[0] if len(shown) == 1 else f"one of {_joined(shown, last='or')}"


def _plain(number: float) -> str:
    return str(int(number)) if number == int(number) else str(number)


def nearest(meant: object, known: Iterable[str]) -> str | None:
    """The known word that `meant` was probably meant to be, whatever its case."""
    by_lower = {name.lower(): name for name in known}
    matches = difflib.get_close_matches(str(meant).lower(), by_lower, n=1, cutoff=0.5)
    return by_lower[matches[0]] if matches else None


def unknown_field(name: object, known: Sequence[str]) -> str:
    """The sentence for a field that the schema lacks: the nearest one it has, else all of them."""
    meant = nearest(name, known)
    return (
        f'unknown field; did you mean "{meant}"?' if meant else f"unknown field; known here: {_joined(known)}"
    )


def not_allowed(value: object, schema: Schema) -> str:
    """The sentence for a value of the right type outside of what the field takes."""
    choices = [choice for choice in schema.get("enum", ()) if isinstance(choice, str)]
    meant = nearest(value, choices) if isinstance(value, str) else None
    hint = f'; did you mean "{meant}"?' if meant else ""
    return f"{show(value)} is not allowed; expected {expectation(schema)}{hint}"


def wrong_type(value: object, schema: Schema) -> str:
    """The sentence for a value of the wrong type, with the remedy where YAML is the one to blame."""
    sentence = f"expected {expectation(schema)}, got {kind_of(value)}"
    unquoted = schema.get("type") == "string" and isinstance(value, bool | int | float | date)
    return f"{sentence}; put it in quotes to make it a string" if unquoted else sentence


def _shortened(words: Iterable[str], *, most: int = 6) -> list[str]:
    listed = list(words)
    return listed if len(listed) <= most else [*listed[:most], "…"]


def _joined(words: Sequence[str], *, last: str = "and") -> str:
    return words[0] if len(words) == 1 else f"{', '.join(words[:-1])} {last} {words[-1]}"
