"""The CustomResourceDefinition, generated: what the API server checks is what the models say.

Beside types and bounds it carries every `Rule` of the models as CEL, and makes the spec immutable but for the
fields that the models call mutable: a run is an experiment, and an experiment whose settings change half-way
has no result.
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

IMMUTABLE_MESSAGE = (
    "a run cannot be changed once it exists, but for suspend and compute.ttlSecondsAfterFinished:"
    " delete it, or make a new one under another name"
)

_ALWAYS, _WIDE = 0, 1
"""Priorities of columns: `kubectl get crun`, and only `kubectl get crun -o wide`."""

_PRINTER_COLUMNS = (
    ("Phase", "string", ".status.phase", _ALWAYS, "Summary of the conditions."),
    ("Stage", "string", ".status.progress.stage", _ALWAYS, "The stage that is being worked on."),
    ("Percent", "integer", ".status.progress.percent", _ALWAYS, "Share of the whole run that is done."),
    ("ETA", "integer", ".status.progress.etaSeconds", _ALWAYS, "Estimated seconds to the end."),
    ("Members", "string", ".status.registered", _ALWAYS, "Registered models, of how many device targets."),
    ("Age", "date", ".metadata.creationTimestamp", _ALWAYS, "Time since the run was made."),
    ("Reason", "string", ".status.reason", _WIDE, "Why the run stands where it stands."),
    ("Attempt", "integer", ".status.attempts[-1:].number", _WIDE, "The last start of the trainer."),
    ("Queue", "string", ".spec.compute.queueName", _WIDE, "The queue that the run waits in."),
    ("RayJob", "string", ".status.attempts[-1:].rayJob", _WIDE, "The RayJob of the last attempt."),
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
                        {
                            "name": name,
                            "type": kind,
                            "jsonPath": path,
                            "priority": priority,
                            "description": text,
                        }
                        for name, kind, path, priority, text in _PRINTER_COLUMNS
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
    _freeze(spec, model=CompressionRunSpec)
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


def _freeze(schema: Schema, *, model: type[SpecModel]) -> None:
    """Let nothing of `schema` change but the fields that `model` and the models below it call mutable.

    The API server compares a field with its old self only where it is there before and after. An optional one
    might thus come and go, so its rule stands at the object that holds it.
    """
    nested = {name: child for name, child, is_list in children(model) if not is_list}
    for name, field in schema["properties"].items():
        if name in model.MUTABLE:
            continue
        if name in nested and _has_mutable(nested[name]):
            _freeze(field, model=nested[name])
        elif name in schema.get("required", ()) or "default" in field:
            field.setdefault(VALIDATIONS, []).append(_immutable("self == oldSelf"))
        else:
            rule = (
                f"has(self.{name}) == has(oldSelf.{name})"
                f" && (!has(self.{name}) || self.{name} == oldSelf.{name})"
            )
            schema.setdefault(VALIDATIONS, []).append({**_immutable(rule), "fieldPath": f".{name}"})


def _has_mutable(model: type[SpecModel]) -> bool:
    return bool(model.MUTABLE) or any(_has_mutable(child) for _, child, _ in children(model))


def _immutable(rule: str) -> dict[str, Any]:
    return {"rule": rule, "message": IMMUTABLE_MESSAGE, "reason": "FieldValueForbidden"}
