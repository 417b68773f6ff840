"""The CustomResourceDefinition, generated: what the API server checks is what the models say.

Beside types and bounds it carries every `Rule` of the models as CEL, and makes the spec immutable: a run is
an experiment, and an experiment whose settings change half-way has no result.
"""

from __future__ import annotations

import json
from typing import Any

from ireko_api.base import FORM, Rule, SpecModel
from ireko_api.schema import Schema, children, schema_of, walk
from ireko_api.spec import GROUP, KIND, PLURAL, VERSION, CompressionRun, CompressionRunSpec, ObjectMeta
from ireko_api.status import CompressionRunStatus

SHORT_NAME = "crun"
VALIDATIONS = "x-kubernetes-validations"

IMMUTABLE_MESSAGE = "a run cannot be changed once it exists: delete it, or make a new one under another name"

_PRINTER_COLUMNS = (
    ("Phase", "string", ".status.phase", "Summary of the conditions."),
    ("Stage", "string", ".status.progress.stage", "The stage that is being worked on."),
    ("Percent", "integer", ".status.progress.percent", "Share of the whole run that is done."),
    ("ETA", "integer", ".status.progress.etaSeconds", "Estimated seconds to the end."),
    ("Members", "string", ".status.members[*].target", "Device targets whose models are registered."),
    ("Age", "date", ".metadata.creationTimestamp", "Time since the run was made."),
)


def custom_resource_definition() -> dict[str, Any]:
    """The CRD as plain JSON data that shares no parts, so that a YAML writer needs no anchors."""
    definition = {
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": f"{PLURAL}.{GROUP}"},
        "spec": {
            "group": GROUP,
            "names": {
                "kind": KIND,
                "listKind": f"{KIND}List",
                "plural": PLURAL,
                "singular": KIND.lower(),
                "shortNames": [SHORT_NAME],
                "categories": ["all", "ml", "ireko"],
            },
            "scope": "Namespaced",
            "versions": [
                {
                    "name": VERSION,
                    "served": True,
                    "storage": True,
                    "schema": {"openAPIV3Schema": open_api_schema()},
                    "subresources": {"status": {}},
                    "additionalPrinterColumns": [
                        {"name": name, "type": kind, "jsonPath": path, "description": text}
                        for name, kind, path, text in _PRINTER_COLUMNS
                    ],
                }
            ],
        },
    }
    return _unshared(definition)


def _unshared(data: dict[str, Any]) -> dict[str, Any]:
    copied: dict[str, Any] = json.loads(json.dumps(data))
    return copied


def _for_the_api_server(schema: Schema) -> Schema:
    """A copy without what is only meant for our own sentences."""
    copied = _unshared(schema)
    for _, node in walk(copied):
        node.pop(FORM, None)
    return copied


def open_api_schema() -> Schema:
    """The structural schema of the whole object, rules included."""
    spec = _with_rules(_for_the_api_server(schema_of(CompressionRunSpec)), model=CompressionRunSpec)
    for child in spec["properties"].values():
        child.setdefault(VALIDATIONS, []).append(_immutable())
    run = schema_of(CompressionRun)
    return {
        "type": "object",
        "description": run["description"],
        "required": ["metadata", "spec"],
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": _metadata_schema(),
            "spec": {**spec, "description": run["properties"]["spec"]["description"]},
            "status": _for_the_api_server(schema_of(CompressionRunStatus)),
        },
    }


def _metadata_schema() -> Schema:
    """Only the name: the API server lets a CRD restrict nothing else of the metadata."""
    name = _for_the_api_server(schema_of(ObjectMeta)["properties"]["name"])
    return {"type": "object", "properties": {"name": name}}


def _with_rules(schema: Schema, *, model: type[SpecModel]) -> Schema:
    """`schema` with the rules of `model` and of every model below it, each at its own object."""
    if model.RULES:
        schema[VALIDATIONS] = [_validation(rule) for rule in model.RULES]
    for name, nested, is_list in children(model):
        child = schema["properties"][name]
        _with_rules(child["items"] if is_list else child, model=nested)
    return schema


def _validation(rule: Rule) -> dict[str, Any]:
    return {"rule": rule.cel, "message": rule.message, "fieldPath": f".{rule.field}"}


def _immutable() -> dict[str, Any]:
    return {"rule": "self == oldSelf", "message": IMMUTABLE_MESSAGE, "reason": "FieldValueForbidden"}
