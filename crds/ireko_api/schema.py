"""The models as one plain schema tree: what the CRD, the error texts and the reference page are made from.

Pydantic writes JSON Schema draft 2020-12 with references and unions with null. A CRD takes neither, and a
tree without them is also the easiest thing to look a field up in. The forms pydantic may emit that have no
counterpart in a structural schema are refused here, so that a new field cannot slip into the CRD
half-described.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from functools import cache
from typing import Any, get_args, get_origin

from ireko_api.base import SpecModel

Schema = dict[str, Any]

INT_OR_STRING = "x-kubernetes-int-or-string"
_DROPPED = ("title", "examples", "deprecated", "additionalProperties")
_NOT_STRUCTURAL = (
    "oneOf",
    "allOf",
    "not",
    "prefixItems",
    "uniqueItems",
    "discriminator",
    "patternProperties",
)


@cache
def schema_of(model: type[SpecModel]) -> Schema:
    """The structural schema of `model`: references inlined, null unions resolved, bounds in OpenAPI 3.0 form.

    Nested objects whose fields all have defaults carry `default: {}`, below which the API server fills in the
    rest.
    """
    document = model.model_json_schema(by_alias=True)
    return _structural(document, definitions=document.get("$defs", {}))


_FIRST_KEYS = ("type", "description", "default", "enum", "format", "pattern")
_LAST_KEYS = ("required", "properties", "items")


def _in_reading_order(schema: Schema) -> Schema:
    """What a field is comes first, what lies below it last."""
    rest = [key for key in schema if key not in _FIRST_KEYS + _LAST_KEYS]
    order = [*_FIRST_KEYS, *rest, *_LAST_KEYS]
    return {key: schema[key] for key in order if key in schema}


def _structural(node: Mapping[str, Any], *, definitions: Mapping[str, Any]) -> Schema:
    node = _resolved(node, definitions=definitions)
    unknown = [key for key in _NOT_STRUCTURAL if key in node]
    if unknown:
        raise ValueError(f"{', '.join(unknown)} has no counterpart in a structural schema: {node}")
    values = node.get("additionalProperties")
    schema = {key: value for key, value in node.items() if key not in _DROPPED and key != "$defs"}
    _const_as_enum(schema)
    _exclusive_bounds_as_booleans(schema)
    _defaults_as_literals(schema)
    if "description" in schema:
        schema["description"] = " ".join(schema["description"].split())
    if "properties" in schema:
        schema["properties"] = {
            name: _structural(child, definitions=definitions) for name, child in schema["properties"].items()
        }
    if "items" in schema:
        schema["items"] = _structural(schema["items"], definitions=definitions)
    if isinstance(values, Mapping):
        schema["additionalProperties"] = _structural(values, definitions=definitions)
    return _in_reading_order(schema)


def _resolved(node: Mapping[str, Any], *, definitions: Mapping[str, Any]) -> Schema:
    """`node` with its reference inlined and `X | None` reduced to X; what stands beside them wins."""
    if "$ref" in node:
        target = definitions[node["$ref"].removeprefix("#/$defs/")]
        beside = {key: value for key, value in node.items() if key != "$ref"}
        return _resolved({**target, **beside}, definitions=definitions)
    if "anyOf" in node and INT_OR_STRING not in node:
        branches = [branch for branch in node["anyOf"] if branch != {"type": "null"}]
        if len(branches) != 1:
            raise ValueError(f"a union of several types has no counterpart in a structural schema: {node}")
        beside = {key: value for key, value in node.items() if key != "anyOf"}
        return _resolved({**branches[0], **beside}, definitions=definitions)
    return dict(node)


def _const_as_enum(schema: Schema) -> None:
    if "const" in schema:
        schema["enum"] = [schema.pop("const")]


def _exclusive_bounds_as_booleans(schema: Schema) -> None:
    """OpenAPI 3.0 has the bound in `minimum` and a boolean beside it that says whether it is excluded."""
    for exclusive, bound in (("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")):
        if exclusive in schema:
            schema[bound] = schema[exclusive]
            schema[exclusive] = True


def _defaults_as_literals(schema: Schema) -> None:
    if schema.get("default", ...) is None:
        del schema["default"]
    elif isinstance(schema.get("default"), dict):
        schema["default"] = {}


def children(model: type[SpecModel]) -> Iterator[tuple[str, type[SpecModel], bool]]:
    """The fields of `model` that are objects or lists of objects: name, model, and whether it is a list."""
    for name, field in model.model_fields.items():
        for nested, is_list in _models_in(field.annotation, in_list=False):
            yield field.alias or name, nested, is_list


def _models_in(annotation: Any, *, in_list: bool) -> Iterator[tuple[type[SpecModel], bool]]:
    if isinstance(annotation, type) and issubclass(annotation, SpecModel):
        yield annotation, in_list
    for argument in get_args(annotation):
        yield from _models_in(argument, in_list=in_list or get_origin(annotation) is tuple)


def child_of(schema: Schema, key: str | int) -> Schema | None:
    """The schema one step down: a property, the items of a list, or the values of a map."""
    below: Schema | None = schema.get("items", schema.get("additionalProperties"))
    found: Schema | None = schema.get("properties", {}).get(key, below)
    return found


def lookup(schema: Schema, loc: Sequence[str | int]) -> Schema | None:
    """The schema at `loc`, or None where the schema does not go that far."""
    found: Schema | None = schema
    for key in loc:
        if found is None:
            return None
        found = child_of(found, key)
    return found


def walk(schema: Schema, path: str = "") -> Iterator[tuple[str, Schema]]:
    """Every node of the tree with its dotted path; list items are `[]`, map values `{}`."""
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from walk(child, f"{path}.{name}".removeprefix("."))
    if "items" in schema:
        yield from walk(schema["items"], f"{path}[]")
    if "additionalProperties" in schema:
        yield from walk(schema["additionalProperties"], f"{path}{{}}")
