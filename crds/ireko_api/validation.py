"""Reading a manifest: every problem at once, each as a path and a sentence that says what would be right.

The API server refuses the same manifests by the CRD that is generated from the same models; here the words
are ours. Form is checked first. Rules between fields need well-formed fields, so misformed ones are then
replaced by well-formed placeholders, and the rules that look at none of these are checked too.
"""

from __future__ import annotations

import copy
import itertools
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

from pydantic import ValidationError
from pydantic_core import ErrorDetails

from ireko_api import pod_template, quantity, wording
from ireko_api.base import RULES_LATER, Loc, Rule, broken_rules
from ireko_api.schema import INT_OR_STRING, Schema, lookup, schema_of
from ireko_api.spec import API_VERSION, KIND, CompressionRun

_UNKNOWN_FIELD = ("extra_forbidden", "invalid_key")
_PLACEHOLDERS = ("a", "s3://a")
"""One of these matches whatever pattern a string of the manifest has."""
_MAP_KEY = "[key]"
"""What pydantic ends the place of an error with when the key of a map is meant, not its value."""


class Problem(NamedTuple):
    """One thing that is wrong with a manifest."""

    path: str
    """Where, e.g. `spec.deviceTargets[1].constraints.maxSizeMiB`; empty for the document itself."""
    message: str
    """What is wrong and what would be right."""

    def __str__(self) -> str:
        """`path: message`, as it is printed."""
        return f"{self.path}: {self.message}" if self.path else self.message


