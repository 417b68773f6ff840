"""Manifests as people write them: YAML or JSON files that hold one or several documents.

The API server's own reader sets the rules here, so that a file means the same to `ireko run` and to
`kubectl apply`: a key stands once, `1e-4` is a number, and a date is a string.
"""

from __future__ import annotations

import json
import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any, NamedTuple

import yaml

from ireko_api.spec import CompressionRun
from ireko_api.validation import find_problems, parse
from ireko_operator.errors import ManifestError, UsageError


class Document(NamedTuple):
    """One document of a manifest file, before validation."""

    label: str
    """Empty, or `document 2: ` where the file holds several."""
    content: object


class _Loader(yaml.SafeLoader):
    """Safe YAML in which a repeated key is an error and scalars resolve as they do in Kubernetes."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """The mapping, or a `ConstructorError` at the key that stands there twice."""
        seen = set()
        for key_node, _ in node.value:
            if key_node.tag == "tag:yaml.org,2002:merge":
                continue
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                raise yaml.constructor.ConstructorError(
                    None, None, "a key must be a plain value", key_node.start_mark
                )
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands here a second time: remove one", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep=deep)


_TIMESTAMP = "tag:yaml.org,2002:timestamp"
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != _TIMESTAMP]
    for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
}
_Loader.add_implicit_resolver(  # PyYAML wants a point and a sign in 1.0e-4
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+\.?\d*|\.\d+)[eE][-+]?\d+$"), list("-+.0123456789")
)


def read_documents(path: Path) -> list[Document]:
    """The documents of a file, empty ones left out.

    Raises `UsageError` when there is no such file and `ManifestError` when its text is not YAML or JSON.
    """
    text = _read_text(path)
    contents = [_parse_json(path, text)] if path.suffix == ".json" else _parse_yaml(path, text)
    contents = [content for content in contents if content is not None]
    if not contents:
        raise ManifestError(
            [f"{path}: the file holds no manifest: it needs apiVersion, kind, metadata and spec"]
        )
    if len(contents) == 1:
        return [Document("", contents[0])]
    return [Document(f"document {number}: ", content) for number, content in enumerate(contents, start=1)]


def find_problem_lines(path: Path) -> list[str]:
    """Every problem of every document of a file as `FILE: path: what is wrong`; empty when there is none."""
    try:
        documents = read_documents(path)
    except ManifestError as error:
        return error.lines
    return [
        f"{path}: {document.label}{_describe(problem.path, problem.message)}"
        for document in documents
        for problem in find_problems(document.content)
    ]


def load_run(path: Path) -> CompressionRun:
    """The one run that a file describes, valid; raises `ManifestError` with every problem otherwise."""
    lines = find_problem_lines(path)
    if lines:
        raise ManifestError(lines)
    documents = read_documents(path)
    if len(documents) > 1:
        raise ManifestError(
            [
                f"{path}: the file holds {len(documents)} runs and `ireko run` takes one: put each "
                "into its own file"
            ]
        )
    return parse(documents[0].content)


def _describe(field: str, message: str) -> str:
    return f"{field}: {message}" if field else message


def _read_text(path: Path) -> str:
    if path.is_dir():
        raise UsageError(f"{path} is a directory: name a manifest file (YAML or JSON).")
    try:
        return path.read_text(encoding="utf-8-sig")
    except FileNotFoundError:
        raise UsageError(f"{path} does not exist: name a manifest file (YAML or JSON).") from None
    except PermissionError:
        raise UsageError(f"{path} cannot be read: permission denied.") from None
    except UnicodeDecodeError as error:
        raise ManifestError(
            [f"{path}: the file is not UTF-8 text (byte {error.start}): save it as UTF-8"]
        ) from error


def _parse_yaml(path: Path, text: str) -> list[object]:
    try:
        return list(yaml.load_all(text, Loader=_Loader))
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark or error.context_mark
        where = f"line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ManifestError([f"{path}: {where}{error.problem or error.context}"]) from error
    except yaml.YAMLError as error:
        raise ManifestError([f"{path}: {' '.join(str(error).split())}"]) from error
    except RecursionError as error:
        raise ManifestError([f"{path}: the lists and maps are nested too deeply for a manifest"]) from error


def _parse_json(path: Path, text: str) -> object:
    def unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
        mapping = dict(pairs)
        if len(mapping) < len(pairs):
            keys = [key for key, _ in pairs]
            twice = next(key for key in keys if keys.count(key) > 1)
            raise ManifestError([f"{path}: the key {twice!r} stands twice in one object: remove one"])
        return mapping

    try:
        return json.loads(text, object_pairs_hook=unique) if text.strip() else None
    except json.JSONDecodeError as error:
        raise ManifestError([f"{path}: line {error.lineno}, column {error.colno}: {error.msg}"]) from error
    except RecursionError as error:
        raise ManifestError([f"{path}: the objects are nested too deeply for a manifest"]) from error
