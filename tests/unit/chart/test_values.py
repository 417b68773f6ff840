"""Every value is in values.yaml with a word about it, and in the schema with its bounds."""

from __future__ import annotations

import copy
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import pytest

FREE = {"affinity", "podSecurityContext", "securityContext"}
"""Parts of Kubernetes' own API, which the API server checks."""


def test_the_schema_is_one(schema: dict[str, Any]) -> None:
    jsonschema.Draft7Validator.check_schema(schema)
    assert schema["$schema"] == "http://json-schema.org/draft-07/schema#"


def test_the_defaults_hold(schema: dict[str, Any], values: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(schema).validate(values)


def _resolved(node: dict[str, Any], schema: dict[str, Any]) -> dict[str, Any]:
    for part in [node, *node.get("allOf", [])]:
        if "$ref" in part:
            return schema["definitions"][part["$ref"].rsplit("/", 1)[1]]
    return node


def _objects(node: dict[str, Any], schema: dict[str, Any], path: str) -> Iterator[tuple[str, dict[str, Any]]]:
    node = _resolved(node, schema)
    if "properties" in node:
        yield path, node
        for name, child in node["properties"].items():
            yield from _objects(child, schema, f"{path}.{name}".lstrip("."))


def test_no_object_of_ours_takes_an_unknown_value(schema: dict[str, Any]) -> None:
    open_ones = [
        path for path, node in _objects(schema, schema, "") if node["additionalProperties"] is not False
    ]

    assert open_ones == []


def _paths(node: dict[str, Any], schema: dict[str, Any], path: str = "") -> Iterator[str]:
    """Paths of the values that the schema knows, down to where a value may be anything of a kind."""
    node = _resolved(node, schema)
    for name, child in node.get("properties", {}).items():
        here = f"{path}.{name}".lstrip(".")
        yield here
        if name not in FREE:
            yield from _paths(child, schema, here)


def _given(values: dict[str, Any], path: str) -> bool:
    node: Any = values
    for name in path.split("."):
        if not isinstance(node, dict) or name not in node:
            return False
        node = node[name]
    return True


OPTIONAL = re.compile(r"^global$|Probe\.initialDelaySeconds$|resources\.limits$|^podDefaults\.")


def test_every_value_of_the_schema_stands_in_values_yaml(
    schema: dict[str, Any], values: dict[str, Any]
) -> None:
    missing = [
        path for path in _paths(schema, schema) if not _given(values, path) and not OPTIONAL.search(path)
    ]

    assert missing == []


def test_every_value_has_a_word_about_it(chart: Path) -> None:
    """Directly above it or, for a group, directly below."""
    lines = (chart / "values.yaml").read_text(encoding="utf-8").splitlines()
    silent = [
        line
        for before, line, after in zip(lines, lines[1:], [*lines[2:], ""], strict=False)
        if re.match(r"\w+:", line) and not any(near.lstrip().startswith("# ") for near in (before, after))
    ]

    assert silent == []


GOOD: dict[str, dict[str, Any]] = {
    "many namespaces": {"watchNamespaces": ["a", "b"]},
    "a digest": {"image": {"repository": "registry.example:5000/ireko", "digest": "sha256:" + "0" * 64}},
    "pod defaults": {"podDefaults": {"metadata": {"labels": {"team": "edge"}}, "spec": {"hostAliases": []}}},
    "values of a parent chart": {"global": {"anything": [1]}},
}

BAD: dict[str, tuple[dict[str, Any], str]] = {
    "a misspelt value": ({"replica": 2}, "replica"),
    "a misspelt value further down": ({"tracking": {"url": "http://mlflow"}}, "url"),
    "a negative number of replicas": ({"replicas": -1}, "minimum"),
    "no workers": ({"workers": 0}, "minimum"),
    "a number as text": ({"workers": "four"}, "not of type 'integer'"),
    "a submission mode that does not exist": ({"submissionMode": "SSH"}, "SSH"),
    "a password in the tracking URI": ({"tracking": {"uri": "https://me:secret@mlflow"}}, "does not match"),
    "a tracking URI that is a file": ({"tracking": {"uri": "sqlite:///mlflow.db"}}, "does not match"),
    "a namespace twice": ({"watchNamespaces": ["a", "a"]}, "non-unique"),
    "a namespace in capitals": ({"watchNamespaces": ["Team"]}, "does not match"),
    "an unknown exception": ({"podExceptions": ["Everything"]}, "Everything"),
    "an unknown alert": ({"prometheusRule": {"disabled": ["Nothing"]}}, "Nothing"),
    "a port out of range": ({"service": {"port": 70000}}, "maximum"),
    "a memory that is none": ({"resources": {"limits": {"memory": "512 MB"}}}, "does not match"),
    "a pod template with a status": ({"podDefaults": {"status": {}}}, "status"),
    "a log level in capitals": ({"log": {"level": "INFO"}}, "INFO"),
}


@pytest.mark.parametrize("extra", GOOD.values(), ids=GOOD)
def test_what_holds_is_taken(extra: dict[str, Any], schema: dict[str, Any], values: dict[str, Any]) -> None:
    jsonschema.Draft7Validator(schema).validate(_merged(values, extra))


@pytest.mark.parametrize(("extra", "sentence"), BAD.values(), ids=BAD)
def test_what_does_not_hold_is_refused(
    extra: dict[str, Any], sentence: str, schema: dict[str, Any], values: dict[str, Any]
) -> None:
    errors = list(jsonschema.Draft7Validator(schema).iter_errors(_merged(values, extra)))

    assert len(errors) == 1
    assert sentence in errors[0].message or sentence == errors[0].validator


def _merged(base: dict[str, Any], extra: dict[str, Any]) -> dict[str, Any]:
    merged = copy.deepcopy(base)
    for name, value in extra.items():
        both = isinstance(value, dict) and isinstance(merged.get(name), dict)
        merged[name] = _merged(merged[name], value) if both else value
    return merged
