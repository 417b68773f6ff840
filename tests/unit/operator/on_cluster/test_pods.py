"""The strategic merge of pod templates, and what is put back after it."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ireko_operator.launch.pods import hardened, merge

Template = dict[str, Any]


@pytest.mark.parametrize(
    ("base", "overlay", "merged"),
    [
        ({"a": 1}, {"b": 2}, {"a": 1, "b": 2}),
        ({"a": 1}, {"a": 2}, {"a": 2}),
        ({"a": 1, "b": 2}, {"a": None}, {"b": 2}),
        ({}, {"a": None}, {}),
        ({"a": {"b": 1, "c": 2}}, {"a": {"c": 3}}, {"a": {"b": 1, "c": 3}}),
        ({"a": {"b": 1}}, {"a": {"b": None}}, {"a": {}}),
        ({"args": ["a", "b"]}, {"args": ["c"]}, {"args": ["c"]}),
        ({"tolerations": [{"key": "a"}]}, {"tolerations": [{"key": "b"}]}, {"tolerations": [{"key": "b"}]}),
        (
            {"containers": [{"name": "a", "image": "x", "tty": True}, {"name": "b"}]},
            {"containers": [{"name": "c"}, {"name": "a", "image": "y"}]},
            {"containers": [{"name": "a", "image": "y", "tty": True}, {"name": "b"}, {"name": "c"}]},
        ),
        (
            {"env": [{"name": "A", "value": "1"}]},
            {"env": [{"name": "B", "value": "2"}, {"name": "A", "value": "3"}]},
            {"env": [{"name": "A", "value": "3"}, {"name": "B", "value": "2"}]},
        ),
        (
            {"volumeMounts": [{"name": "a", "mountPath": "/a"}]},
            {"volumeMounts": [{"name": "b", "mountPath": "/a"}, {"name": "a", "mountPath": "/c"}]},
            {"volumeMounts": [{"name": "b", "mountPath": "/a"}, {"name": "a", "mountPath": "/c"}]},
        ),
        (
            {"volumes": [{"name": "a", "emptyDir": {"medium": "Memory"}}]},
            {"volumes": [{"name": "a", "configMap": {"name": "x"}}, {"name": "b", "emptyDir": {}}]},
            {"volumes": [{"name": "a", "configMap": {"name": "x"}}, {"name": "b", "emptyDir": {}}]},
        ),
        (
            {"ports": [{"containerPort": 1, "name": "a"}]},
            {"ports": [{"containerPort": 1, "protocol": "UDP"}]},
            {"ports": [{"containerPort": 1, "name": "a", "protocol": "UDP"}]},
        ),
    ],
    ids=str,
)
def test_a_template_is_laid_over_another(base: Template, overlay: Template, merged: Template) -> None:
    assert merge(base, overlay) == merged


SCALARS = st.integers(0, 3) | st.text("ab", max_size=2) | st.booleans()
NAMED = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", "c"])}, optional={"image": SCALARS, "tty": SCALARS}
)
TEMPLATES = st.recursive(
    st.dictionaries(st.sampled_from(["x", "y", "z"]), SCALARS, max_size=3),
    lambda below: st.fixed_dictionaries(
        {},
        optional={
            "spec": below,
            "metadata": below,
            "containers": st.lists(NAMED, max_size=3, unique_by=lambda item: item["name"]),
            "volumes": st.lists(NAMED, max_size=2, unique_by=lambda item: item["name"]),
            "args": st.lists(SCALARS, max_size=2),
        },
    ),
    max_leaves=6,
)


@settings(deadline=None, max_examples=80)
@given(base=TEMPLATES, overlay=TEMPLATES)
def test_merging_changes_neither_and_once_is_as_good_as_twice(base: Template, overlay: Template) -> None:
    before = copy.deepcopy((base, overlay))
    merged = merge(base, overlay)
    assert (base, overlay) == before
    assert merge(merged, overlay) == merged


@settings(deadline=None, max_examples=80)
@given(template=TEMPLATES)
def test_nothing_laid_over_something_is_that(template: Template) -> None:
    assert merge(template, {}) == template
    assert merge({}, template) == template
    assert merge(template, template) == template


@settings(deadline=None, max_examples=80)
@given(one=TEMPLATES, two=TEMPLATES, three=TEMPLATES)
def test_it_does_not_matter_which_two_are_merged_first(one: Template, two: Template, three: Template) -> None:
    """Where none takes a field away: the administrator's defaults and the user's template are two layers."""
    assert unordered(merge(merge(one, two), three)) == unordered(merge(one, merge(two, three)))


def unordered(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: unordered(below) for key, below in value.items()}
    if isinstance(value, list) and value and isinstance(value[0], dict):
        return sorted((unordered(item) for item in value), key=str)
    return value


@settings(deadline=None, max_examples=40)
@given(base=TEMPLATES, overlay=TEMPLATES)
def test_the_result_shares_nothing_with_what_was_merged(base: Template, overlay: Template) -> None:
    merged = merge(base, overlay)
    before = copy.deepcopy((base, overlay))
    _scribble(merged)
    assert (base, overlay) == before


def _scribble(value: Any) -> None:
    if isinstance(value, dict):
        for below in value.values():
            _scribble(below)
        value["scribbled"] = True
    elif isinstance(value, list):
        for below in value:
            _scribble(below)
        value.append("scribbled")


def test_every_container_gets_the_restricted_profile() -> None:
    spec = hardened({"spec": {"containers": [{"name": "a"}], "initContainers": [{"name": "b"}]}})["spec"]
    assert spec["automountServiceAccountToken"] is False
    assert spec["securityContext"] == {"runAsNonRoot": True, "seccompProfile": {"type": "RuntimeDefault"}}
    for container in (*spec["containers"], *spec["initContainers"]):
        assert container["securityContext"] == {
            "allowPrivilegeEscalation": False,
            "capabilities": {"drop": ["ALL"]},
        }


def test_what_is_set_otherwise_stays() -> None:
    """Who may set it is decided before: the administrator always, the author of a run by an exception."""
    spec = hardened(
        {
            "spec": {
                "automountServiceAccountToken": True,
                "securityContext": {"runAsNonRoot": False, "runAsUser": 0},
                "containers": [{"name": "a", "securityContext": {"capabilities": {"add": ["SYS_PTRACE"]}}}],
            }
        }
    )["spec"]
    assert spec["automountServiceAccountToken"] is True
    assert spec["securityContext"]["runAsNonRoot"] is False
    assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    (container,) = spec["containers"]
    assert container["securityContext"]["capabilities"] == {"drop": ["ALL"], "add": ["SYS_PTRACE"]}


def test_taking_the_profile_away_brings_it_back() -> None:
    taken = merge(
        {"spec": {"securityContext": {"runAsNonRoot": True}, "containers": [{"name": "a"}]}},
        {"spec": {"securityContext": None, "containers": [{"name": "a", "securityContext": None}]}},
    )
    assert hardened(taken)["spec"]["securityContext"]["runAsNonRoot"] is True
    assert hardened(taken)["spec"]["containers"][0]["securityContext"]["allowPrivilegeEscalation"] is False
