"""The users' reference of the manifest, in Markdown, made from the models.

One table per object, in the order in which a reader meets them: what each field takes, its default, what it
does. The texts are those of `kubectl explain`.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from ireko_api import wording
from ireko_api.base import SpecModel
from ireko_api.reasons import ConditionType, Reason
from ireko_api.schema import INT_OR_STRING, Schema, children, schema_of
from ireko_api.spec import API_VERSION, KIND, CompressionRun

_TABLE_HEAD = ("| Field | Takes | Default | Meaning |", "|---|---|---|---|")

_INTRODUCTION = f"""\
# {KIND}

Every field of the manifest, `apiVersion: {API_VERSION}`. This page is generated from the models in
`crds/ireko_api`; `kubectl explain crun.spec` shows the same texts. A field that is left out, or given as
`null`, takes its default. **Required** fields have none. Unknown fields are refused.
"""

_REASONS = """\
## Conditions and reasons

Conditions are the truth about a run; `phase` sums them up. Programs should match on `type`, `status` and
`reason`, people should read `message`.
"""


def markdown() -> str:
    """The whole page."""
    return "\n".join([_INTRODUCTION, *_objects(CompressionRun), _reasons()])


def _objects(model: type[SpecModel]) -> Iterator[str]:
    """One section for each kind of object, under every path that it is found at."""
    paths: dict[type[SpecModel], list[str]] = {}
    for path, found in _walk(model, path=""):
        paths.setdefault(found, []).append(path)
    for found, places in paths.items():
        yield _section(found, paths=places)


def _walk(model: type[SpecModel], *, path: str) -> Iterator[tuple[str, type[SpecModel]]]:
    yield path, model
    for name, child, is_list in children(model):
        yield from _walk(child, path=f"{path}.{name}{'[]' if is_list else ''}".removeprefix("."))


def _section(model: type[SpecModel], *, paths: list[str]) -> str:
    schema = schema_of(model)
    heading = "## " + (", ".join(f"`{path}`" for path in paths) if all(paths) else "The document")
    required = schema.get("required", ())
    rows = [_row(name, field, required=name in required) for name, field in schema["properties"].items()]
    parts = [heading, schema["description"], "\n".join([*_TABLE_HEAD, *rows])]
    if model.RULES:
        parts.append("Rules:\n\n" + "\n".join(f"* `{rule.field}`: {rule.message}." for rule in model.RULES))
    return "\n\n".join(parts) + "\n"


def _row(name: str, field: Schema, *, required: bool) -> str:
    default = "**required**" if required else _default(field)
    return f"| `{name}` | {_cell(_takes(field))} | {default} | {_cell(field.get('description', ''))} |"


def _takes(field: Schema) -> str:
    if field.get("type") == "object":
        return "a mapping"
    if field.get("type") == "array" and INT_OR_STRING not in field:
        return f"{wording.expectation(field)}, each {_takes(field['items'])}"
    return wording.expectation(field)


def _default(field: Schema) -> str:
    if "default" not in field:
        return "–"
    default: Any = field["default"]
    if default == {}:
        return "see below"
    return f"`{_yaml(default)}`"


def _yaml(value: Any) -> str:
    """A default as one would write it in the manifest."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, list):
        return f"[{', '.join(map(_yaml, value))}]"
    if isinstance(value, float) and value == int(value):
        return str(int(value))
    return str(value)


def _cell(text: str) -> str:
    return text.replace("|", "\\|")


def _reasons() -> str:
    lines = [_REASONS, "| Condition | Meaning |", "|---|---|"]
    lines += [f"| `{kind}` | {_cell(kind.sentence)} |" for kind in ConditionType]
    lines += ["", "| Reason | Meaning |", "|---|---|"]
    lines += [f"| `{reason}` | {_cell(reason.sentence)} |" for reason in Reason]
    return "\n".join(lines) + "\n"
