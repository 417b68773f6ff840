"""What the models refuse on a laptop, a real API server refuses too; rules in the same words."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import yaml
from kubernetes.client.exceptions import ApiException
from kubernetes.dynamic.exceptions import DynamicApiError

from api.tables import FORM, MINIMAL, RULES, Manifest, edited, manifest_with
from ireko_api.spec import CompressionRun
from ireko_api.validation import find_problems
from rig.api_server import Cluster

Submit = Callable[[Any], dict[str, Any]]


def refusal(submit: Submit, manifest: Manifest) -> str:
    """What the API server says against `manifest`."""
    with pytest.raises(ApiException) as refused:
        submit(manifest)
    assert refused.value.status in (400, 422)
    said: str = json.loads(refused.value.body)["message"]
    return said


def as_json_has_it(text: str) -> Any:
    """The value that YAML reads from `text`, unless JSON, the API server's language, has no such value."""
    value = yaml.safe_load(text)
    try:
        json.dumps(value, allow_nan=False)
    except (TypeError, ValueError):
        return None
    return value


SENDABLE = [(path, as_json_has_it(text)) for path, text, _ in FORM if as_json_has_it(text) is not None]


@pytest.mark.parametrize(("path", "value"), SENDABLE, ids=[f"{path}={value}" for path, value in SENDABLE])
def test_a_malformed_field_is_refused_by_its_name(try_out: Submit, path: str, value: Any) -> None:
    place = "spec." + path.replace(".0", "[0]")
    assert place in refusal(try_out, manifest_with({path: value})).replace("Required value", place)


@pytest.mark.parametrize(
    ("edits", "path", "beginning"), RULES, ids=[f"{number}-{row[1]}" for number, row in enumerate(RULES)]
)
def test_a_broken_rule_is_refused_in_the_words_of_the_rule(
    try_out: Submit, edits: dict[str, Any], path: str, beginning: str
) -> None:
    manifest = manifest_with(edits)
    (problem,) = find_problems(manifest)
    said = refusal(try_out, manifest)
    assert problem.message in said
    assert f"spec.{path}:" in said


def test_every_broken_rule_is_told_at_once(try_out: Submit) -> None:
    manifest = manifest_with({"teacher.revision": "main", "data.holdoutPercent": 0, "pipeline": {}})
    said = refusal(try_out, manifest)
    assert [problem for problem in find_problems(manifest) if problem.message not in said] == []


@pytest.mark.parametrize("name", ["a" * 41, "Quickstart", "a.b"])
def test_a_name_that_jobs_cannot_be_named_after_is_refused(try_out: Submit, name: str) -> None:
    assert "metadata.name" in refusal(try_out, edited(MINIMAL, {"metadata.name": name}))


def test_kubectl_shows_the_sentence_to_the_person_who_applies(api_server: Cluster, namespace: str) -> None:
    manifest = manifest_with({"data.holdoutPercent": 0})
    (problem,) = find_problems(manifest)
    refused = api_server.kubectl(
        "apply", "--dry-run=server", "-n", namespace, "-f", "-", manifest=manifest, check=False
    )
    assert refused.returncode != 0
    assert f"spec.{problem.path.removeprefix('spec.')}" in refused.stderr
    assert problem.message in refused.stderr


def test_kubectl_refuses_a_misspelt_field_instead_of_dropping_it(api_server: Cluster, namespace: str) -> None:
    manifest = manifest_with({"pipeline.mlfs.rnk": 8})
    refused = api_server.kubectl(
        "apply", "--dry-run=server", "-n", namespace, "-f", "-", manifest=manifest, check=False
    )
    assert refused.returncode != 0
    assert 'unknown field "spec.pipeline.mlfs.rnk"' in refused.stderr


def test_the_api_server_fills_in_what_the_models_fill_in(try_out: Submit) -> None:
    """The same digest before and after: the operator and a laptop name the same run the same way."""
    kept = try_out(copy.deepcopy(MINIMAL))
    by_server = CompressionRun.model_validate(kept, by_alias=True, by_name=False)
    by_models = CompressionRun.model_validate(MINIMAL, by_alias=True, by_name=False)
    assert by_server.spec.digest() == by_models.spec.digest()


def test_a_refused_run_leaves_nothing_behind(api_server: Cluster, try_out: Submit, namespace: str) -> None:
    with pytest.raises(DynamicApiError):
        try_out(manifest_with({"data.holdoutPercent": 0}))
    assert api_server.kubectl("get", "crun", "-n", namespace, "-o", "name").stdout == ""
