"""The generated CRD is structural, bounded everywhere, and says what the models say."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from ireko_api.base import Rule, SpecModel
from ireko_api.crd import IMMUTABLE_MESSAGE, custom_resource_definition, open_api_schema
from ireko_api.schema import children, schema_of
from ireko_api.spec import CompressionRun, CompressionRunSpec
from ireko_api.validation import parse

Schema = dict[str, Any]
INT_OR_STRING = "x-kubernetes-int-or-string"
FORBIDDEN = {
    "$ref", "$defs", "definitions", "title", "const", "examples", "deprecated", "discriminator", "id",
    "dependencies", "patternProperties", "prefixItems", "readOnly", "writeOnly", "xml", "uniqueItems",
    "oneOf", "allOf", "not", "nullable", "x-ireko-form",
}  # fmt: skip


def nodes(schema: Schema, path: str) -> Iterator[tuple[str, Schema]]:
    yield path, schema
    for name, child in schema.get("properties", {}).items():
        yield from nodes(child, f"{path}.{name}")
    for key, mark in (("items", "[]"), ("additionalProperties", "{}")):
        if key in schema:
            yield from nodes(schema[key], path + mark)


# The API server itself knows what these hold.
NODES = {
    path: node
    for path, node in nodes(open_api_schema(), "")
    if path not in (".apiVersion", ".kind", ".metadata")
}
INTEGERS = {path: node for path, node in NODES.items() if node.get("type") in ("integer", "number")}
STRINGS = {
    path: node for path, node in NODES.items() if node.get("type") == "string" or INT_OR_STRING in node
}
LISTS = {path: node for path, node in NODES.items() if node.get("type") == "array"}
OBJECTS = {path: node for path, node in NODES.items() if node.get("type") == "object"}


def test_the_checked_in_crd_is_the_generated_one(repository: Path) -> None:
    text = (repository / "crds" / "ireko.dev_compressionruns.yaml").read_text(encoding="utf-8")
    assert yaml.safe_load(text) == custom_resource_definition(), "run `make generate`"


def test_a_yaml_writer_needs_no_anchors() -> None:
    assert "&id" not in yaml.safe_dump(custom_resource_definition())


def test_the_name_of_the_crd_is_plural_and_group() -> None:
    definition = custom_resource_definition()
    names, group = definition["spec"]["names"], definition["spec"]["group"]
    assert definition["metadata"]["name"] == f"{names['plural']}.{group}"


def test_every_node_has_a_type_but_the_values_of_maps_that_hold_anything() -> None:
    typeless = [path for path, node in NODES.items() if "type" not in node and INT_OR_STRING not in node]
    anything = {"x-kubernetes-preserve-unknown-fields": True}
    assert typeless
    assert [path for path in typeless if NODES[path] != anything or not path.endswith("{}")] == []


def test_no_node_has_a_key_that_a_structural_schema_forbids() -> None:
    assert {path: FORBIDDEN & node.keys() for path, node in NODES.items() if FORBIDDEN & node.keys()} == {}


def test_unions_occur_only_in_the_pattern_that_is_allowed() -> None:
    unions = [node for node in NODES.values() if "anyOf" in node]
    assert unions
    assert all(
        node[INT_OR_STRING] and node["anyOf"] == [{"type": "integer"}, {"type": "string"}] for node in unions
    )


def test_every_number_has_both_bounds() -> None:
    unbounded = [
        path
        for path, node in INTEGERS.items()
        if "enum" not in node and not {"minimum", "maximum"} <= node.keys()
    ]
    assert unbounded == []


def test_excluded_bounds_are_written_as_booleans() -> None:
    excluded = [node["exclusiveMinimum"] for node in INTEGERS.values() if "exclusiveMinimum" in node]
    assert excluded
    assert set(excluded) == {True}


def test_every_string_is_bounded() -> None:
    bounded = {"maxLength", "enum", "format"}
    assert [path for path, node in STRINGS.items() if not bounded & node.keys()] == []


def test_every_list_is_bounded() -> None:
    assert [path for path, node in LISTS.items() if "maxItems" not in node] == []


def test_every_object_lists_its_fields_or_is_bounded() -> None:
    unbounded = [
        path
        for path, node in OBJECTS.items()
        if "properties" not in node and not {"additionalProperties", "maxProperties"} <= node.keys()
    ]
    assert unbounded == []
    assert [
        path for path, node in OBJECTS.items() if {"properties", "additionalProperties"} <= node.keys()
    ] == []


def test_every_field_has_a_description_of_a_sentence() -> None:
    undescribed = [
        path
        for path, node in NODES.items()
        if path and not path.endswith(("[]", "{}")) and not re.search(r"[.!]$", node.get("description", ""))
    ]
    assert undescribed == []


def test_keys_of_map_lists_are_required() -> None:
    keyed = [node for node in LISTS.values() if node.get("x-kubernetes-list-type") == "map"]
    assert keyed
    assert all(set(node["x-kubernetes-list-map-keys"]) <= set(node["items"]["required"]) for node in keyed)


SPEC = open_api_schema()["properties"]["spec"]


def frozen_fields(schema: Schema) -> Iterator[str]:
    """The fields of `schema` that a transition rule at themselves or beside them keeps as they are."""
    for name, field in schema["properties"].items():
        rules = [rule["rule"] for rule in field.get("x-kubernetes-validations", ())]
        always_there = name in schema.get("required", ()) or "default" in field
        if always_there and "self == oldSelf" in rules:
            yield name
    for rule in schema.get("x-kubernetes-validations", ()):
        name = rule.get("fieldPath", "").removeprefix(".")
        if rule["rule"] == (
            f"has(self.{name}) == has(oldSelf.{name}) && (!has(self.{name}) || self.{name} == oldSelf.{name})"
        ):
            assert name in schema["properties"]
            yield name


def test_everything_in_the_spec_is_immutable_but_what_may_change() -> None:
    assert set(SPEC["properties"]) - set(frozen_fields(SPEC)) == {"suspend", "compute"}
    compute = SPEC["properties"]["compute"]
    assert set(compute["properties"]) - set(frozen_fields(compute)) == {"ttlSecondsAfterFinished"}


def test_the_refusal_of_a_change_says_what_may_be_changed() -> None:
    rules = [rule for node in NODES.values() for rule in node.get("x-kubernetes-validations", ())]
    messages = {rule["message"] for rule in rules if "oldSelf" in rule["rule"]}
    assert messages == {IMMUTABLE_MESSAGE}
    assert all(word in IMMUTABLE_MESSAGE for word in ("suspend", "compute.ttlSecondsAfterFinished"))


# --- rules -------------------------------------------------------------------------------------


def models(model: type[SpecModel], path: str = "") -> Iterator[tuple[str, type[SpecModel]]]:
    yield path, model
    for name, child, is_list in children(model):
        yield from models(child, f"{path}.{name}{'[]' if is_list else ''}")


PLACED_RULES = [(path, rule) for path, model in models(CompressionRun) for rule in model.RULES]
RULE_IDS = [f"{path}.{rule.field}" for path, rule in PLACED_RULES]


@pytest.mark.parametrize(("path", "rule"), PLACED_RULES, ids=RULE_IDS)
def test_each_rule_stands_in_the_crd_under_its_sentence(path: str, rule: Rule) -> None:
    written = {"rule": rule.cel, "message": rule.message, "fieldPath": f".{rule.field}"}
    assert written in NODES[path]["x-kubernetes-validations"]


@pytest.mark.parametrize(("path", "rule"), PLACED_RULES, ids=RULE_IDS)
def test_each_rule_names_fields_that_exist(path: str, rule: Rule) -> None:
    methods = {"all", "size", "isSorted", "map", "exists_one", "min", "max", "startsWith", "matches"}
    for mentioned in [*re.findall(r"\bself((?:\.\w+)+)", rule.cel), f".{rule.field}"]:
        node = NODES[path]
        for word in mentioned.removeprefix(".").split("."):
            if word in methods:
                break
            assert word in node["properties"], f"{rule.cel}: {mentioned}"
            node = node["properties"][word]


@pytest.mark.parametrize(("path", "rule"), PLACED_RULES, ids=RULE_IDS)
def test_each_rule_asks_for_a_field_before_it_reads_an_optional_one(path: str, rule: Rule) -> None:
    """CEL stops with an error at an absent field; one with a default or required is never absent."""
    for mentioned in re.findall(r"(?<!has\()\bself((?:\.\w+)+)", rule.cel):
        node, walked = NODES[path], "self"
        for word in mentioned.removeprefix(".").split("."):
            if word not in node.get("properties", {}):
                break
            child, walked = node["properties"][word], f"{walked}.{word}"
            always_there = word in node.get("required", ()) or "default" in child
            assert always_there or f"has({walked})" in rule.cel, walked
            node = child


def test_a_rule_of_an_object_that_may_be_empty_holds_in_the_empty_object() -> None:
    """The API server checks `default: {}` as it stands, before it fills in what lies below."""
    rules = [
        rule["rule"]
        for node in NODES.values()
        if node.get("default") == {}
        for rule in node.get("x-kubernetes-validations", ())
        if "oldSelf" not in rule["rule"]
    ]
    assert rules
    assert [rule for rule in rules if not re.search(r"(^|\|\| )!has\(self\.\w+\)( \|\||$)", rule)] == []


def test_nothing_but_rules_ties_fields_together() -> None:
    """A check in a validator of its own would hold on laptops only."""
    own = {"_null_means_not_given", "_rules_hold", "_leave_bookkeeping_out"}
    for _, model in models(CompressionRun):
        assert set(model.__pydantic_decorators__.model_validators) <= own
        assert not model.__pydantic_decorators__.field_validators


def test_rules_stay_within_the_size_that_the_api_server_takes() -> None:
    for _, rule in PLACED_RULES:
        assert len(rule.message) <= 2048
        assert "\n" not in rule.message


# --- defaults ----------------------------------------------------------------------------------


def filled(schema: Schema, value: Any) -> Any:
    """What the API server stores: nulls pruned, defaults filled in, level by level."""
    if isinstance(value, list):
        return [filled(schema["items"], item) for item in value]
    if not isinstance(value, dict):
        return value
    properties = schema.get("properties", {})
    present = {name: item for name, item in value.items() if item is not None}
    missing = {
        name: copy.deepcopy(child["default"])
        for name, child in properties.items()
        if name not in present and "default" in child
    }
    return {name: filled(properties.get(name, {}), item) for name, item in {**present, **missing}.items()}


def without(data: Any, name: str) -> Any:
    if isinstance(data, list):
        return [without(item, name) for item in data]
    if isinstance(data, dict):
        return {key: without(value, name) for key, value in data.items() if key != name}
    return data


# Its default hangs on another field, which a schema cannot say; so does that of the steps of stage 0.
CONDITIONAL_DEFAULT = "holdoutPercent"

DEFAULTED: dict[str, dict[str, Any]] = {
    "minimal": {},
    "everything off but quantization": {"pipeline.mlfs": None},
    "a recovery of defaults": {"pipeline.mlfs.recovery": {}},
    "stages given in part": {"pipeline.mlfs.stages.widths": {"steps": 5}},
    "two sources": {"data.validation": {"uri": "dev.csv"}, "data.calibration": {"uri": "c.txt"}},
    "two targets": {
        "deviceTargets": [
            {"name": "a", "constraints": {"maxSizeMiB": 1}},
            {"name": "b", "constraints": {"maxSizeMiB": 2}},
        ]
    },
}


@pytest.mark.parametrize("edits", DEFAULTED.values(), ids=DEFAULTED)
def test_the_api_server_fills_in_what_the_models_fill_in(
    manifest_with: Callable[[dict[str, Any]], dict[str, Any]], edits: dict[str, Any]
) -> None:
    manifest = manifest_with(edits)
    by_models = parse(manifest).spec.model_dump(mode="json", by_alias=True, exclude_none=True)
    by_server = filled(open_api_schema()["properties"]["spec"], manifest["spec"])
    if "mlfs" in by_models["pipeline"]:
        del by_models["pipeline"]["mlfs"]["stages"]["teacher"]["steps"]
    assert without(by_server, CONDITIONAL_DEFAULT) == without(by_models, CONDITIONAL_DEFAULT)


@pytest.mark.parametrize("edits", DEFAULTED.values(), ids=DEFAULTED)
def test_a_manifest_means_the_same_before_and_after_the_api_server(
    manifest_with: Callable[[dict[str, Any]], dict[str, Any]], edits: dict[str, Any]
) -> None:
    manifest = manifest_with(edits)
    stored = filled(open_api_schema(), manifest)
    assert parse(stored).spec.digest() == parse(manifest).spec.digest()


def test_a_schema_that_a_crd_cannot_hold_is_refused() -> None:
    class Wrong(SpecModel):
        """A union that no structural schema can express."""

        either: int | list[int] = 0

    with pytest.raises(ValueError, match="a union of several types"):
        schema_of(Wrong)


def test_the_spec_of_the_crd_has_the_fields_of_the_model() -> None:
    aliases = {field.alias or name for name, field in CompressionRunSpec.model_fields.items()}
    assert set(open_api_schema()["properties"]["spec"]["properties"]) == aliases
