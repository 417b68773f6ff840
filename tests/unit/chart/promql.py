"""What a PromQL expression asks for: its selectors, checked against what a process exports."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Any

import promql_parser

SCRAPED = frozenset({"namespace", "job", "pod", "instance", "service", "endpoint", "container"})
"""Labels that Prometheus adds when it scrapes."""

Exported = Mapping[str, list[dict[str, str]]]
"""Label sets by the name of their series, as /metrics has them."""


def selectors(expression: str) -> list[promql_parser.VectorSelector]:
    """Every selector in an expression; raises ValueError where it does not parse."""
    return list(_selectors(promql_parser.parse(expression)))


def _selectors(node: Any) -> Iterator[promql_parser.VectorSelector]:
    if isinstance(node, promql_parser.VectorSelector):
        yield node
        return
    for part in ("vector_selector", "expr", "lhs", "rhs", "param"):
        child = getattr(node, part, None)
        if child is not None:
            yield from _selectors(child)
    for argument in getattr(node, "args", None) or []:
        yield from _selectors(argument)


def unanswered(selector: promql_parser.VectorSelector, exported: Exported) -> str | None:
    """Why no series of the process can match, or None."""
    series = exported.get(selector.name)
    if not series:
        return f"{selector.name} is not exported"
    for matcher in selector.matchers.matchers:
        if matcher.name in SCRAPED:
            continue
        words = {labels.get(matcher.name) for labels in series}
        if not any(word is not None and _matches(matcher, word) for word in words):
            return f"{selector.name}{{{matcher.name}}} is never {matcher.value}, but one of {words}"
        wanted = set(matcher.value.split("|"))
        if not wanted <= words:
            return f"{selector.name}{{{matcher.name}}} is never {sorted(wanted - words)}"
    return None


def _matches(matcher: promql_parser.Matcher, word: str) -> bool:
    if matcher.op == promql_parser.MatchOp.Equal:
        return word == matcher.value
    if matcher.op == promql_parser.MatchOp.Re:
        return re.fullmatch(matcher.value, word) is not None
    raise AssertionError(f"the checks know no matcher {matcher.op}")


def grouped(expression: str) -> set[str]:
    """The labels that an expression groups or joins by."""
    found = re.findall(r"\b(?:by|on|ignoring)\s*\(([^)]*)\)", expression)
    return {label.strip() for labels in found for label in labels.split(",") if label.strip()}