class InvalidManifestError(ValueError):
    """A manifest that cannot be executed; `problems` has every reason why."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(map(str, problems)))


def parse(manifest: object) -> CompressionRun:
    """The run that `manifest`, a document as a YAML or JSON reader yields it, describes.

    Raises InvalidManifestError with every problem at once.
    """
    problems = find_problems(manifest)
    if problems:
        raise InvalidManifestError(problems)
    return _validated(manifest)


def find_problems(manifest: object) -> list[Problem]:
    """Everything that is wrong with `manifest`, form first, then rules; empty when it can be executed."""
    if not isinstance(manifest, Mapping):
        return [Problem("", f"expected a {KIND} manifest, a mapping, got {wording.kind_of(manifest)}")]
    other = _written_for_something_else(manifest)
    if other:
        return other
    errors, run = _read(manifest)
    return [_problem(error) for error in errors] + _broken_rules(run, errors)


def _written_for_something_else(manifest: Mapping[Any, Any]) -> list[Problem]:
    """Problems of the two fields that say what the rest means: if they are wrong, it means nothing here."""
    expected = {"apiVersion": API_VERSION, "kind": KIND}
    return [
        Problem(field, _header_problem(manifest.get(field), value))
        for field, value in expected.items()
        if manifest.get(field) != value
    ]


def _header_problem(found: object, expected: str) -> str:
    if found is None:
        return f'is required: "{expected}"'
    return f'{wording.show(found)} is not known here; expected "{expected}"'


def _validated(manifest: object, *, context: str | None = None) -> CompressionRun:
    return CompressionRun.model_validate(manifest, by_alias=True, by_name=False, context=context)


def _read(manifest: Mapping[Any, Any]) -> tuple[list[ErrorDetails], CompressionRun]:
    """Everything malformed in `manifest`, and the run that it describes with placeholders in these places.

    It takes another round when mending shows more, e.g. that a list of malformed items is too long as well.
    """
    mended = copy.deepcopy(dict(manifest))
    found: list[ErrorDetails] = []
    while True:
        try:
            return found, _validated(mended, context=RULES_LATER)
        except ValidationError as invalid:
            errors = [e for e in invalid.errors(include_url=False) if not _follows_from_another(e)]
            if not errors:
                raise
        for error in sorted(errors, key=lambda error: (-len(_place(error)), _to_be_removed(error))):
            _mend(mended, error)
        found += errors


def _follows_from_another(error: ErrorDetails) -> bool:
    """Whether `error` only repeats that some other field is malformed.

    Pydantic leaves a default that hangs on such a field uncalled, and counts only the well-formed items of a
    list, which it then calls short where the user wrote enough.
    """
    if error["type"] == "default_factory_not_called":
        return True
    return error["type"] == "too_short" and len(error["input"]) >= error["ctx"]["min_length"]


def _problem(error: ErrorDetails) -> Problem:
    return Problem(path_of(_place(error)), _sentence(error))


def _place(error: ErrorDetails) -> Loc:
    """Where the error is; a key that is no string is named as it was read, e.g. `True` for `on`."""
    loc = error["loc"]
    if loc[-1] == _MAP_KEY:
        return (*loc[:-2], str(error["input"]))
    if error["type"] == "invalid_key":
        return (*loc[:-1], str(error["input"]))
    return loc


def _to_be_removed(error: ErrorDetails) -> bool:
    return error["type"] in _UNKNOWN_FIELD or error["loc"][-1] == _MAP_KEY


def path_of(loc: Sequence[str | int]) -> str:
    """A place as people write it: dots between fields, list positions from 0 in brackets."""
    steps = (f"[{key}]" if isinstance(key, int) else f".{wording.word(key)}" for key in loc)
    return "".join(steps).removeprefix(".")


def _sentence(error: ErrorDetails) -> str:
    loc, kind, value = error["loc"], error["type"], error["input"]
    if kind in _UNKNOWN_FIELD:
        return wording.unknown_field(_place(error)[-1], list(_schema_at(loc[:-1])["properties"]))
    if loc[-1] == _MAP_KEY:
        return wording.wrong_type(value, {"type": "string"})
    expected = _schema_at(loc)
    if kind == "missing":
        return f"is required: {wording.expectation(expected)}"
    if kind == quantity.ERROR:
        return f"{wording.show(value)} is not {quantity.LOOKS_LIKE}"
    if kind == pod_template.TEMPLATE_ERROR:
        return error["msg"]
    describe: Callable[[object, Schema], str] = (
        wording.wrong_type if kind.endswith(("_type", "_parsing")) else wording.not_allowed
    )
    return describe(value, expected)


def _schema_at(loc: Loc) -> Schema:
    schema = lookup(schema_of(CompressionRun), loc)
    if schema is None:
        raise LookupError(f"{path_of(loc)} is in the models but not in their schema")
    return schema


def _broken_rules(run: CompressionRun, errors: Sequence[ErrorDetails]) -> list[Problem]:
    return [
        Problem(path_of((*loc, *rule.field.split("."))), rule.message)
        for loc, rule in broken_rules(run)
        if not any(_concerns(rule, loc, _place(error)) for error in errors)
    ]


def _concerns(rule: Rule, loc: Loc, place: Loc) -> bool:
    """Whether `rule`, of the object at `loc`, would judge the placeholder at `place`."""
    if loc[: len(place)] == place:
        return True
    below = itertools.takewhile(lambda key: isinstance(key, str), place[len(loc) :])
    return place[: len(loc)] == loc and rule.reads([str(key) for key in below])


def _mend(manifest: dict[Any, Any], error: ErrorDetails) -> None:
    """Make the place of `error` well-formed: take an unknown key out, put a placeholder anywhere else."""
    *above, last = _place(error)
    parent: Any = manifest
    for key in above:
        parent = parent[key]
    if _to_be_removed(error):
        for key in [key for key in parent if str(key) == str(last)]:
            del parent[key]
        return
    parent[last] = _placeholder(_schema_at(error["loc"]))


def _placeholder(schema: Schema) -> Any:
    """Some value that `schema` takes."""
    if INT_OR_STRING in schema:
        return "1"
    if "enum" in schema:
        return schema["enum"][0]
    if schema["type"] == "array":
        return [_placeholder(schema["items"])] * schema.get("minItems", 0)
    if schema["type"] == "object":
        return {name: _placeholder(schema["properties"][name]) for name in schema.get("required", ())}
    return {
        "boolean": False,
        "integer": schema.get("maximum"),
        "number": schema.get("maximum"),
        "string": next(text for text in _PLACEHOLDERS if re.search(schema.get("pattern", ""), text)),
    }[schema["type"]]
